"""Positions of cameras with known rotations, and of the points they see, all at once from a random start.

Unknowns are the centres c, the points X and a factor s for each observation, and the residual of an observation is the vector
`d - s (X - c)` for the unit direction d in which it is seen: it is bilinear, which is why a random start finds its way, and stays bounded
for points near a camera. Huber's loss; Levenberg-Marquardt. Factors are eliminated first, one by one, then points, three by three; what is
left is a dense system in the centres. Source: Zhuang, Cheong, Lee, "Baseline desensitizing in translation averaging", 2018, as in Pan,
Barath, Pollefeys, Schoenberger, "Global structure-from-motion revisited" (GLOMAP), 2024.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numba import njit

from utils.sfm.solvers.parts import TrustRegion, inverse_3x3, part_bounds, solver_threads
from utils.sfm.solvers.tracks import Tracks
from utils.types import Array

# Of the loss: sine of the angle beyond which a direction counts as an outlier.
_LOSS = 0.1
_STEPS, _TOLERANCE = 400, 1e-5
# Centres and points start in a cube of this half side.
_START = 100.0
_LEAST_SCALE = 1e-5


def global_positions(directions: Array, tracks: Tracks, frames: int, seed: int) -> tuple[Array, Array]:
    """Centres (F, 3) and points (P, 3), up to a similarity without rotation.

    Args:
        directions: (M, 3) of unit length, from each observation's frame to its point, in the world.
        tracks: the observations; their pixels are not looked at.
        frames: F.
        seed: of the start.
    """
    random = np.random.default_rng(seed)
    centers, points = random.uniform(-_START, _START, (frames, 3)), random.uniform(-_START, _START, (len(tracks.first) - 1, 3))
    scales = np.ones(len(directions))
    seen = directions, tracks.frame, tracks.first
    bounds = list(pairwise(part_bounds(tracks.first, 3 * frames)))
    region = TrustRegion()
    with solver_threads() as pool:
        cost = _cost(centers, points, scales, seen, bounds, pool)
        for _ in range(_STEPS):
            step = _solved(centers, points, scales, seen, bounds, region.damping, pool)
            new_points, new_scales = points.copy(), scales.copy()
            now, to = (centers, points, scales, *seen), (region.damping, step, new_points, new_scales)
            expected = float(sum(pool.map(lambda part, now=now, to=to: _back_substitute(*now, *part, *to), bounds)))
            new_cost = _cost(centers + step, new_points, new_scales, seen, bounds, pool)
            if not region.accepts(cost - new_cost, expected):
                if region.is_spent:
                    break
                continue
            done = cost - new_cost < _TOLERANCE * cost
            centers, points, scales, cost = centers + step, new_points, new_scales, new_cost
            if done:
                break
    return centers, points


Seen = tuple[Array, Array, Array]


def _cost(centers: Array, points: Array, scales: Array, seen: Seen, bounds: list[tuple[int, int]], pool: ThreadPoolExecutor) -> float:
    """Half of Huber's cost."""
    return float(sum(pool.map(lambda part: _part_cost(centers, points, scales, *seen, *part), bounds)))


def _solved(
    centers: Array, points: Array, scales: Array, seen: Seen, bounds: list[tuple[int, int]], damping: float, pool: ThreadPoolExecutor
) -> Array:
    """(F, 3) change of the centres."""
    n = centers.size

    def one(part: tuple[int, int]) -> tuple[Array, Array, Array]:
        half, g, diagonal = np.zeros((n, n)), np.zeros(n), np.zeros(n)
        _reduce(centers, points, scales, *seen, *part, damping, half, g, diagonal)
        return half, g, diagonal

    half, g, diagonal = np.zeros((n, n)), np.zeros(n), np.zeros(n)
    for part_half, part_g, part_diagonal in pool.map(one, bounds):
        half += part_half
        g += part_g
        diagonal += part_diagonal
    H = half + half.T
    H[np.diag_indices(n)] += damping * diagonal + 1e-12 * diagonal.max()
    H[:3, :3] += np.eye(3) * diagonal.max() * 1e3  # the first centre stays
    factor, indefinite = torch.linalg.cholesky_ex(torch.from_numpy(H))
    if indefinite:
        return np.zeros((n // 3, 3))
    return torch.cholesky_solve(torch.from_numpy(-g)[:, None], factor)[:, 0].numpy().reshape(-1, 3)


@njit(nogil=True, cache=True)
def _part_cost(centers: Array, points: Array, scales: Array, directions: Array, frame: Array, first: Array, start: int, stop: int) -> float:
    total = 0.0
    for p in range(start, stop):
        for m in range(first[p], first[p + 1]):
            squared = 0.0
            for i in range(3):
                squared += (directions[m, i] - scales[m] * (points[p, i] - centers[frame[m], i])) ** 2
            total += 0.5 * squared if squared <= _LOSS**2 else _LOSS * (np.sqrt(squared) - 0.5 * _LOSS)
    return total


@njit(nogil=True, cache=True)
def _without_scale(
    center: Array, point: Array, scale: float, direction: Array, damping: float, A: Array, g: Array, v: Array
) -> tuple[float, float, float]:
    """What an observation adds to the second derivatives A (3, 3) by its point, and to the gradient g (3,), its factor eliminated.

    By the centre both are the negative. v (3,) becomes the vector from centre to point.

    Returns:
        The observation's weight, the factor's damped second derivative and its gradient.
    """
    squared = vv = vr = 0.0
    for i in range(3):
        v[i] = point[i] - center[i]
        r = direction[i] - scale * v[i]
        squared += r * r
        vv += v[i] * v[i]
        vr += v[i] * r
    weight = 1.0 if squared <= _LOSS**2 else _LOSS / np.sqrt(squared)
    h = weight * vv * (1 + damping) + 1e-30
    for i in range(3):
        g[i] = -weight * scale * (direction[i] - scale * v[i] - weight / h * vr * v[i])
        for j in range(3):
            A[i, j] = -((weight * scale) ** 2) / h * v[i] * v[j]
        A[i, i] += weight * scale**2
    return weight, h, -weight * vr


@njit(nogil=True, cache=True)
def _reduce(
    centers: Array,
    points: Array,
    scales: Array,
    directions: Array,
    frame: Array,
    first: Array,
    start: int,
    stop: int,
    damping: float,
    half: Array,
    g: Array,
    diagonal: Array,
) -> None:
    """Adds points `start` to `stop` to the system of the centres: half + half^T, gradient g, and the diagonal before elimination."""
    longest = 0
    for p in range(start, stop):
        longest = max(longest, first[p + 1] - first[p])
    A, own_g, v = np.zeros((longest, 3, 3)), np.zeros(3), np.zeros(3)
    H, inverse, point_g, B = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3), np.zeros((3, 3))
    for p in range(start, stop):
        H[:] = 0.0
        point_g[:] = 0.0
        own = 0.0
        n = first[p + 1] - first[p]
        for i in range(n):
            m = first[p] + i
            at = 3 * frame[m]
            weight = _without_scale(centers[frame[m]], points[p], scales[m], directions[m], damping, A[i], own_g, v)[0]
            own += weight * scales[m] ** 2
            for c in range(3):
                point_g[c] += own_g[c]
                g[at + c] -= own_g[c]
                diagonal[at + c] += weight * scales[m] ** 2
                for d in range(3):
                    H[c, d] += A[i, c, d]
                    half[at + c, at + d] += 0.5 * A[i, c, d]
        for c in range(3):
            H[c, c] += damping * own + 1e-30
        inverse_3x3(H, inverse)
        for i in range(n):
            at = 3 * frame[first[p] + i]
            for c in range(3):
                for d in range(3):
                    B[c, d] = A[i, c, 0] * inverse[0, d] + A[i, c, 1] * inverse[1, d] + A[i, c, 2] * inverse[2, d]
                g[at + c] += B[c, 0] * point_g[0] + B[c, 1] * point_g[1] + B[c, 2] * point_g[2]
            for j in range(i, n):
                to, share = 3 * frame[first[p] + j], 0.5 if i == j else 1.0
                for c in range(3):
                    for d in range(3):
                        half[at + c, to + d] -= share * (B[c, 0] * A[j, 0, d] + B[c, 1] * A[j, 1, d] + B[c, 2] * A[j, 2, d])


@njit(nogil=True, cache=True)
def _back_substitute(
    centers: Array,
    points: Array,
    scales: Array,
    directions: Array,
    frame: Array,
    first: Array,
    start: int,
    stop: int,
    damping: float,
    step: Array,
    new_points: Array,
    new_scales: Array,
) -> float:
    """Moves the points from `start` to `stop` and their observations' factors with a step (F, 3) of the centres.

    Returns:
        By how much the cost falls if residuals are linear and the loss's weights stay.
    """
    expected = 0.0
    A, g, v, right = np.zeros((3, 3)), np.zeros(3), np.zeros(3), np.zeros(3)
    H, inverse, moved = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3)
    for p in range(start, stop):
        H[:] = 0.0
        right[:] = 0.0
        own = 0.0
        for m in range(first[p], first[p + 1]):
            weight = _without_scale(centers[frame[m]], points[p], scales[m], directions[m], damping, A, g, v)[0]
            own += weight * scales[m] ** 2
            for c in range(3):
                right[c] -= g[c]
                for d in range(3):
                    H[c, d] += A[c, d]
                    right[c] += A[c, d] * step[frame[m], d]
        for c in range(3):
            H[c, c] += damping * own + 1e-30
        inverse_3x3(H, inverse)
        for c in range(3):
            moved[c] = inverse[c, 0] * right[0] + inverse[c, 1] * right[1] + inverse[c, 2] * right[2]
            new_points[p, c] = points[p, c] + moved[c]
        for m in range(first[p], first[p + 1]):
            weight, h, scale_g = _without_scale(centers[frame[m]], points[p], scales[m], directions[m], damping, A, g, v)
            along = 0.0
            for c in range(3):
                along += v[c] * (moved[c] - step[frame[m], c])
            new_scales[m] = max(scales[m] - (scale_g + weight * scales[m] * along) / h, _LEAST_SCALE)
            for c in range(3):
                change = -scales[m] * (moved[c] - step[frame[m], c]) - v[c] * (new_scales[m] - scales[m])
                expected -= weight * change * (directions[m, c] - scales[m] * v[c] + 0.5 * change)
    return expected
