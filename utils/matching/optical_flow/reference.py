"""Dense optical flow of many image pairs at once in torch, for images that are already close to each other.

Coarse to fine, with two steps on each level. The first finds how far windows are off: at every pixel the shift v for which the linearised
difference vanishes,

    min_v  sum_window m (g . (v - u) + target(x + u) - source(x) - mean)^2 + stiffness n |v - smooth(u)|^2,

where u is the flow so far at each pixel of the window, g the gradient of the source and m whether a pixel counts (iterative Lucas-Kanade,
Le Besnerais and Champagnat, ICIP 2005; the mean takes up brightness that changed). The second makes the field sharp and exact: robust
constancy of brightness and of its gradient against a robust smoothness (Brox et al., ECCV 2004), relaxed by Jacobi steps. Both are needed:
robust terms alone take far too many steps from zero, and windows alone smear over edges.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.cameras.pixels import pixel_grid
from utils.device.triton_support import triton_ready


@dataclass(frozen=True)
class Level:
    """What is done at one resolution.

    Attributes:
        scale: image pixels per pixel of this level.
        shifts: window steps.
        refinements: linearisations of the robust step.
    """

    scale: int
    shifts: int
    refinements: int


LEVELS = (Level(4, 2, 4), Level(2, 2, 4), Level(1, 1, 3))
RELAXATIONS = 20  # Jacobi steps per linearisation
WINDOW = 9  # pixels
_STIFFNESS = 4.0  # squared grey levels per pixel of shift: what noise alone shows
_SMOOTHNESS, _BRIGHTNESS, _GRADIENT = 10.0, 5.0, 10.0  # weights of the robust terms
_FLAT = 0.1  # gradient in grey levels below which a pixel says little
_ROBUST = 0.03  # pixels up to which the robust terms are quadratic
ROBUST_TERMS = (_SMOOTHNESS, _BRIGHTNESS, _GRADIENT, _FLAT, _ROBUST)


def dense_flow(source: Tensor, target: Tensor, known: Tensor, levels: Sequence[Level] = LEVELS, smoothness: float = _SMOOTHNESS) -> Tensor:
    """Flow (B, H, W, 2) in pixels with target(x + flow(x)) = source(x).

    Args:
        source: (B, H, W) float32 grey levels 0..255.
        target: (B, H, W) float32.
        known: (B, H, W) bool, pixels of the target that show something; others should hold what the source shows.
        levels: from coarse to fine.
        smoothness: weight of the robust smoothness.
    """
    images = source[:, None], target[:, None], known[:, None].float()
    flow = source.new_zeros(len(source), 2, 1, 1)
    reached = levels[0].scale
    for level in levels:
        if min(source.shape[1:]) < level.scale * WINDOW:
            continue
        a, b, mask = (F.avg_pool2d(image, level.scale) for image in images)
        flow = F.interpolate(flow, a.shape[2:], mode="bilinear", align_corners=False) * (reached / level.scale)
        reached = level.scale
        flow = _shift(a, b, mask, flow, level.shifts)
        for _ in range(level.refinements):
            flow = _refine(a, b, mask, flow, smoothness)
    return flow.permute(0, 2, 3, 1)


def box_mean(images: Tensor) -> Tensor:
    """Mean over the window around every pixel of images (B, C, H, W); pixels outside count as 0."""
    half = WINDOW // 2
    return F.avg_pool2d(F.avg_pool2d(images, (WINDOW, 1), 1, (half, 0)), (1, WINDOW), 1, (0, half))


def sample(images: Tensor, places: Tensor) -> Tensor:
    """Bilinear samples (B, C, H', W') of images (B, C, H, W) at pixel coordinates (B, H', W', 2), the border continued outwards."""
    scale = _to_unit(images.shape[2], images.shape[3], places.dtype, places.device)
    return F.grid_sample(images, places * scale - 1.0, mode="bilinear", padding_mode="border", align_corners=False)


@functools.cache
def _to_unit(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2,) factors from pixels to 0..2; kept, since a copy to the device waits for all that runs there."""
    return torch.tensor([2.0 / width, 2.0 / height], dtype=dtype, device=device)


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of images (B, C, H, W), across and down."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2, (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2


def _shift(source: Tensor, target: Tensor, mask: Tensor, flow: Tensor, iterations: int) -> Tensor:
    """Flow (B, 2, H, W) after some window steps."""
    gx, gy = (g * mask for g in gradients(source))
    count, mean_x, mean_y, xx, xy, yy = box_mean(torch.cat([mask, gx, gy, gx * gx, gx * gy, gy * gy], 1)).split(1, 1)
    inverse_count = 1.0 / count.clamp(min=1e-3)
    mean_x, mean_y = mean_x * inverse_count, mean_y * inverse_count
    stiff = _STIFFNESS * count + 1e-3
    xx, xy, yy = xx - count * mean_x * mean_x + stiff, xy - count * mean_x * mean_y, yy - count * mean_y * mean_y + stiff
    grid = pixel_grid(source.shape[2], source.shape[3], source.device)
    for _ in range(iterations):
        difference = sample(target, grid + flow.permute(0, 2, 3, 1)) - source
        q = gx * flow[:, :1] + gy * flow[:, 1:] - mask * difference
        qx, qy, mean_q = box_mean(torch.cat([gx * q, gy * q, q], 1)).split(1, 1)
        around = F.avg_pool2d(flow, 5, 1, 2, count_include_pad=False)
        right = torch.cat([qx - mean_x * mean_q, qy - mean_y * mean_q], 1) + stiff * around
        flow = _solve(xx, xy, yy, right)
    return flow


def _refine(source: Tensor, target: Tensor, mask: Tensor, flow: Tensor, smoothness: float) -> Tensor:
    """Flow (B, 2, H, W) after one linearisation of the robust energy at `flow`."""
    warped = sample(target, pixel_grid(source.shape[2], source.shape[3], source.device) + flow.permute(0, 2, 3, 1))
    if flow.is_cuda and triton_ready():
        from utils.matching.optical_flow import triton as flow_triton

        xx, xy, yy, right, stiff = flow_triton.linearised(source, warped, mask, flow, (smoothness, *ROBUST_TERMS[1:]))
    else:
        xx, xy, yy, right, stiff = linearised(source, warped, mask, flow, smoothness)
    across = F.pad((stiff[..., 1:] + stiff[..., :-1]) / 2, (1, 1))  # weight of the edge to the left neighbour, and one more column
    down = F.pad((stiff[..., 1:, :] + stiff[..., :-1, :]) / 2, (0, 0, 1, 1))
    return relax(xx, xy, yy, right, across, down, flow)


def linearised(
    source: Tensor, warped: Tensor, mask: Tensor, flow: Tensor, smoothness: float = _SMOOTHNESS
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Matrix xx, xy, yy (B, 1, H, W) and right side (B, 2, H, W) for the flow itself, and its stiffness (B, 1, H, W) at every pixel."""
    xx, xy, yy, right = _data_term(source, warped, mask)
    right = right + torch.cat([xx * flow[:, :1] + xy * flow[:, 1:], xy * flow[:, :1] + yy * flow[:, 1:]], 1)
    slope_x, slope_y = (g.square().sum(1, keepdim=True) for g in gradients(flow))
    return xx, xy, yy, right, smoothness * _robust(slope_x + slope_y)


def _data_term(source: Tensor, warped: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matrix xx, xy, yy (B, 1, H, W) and right side (B, 2, H, W) of each pixel's normal equations, robustly weighted.

    Both constancies are divided by the gradient they are measured with, so that they are distances in pixels.
    """
    difference = warped - source
    ix, iy = gradients((warped + source) / 2)
    ixx, ixy = gradients(ix)
    iyy = gradients(iy)[1]
    ixt, iyt = gradients(difference)
    norm, norm_x, norm_y = (a * a + b * b + _FLAT**2 for a, b in ((ix, iy), (ixx, ixy), (ixy, iyy)))
    weight = mask * _BRIGHTNESS / norm * _robust(difference * difference / norm)
    gradient = mask * _GRADIENT * _robust(ixt * ixt / norm_x + iyt * iyt / norm_y)
    weight_x, weight_y = gradient / norm_x, gradient / norm_y
    xx = weight * ix * ix + weight_x * ixx * ixx + weight_y * ixy * ixy
    xy = weight * ix * iy + weight_x * ixx * ixy + weight_y * ixy * iyy
    yy = weight * iy * iy + weight_x * ixy * ixy + weight_y * iyy * iyy
    x = weight * ix * difference + weight_x * ixx * ixt + weight_y * ixy * iyt
    y = weight * iy * difference + weight_x * ixy * ixt + weight_y * iyy * iyt
    return xx, xy, yy, -torch.cat([x, y], 1)


def relax(xx: Tensor, xy: Tensor, yy: Tensor, right: Tensor, across: Tensor, down: Tensor, flow: Tensor) -> Tensor:
    """Jacobi steps for the flow (B, 2, H, W) with A v + sum_edges weight (v - neighbour) = right at every pixel.

    Args:
        xx: (B, 1, H, W), with `xy` and `yy` the symmetric 2x2 matrix A.
        xy: see `xx`.
        yy: see `xx`.
        right: (B, 2, H, W).
        across: (B, 1, H, W + 1) weights of the edges left of every pixel, and right of the last; 0 at the border.
        down: (B, 1, H + 1, W) the same above every pixel, and below the last.
        flow: where to start.
    """
    if flow.is_cuda and triton_ready():
        from utils.matching.optical_flow import triton as flow_triton

        return flow_triton.relax(xx, xy, yy, right, across, down, flow, RELAXATIONS)
    left, next_, above, below = across[..., :-1], across[..., 1:], down[..., :-1, :], down[..., 1:, :]
    total = left + next_ + above + below
    xx, yy = xx + total, yy + total
    for _ in range(RELAXATIONS):
        padded = F.pad(flow, (1, 1, 1, 1))
        around = (
            left * padded[..., 1:-1, :-2] + next_ * padded[..., 1:-1, 2:] + above * padded[..., :-2, 1:-1] + below * padded[..., 2:, 1:-1]
        )
        flow = _solve(xx, xy, yy, right + around)
    return flow


def _solve(xx: Tensor, xy: Tensor, yy: Tensor, right: Tensor) -> Tensor:
    """Solutions (B, 2, H, W) of symmetric 2x2 systems."""
    x, y = right[:, :1], right[:, 1:]
    return torch.cat([yy * x - xy * y, xx * y - xy * x], 1) / (xx * yy - xy * xy)


def _robust(squared: Tensor) -> Tensor:
    """Weight of a squared distance under the penalty sqrt(squared + eps^2)."""
    return (squared + _ROBUST**2).rsqrt()
