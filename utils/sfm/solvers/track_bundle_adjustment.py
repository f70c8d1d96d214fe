"""Bundle adjustment on tracks: poses, the shared focal length and points in the world, under Huber's loss.

`dense_bundle_adjustment` holds a point by the pixel of its host frame, as suits matches of one frame in others; here all observations of a
point weigh alike, as suits features that were found in each frame. A pose changes by `w2c_new = exp([omega, v]) w2c`. Points are eliminated
(Schur complement), and what is left is a dense system over (6 per frame, log focal).
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numba import njit
from torch import Tensor

from utils.cameras import se3
from utils.device.accelerator import accelerator
from utils.sfm.solvers.parts import TrustRegion, inverse_3x3, part_bounds, solver_threads
from utils.sfm.solvers.track_bundle_adjustment_batched import BEHIND_PX, LOSS_PX, NEAREST, BatchedTrackSystem
from utils.sfm.solvers.tracks import Placed, Tracks
from utils.types import Array

_STEPS, _TOLERANCE = 200, 1e-5
# Fewer observations are done sooner by the CPU than a GPU is started.
_LEAST_ON_DEVICE = 5000


def adjust_tracks(tracks: Tracks, placed: Placed, *, free_focal: bool, turning: bool = True, steps: int = _STEPS) -> Placed:
    """Levenberg-Marquardt on poses, points and, if wanted, the focal length.

    Args:
        tracks: the observations.
        placed: the start.
        free_focal: otherwise the focal length stays.
        turning: otherwise rotations stay.
        steps: most steps.
    """
    if not len(tracks.frame):
        return placed
    placed = Placed(w2c=placed.w2c, K=np.ascontiguousarray(placed.K), points=placed.points)  # kernels compile anew for another order
    region = TrustRegion()
    device = accelerator() if len(tracks.frame) >= _LEAST_ON_DEVICE else None
    with solver_threads() as pool:
        frames = len(placed.w2c)
        system = _TrackSystem(tracks, frames, turning, pool) if device is None else BatchedTrackSystem(tracks, frames, turning, device)
        cost = system.cost(placed)
        for _ in range(steps):
            step = _solved(*system.reduced(placed, region.damping), region.damping, free_focal)
            points, expected = system.back_substituted(placed, region.damping, step)
            moved = _moved(placed, step.cpu().numpy(), points)
            new_cost = system.cost(moved)
            if not region.accepts(cost - new_cost, expected):
                if region.is_spent:
                    break
                continue
            done = cost - new_cost < _TOLERANCE * cost
            placed, cost = moved, new_cost
            if done:
                break
    return placed


def _moved(placed: Placed, step: Array, points: Array) -> Placed:
    """With poses and focal length after a step (6 F + 1,), and these points."""
    K = placed.K.copy()
    K[[0, 1], [0, 1]] *= np.exp(np.clip(step[-1], -0.3, 0.3))
    turned = se3.exp(torch.from_numpy(step[:-1].reshape(-1, 6))).numpy()
    return Placed(w2c=turned @ placed.w2c, K=K, points=points)


def _solved(H: Tensor, g: Tensor, diagonal: Tensor, damping: float, free_focal: bool) -> Tensor:
    """(6 F + 1,) change of the poses and the log focal length from the system and its diagonal before points were eliminated."""
    largest = diagonal.max()
    H.diagonal().add_(damping * diagonal + 1e-12 * largest)
    H.diagonal()[:6] += largest * 1e3  # the first frame stays: it fixes where the world lies
    if not free_focal:
        H[-1, -1] += 1e12 * largest
    factor, indefinite = torch.linalg.cholesky_ex(H)
    return torch.zeros_like(g) if indefinite else torch.cholesky_solve(-g[:, None], factor)[:, 0]


class _TrackSystem:
    """Tracks in parts, on threads; for the arguments see `BatchedTrackSystem`."""

    def __init__(self, tracks: Tracks, frames: int, turning: bool, pool: ThreadPoolExecutor):
        self._unknowns, self._turning, self._pool = 6 * frames + 1, turning, pool
        self._seen = tracks.frame, tracks.at, tracks.first
        self._bounds = list(pairwise(part_bounds(tracks.first, self._unknowns)))

    def cost(self, placed: Placed) -> float:
        """Half of Huber's cost in squared pixels."""
        return float(sum(self._pool.map(lambda part: _part_cost(placed.w2c, placed.K, placed.points, *self._seen, *part), self._bounds)))

    def reduced(self, placed: Placed, damping: float) -> tuple[Tensor, Tensor, Tensor]:
        """H (n, n) and g (n,) over (6 per frame, log focal), points eliminated, and H's diagonal before that."""
        n = self._unknowns

        def one(part: tuple[int, int]) -> tuple[Array, Array, Array]:
            half, g, diagonal = np.zeros((n, n)), np.zeros(n), np.zeros(n)
            _reduce(placed.w2c, placed.K, placed.points, *self._seen, *part, damping, self._turning, half, g, diagonal)
            return half, g, diagonal

        half, g, diagonal = np.zeros((n, n)), np.zeros(n), np.zeros(n)
        for part_half, part_g, part_diagonal in self._pool.map(one, self._bounds):
            half += part_half
            g += part_g
            diagonal += part_diagonal
        return torch.from_numpy(half + half.T), torch.from_numpy(g), torch.from_numpy(diagonal)

    def back_substituted(self, placed: Placed, damping: float, step: Tensor) -> tuple[Array, float]:
        """Points (P, 3) after a step (n,) of the rest, and by how much the cost falls if residuals are linear and weights stay."""
        points, now = placed.points.copy(), (placed.w2c, placed.K, placed.points, *self._seen)
        to = damping, self._turning, step.numpy(), points
        return points, float(sum(self._pool.map(lambda part: _back_substitute(*now, *part, *to), self._bounds)))


@njit(nogil=True, cache=True)
def _part_cost(w2c: Array, K: Array, points: Array, frame: Array, at: Array, first: Array, start: int, stop: int) -> float:
    total = 0.0
    Y = np.zeros(3)
    for p in range(start, stop):
        for m in range(first[p], first[p + 1]):
            pose = w2c[frame[m]]
            for i in range(3):
                Y[i] = pose[i, 0] * points[p, 0] + pose[i, 1] * points[p, 1] + pose[i, 2] * points[p, 2] + pose[i, 3]
            if Y[2] < NEAREST:
                total += LOSS_PX * (BEHIND_PX - 0.5 * LOSS_PX)
                continue
            ex, ey = K[0, 0] * Y[0] / Y[2] + K[0, 2] - at[m, 0], K[1, 1] * Y[1] / Y[2] + K[1, 2] - at[m, 1]
            squared = ex * ex + ey * ey
            total += 0.5 * squared if squared <= LOSS_PX**2 else LOSS_PX * (np.sqrt(squared) - 0.5 * LOSS_PX)
    return total


@njit(nogil=True, cache=True)
def _derivatives(pose: Array, K: Array, point: Array, at: Array, turning: bool, J: Array, e: Array, Y: Array) -> float:
    """Residual e (2,) of an observation and its derivatives J (2, 10) by the pose (6), log focal and the point (3); returns its weight."""
    for i in range(3):
        Y[i] = pose[i, 0] * point[0] + pose[i, 1] * point[1] + pose[i, 2] * point[2] + pose[i, 3]
    J[:] = 0.0
    if Y[2] < NEAREST:
        return 0.0
    z = 1.0 / Y[2]
    u, v = Y[0] * z, Y[1] * z
    fx, fy = K[0, 0], K[1, 1]
    e[0], e[1] = fx * u + K[0, 2] - at[0], fy * v + K[1, 2] - at[1]
    a, b = fx * z, fy * z
    # the pose changes Y by omega x Y + v
    if turning:
        J[0, 0], J[0, 1], J[0, 2] = -fx * u * v, fx * (1.0 + u * u), -fx * v
        J[1, 0], J[1, 1], J[1, 2] = -fy * (1.0 + v * v), fy * u * v, fy * u
    J[0, 3], J[0, 5] = a, -a * u
    J[1, 4], J[1, 5] = b, -b * v
    J[0, 6], J[1, 6] = fx * u, fy * v
    for c in range(3):
        J[0, 7 + c] = a * (pose[0, c] - u * pose[2, c])
        J[1, 7 + c] = b * (pose[1, c] - v * pose[2, c])
    squared = e[0] * e[0] + e[1] * e[1]
    return 1.0 if squared <= LOSS_PX**2 else LOSS_PX / np.sqrt(squared)


@njit(nogil=True, cache=True)
def _reduce(
    w2c: Array,
    K: Array,
    points: Array,
    frame: Array,
    at: Array,
    first: Array,
    start: int,
    stop: int,
    damping: float,
    turning: bool,
    half: Array,
    g: Array,
    diagonal: Array,
) -> None:
    """Adds points `start` to `stop` to the system over (6 per frame, log focal): half + half^T, g, and the diagonal before elimination."""
    longest = 0
    for p in range(start, stop):
        longest = max(longest, first[p + 1] - first[p])
    n = len(g)
    J, e, Y = np.zeros((2, 10)), np.zeros(2), np.zeros(3)
    cross, reduced = np.zeros((longest, 6, 3)), np.zeros((6, 3))
    shared, scaled = np.zeros(3), np.zeros(3)
    H, inverse, point_g = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3)
    for p in range(start, stop):
        H[:] = 0.0
        point_g[:] = 0.0
        shared[:] = 0.0
        count = first[p + 1] - first[p]
        for i in range(count):
            m = first[p] + i
            row = 6 * frame[m]
            weight = _derivatives(w2c[frame[m]], K, points[p], at[m], turning, J, e, Y)
            for c in range(6):
                wx, wy = weight * J[0, c], weight * J[1, c]
                g[row + c] += wx * e[0] + wy * e[1]
                own = wx * J[0, c] + wy * J[1, c]
                diagonal[row + c] += own
                half[row + c, row + c] += 0.5 * own
                for d in range(c + 1, 6):
                    half[row + c, row + d] += wx * J[0, d] + wy * J[1, d]
                half[row + c, n - 1] += wx * J[0, 6] + wy * J[1, 6]
                for d in range(3):
                    cross[i, c, d] = wx * J[0, 7 + d] + wy * J[1, 7 + d]
            wx, wy = weight * J[0, 6], weight * J[1, 6]
            g[n - 1] += wx * e[0] + wy * e[1]
            own = wx * J[0, 6] + wy * J[1, 6]
            diagonal[n - 1] += own
            half[n - 1, n - 1] += 0.5 * own
            for c in range(3):
                shared[c] += wx * J[0, 7 + c] + wy * J[1, 7 + c]
                point_g[c] += weight * (J[0, 7 + c] * e[0] + J[1, 7 + c] * e[1])
                for d in range(3):
                    H[c, d] += weight * (J[0, 7 + c] * J[0, 7 + d] + J[1, 7 + c] * J[1, 7 + d])
        for c in range(3):
            H[c, c] += damping * H[c, c] + 1e-12 * (H[0, 0] + H[1, 1] + H[2, 2]) + 1e-30
        inverse_3x3(H, inverse)
        for c in range(3):
            scaled[c] = inverse[c, 0] * shared[0] + inverse[c, 1] * shared[1] + inverse[c, 2] * shared[2]
        for c in range(3):
            g[n - 1] -= scaled[c] * point_g[c]
            half[n - 1, n - 1] -= 0.5 * scaled[c] * shared[c]
        for i in range(count):
            row = 6 * frame[first[p] + i]
            for c in range(6):
                for d in range(3):
                    reduced[c, d] = cross[i, c, 0] * inverse[0, d] + cross[i, c, 1] * inverse[1, d] + cross[i, c, 2] * inverse[2, d]
                g[row + c] -= reduced[c, 0] * point_g[0] + reduced[c, 1] * point_g[1] + reduced[c, 2] * point_g[2]
                half[row + c, n - 1] -= reduced[c, 0] * shared[0] + reduced[c, 1] * shared[1] + reduced[c, 2] * shared[2]
            for j in range(i, count):
                to, share = 6 * frame[first[p] + j], 0.5 if i == j else 1.0
                for c in range(6):
                    x, y, z = share * reduced[c, 0], share * reduced[c, 1], share * reduced[c, 2]
                    for d in range(6):
                        half[row + c, to + d] -= x * cross[j, d, 0] + y * cross[j, d, 1] + z * cross[j, d, 2]


@njit(nogil=True, cache=True)
def _back_substitute(
    w2c: Array,
    K: Array,
    points: Array,
    frame: Array,
    at: Array,
    first: Array,
    start: int,
    stop: int,
    damping: float,
    turning: bool,
    step: Array,
    new_points: Array,
) -> float:
    """Moves the points from `start` to `stop` with a step (6 F + 1,) of poses and log focal.

    Returns:
        By how much the cost falls if residuals are linear and the loss's weights stay.
    """
    expected = 0.0
    J, e, Y = np.zeros((2, 10)), np.zeros(2), np.zeros(3)
    H, inverse, right, moved = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros(3), np.zeros(3)
    focal = step[len(step) - 1]
    for p in range(start, stop):
        H[:] = 0.0
        right[:] = 0.0
        for m in range(first[p], first[p + 1]):
            row = 6 * frame[m]
            weight = _derivatives(w2c[frame[m]], K, points[p], at[m], turning, J, e, Y)
            dx, dy = e[0] + J[0, 6] * focal, e[1] + J[1, 6] * focal
            for c in range(6):
                dx += J[0, c] * step[row + c]
                dy += J[1, c] * step[row + c]
            for c in range(3):
                right[c] -= weight * (J[0, 7 + c] * dx + J[1, 7 + c] * dy)
                for d in range(3):
                    H[c, d] += weight * (J[0, 7 + c] * J[0, 7 + d] + J[1, 7 + c] * J[1, 7 + d])
        for c in range(3):
            H[c, c] += damping * H[c, c] + 1e-12 * (H[0, 0] + H[1, 1] + H[2, 2]) + 1e-30
        inverse_3x3(H, inverse)
        for c in range(3):
            moved[c] = inverse[c, 0] * right[0] + inverse[c, 1] * right[1] + inverse[c, 2] * right[2]
            new_points[p, c] = points[p, c] + moved[c]
        for m in range(first[p], first[p + 1]):
            weight = _derivatives(w2c[frame[m]], K, points[p], at[m], turning, J, e, Y)
            for i in range(2):
                change = J[i, 6] * focal
                for c in range(6):
                    change += J[i, c] * step[6 * frame[m] + c]
                for c in range(3):
                    change += J[i, 7 + c] * moved[c]
                expected -= weight * change * (e[i] + 0.5 * change)
    return expected
