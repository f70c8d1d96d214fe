"""Coarse plane sweep with semi-global matching: inverse depth whose errors are independent of optical flow's.

On blank or mirroring surfaces flow drifts to values on which neighbouring pixels, views and frames all agree, so none of them reveals the
error. A search over all depths, in which windows of little texture weigh little and smoothness decides instead, errs elsewhere. By itself
it is no better than flow; so it only lowers the weight of flow's values that contradict it.

Semi-global matching: Hirschmueller, "Stereo Processing by Semiglobal Matching and Mutual Information", 2008.
"""

import cv2
import numpy as np
from numba import njit

from utils.types import Array

# The sweep runs on about this many pixels, with this many planes evenly spaced in 1/z: the regions it has to judge are large.
_PIXELS, _PLANES = 12_000, 48
# Planes reach this far beyond these percentiles of the current depth, as factors on 1/z.
_PERCENTILES, _BEYOND = (0.5, 99.5), (0.8, 1.15)
# Window of the correlation in pixels of the coarse grid, and noise in grey levels squared that keeps blank windows from correlating.
WINDOW, NOISE = 5, 2.0
# Contrast (standard deviation in grey levels) at which a window counts half.
CONTRAST = 8.0
# Cost of a step of one plane, of a larger one, and the colour difference (L1) at which the latter has fallen to 1/e.
STEP, JUMP, COLOR_SIGMA = 0.05, 1.5, 24.0
# Values off by this share, and a plane's spacing, have lost three quarters of their weight.
_TOLERANCE = 0.06
# Pixels whose costs differ by less than this over all planes are undetermined.
LEAST_RANGE = 1e-3


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
    size = coarse_size(height, width)
    coarse = np.stack([shrink(gray, size) for gray in grays])
    coarse_keep = None if keep is None else np.stack([shrink_mask(mask, size) for mask in keep])
    planes = planes_for(inverse)
    cost = _costs(coarse, poses, np.diag([size[0] / width, size[1] / height, 1.0]) @ K, planes, coarse_keep)
    total = _aggregate(cost, shrink(image, size), np.float32(STEP), np.float32(JUMP), np.float32(COLOR_SIGMA))
    determined = np.ptp(total, axis=-1) > LEAST_RANGE
    if coarse_keep is not None:
        determined &= coarse_keep[0]
    spacing = float(planes[1] - planes[0])
    best = np.where(determined, planes[0] + spacing * _best(total), np.nan).astype(np.float32)
    return enlarge(best, (width, height)), spacing


def coarse_size(height: int, width: int) -> tuple[int, int]:
    """Width and height of the grid on which images of this size are swept."""
    scale = min(1.0, (_PIXELS / (height * width)) ** 0.5)
    return max(2, round(width * scale)), max(2, round(height * scale))


def planes_for(inverse: Array) -> Array:
    """(D,) the planes' 1/z, evenly spaced over the range of the current 1/z (H, W)."""
    low, high = np.maximum(np.percentile(inverse, _PERCENTILES) * _BEYOND, 0)
    return np.linspace(low, max(high, low + 1e-9), _PLANES)


def shrink(image: Array, size: tuple[int, int]) -> Array:
    """(h, w) or (h, w, 3) float32: an image at `size` (width, height)."""
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)


def enlarge(swept: Array, size: tuple[int, int]) -> Array:
    """What was found on the coarse grid at `size` (width, height)."""
    return cv2.resize(swept, size, interpolation=cv2.INTER_LINEAR)


def shrink_mask(mask: Array, size: tuple[int, int]) -> Array:
    """A mask (H, W) of usable pixels at `size` (width, height): a pixel is used only if all that lies under it is."""
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.999


def _costs(grays: Array, poses: tuple[Array, Array], K: Array, planes: Array, keep: Array | None) -> Array:
    """(H, W, D) float32: 1 - normalised cross-correlation with the better half of the views, times a weight of the contrast.

    Windows that hold a pixel outside `keep` (1 + V, H, W) are not visible in a view and cost nothing in the reference, nor does a pixel
    that masks hide from most views at some plane: its planes cannot be compared.
    """
    rotations, translations = (np.ascontiguousarray(part, np.float64) for part in poses)
    masks = np.zeros((len(grays), 0, 0), np.bool_) if keep is None else keep
    grays = grays - np.float32(128)  # variances are differences of large numbers
    return _window_costs(
        grays,
        masks,
        rotations,
        translations,
        K.astype(np.float64),
        planes.astype(np.float64),
        np.float32(NOISE),
        better_half(len(grays) - 1),
    )


def better_half(views: int) -> int:
    """How many of so many views decide."""
    return max(min(2, views), (views + 1) // 2)


@njit(nogil=True, cache=True)
def _window_costs(
    grays: Array, keep: Array, rotations: Array, translations: Array, K: Array, planes: Array, noise: np.float32, better: int
) -> Array:
    """See `_costs`; an empty `keep` (1 + V, 0, 0) keeps all pixels.

    One loop nest instead of array operations: on images this small those spend their time on memory and on the interpreter's lock.
    """
    views, (height, width), masked = len(grays) - 1, grays[0].shape, keep.shape[1] > 0
    reference = grays[0]
    mean, variance = _moments(reference)
    hidden = np.zeros((height, width), np.int64)
    comparable = _whole_windows(keep[0]) if masked else np.ones((height, width), np.bool_)
    cost = np.empty((height, width, len(planes)), np.float32)
    seen, visible, there = np.empty_like(reference), np.empty((height, width), np.bool_), np.empty((height, width), np.bool_)
    alike = np.empty((height, width, views), np.float32)
    for number in range(len(planes)):
        hidden[:] = 0
        for view in range(views):
            _look(grays[view + 1], keep[view + 1], rotations[view], translations[view], K, planes[number], seen, visible, there)
            whole = _whole_windows(there) if masked else visible
            other, spread = _moments(seen)
            product = _blur(_times(reference, seen))
            for y in range(height):
                for x in range(width):
                    hidden[y, x] += visible[y, x] and not whole[y, x]
                    common = product[y, x] - mean[y, x] * other[y, x]
                    scale = np.sqrt((variance[y, x] + noise) * (spread[y, x] + noise))
                    alike[y, x, view] = (common + noise / np.float32(2)) / scale if visible[y, x] and whole[y, x] else np.float32(-1)
        for y in range(height):
            for x in range(width):
                # hidden in some views, or past their border: the better half decides
                comparable[y, x] &= hidden[y, x] <= views - better
                cost[y, x, number] = np.float32(1) - min(max(_mean_of_largest(alike[y, x], better), np.float32(0)), np.float32(1))
    half = np.float32(CONTRAST**2)
    for y in range(height):
        for x in range(width):
            share = variance[y, x] / (variance[y, x] + half) if comparable[y, x] else np.float32(0)
            for number in range(len(planes)):  # a product of slices compiled for a second
                cost[y, x, number] *= share
    return cost


@njit(nogil=True, cache=True)
def _look(
    gray: Array, keep: Array, R: Array, t: Array, K: Array, plane: float, seen: Array, visible: Array, there: Array
) -> None:  # fmt: skip
    """Fills `seen` with a view (H, W) as the reference sees it on a plane of constant 1/z, `visible` with what lies in front and inside,
    and `there` with what the view's mask keeps, if there is one.
    """
    height, width = gray.shape
    masked = keep.shape[0] > 0
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    for row in range(height):
        ry = (row + 0.5 - cy) / fy
        for column in range(width):
            rx = (column + 0.5 - cx) / fx
            qx = R[0, 0] * rx + R[0, 1] * ry + R[0, 2] + plane * t[0]
            qy = R[1, 0] * rx + R[1, 1] * ry + R[1, 2] + plane * t[1]
            qz = R[2, 0] * rx + R[2, 1] * ry + R[2, 2] + plane * t[2]
            safe = max(qz, 1e-3)
            u, v = fx * qx / safe + cx, fy * qy / safe + cy
            visible[row, column] = qz > 1e-3 and u > 0 and u < width and v > 0 and v < height
            # from here in steps between pixel centres; past the border its pixels go on
            u, v = min(max(u - 0.5, 0.0), width - 1.0), min(max(v - 0.5, 0.0), height - 1.0)
            x, y = min(int(u), width - 2), min(int(v), height - 2)
            a, b = np.float32(u - x), np.float32(v - y)
            upper = gray[y, x] + a * (gray[y, x + 1] - gray[y, x])
            lower = gray[y + 1, x] + a * (gray[y + 1, x + 1] - gray[y + 1, x])
            seen[row, column] = upper + b * (lower - upper)
            if masked:
                right, below = x + (a > 1e-3), y + (b > 1e-3)
                there[row, column] = keep[y, x] and keep[y, right] and keep[below, x] and keep[below, right]


@njit(nogil=True, cache=True)
def _moments(image: Array) -> tuple[Array, Array]:
    """(H, W) mean and variance of the window about each pixel."""
    mean, variance = _blur(image), _blur(_times(image, image))
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            variance[y, x] = max(variance[y, x] - mean[y, x] * mean[y, x], np.float32(0))
    return mean, variance


@njit(nogil=True, cache=True)
def _times(a: Array, b: Array) -> Array:
    """(H, W) product; as an array expression it compiled longer than all the rest."""
    out = np.empty_like(a)
    for y in range(a.shape[0]):
        for x in range(a.shape[1]):
            out[y, x] = a[y, x] * b[y, x]
    return out


@njit(nogil=True, cache=True)
def _blur(image: Array) -> Array:
    """(H, W) float32 mean of the window about each pixel; images are mirrored at their borders."""
    height, width = image.shape
    reach = WINDOW // 2
    across, line = np.empty_like(image), np.empty(width + 2 * reach, np.float32)
    for y in range(height):
        for x in range(width):
            line[reach + x] = image[y, x]
        for k in range(1, reach + 1):
            line[reach - k] = image[y, min(k, width - 1)]
            line[reach + width - 1 + k] = image[y, max(width - 1 - k, 0)]
        for x in range(width):
            total = line[x]
            for k in range(1, WINDOW):
                total += line[x + k]
            across[y, x] = total
    out = np.zeros_like(image)
    share = np.float32(1.0 / WINDOW**2)
    for y in range(height):
        for k in range(-reach, reach + 1):
            other = abs(y + k) if y + k < height else 2 * (height - 1) - y - k
            other = min(max(other, 0), height - 1)
            for x in range(width):
                out[y, x] += across[other, x]
        for x in range(width):
            out[y, x] *= share
    return out


@njit(nogil=True, cache=True)
def _whole_windows(keep: Array) -> Array:
    """(H, W) bool, pixels whose window, as far as it lies in the image, lies within `keep` (H, W)."""
    height, width = keep.shape
    reach = WINDOW // 2
    across, whole = np.ones((height, width), np.bool_), np.ones((height, width), np.bool_)
    for y in range(height):
        for x in range(width):
            for k in range(max(x - reach, 0), min(x + reach + 1, width)):
                across[y, x] &= keep[y, k]
    for y in range(height):
        for k in range(max(y - reach, 0), min(y + reach + 1, height)):
            for x in range(width):
                whole[y, x] &= across[k, x]
    return whole


@njit(nogil=True, cache=True)
def _mean_of_largest(values: Array, count: int) -> np.float32:
    """Mean of the `count` largest of a few values, which end up sorted."""
    for i in range(1, len(values)):
        value, j = values[i], i
        while j > 0 and values[j - 1] < value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value
    total = np.float32(0)
    for i in range(count):
        total += values[i]
    return total / np.float32(count)


def _best(cost: Array) -> Array:
    """(H, W) cheapest plane, between planes by the parabola through its neighbours."""
    best = np.clip(cost.argmin(-1), 1, cost.shape[-1] - 2)
    before, at, after = (np.take_along_axis(cost, best[..., None] + step, -1)[..., 0] for step in (-1, 0, 1))
    return best + np.clip(0.5 * (before - after) / np.maximum(before - 2 * at + after, 1e-6), -1, 1)


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})  # minima over planes in vectors; exact all the same
def _aggregate(cost: Array, colors: Array, step: np.float32, jump: np.float32, sigma: np.float32) -> Array:
    """(H, W, D) float32 sum of the cheapest paths to each pixel and plane from eight directions."""
    height, width, planes = cost.shape
    total = np.zeros_like(cost)
    path = np.empty_like(cost)
    before = np.full(
        planes + 2, np.inf, np.float32
    )  # of the pixel that the path comes from, with a plane that costs too much at either end
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        for i in range(height):
            y = i if dy >= 0 else height - 1 - i
            for j in range(width):
                x = j if dx >= 0 else width - 1 - j
                from_y, from_x = y - dy, x - dx
                if from_y < 0 or from_x < 0 or from_y >= height or from_x >= width:
                    for d in range(planes):
                        path[y, x, d] = cost[y, x, d]
                        total[y, x, d] += cost[y, x, d]
                    continue
                difference = np.float32(0.0)
                for channel in range(colors.shape[2]):
                    difference += abs(colors[y, x, channel] - colors[from_y, from_x, channel])
                # surfaces change where colours do
                leap = max(step, jump * np.exp(-difference / sigma))
                least = path[from_y, from_x, 0]
                for d in range(planes):
                    value = path[from_y, from_x, d]
                    before[d + 1] = value
                    least = value if value < least else least
                far = least + leap
                for d in range(planes):
                    near = (before[d] if before[d] < before[d + 2] else before[d + 2]) + step
                    cheapest = before[d + 1] if before[d + 1] < far else far
                    cheapest = near if near < cheapest else cheapest
                    value = cost[y, x, d] + cheapest - least
                    path[y, x, d] = value
                    total[y, x, d] += value
    return total
