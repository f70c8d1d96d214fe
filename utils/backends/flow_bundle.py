"""Bundle adjustment on dense matches: refines the poses of all frames and the shared focal length.

A point is a pixel of its host frame and an inverse depth w along that pixel's ray, so it has one unknown and its elimination (Schur
complement) is a division. For a host ray r, the target camera sees `Y = R r + w t` (R, t: target from host), which stays finite for
points at infinity. A pose changes by `w2c_new = exp([omega, v]) w2c`. Residuals are pixels under a Cauchy loss.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from utils.geometry import se3
from utils.geometry.projection import invert_rigid
from utils.types import Array

_CAUCHY_PX = 0.5
_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Observations of points; the rows of one point are consecutive.

    Attributes:
        host: (M,) int64 frame whose ray holds the point.
        target: (M,) int64 frame that sees it.
        point: (M,) int64, non-decreasing from 0.
        host_px: (M, 2) pixel in the host.
        target_px: (M, 2) pixel in the target.
    """

    host: Array
    target: Array
    point: Array
    host_px: Array
    target_px: Array


@dataclass(frozen=True)
class FocalPrior:
    """What is believed of the focal length before looking.

    Frames of a generated clip contradict each other smoothly, so the thousands of residuals of one frame are far from independent
    and a focal length fitted to them follows the contradictions (measured on synthetic clips: 0.57 and 2.9 for a true 0.85 of the
    longest side). Residuals therefore count as `independent` observations in all: exact clips decide for themselves, contradictory
    ones stay near the prior.

    Attributes:
        center_px: fx in pixels.
        sigma: standard deviation of log fx.
        independent: number of independent observations all residuals are worth.
    """

    center_px: float
    sigma: float
    independent: float


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Result of `adjust`.

    Attributes:
        w2c: (T, 4, 4) refined; frames without matches as they were.
        K: (3, 3) refined focal length, the ratio fx / fy and the principal point kept.
        inverse: (P,) refined 1/z of the points in their hosts.
        before_px: root median squared residual before.
        after_px: and after.
    """

    w2c: Array
    K: Array
    inverse: Array
    before_px: float
    after_px: float


def join(parts: list[Matches]) -> Matches:
    """All matches as one set, points renumbered."""
    shift, points = 0, []
    for part in parts:
        points.append(part.point + shift)
        shift += int(part.point[-1]) + 1 if len(part.point) else 0
    return Matches(
        host=np.concatenate([p.host for p in parts]),
        target=np.concatenate([p.target for p in parts]),
        point=np.concatenate(points),
        host_px=np.concatenate([p.host_px for p in parts]),
        target_px=np.concatenate([p.target_px for p in parts]),
    )


def adjust(w2c: Array, K: Array, matches: Matches, inverse: Array, *, focal: FocalPrior | None, steps: int = _STEPS) -> Bundle:
    """Levenberg-Marquardt on poses, focal length and the points' inverse depths.

    Args:
        w2c: (T, 4, 4); frames that no match names may be NaN.
        K: (3, 3), shared.
        matches: the observations.
        inverse: (P,) starting 1/z of each point in its host.
        focal: prior of the focal length; `None` holds it.
        steps: most steps.
    """
    frames = np.unique(np.concatenate([matches.host, matches.target]))
    slot = np.full(len(w2c), -1, np.int64)
    slot[frames] = np.arange(len(frames))
    packed = (slot[matches.host], slot[matches.target], matches.point, matches.host_px, matches.target_px)
    poses, K, w = w2c[frames].copy(), K.astype(np.float64).copy(), inverse.astype(np.float64).copy()
    cost, before = _cost(poses, K, w, *packed)
    total, damping = _objective(cost, K, focal), 1e-4
    for _ in range(steps):
        H, g, point_H, point_g, cross, cross_at = _normal_equations(poses, K, w, *packed)
        diagonal = np.diag(H).copy()
        H[np.diag_indices(len(H))] += damping * diagonal + 1e-9 * diagonal.max()
        H[:6, :6] += np.eye(6) * diagonal.max() * 1e3  # the first frame stays: it fixes where the world lies
        if focal is None:
            H[-1, -1] += 1e12 * diagonal.max()
        else:
            pull = _CAUCHY_PX**2 * cost / focal.independent / focal.sigma**2
            H[-1, -1] += pull
            g[-1] += pull * np.log(K[0, 0] / focal.center_px)
        step = torch.linalg.solve(torch.from_numpy(H), torch.from_numpy(-g)).numpy()
        new_w = w + _back_substitute(step, point_H, point_g, cross, cross_at)
        new_poses = se3.exp(torch.from_numpy(step[:-1].reshape(-1, 6))).numpy() @ poses
        new_K = K.copy()
        new_K[[0, 1], [0, 1]] *= np.exp(np.clip(step[-1], -0.3, 0.3))
        new_cost, _ = _cost(new_poses, new_K, new_w, *packed)
        new_total = _objective(new_cost, new_K, focal)
        if new_total >= total:
            damping *= 10
            continue
        done = total - new_total < 1e-5
        poses, K, w, cost, total, damping = new_poses, new_K, new_w, new_cost, new_total, damping / 5
        if done:
            break
    refined = w2c.copy()
    refined[frames] = poses
    return Bundle(w2c=refined, K=K, inverse=w, before_px=before, after_px=_cost(poses, K, w, *packed)[1])


def _objective(cost: float, K: Array, focal: FocalPrior | None) -> float:
    """Negative log posterior: residuals of unknown size, worth so many independent ones, and the focal prior."""
    if focal is None:
        return float(np.log(cost))
    return focal.independent * float(np.log(cost)) + float(np.log(K[0, 0] / focal.center_px) / focal.sigma) ** 2


def _cost(
    poses: Array, K: Array, w: Array, host: Array, target: Array, point: Array, host_px: Array, target_px: Array
) -> tuple[float, float]:
    """Cauchy cost, and the median residual in pixels."""
    relative = poses[target] @ invert_rigid(poses)[host]
    focal, center = np.array([K[0, 0], K[1, 1]]), np.array([K[0, 2], K[1, 2]])
    ray = np.column_stack([(host_px - center) / focal, np.ones(len(host))])
    seen = np.einsum("mij,mj->mi", relative[:, :3, :3], ray) + w[point, None] * relative[:, :3, 3]
    pixel = focal * seen[:, :2] / np.maximum(seen[:, 2:], 1e-6) + center
    squared = ((pixel - target_px) ** 2).sum(1)
    return float(np.log1p(squared / _CAUCHY_PX**2).sum()), float(np.sqrt(np.median(squared)))


@njit(cache=True)
def _normal_equations(
    poses: Array, K: Array, w: Array, host: Array, target: Array, point: Array, host_px: Array, target_px: Array
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Reduced system over (6 per frame, log focal), and what is needed to recover the points.

    Returns:
        H (n, n), g (n,), point_H (P,), point_g (P,), cross (M, 13), cross_at (M, 3): point, host slot, target slot.
    """
    count, unknowns = len(w), 6 * len(poses) + 1
    H, g = np.zeros((unknowns, unknowns)), np.zeros(unknowns)
    point_H, point_g = np.zeros(count), np.zeros(count)
    cross = np.zeros((len(point), 13))
    cross_at = np.zeros((len(point), 3), np.int64)
    J = np.zeros((2, 14))
    index = np.zeros(13, np.int64)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    for m in range(len(point)):
        a, b, p = host[m], target[m], point[m]
        Ra, ta, Rb, tb = poses[a, :3, :3], poses[a, :3, 3], poses[b, :3, :3], poses[b, :3, 3]
        R = np.zeros((3, 3))
        for i in range(3):
            for j in range(3):
                R[i, j] = Rb[i, 0] * Ra[j, 0] + Rb[i, 1] * Ra[j, 1] + Rb[i, 2] * Ra[j, 2]
        t = np.zeros(3)
        for i in range(3):
            t[i] = tb[i] - R[i, 0] * ta[0] - R[i, 1] * ta[1] - R[i, 2] * ta[2]
        rx, ry, q = (host_px[m, 0] - cx) / fx, (host_px[m, 1] - cy) / fy, w[p]
        Y = np.zeros(3)
        for i in range(3):
            Y[i] = R[i, 0] * rx + R[i, 1] * ry + R[i, 2] + q * t[i]
        cross_at[m, 0], cross_at[m, 1], cross_at[m, 2] = p, a, b
        if Y[2] < 1e-3:
            continue
        u, v = Y[0] / Y[2], Y[1] / Y[2]
        ex, ey = fx * u + cx - target_px[m, 0], fy * v + cy - target_px[m, 1]
        scale = 1.0 / (1.0 + (ex * ex + ey * ey) / _CAUCHY_PX**2)
        # columns: host omega, v; target omega, v; log focal; w. Each is a change of Y in 3D, projected.
        D = np.zeros((3, 14))
        ray = np.array([rx, ry, 1.0])
        for i in range(3):
            # host: Y changes by R (ray x omega) - q R v
            D[i, 0] = R[i, 1] * ray[2] - R[i, 2] * ray[1]
            D[i, 1] = R[i, 2] * ray[0] - R[i, 0] * ray[2]
            D[i, 2] = R[i, 0] * ray[1] - R[i, 1] * ray[0]
            for j in range(3):
                D[i, 3 + j] = -q * R[i, j]
            D[i, 9 + i] = q
            D[i, 12] = -(R[i, 0] * rx + R[i, 1] * ry)
            D[i, 13] = t[i]
        # target: Y changes by omega x Y + q v
        D[0, 7], D[0, 8] = Y[2], -Y[1]
        D[1, 6], D[1, 8] = -Y[2], Y[0]
        D[2, 6], D[2, 7] = Y[1], -Y[0]
        for c in range(14):
            J[0, c] = fx * (D[0, c] - u * D[2, c]) / Y[2]
            J[1, c] = fy * (D[1, c] - v * D[2, c]) / Y[2]
        J[0, 12] += fx * u
        J[1, 12] += fy * v
        for c in range(6):
            index[c], index[6 + c] = 6 * a + c, 6 * b + c
        index[12] = unknowns - 1
        for c in range(13):
            g[index[c]] += scale * (J[0, c] * ex + J[1, c] * ey)
            cross[m, c] = scale * (J[0, c] * J[0, 13] + J[1, c] * J[1, 13])
            for d in range(13):
                H[index[c], index[d]] += scale * (J[0, c] * J[0, d] + J[1, c] * J[1, d])
        point_H[p] += scale * (J[0, 13] ** 2 + J[1, 13] ** 2)
        point_g[p] += scale * (J[0, 13] * ex + J[1, 13] * ey)
    _eliminate(H, g, point_H, point_g, cross, cross_at)
    return H, g, point_H, point_g, cross, cross_at


@njit(cache=True)
def _eliminate(H: Array, g: Array, point_H: Array, point_g: Array, cross: Array, cross_at: Array) -> None:
    """Subtracts every point's Schur complement from H and g in place."""
    start, last = 0, len(H) - 1
    while start < len(cross):
        stop = start
        while stop < len(cross) and cross_at[stop, 0] == cross_at[start, 0]:
            stop += 1
        p = cross_at[start, 0]
        inverse = 1.0 / (point_H[p] * 1.001 + 1e-9)
        size = 13 * (stop - start)
        value, at = np.empty(size), np.empty(size, np.int64)
        for m in range(start, stop):
            base = 13 * (m - start)
            for c in range(6):
                at[base + c], at[base + 6 + c] = 6 * cross_at[m, 1] + c, 6 * cross_at[m, 2] + c
            at[base + 12] = last
            value[base : base + 13] = cross[m]
        for i in range(size):
            g[at[i]] -= value[i] * inverse * point_g[p]
            for j in range(size):
                H[at[i], at[j]] -= value[i] * inverse * value[j]
        start = stop


@njit(cache=True)
def _back_substitute(step: Array, point_H: Array, point_g: Array, cross: Array, cross_at: Array) -> Array:
    """(P,) change of the inverse depths for a change of the poses."""
    right = point_g.copy()
    for m in range(len(cross)):
        p, a, b = cross_at[m]
        for c in range(6):
            right[p] += cross[m, c] * step[6 * a + c] + cross[m, 6 + c] * step[6 * b + c]
        right[p] += cross[m, 12] * step[len(step) - 1]
    return -right / (point_H * 1.001 + 1e-9)
