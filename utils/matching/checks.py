"""Tests that a match of two pixels has to pass: patches look alike, and the flow back leads to where it came from."""

import cv2
import numpy as np
from numba import njit

from utils.types import Array

WINDOW = (9, 9)  # pixels of the patches that are compared


FLAT = 3.0  # grey levels by which patches without texture may differ, after their means are taken off


def patches_agree(image: Array, other: Array, flow: Array, min_correlation: float) -> Array:
    """(H, W) bool: the patch around each pixel looks like the one its flow points to, up to brightness and contrast.

    Without this test a match where flow found nothing to hold on to would confirm the prediction it started from.
    """
    h, w = image.shape
    grid = flow + np.stack(np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)), -1)
    a = image.astype(np.float32)
    b = cv2.remap(other, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    mean_a, mean_b = cv2.blur(a, WINDOW), cv2.blur(b, WINDOW)
    var_a, var_b = cv2.blur(a * a, WINDOW) - mean_a**2, cv2.blur(b * b, WINDOW) - mean_b**2
    covariance = cv2.blur(a * b, WINDOW) - mean_a * mean_b
    correlated = covariance > min_correlation * np.sqrt(np.maximum(var_a * var_b, 0))
    return (correlated & (var_a > 0) & (var_b > 0)) | (var_a + var_b - 2 * covariance < FLAT**2)


@njit(cache=True)
def _bilinear(image, x, y, channel):  # type: ignore[no-untyped-def]
    """Sample of (H, W, C) at pixel coordinates (centres at +0.5), NaN outside or next to NaN."""
    x -= 0.5
    y -= 0.5
    if not (x >= 0 and y >= 0 and x <= image.shape[1] - 1 and y <= image.shape[0] - 1):
        return np.nan
    j, i = min(int(x), image.shape[1] - 2), min(int(y), image.shape[0] - 2)
    fx, fy = x - j, y - i
    top = image[i, j, channel] * (1 - fx) + image[i, j + 1, channel] * fx
    bottom = image[i + 1, j, channel] * (1 - fx) + image[i + 1, j + 1, channel] * fx
    return top * (1 - fy) + bottom * fy


@njit(cache=True)
def _depth_at(depth, usable, x, y):  # type: ignore[no-untyped-def]
    """Bilinear depth at a pixel coordinate, NaN if one of the four pixels is not usable."""
    x -= 0.5
    y -= 0.5
    if not (x >= 0 and y >= 0 and x <= depth.shape[1] - 1 and y <= depth.shape[0] - 1):
        return np.nan
    j, i = min(int(x), depth.shape[1] - 2), min(int(y), depth.shape[0] - 2)
    if not (usable[i, j] and usable[i, j + 1] and usable[i + 1, j] and usable[i + 1, j + 1]):
        return np.nan
    fx, fy = x - j, y - i
    top = depth[i, j] * (1 - fx) + depth[i, j + 1] * fx
    bottom = depth[i + 1, j] * (1 - fx) + depth[i + 1, j + 1] * fx
    return top * (1 - fy) + bottom * fy


@njit(cache=True)
def _follow(predicted, flow, i, j):  # type: ignore[no-untyped-def]
    """Where pixel (i, j) goes: the prediction at the pixel's flow target."""
    x, y = j + 0.5 + flow[i, j, 0], i + 0.5 + flow[i, j, 1]
    return _bilinear(predicted, x, y, 0), _bilinear(predicted, x, y, 1)


def select_matches(
    there: Array, there_flow: Array, back: Array, back_flow: Array, usable: Array, usable_target: Array, depth: Array, depth_target: Array,
    grid: int, phase: tuple[int, int], max_cycle: float,
) -> Array:  # fmt: skip
    """(M, 6) float32: source x, y, target x, y, source depth, target depth of matches that pass every check.

    Args:
        there: (H, W, 2) predicted pixels in the target of the source's.
        there_flow: (H, W, 2) what flow adds to a source pixel before the prediction is read there.
        back: the same from target to source.
        back_flow: the same from target to source.
        usable: (H, W) bool, pixels of the source that may be matched.
        usable_target: the same of the target.
        depth: (H, W) of the source.
        depth_target: of the target.
        grid: step between the pixels that are tried.
        phase: first row and column.
        max_cycle: most pixels between a pixel and where the way there and back leads.
    """
    h, w = depth.shape
    out = np.empty(((h // grid + 1) * (w // grid + 1), 6), np.float32)
    flows = there, there_flow, back, back_flow
    return out[: _select(*flows, usable, usable_target, depth, depth_target, grid, phase[0], phase[1], max_cycle, out)]


@njit(nogil=True, cache=True)
def _select(there, there_flow, back, back_flow, usable, usable_target, depth, depth_target, grid, top, left, max_cycle, out):  # type: ignore[no-untyped-def]
    """Fills rows of `out` as `select_matches` returns them; returns their number."""
    h, w = depth.shape
    count = 0
    for i in range(top, h, grid):
        for j in range(left, w, grid):
            if not usable[i, j]:
                continue
            qx, qy = _follow(there, there_flow, i, j)
            z = _depth_at(depth_target, usable_target, qx, qy)
            if not z > 0:
                continue
            # The way back, interpolated between the four pixels around q.
            tx, ty = qx - 0.5, qy - 0.5
            j0, i0 = min(int(tx), w - 2), min(int(ty), h - 2)
            fx, fy = tx - j0, ty - i0
            rx = ry = 0.0
            for corner in range(4):
                dj, di = corner & 1, corner >> 1
                weight = (fx if dj else 1 - fx) * (fy if di else 1 - fy)
                bx, by = _follow(back, back_flow, i0 + di, j0 + dj)
                rx += weight * bx
                ry += weight * by
            cycle = np.hypot(rx - (j + 0.5), ry - (i + 0.5))
            if cycle < max_cycle:  # False for NaN
                out[count, 0], out[count, 1] = j + 0.5, i + 0.5
                out[count, 2], out[count, 3] = qx, qy
                out[count, 4], out[count, 5] = depth[i, j], z
                count += 1
    return count
