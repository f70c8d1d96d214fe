"""Sharpens depth edges: beside an edge each pixel takes over the inverse depth of whichever side its own surroundings match.

Flow and smoothing smear a depth edge over several pixels. The right value is usually that of a pixel some steps away, so those values
are tried, each judged by how well a small patch, weighted by likeness to its centre, matches the neighbours under it (PatchMatch
stereo's propagation, Bleyer et al. 2011, without random search).
"""

import cv2
import numpy as np
from numba import njit

from utils.types import Array

# Only pixels within this reach (share of the image width) of an edge are touched: where 1/z leaves its 5x5 mean by this share.
_REACH = 0.03
_EDGE = 0.015
# Most values tried at a pixel, its own included, and most neighbours asked: an edge has two sides, noise has many.
_MOST_VALUES, _MOST_VIEWS = 5, 4
# Values closer than this to one that was tried already are not tried.
_SAME = 0.03
# Another value must match this much better: ties keep what flow found.
_BETTER = 0.85
# Grey difference at which a patch pixel's say, or a mismatch, saturates.
_LIKENESS, _MISMATCH = 12.0, 30.0


def sharpen(reference: Array, neighbours: Array, inverse: Array, poses: tuple[Array, Array], K: Array) -> Array:
    """Inverse depth (H, W) float32 with depth edges drawn to where the images agree.

    Args:
        reference: (H, W) uint8 grey.
        neighbours: (V, H, W) uint8 grey.
        inverse: (H, W) float32, positive or 0.
        poses: rotations (V, 3, 3) and translations (V, 3), neighbour camera from reference camera.
        K: (3, 3).
    """
    reach = max(4, round(_REACH * inverse.shape[1]))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    bend = np.abs(cv2.blur(inverse, (5, 5)) - inverse) > _EDGE * inverse
    near_edge = cv2.dilate(bend.astype(np.uint8), kernel) > 0
    steps = np.unique(np.round(np.array([0.35, 0.7, 1.0]) * reach).astype(np.int64))
    views = np.unique(np.linspace(0, len(neighbours) - 1, min(len(neighbours), _MOST_VIEWS)).round().astype(int))
    chosen = _choose(reference, neighbours[views], inverse, near_edge, steps, poses[0][views], poses[1][views], K.astype(np.float64))
    return np.where(near_edge, cv2.medianBlur(chosen, 3), chosen)


@njit(nogil=True, cache=True)
def _choose(
    reference: Array,
    neighbours: Array,
    inverse: Array,
    near_edge: Array,
    steps: Array,
    rotations: Array,
    translations: Array,
    K: Array,
) -> Array:
    height, width = inverse.shape
    out = inverse.copy()
    for row in range(height):
        likeness = np.empty(25, np.float64)
        costs = np.empty(len(neighbours), np.float64)
        tested = np.empty(_MOST_VALUES, np.float64)
        for column in range(width):
            if not near_edge[row, column]:
                continue
            center = float(reference[row, column])
            for dy in range(5):
                for dx in range(5):
                    y, x = min(max(row + 2 * dy - 4, 0), height - 1), min(max(column + 2 * dx - 4, 0), width - 1)
                    likeness[5 * dy + dx] = np.exp(-abs(float(reference[y, x]) - center) / _LIKENESS)
            own = inverse[row, column]
            best, tested[0], count = own, own, 1
            best_cost = _BETTER * _patch_cost(reference, neighbours, row, column, own, likeness, costs, rotations, translations, K)
            for s in range(len(steps)):
                for direction in range(8):
                    y = row + int(steps[s]) * ((1, 1, 0, -1, -1, -1, 0, 1)[direction])
                    x = column + int(steps[s]) * ((0, 1, 1, 1, 0, -1, -1, -1)[direction])
                    if y < 0 or x < 0 or y >= height or x >= width:
                        continue
                    tried = inverse[y, x]
                    known = count == _MOST_VALUES
                    for i in range(count):
                        known = known or abs(tried - tested[i]) < _SAME * tried
                    if known:
                        continue
                    tested[count] = tried
                    count += 1
                    cost = _patch_cost(reference, neighbours, row, column, tried, likeness, costs, rotations, translations, K)
                    if cost < best_cost:
                        best, best_cost = tried, cost
            out[row, column] = best
    return out


@njit(nogil=True, cache=True)
def _patch_cost(
    reference: Array,
    neighbours: Array,
    row: int,
    column: int,
    inverse: float,
    likeness: Array,
    costs: Array,
    rotations: Array,
    translations: Array,
    K: Array,
) -> float:
    """Mean mismatch of the better half of the views; the other half may not see the point."""
    height, width = reference.shape
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    found = 0
    for v in range(len(neighbours)):
        R, t = rotations[v], translations[v]
        total, weight, mean, seen = 0.0, 0.0, 0.0, 0
        # two passes: colour drift between frames shifts a whole patch, which must not count
        for turn in range(2):
            if turn == 1:
                if seen < 13:
                    break
                mean /= weight
                weight = 0.0
            for i in range(25):
                y, x = row + 2 * (i // 5) - 4, column + 2 * (i % 5) - 4
                if y < 0 or x < 0 or y >= height or x >= width:
                    continue
                rx, ry = (x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy
                qz = R[2, 0] * rx + R[2, 1] * ry + R[2, 2] + inverse * t[2]
                if qz < 1e-3:
                    continue
                u = fx * (R[0, 0] * rx + R[0, 1] * ry + R[0, 2] + inverse * t[0]) / qz + cx - 0.5
                w = fy * (R[1, 0] * rx + R[1, 1] * ry + R[1, 2] + inverse * t[1]) / qz + cy - 0.5
                if u < 0 or w < 0 or u >= width - 1 or w >= height - 1:
                    continue
                x0, y0 = int(u), int(w)
                a, b = u - x0, w - y0
                value = (1 - b) * ((1 - a) * neighbours[v, y0, x0] + a * neighbours[v, y0, x0 + 1]) + b * (
                    (1 - a) * neighbours[v, y0 + 1, x0] + a * neighbours[v, y0 + 1, x0 + 1]
                )
                difference = value - reference[y, x]
                weight += likeness[i]
                if turn == 0:
                    mean += likeness[i] * difference
                    seen += 1
                else:
                    total += likeness[i] * min(abs(difference - mean), _MISMATCH)
        if seen >= 13:
            costs[found] = total / weight
            found += 1
    if found == 0:
        return 1e9
    order = np.sort(costs[:found])
    half = (found + 1) // 2
    result = 0.0
    for i in range(half):
        result += order[i]
    return result / half + 0.5
