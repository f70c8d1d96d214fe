"""`plane_sweep` of many refs at once in torch, for a GPU: same steps and thresholds as the compiled code."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.cameras.pixels import pixel_grid
from utils.device.accelerator import in_chunks
from utils.matching.optical_flow.reference import sample
from utils.sfm.plane_sweep import (
    COLOR_SIGMA,
    CONTRAST,
    JUMP,
    LEAST_RANGE,
    NOISE,
    STEP,
    WINDOW,
    better_half,
    coarse_size,
    enlarge,
    planes_for,
    shrink,
    shrink_mask,
)
from utils.sfm.reprojection_batched import sorted_down
from utils.types import Array

_REFS = 96
"""Refs at once: of 48 planes over 12 000 pixels in eight directions, some 20 MB each; fewer take as many steps."""
_COMPARED = 20_000_000
"""Values (pixel, plane, view) compared at once; about 60 bytes are in use for each."""
_ALL_KEPT = 0.999  # share of the pixels between which one lies


@dataclass(frozen=True)
class View:
    """A ref that is swept.

    Attributes:
        frame: its position in the clip.
        image: (H, W, 3) uint8.
        neighbours: positions of V frames.
        poses: rotations (V, 3, 3) and translations (V, 3), neighbour camera from reference camera.
        K: (3, 3).
        inverse: (H, W) float32 current 1/z, of which only the range is used.
    """

    frame: int
    image: Array
    neighbours: list[int]
    poses: tuple[Array, Array]
    K: Array
    inverse: Array


def sweep_all(
    views: list[View], grays: Array, keep: Array | None, device: torch.device, pool: ThreadPoolExecutor
) -> list[tuple[Array, float]]:
    """`plane_sweep.sweep` of every ref: (H, W) float32 1/z, NaN where it is undetermined, and the spacing of the planes.

    Args:
        views: the refs.
        grays: (T, H, W) uint8 of the clip.
        keep: (T, H, W) bool, pixels that may be matched; None: all.
        device: where.
        pool: takes one image at a time.
    """
    height, width = grays.shape[1:]
    size = coarse_size(height, width)
    coarse = torch.from_numpy(np.stack(list(pool.map(partial(shrink, size=size), grays)))).to(device)
    coarse_keep = None
    if keep is not None:
        coarse_keep = torch.from_numpy(np.stack(list(pool.map(partial(shrink_mask, size=size), keep)))).to(device)
    colors = np.stack(list(pool.map(lambda view: shrink(view.image, size), views)))
    planes = np.stack(list(pool.map(lambda view: planes_for(view.inverse), views)))
    scale = np.array([[size[0] / width], [size[1] / height], [1.0]])

    def found(rows: Sequence[int]) -> list[Array]:
        some = [(views[row], planes[row]) for row in rows]
        cost = [_costs(view, coarse, coarse_keep, _put(view.K * scale, coarse), _put(own, coarse)) for view, own in some]
        best = _cheapest(torch.stack(cost), _put(colors[list(rows)], coarse))
        if coarse_keep is not None:
            best = torch.where(coarse_keep[[views[row].frame for row in rows]], best, torch.nan)
        return list(best.cpu().numpy())

    with torch.no_grad():
        best = in_chunks(found, range(len(views)), _REFS, "plane sweeps")
    spacing = planes[:, 1] - planes[:, 0]
    inverse = [(first + step * at).astype(np.float32) for first, step, at in zip(planes[:, 0], spacing, best, strict=True)]
    return list(zip(pool.map(partial(enlarge, size=(width, height)), inverse), map(float, spacing), strict=True))


def _put(array: Array, like: Tensor) -> Tensor:
    """A float32 copy beside a tensor."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(like)


def _costs(view: View, grays: Tensor, keep: Tensor | None, K: Tensor, planes: Tensor) -> Tensor:
    """See `plane_sweep._costs`, (h, w, D); a few planes at a time."""
    step = max(1, _COMPARED // max(1, len(view.neighbours) * grays[0].numel()))
    reference = grays[view.frame][None] - 128  # variances are differences of large numbers
    mean = _blur(reference)
    variance = (_blur(reference.square()) - mean.square()).clamp(min=0)[0]
    parts = [_compared(view, grays, keep, K, some, (reference, mean[0], variance)) for some in planes.split(step)]
    comparable = torch.stack([comparable for _, comparable in parts]).all(0)
    if keep is not None:
        comparable &= _whole_windows(keep[view.frame][None])[0]
    contrast = torch.where(comparable, variance / (variance + CONTRAST**2), 0.0)
    return (torch.cat([cost for cost, _ in parts]) * contrast).permute(1, 2, 0)


def _compared(
    view: View, grays: Tensor, keep: Tensor | None, K: Tensor, planes: Tensor, own: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Costs (D, h, w) without contrast at some planes, and pixels (h, w) that masks hide from few views at all of them.

    Args:
        view: the ref.
        grays: (T, h, w).
        keep: (T, h, w) or None.
        K: (3, 3).
        planes: (D,).
        own: the reference (1, h, w), and mean and variance (h, w) of its windows.
    """
    height, width = grays.shape[1:]
    reference, mean, variance = own
    R, t = (_put(part, grays) for part in view.poses)
    focal, centre = torch.stack([K[0, 0], K[1, 1]]), K[:2, 2]
    rays = F.pad((pixel_grid(height, width, grays.device) - centre) / focal, (0, 1), value=1.0)
    q = torch.einsum("vij,hwj->vhwi", R, rays)[:, None] + planes[:, None, None, None] * t[:, None, None, None]
    at = focal * q[..., :2] / q[..., 2:].clamp(min=1e-3) + centre
    x, y = at.unbind(-1)
    visible = (q[..., 2] > 1e-3) & (x > 0) & (x < width) & (y > 0) & (y < height)
    count, folded = len(planes), (len(R), -1, width, 2)  # planes below each other, as one image

    def seen_in(images: Tensor) -> Tensor:
        return sample(images[view.neighbours][:, None].float(), at.reshape(folded)).view(-1, count, height, width)

    seen = seen_in(grays - 128)
    other, squared, product = (_blur(image) for image in (seen, seen.square(), reference * seen))
    spread = (squared - other.square()).clamp(min=0)
    alike = (product - mean * other + NOISE / 2) / ((variance + NOISE) * (spread + NOISE)).sqrt()
    views, better = len(R), better_half(len(R))
    whole = visible
    comparable = torch.ones_like(visible[0, 0])
    if keep is not None:
        whole = _whole_windows(seen_in(keep) > _ALL_KEPT)
        comparable = ((visible & ~whole).sum(0) <= views - better).all(0)
    best = sorted_down(torch.where(visible & whole, alike, -1.0))[:better]
    return 1 - best.mean(0).clamp(0, 1), comparable


def _blur(images: Tensor) -> Tensor:
    """(..., h, w) mean of the window about each pixel; images are mirrored at their borders."""
    reach, size = WINDOW // 2, images.shape[-2:]
    padded = F.pad(images.reshape(1, -1, *size), (reach, reach, reach, reach), mode="reflect")
    return F.avg_pool2d(F.avg_pool2d(padded, (WINDOW, 1), 1), (1, WINDOW), 1).view(images.shape)


def _whole_windows(keep: Tensor) -> Tensor:
    """(..., h, w) bool, pixels whose window, as far as it lies in the image, lies within `keep`."""
    gaps = F.max_pool2d((~keep).float().reshape(1, -1, *keep.shape[-2:]), WINDOW, 1, WINDOW // 2)
    return (gaps == 0).view(keep.shape)


def _cheapest(cost: Tensor, colors: Tensor) -> Tensor:
    """(R, h, w) cheapest plane, as a number between planes; NaN where planes cost the same. See `plane_sweep._aggregate` and `_best`.

    Args:
        cost: (R, h, w, D).
        colors: (R, h, w, 3).
    """
    total = torch.zeros_like(cost)
    # paths that come from above, then from the left; and the same on the image turned around
    for turned in (lambda array: array, lambda array: array.flip(1, 2)):
        total += turned(_paths(turned(cost), turned(colors), (0, 1, -1)))
        total += turned(_paths(turned(cost).transpose(1, 2), turned(colors).transpose(1, 2), (0,)).transpose(1, 2))
    best = total.argmin(-1, keepdim=True).clamp(1, total.shape[-1] - 2)
    before, at, after = (total.gather(-1, best + step)[..., 0] for step in (-1, 0, 1))
    between = best[..., 0] + (0.5 * (before - after) / (before - 2 * at + after).clamp(min=1e-6)).clamp(-1, 1)
    return torch.where(total.amax(-1) - total.amin(-1) > LEAST_RANGE, between, torch.nan)


def _paths(cost: Tensor, colors: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """(R, h, w, D) sum of the cheapest paths to each pixel and plane from the row above, a column aside for each shift.

    Where a path begins it comes from costs of 0, which changes nothing.
    """
    refs, height, width, planes = cost.shape
    total = torch.empty_like(cost)
    leap = torch.stack([_leaps(colors, shift) for shift in shifts])[..., None]
    path = cost.new_zeros(len(shifts), refs, width + 2, planes + 2)
    path[..., 0], path[..., -1] = torch.inf, torch.inf
    for y in range(height):
        came = torch.stack([path[i, :, 1 - shift : width + 1 - shift] for i, shift in enumerate(shifts)])
        same = came[..., 1:-1]
        least = same.amin(-1, keepdim=True)
        near = torch.minimum(came[..., :-2], came[..., 2:]).add_(STEP)
        here = torch.minimum(torch.minimum(same, near), least + leap[:, :, y]).sub_(least).add_(cost[:, y])
        path[:, :, 1:-1, 1:-1] = here
        total[:, y] = here.sum(0)
    return total


def _leaps(colors: Tensor, shift: int) -> Tensor:
    """(R, h, w) cost of more than a step between each pixel and the one in the row above, `shift` columns before: less at edges."""
    difference = torch.zeros_like(colors[..., 0])
    now = slice(max(shift, 0), colors.shape[2] + min(shift, 0))
    before = slice(max(-shift, 0), colors.shape[2] + min(-shift, 0))
    difference[:, 1:, now] = (colors[:, 1:, now] - colors[:, :-1, before]).abs().sum(-1)
    return (JUMP * torch.exp(-difference / COLOR_SIGMA)).clamp(min=STEP)
