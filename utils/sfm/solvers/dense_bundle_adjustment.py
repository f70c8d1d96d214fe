"""Bundle adjustment on dense matches: refines the poses of all frames and their focal length, shared or, of a zoom, each its own.

A point is a pixel of its host frame and an inverse depth w along that pixel's ray, so it has one unknown and its elimination (Schur
complement) is a division. For a host ray r, the target camera sees `Y = R r + w t` (R, t: target from host), which stays finite for
points at infinity. A pose changes by `w2c_new = exp([omega, v]) w2c`. Residuals are pixels under a Cauchy loss.

A captured clip's camera is no pinhole with a global shutter. Its lens bends pixels, `q = f a (1 + k |a|^2) + c` with a = x / z, and its
shutter reads one row after another, so that a pixel is seen at `p = q + readout * shift`, its motion until its row is read. If asked
for, k and the readout are two more unknowns; the shifts are measured beforehand.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numba import njit
from torch import Tensor

from utils.cameras import se3
from utils.device.accelerator import accelerator
from utils.sfm.solvers.dense_bundle_adjustment_batched import BatchedSystem
from utils.sfm.solvers.parts import part_bounds, solver_threads
from utils.types import Array

CAUCHY_PX = 0.5
_STEPS = 12
# Fewer matches are done sooner by the CPU than a GPU is started.
_LEAST_ON_DEVICE = 5000
# Fixed-point steps that take the lens out of a pixel: to 1e-4 of the bend within |k| = 0.5 and a view of 80 degrees.
_UNBENDING = 6


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


NO_MATCHES = Matches(
    host=np.zeros(0, np.int64),
    target=np.zeros(0, np.int64),
    point=np.zeros(0, np.int64),
    host_px=np.zeros((0, 2)),
    target_px=np.zeros((0, 2)),
)


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
        zoom: gives every frame a focal length of its own; None: all change by one factor.
    """

    center_px: float
    sigma: float
    independent: float
    zoom: "Zoom | None" = None


@dataclass(frozen=True)
class Zoom:
    """How focal lengths are believed to change: the log of each clip's goes a random walk, so it changes smoothly or not at all.

    Attributes:
        sigma: standard deviation of log fx between the first and the last frame of a clip.
        clips: (T,) clip of each frame: from one to the next anything may change. None: all are of one.
    """

    sigma: float
    clips: Array | None = None

    def penalties(self, frames: Array, level_sigma: float) -> Array:
        """Q (n, n) such that d Q d is the negative log prior (twice) of how far (d) log fx of the frames is from the prior's centre.

        Args:
            frames: (n,) increasing.
            level_sigma: standard deviation of the mean of a clip.
        """
        clip_of = np.zeros(len(frames), np.int64) if self.clips is None else self.clips[frames]
        Q = np.zeros((len(frames), len(frames)))
        for clip in np.unique(clip_of):
            own = np.flatnonzero(clip_of == clip)
            Q[np.ix_(own, own)] += 1 / (len(own) * level_sigma) ** 2
            steps = np.diff(np.eye(len(frames))[own], axis=0)
            share = np.diff(frames[own]) / max(frames[own[-1]] - frames[own[0]], 1)
            Q += steps.T @ (steps / (share * self.sigma**2)[:, None])
        return Q


@dataclass(frozen=True, kw_only=True)
class CameraFaults:
    """Lens and shutter as further unknowns, with priors that pull both to none.

    Attributes:
        host_shift: (M, 2) pixels that each match moves in its host for a readout of 1, see the module.
        target_shift: (M, 2) and in its target.
        k_sigma: standard deviation of the radial coefficient's prior.
        readout_sigma: and of the readout's.
        independent: number of independent observations all residuals are worth, as in `FocalPrior`.
    """

    host_shift: Array
    target_shift: Array
    k_sigma: float
    readout_sigma: float
    independent: float

    def penalty(self, distortion: Array) -> float:
        """Negative log prior of (k, readout)."""
        return float(((distortion / self.sigmas) ** 2).sum())

    @property
    def sigmas(self) -> Array:
        """(2,) standard deviations of k and the readout."""
        return np.array([self.k_sigma, self.readout_sigma])


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Result of `adjust`.

    Attributes:
        w2c: (T, 4, 4) refined; frames without matches as they were.
        K: (T, 3, 3) refined focal lengths, the ratio fx / fy and the principal point kept.
        inverse: (P,) refined 1/z of the points in their hosts.
        before_px: root median squared residual before.
        after_px: and after.
        objective: twice the negative log posterior, up to a constant: smaller is better among fits to the same matches.
        k: radial coefficient of the lens, 0 unless asked for.
        readout: of the shutter, 0 unless asked for.
    """

    w2c: Array
    K: Array
    inverse: Array
    before_px: float
    after_px: float
    objective: float
    k: float = 0.0
    readout: float = 0.0


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


def picked(matches: Matches, wanted: Array) -> Matches:
    """The matches of the wanted points (P,) bool, renumbered."""
    rows = wanted[matches.point]
    return Matches(
        host=matches.host[rows],
        target=matches.target[rows],
        point=(np.cumsum(wanted) - 1)[matches.point[rows]],
        host_px=matches.host_px[rows],
        target_px=matches.target_px[rows],
    )


def adjust(
    w2c: Array,
    K: Array,
    matches: Matches,
    inverse: Array,
    *,
    focal: FocalPrior | None,
    steps: int = _STEPS,
    faults: CameraFaults | None = None,
    scale_px: float = CAUCHY_PX,
) -> Bundle:
    """Levenberg-Marquardt on poses, focal lengths, the points' inverse depths and, if asked for, lens and shutter.

    Args:
        w2c: (T, 4, 4); frames that no match names may be NaN.
        K: (T, 3, 3) of one principal point.
        matches: the observations.
        inverse: (P,) starting 1/z of each point in its host.
        focal: prior of the focal lengths; `None` holds them.
        steps: most steps.
        faults: makes lens and shutter unknowns; `None` is a pinhole camera with a global shutter.
        scale_px: of the Cauchy loss; larger for poses that are far off.
    """
    frames = np.unique(np.concatenate([matches.host, matches.target]))
    slot = np.full(len(w2c), -1, np.int64)
    slot[frames] = np.arange(len(frames))
    none = np.zeros((len(matches.point), 2))
    shifts = (none, none) if faults is None else (faults.host_shift, faults.target_shift)
    packed = (slot[matches.host], slot[matches.target], matches.point, matches.host_px, matches.target_px, *shifts)
    poses, w, distortion = w2c[frames].copy(), inverse.astype(np.float64).copy(), np.zeros(2)
    refined_K, K = K.astype(np.float64).copy(), K[frames].astype(np.float64)
    priors = _Priors(focal, faults, frames)
    with solver_threads() as pool:
        device = accelerator() if faults is None and len(matches.point) >= _LEAST_ON_DEVICE else None
        system: _System | BatchedSystem
        if device is None:
            system = _System(packed, len(frames), priors.zooms, faults is not None, scale_px, pool)
        else:
            system = BatchedSystem(packed, len(frames), priors.zooms, scale_px, device)
        squared = system.squared(poses, K, w, distortion)
        cost, before = _cost(squared, scale_px), float(np.sqrt(np.median(squared)))
        total, damping = priors.objective(cost, K, distortion), 1e-4
        H, g = system.normal_equations(poses, K, w, distortion)
        for _ in range(steps):
            damped, right = H.clone(), -g
            priors.add_to(damped, right, damping, scale_px**2 * cost, K, distortion)
            factor, indefinite = torch.linalg.cholesky_ex(damped)
            if indefinite:
                damping *= 10
                continue
            solved = torch.cholesky_solve(right[:, None], factor)[:, 0]
            new_w = w + system.back_substitute(solved)
            step = solved.cpu().numpy()
            own = step[: system.block * len(poses)].reshape(-1, system.block)
            new_poses = se3.exp(torch.from_numpy(own[:, :6].copy())).numpy() @ poses
            grown = own[:, 6] if priors.zooms else step[len(own.ravel())]
            new_K = K.copy()
            new_K[:, [0, 1], [0, 1]] *= np.exp(np.clip(grown, -0.3, 0.3))[..., None]
            new_distortion = distortion if faults is None else distortion + step[-2:]
            squared = system.squared(new_poses, new_K, new_w, new_distortion)
            new_cost = _cost(squared, scale_px)
            new_total = priors.objective(new_cost, new_K, new_distortion)
            if not new_total < total:
                damping *= 10
                continue
            done = total - new_total < 1e-5
            poses, K, w, distortion, cost, total, damping = new_poses, new_K, new_w, new_distortion, new_cost, new_total, damping / 5
            if done:
                break
            H, g = system.normal_equations(poses, K, w, distortion)
        after = float(np.sqrt(np.median(system.squared(poses, K, w, distortion))))
    refined = w2c.copy()
    refined[frames], refined_K[frames] = poses, K
    return Bundle(
        w2c=refined,
        K=refined_K,
        inverse=w,
        before_px=before,
        after_px=after,
        objective=total,
        k=float(distortion[0]),
        readout=float(distortion[1]),
    )


def residuals(w2c: Array, K: Array, matches: Matches, inverse: Array) -> Array:
    """(M,) pixels between where targets see the points and where cameras (T, 4, 4), (T, 3, 3) without faults put them at 1/z (P,)."""
    none = np.zeros((len(matches.point), 2))
    packed = matches.host, matches.target, matches.point, matches.host_px, matches.target_px, none, none
    return np.sqrt(_squared(w2c, K, inverse, np.zeros(2), *packed))


class _Priors:
    """What is believed of focal lengths, lens and shutter of the frames (n,) being adjusted."""

    def __init__(self, focal: FocalPrior | None, faults: CameraFaults | None, frames: Array):
        self._focal, self._faults, self._zoom = focal, faults, None if focal is None else focal.zoom
        self._penalties = np.zeros((0, 0))
        if focal is not None:
            self._penalties = np.full((1, 1), 1 / focal.sigma**2)
            if self._zoom is not None:
                self._penalties = self._zoom.penalties(frames, focal.sigma)
        self._at_focal = 7 * np.arange(len(frames)) + 6 if self.zooms else np.array([6 * len(frames)])

    @property
    def zooms(self) -> bool:
        """Whether every frame has a focal length of its own."""
        return self._zoom is not None

    def _deviation(self, K: Array, focal: FocalPrior) -> Array:
        """(n,) or (1,) how far the unknown log focal lengths are from the prior's."""
        return np.log((K[:, 0, 0] if self.zooms else np.median(K[:, 0, 0], keepdims=True)) / focal.center_px)

    def add_to(self, H: Tensor, right: Tensor, damping: float, cost: float, K: Array, distortion: Array) -> None:
        """Adds damping, what holds the first frame, and the priors to H x = right in place; `cost` in squared pixels."""
        diagonal = H.diagonal().clone()
        largest = diagonal.max()
        H.diagonal().add_(damping * diagonal + 1e-9 * largest)
        H.diagonal()[:6] += largest * 1e3  # the first frame stays: it fixes where the world lies
        if self._focal is None:
            H.diagonal()[self._at_focal] += 1e12 * largest
        else:
            pull = cost / self._focal.independent * self._penalties
            H[self._at_focal[:, None], self._at_focal] += torch.from_numpy(pull).to(H.device)
            right[self._at_focal] -= torch.from_numpy(pull @ self._deviation(K, self._focal)).to(H.device)
        if self._faults is not None:
            pulls = cost / self._faults.independent / self._faults.sigmas**2
            H.diagonal()[-2:] += torch.from_numpy(pulls)
            right[-2:] -= torch.from_numpy(pulls * distortion)

    def objective(self, cost: float, K: Array, distortion: Array) -> float:
        """Twice the negative log posterior: residuals of unknown size, worth so many independent ones, and the priors."""
        focal, faults = self._focal, self._faults
        worth = focal.independent if focal is not None else faults.independent if faults is not None else 1.0
        total = worth * float(np.log(cost))
        if focal is not None:
            deviation = self._deviation(K, focal)
            total += float(deviation @ self._penalties @ deviation)
        return total + (0.0 if faults is None else faults.penalty(distortion))


def straight_rays(pixels: Array, K: Array, k: float) -> Array:
    """(M, 2) x / z of pixels (M, 2) of a camera whose lens has the radial coefficient k."""
    bent = (pixels - K[:2, 2]) / np.array([K[0, 0], K[1, 1]])
    straight = bent
    for _ in range(_UNBENDING if k else 0):
        straight = bent / (1 + k * (straight**2).sum(-1, keepdims=True))
    return straight


class _System:
    """The matches of a bundle adjustment in parts, on threads.

    Args:
        packed: host slot, target slot, point, host pixel, target pixel, host shift and target shift of the M matches.
        frames: number of slots.
        zooms: whether every frame has a focal length of its own.
        with_faults: whether lens and shutter are unknown.
        scale_px: of the Cauchy loss.
        pool: the threads.
    """

    def __init__(self, packed: tuple[Array, ...], frames: int, zooms: bool, with_faults: bool, scale_px: float, pool: ThreadPoolExecutor):
        self.block = 7 if zooms else 6
        self._shared = (0 if zooms else 1) + (2 if with_faults else 0)
        self._unknowns = self.block * frames + self._shared
        self._with_faults, self._scale_px, self._pool, self._packed = with_faults, scale_px, pool, packed
        point = packed[2]
        first = np.flatnonzero(np.r_[True, point[1:] != point[:-1], True]) if len(point) else np.zeros(1, np.int64)
        bounds = first[part_bounds(first, self._unknowns)]
        self._eliminated: tuple[Array, Array, Array]
        self._parts = [tuple(values[a:b] for values in packed) for a, b in pairwise(bounds.tolist())]

    def squared(self, poses: Array, K: Array, w: Array, distortion: Array) -> Array:
        """(M,) squared residuals in pixels."""
        parts = self._pool.map(lambda part: _squared(poses, K, w, distortion, *part), self._parts)
        return np.concatenate([np.zeros(0), *parts])

    def normal_equations(self, poses: Array, K: Array, w: Array, distortion: Array) -> tuple[Tensor, Tensor]:
        """Reduced system H (n, n), g (n,) over the unknowns of `_normal_equations`."""
        n = self._unknowns
        point_H, point_g = np.zeros(len(w)), np.zeros(len(w))

        def one(part: tuple[Array, ...]) -> tuple[Array, Array, Array]:
            upper, g = np.zeros((n, n)), np.zeros(n)
            settings = self.block, self._with_faults, self._scale_px
            cross = _normal_equations(poses, K, w, distortion, *settings, *part, upper, g, point_H, point_g)
            _eliminate(upper, g, self.block, point_H, point_g, cross, *part[:3])
            return upper, g, cross

        upper, g, crosses = np.zeros((n, n)), np.zeros(n), []
        for part_upper, part_g, cross in self._pool.map(one, self._parts):
            upper += part_upper
            g += part_g
            crosses.append(cross)
        cross = np.concatenate([np.zeros((0, 2 * self.block + self._shared)), *crosses])
        self._eliminated = point_H, point_g, cross
        return torch.from_numpy(upper + upper.T), torch.from_numpy(g)

    def back_substitute(self, step: Tensor) -> Array:
        """(P,) change of the inverse depths for a change (n,) of the other unknowns of the last normal equations."""
        return _back_substitute(step.numpy(), self.block, *self._eliminated, *self._packed[:3])


def _cost(squared: Array, scale_px: float) -> float:
    """Cauchy cost of squared residuals."""
    return float(np.log1p(squared / scale_px**2).sum())


@njit(nogil=True, cache=True)
def _squared(
    poses: Array,
    K: Array,
    w: Array,
    distortion: Array,
    host: Array,
    target: Array,
    point: Array,
    host_px: Array,
    target_px: Array,
    host_shift: Array,
    target_shift: Array,
) -> Array:
    """(M,) squared residuals in pixels."""
    out = np.empty(len(point))
    k, readout = distortion
    cx, cy = K[0, 0, 2], K[0, 1, 2]
    X, Y = np.zeros(3), np.zeros(3)
    for m in range(len(point)):
        a, b, q = host[m], target[m], w[point[m]]
        hx = (host_px[m, 0] - readout * host_shift[m, 0] - cx) / K[a, 0, 0]
        hy = (host_px[m, 1] - readout * host_shift[m, 1] - cy) / K[a, 1, 1]
        rx, ry = hx, hy
        if k != 0.0:
            for _ in range(_UNBENDING):
                bend = 1.0 + k * (rx * rx + ry * ry)
                rx, ry = hx / bend, hy / bend
        # in the world and then in the target, both divided by the point's depth in its host
        rx, ry, rz = rx - q * poses[a, 0, 3], ry - q * poses[a, 1, 3], 1.0 - q * poses[a, 2, 3]
        for i in range(3):
            X[i] = poses[a, 0, i] * rx + poses[a, 1, i] * ry + poses[a, 2, i] * rz
        for i in range(3):
            Y[i] = poses[b, i, 0] * X[0] + poses[b, i, 1] * X[1] + poses[b, i, 2] * X[2] + q * poses[b, i, 3]
        z = max(Y[2], 1e-6)
        u, v = Y[0] / z, Y[1] / z
        bend = 1.0 + k * (u * u + v * v)
        ex = K[b, 0, 0] * bend * u + cx + readout * target_shift[m, 0] - target_px[m, 0]
        ey = K[b, 1, 1] * bend * v + cy + readout * target_shift[m, 1] - target_px[m, 1]
        out[m] = ex * ex + ey * ey
    return out


@njit(nogil=True, cache=True)
def _normal_equations(
    poses: Array,
    K: Array,
    w: Array,
    distortion: Array,
    block: int,
    with_faults: bool,
    scale_px: float,
    host: Array,
    target: Array,
    point: Array,
    host_px: Array,
    target_px: Array,
    host_shift: Array,
    target_shift: Array,
    upper: Array,
    g: Array,
    point_H: Array,
    point_g: Array,
) -> Array:
    """Adds some matches to the system over (`block` per frame, then what is shared) and to what concerns their points.

    A frame's are the 6 of its pose and, if the block is 7, its log focal length; shared are log focal, if the block is 6, k and readout.
    H is `upper` (n, n) and its transpose together; it, g (n,), point_H (P,) and point_g (P,) are changed in place.

    Returns:
        (M, 2 block + shared) the points' second derivatives with host, target and what all frames share.
    """
    zooms = block == 7
    shared = (2 if with_faults else 0) + (0 if zooms else 1)
    width = 2 * block + shared
    # columns: host omega, v[, log focal]; target omega, v[, log focal]; [log focal;] [k; readout]; w last
    at_target, at_host_focal, at_target_focal, at_k, at_w = block, 6 if zooms else 12, 2 * block - 1 if zooms else 12, width - 2, width
    unknowns = len(g)
    k, readout = distortion
    cross = np.zeros((len(point), width))
    R, t, Y, ray = np.zeros((3, 3)), np.zeros(3), np.zeros(3), np.ones(3)
    J, D = np.zeros((2, width + 1)), np.zeros((3, width + 1))
    index = np.zeros(width, np.int64)
    host_bend, target_bend = 1.0, 1.0
    cx, cy = K[0, 0, 2], K[0, 1, 2]
    for m in range(len(point)):
        a, b, p = host[m], target[m], point[m]
        hfx, hfy, fx, fy = K[a, 0, 0], K[a, 1, 1], K[b, 0, 0], K[b, 1, 1]
        Ra, ta, Rb, tb = poses[a, :3, :3], poses[a, :3, 3], poses[b, :3, :3], poses[b, :3, 3]
        for i in range(3):
            for j in range(3):
                R[i, j] = Rb[i, 0] * Ra[j, 0] + Rb[i, 1] * Ra[j, 1] + Rb[i, 2] * Ra[j, 2]
        for i in range(3):
            t[i] = tb[i] - R[i, 0] * ta[0] - R[i, 1] * ta[1] - R[i, 2] * ta[2]
        rx, ry, q = (host_px[m, 0] - cx) / hfx, (host_px[m, 1] - cy) / hfy, w[p]
        if with_faults:
            hx, hy = rx - readout * host_shift[m, 0] / hfx, ry - readout * host_shift[m, 1] / hfy
            rx, ry = hx, hy
            for _ in range(_UNBENDING):
                host_bend = 1.0 + k * (rx * rx + ry * ry)
                rx, ry = hx / host_bend, hy / host_bend
        for i in range(3):
            Y[i] = R[i, 0] * rx + R[i, 1] * ry + R[i, 2] + q * t[i]
        if Y[2] < 1e-3:
            continue
        u, v = Y[0] / Y[2], Y[1] / Y[2]
        ex, ey = fx * u + cx - target_px[m, 0], fy * v + cy - target_px[m, 1]
        if with_faults:
            target_bend = 1.0 + k * (u * u + v * v)
            ex = fx * u * target_bend + cx + readout * target_shift[m, 0] - target_px[m, 0]
            ey = fy * v * target_bend + cy + readout * target_shift[m, 1] - target_px[m, 1]
        scale = 1.0 / (1.0 + (ex * ex + ey * ey) / scale_px**2)
        # Each column is a change of Y in 3D, projected.
        ray[0], ray[1] = rx, ry
        for i in range(3):
            # host: Y changes by R (ray x omega) - q R v
            D[i, 0] = R[i, 1] * ray[2] - R[i, 2] * ray[1]
            D[i, 1] = R[i, 2] * ray[0] - R[i, 0] * ray[2]
            D[i, 2] = R[i, 0] * ray[1] - R[i, 1] * ray[0]
            for j in range(3):
                D[i, 3 + j] = -q * R[i, j]
            D[i, at_target + 3 + i] = q
            D[i, at_host_focal] = -(R[i, 0] * rx + R[i, 1] * ry)
            D[i, at_w] = t[i]
            if with_faults:
                D[i, at_k] = D[i, at_host_focal] * (rx * rx + ry * ry) / host_bend
                D[i, at_k + 1] = -(R[i, 0] * host_shift[m, 0] / hfx + R[i, 1] * host_shift[m, 1] / hfy) / host_bend
        # target: Y changes by omega x Y + q v
        D[0, at_target + 1], D[0, at_target + 2] = Y[2], -Y[1]
        D[1, at_target], D[1, at_target + 2] = -Y[2], Y[0]
        D[2, at_target], D[2, at_target + 1] = Y[1], -Y[0]
        for c in range(width + 1):
            du, dv = (D[0, c] - u * D[2, c]) / Y[2], (D[1, c] - v * D[2, c]) / Y[2]
            if with_faults:
                along = 2.0 * k * (u * du + v * dv)
                du, dv = target_bend * du + along * u, target_bend * dv + along * v
            J[0, c], J[1, c] = fx * du, fy * dv
        J[0, at_target_focal] += fx * u * target_bend
        J[1, at_target_focal] += fy * v * target_bend
        if with_faults:
            J[0, at_k] += fx * u * (u * u + v * v)
            J[1, at_k] += fy * v * (u * u + v * v)
            J[0, at_k + 1] += target_shift[m, 0]
            J[1, at_k + 1] += target_shift[m, 1]
        for c in range(block):
            index[c], index[block + c] = block * a + c, block * b + c
        for c in range(shared):
            index[2 * block + c] = unknowns - shared + c
        for c in range(width):
            g[index[c]] += scale * (J[0, c] * ex + J[1, c] * ey)
            cross[m, c] = scale * (J[0, c] * J[0, at_w] + J[1, c] * J[1, at_w])
            upper[index[c], index[c]] += 0.5 * scale * (J[0, c] * J[0, c] + J[1, c] * J[1, c])
            for d in range(c + 1, width):
                upper[index[c], index[d]] += scale * (J[0, c] * J[0, d] + J[1, c] * J[1, d])
        point_H[p] += scale * (J[0, at_w] ** 2 + J[1, at_w] ** 2)
        point_g[p] += scale * (J[0, at_w] * ex + J[1, at_w] * ey)
    return cross


@njit(nogil=True, cache=True)
def _eliminate(
    upper: Array, g: Array, block: int, point_H: Array, point_g: Array, cross: Array, host: Array, target: Array, point: Array
) -> None:
    """Subtracts the Schur complements of these matches' points from the system in place; see `_normal_equations`."""
    shared = cross.shape[1] - 2 * block
    at_shared, start = len(g) - shared, 0
    while start < len(point):
        stop = start
        while stop < len(point) and point[stop] == point[start]:
            stop += 1
        p = point[start]
        inverse = 1.0 / (point_H[p] * 1.001 + 1e-9)
        # one block for the host, which all matches of a point have in common, one for each target, and the shared unknowns
        blocks = 1 + stop - start
        value, at = np.zeros((blocks, block)), np.empty(blocks, np.int64)
        common = np.zeros(shared)
        at[0] = block * host[start]
        for m in range(start, stop):
            at[1 + m - start] = block * target[m]
            for c in range(block):
                value[0, c] += cross[m, c]
                value[1 + m - start, c] = cross[m, block + c]
            for c in range(shared):
                common[c] += cross[m, 2 * block + c]
        for i in range(blocks):
            for c in range(block):
                scaled, row = value[i, c] * inverse, upper[at[i] + c]
                g[at[i] + c] -= scaled * point_g[p]
                row[at[i] + c] -= 0.5 * scaled * value[i, c]
                for d in range(c + 1, block):
                    row[at[i] + d] -= scaled * value[i, d]
                for j in range(i + 1, blocks):
                    for d in range(block):
                        row[at[j] + d] -= scaled * value[j, d]
                for d in range(shared):
                    row[at_shared + d] -= scaled * common[d]
        for c in range(shared):
            scaled = common[c] * inverse
            g[at_shared + c] -= scaled * point_g[p]
            upper[at_shared + c, at_shared + c] -= 0.5 * scaled * common[c]
            for d in range(c + 1, shared):
                upper[at_shared + c, at_shared + d] -= scaled * common[d]
        start = stop


@njit(cache=True)
def _back_substitute(
    step: Array, block: int, point_H: Array, point_g: Array, cross: Array, host: Array, target: Array, point: Array
) -> Array:
    """(P,) change of the inverse depths for a change of the poses."""
    right = point_g.copy()
    for m in range(len(cross)):
        p, a, b = point[m], host[m], target[m]
        for c in range(block):
            right[p] += cross[m, c] * step[block * a + c] + cross[m, block + c] * step[block * b + c]
        for c in range(2 * block, cross.shape[1]):
            right[p] += cross[m, c] * step[len(step) - cross.shape[1] + c]
    return -right / (point_H * 1.001 + 1e-9)
