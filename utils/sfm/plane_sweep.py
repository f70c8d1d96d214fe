"""Coarse plane sweep with semi-global matching: inverse depth whose errors are independent of optical flow's.

On blank or mirroring surfaces flow drifts to values on which neighbouring pixels, views and frames all agree, so none of them reveals the
error. A search over all depths, in which windows of little texture weigh little and smoothness decides instead, errs elsewhere. By itself
it is no better than flow; so it only lowers the weight of flow's values that contradict it.

Semi-global matching: Hirschmueller, "Stereo Processing by Semiglobal Matching and Mutual Information", 2008.
"""

import cv2
import numpy as np
from numba import njit

from utils.sfm.flow_depth import project_inverse
from utils.types import Array

# The sweep runs on about this many pixels, with this many planes evenly spaced in 1/z: the regions it has to judge are large.
_PIXELS, _PLANES = 12_000, 48
# Planes reach this far beyond these percentiles of the current depth, as factors on 1/z.
_PERCENTILES, _BEYOND = (0.5, 99.5), (0.8, 1.15)
# Window of the correlation in pixels of the coarse grid, and noise in grey levels squared that keeps blank windows from correlating.
_WINDOW, _NOISE = 5, 2.0
# Contrast (standard deviation in grey levels) at which a window counts half.
_CONTRAST = 8.0
# Cost of a step of one plane, of a larger one, and the colour difference (L1) at which the latter has fallen to 1/e.
_STEP, _JUMP, _COLOR_SIGMA = 0.05, 1.5, 24.0
# Values off by this share, and a plane's spacing, have lost three quarters of their weight.
_TOLERANCE = 0.06
# Pixels whose costs differ by less than this over all planes are undetermined.
_LEAST_RANGE = 1e-3


def downweight_contradicted(inverse: Array, weight: Array, swept: Array, spacing: float) -> Array:
    """(H, W) float32 `weight` of inverse depths (H, W), lowered by a Geman-McClure weight where they differ from the `swept` ones (H, W).

    The scale is 6 % of the depth plus the `spacing` of the planes. Where `swept` is NaN the weight stays.
    """
    off = np.where(np.isnan(swept), 0, (inverse - swept) / (_TOLERANCE * np.maximum(swept, 1e-9) + spacing))
    return (weight / (1 + off * off) ** 2).astype(np.float32)


def sweep(
    image: Array, grays: Array, poses: tuple[Array, Array], K: Array, inverse: Array, keep: Array | None = None
) -> tuple[Array, float]:
    """Inverse depth by plane sweep and semi-global matching.

    Args:
        image: (H, W, 3) uint8, the reference.
        grays: (1 + V, H, W) uint8, the reference and its neighbours.
        poses: rotations (V, 3, 3) and translations (V, 3), neighbour camera from reference camera.
        K: (3, 3), shared.
        inverse: (H, W) float32 current 1/z, of which only the range is used.
        keep: (1 + V, H, W) bool, pixels that may be matched; None: all.

    Returns:
        (H, W) float32 1/z, NaN where it is undetermined (masked, blank, no parallax), and the spacing of the planes in it.
    """
    height, width = inverse.shape
    scale = min(1.0, (_PIXELS / (height * width)) ** 0.5)
    size = max(2, round(width * scale)), max(2, round(height * scale))
    coarse = np.stack([cv2.resize(gray, size, interpolation=cv2.INTER_AREA) for gray in grays]).astype(np.float32)
    coarse_keep = None if keep is None else np.stack([shrink_mask(mask, size) for mask in keep])
    colors = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    low, high = np.maximum(np.percentile(inverse, _PERCENTILES) * _BEYOND, 0)
    planes = np.linspace(low, max(high, low + 1e-9), _PLANES)
    cost = _costs(coarse, poses, np.diag([size[0] / width, size[1] / height, 1.0]) @ K, planes, coarse_keep)
    total = _aggregate(cost, colors, np.float32(_STEP), np.float32(_JUMP), np.float32(_COLOR_SIGMA))
    determined = np.ptp(total, axis=-1) > _LEAST_RANGE
    if coarse_keep is not None:
        determined &= coarse_keep[0]
    spacing = float(planes[1] - planes[0])
    best = np.where(determined, planes[0] + spacing * _best(total), np.nan).astype(np.float32)
    return cv2.resize(best, (width, height), interpolation=cv2.INTER_LINEAR), spacing


def shrink_mask(mask: Array, size: tuple[int, int]) -> Array:
    """A mask (H, W) of usable pixels at `size` (width, height): a pixel is used only if all that lies under it is."""
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.999


def _costs(grays: Array, poses: tuple[Array, Array], K: Array, planes: Array, keep: Array | None) -> Array:
    """(H, W, D) float32: 1 - normalised cross-correlation with the better half of the views, times a weight of the contrast.

    Windows that hold a pixel outside `keep` (1 + V, H, W) are not visible in a view and cost nothing in the reference, nor does a pixel
    that masks hide from most views at some plane: its planes cannot be compared.
    """
    reference = grays[0]
    mean = _blur(reference)
    variance = np.maximum(_blur(reference * reference) - mean * mean, 0)
    cost = np.empty((*reference.shape, len(planes)), np.float32)
    comparable = np.ones(reference.shape, bool) if keep is None else _whole_windows(keep[0])
    better = max(min(2, len(grays) - 1), len(grays) // 2)
    for number, plane in enumerate(planes):
        inverse = np.full(reference.shape, plane, np.float32)
        alike = np.empty((len(grays) - 1, *reference.shape), np.float32)
        masked = np.zeros(reference.shape, np.int64)
        for view, (gray, R, t) in enumerate(zip(grays[1:], *poses, strict=True)):
            at, visible = project_inverse(inverse, R, t, K)
            seen = cv2.remap(gray, at[..., 0] - 0.5, at[..., 1] - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            other = _blur(seen)
            spread = np.maximum(_blur(seen * seen) - other * other, 0)
            common = _blur(reference * seen) - mean * other
            if keep is not None:
                kept = keep[view + 1].astype(np.float32)
                there = cv2.remap(kept, at[..., 0] - 0.5, at[..., 1] - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                hidden = visible & ~_whole_windows(there > 0.999)
                visible &= ~hidden
                masked += hidden
            alike[view] = np.where(visible, (common + _NOISE / 2) / np.sqrt((variance + _NOISE) * (spread + _NOISE)), -1)
        # hidden in some views, or past their border: the better half decides
        comparable &= masked <= len(grays) - 1 - better
        cost[..., number] = 1 - np.clip(np.sort(alike, axis=0)[-better:].mean(0), 0, 1)
    contrast = np.where(comparable, variance / (variance + _CONTRAST**2), np.float32(0))
    return cost * contrast[..., None]


def _whole_windows(keep: Array) -> Array:
    """(H, W) bool, pixels whose window lies within `keep` (H, W)."""
    return cv2.erode(keep.astype(np.uint8), np.ones((_WINDOW, _WINDOW), np.uint8)) > 0


def _blur(image: Array) -> Array:
    return cv2.blur(image, (_WINDOW, _WINDOW))


def _best(cost: Array) -> Array:
    """(H, W) cheapest plane, between planes by the parabola through its neighbours."""
    best = np.clip(cost.argmin(-1), 1, cost.shape[-1] - 2)
    before, at, after = (np.take_along_axis(cost, best[..., None] + step, -1)[..., 0] for step in (-1, 0, 1))
    return best + np.clip(0.5 * (before - after) / np.maximum(before - 2 * at + after, 1e-6), -1, 1)


@njit(nogil=True, cache=True)
def _aggregate(cost: Array, colors: Array, step: np.float32, jump: np.float32, sigma: np.float32) -> Array:
    """(H, W, D) float32 sum of the cheapest paths to each pixel and plane from eight directions."""
    height, width, planes = cost.shape
    total = np.zeros_like(cost)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        path = np.empty_like(cost)
        for i in range(height):
            y = i if dy >= 0 else height - 1 - i
            for j in range(width):
                x = j if dx >= 0 else width - 1 - j
                from_y, from_x = y - dy, x - dx
                if from_y < 0 or from_x < 0 or from_y >= height or from_x >= width:
                    path[y, x] = cost[y, x]
                else:
                    difference = np.float32(0.0)
                    for channel in range(colors.shape[2]):
                        difference += abs(colors[y, x, channel] - colors[from_y, from_x, channel])
                    # surfaces change where colours do
                    leap = max(step, jump * np.exp(-difference / sigma))
                    before = path[from_y, from_x]
                    least = before.min()
                    for d in range(planes):
                        cheapest = min(before[d], least + leap)
                        if d > 0:
                            cheapest = min(cheapest, before[d - 1] + step)
                        if d + 1 < planes:
                            cheapest = min(cheapest, before[d + 1] + step)
                        path[y, x, d] = cost[y, x, d] + cheapest - least
                for d in range(planes):
                    total[y, x, d] += path[y, x, d]
    return total
