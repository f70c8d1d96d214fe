"""Robust least squares for poses and displacement lattices of several frames at once, matrix-free: the problem that the solvers share.

Unknown per frame: a pose update about the camera centre, and lattice nodes X in world axes, in units of the median depth and
proportional to depth (a node's displacement is `amplitude * X`, `amplitude = z_node`), so that near and far nodes are regularised alike.
A pixel with camera point p lies at `Q(p) = c2w p + sum_k w_k z_k X_k`. Minimised is, over matches m = (p in i, q in j),

    data * sum_m c^2 e^2 / (c^2 + e^2)  +  smoothness * sum_edges |X_a - X_b|^2 / s^2  +  ridge * sum_nodes |X|^2 / r^2
      + temporal * sum_{f, f+1} |X_f - X_f+1|^2 / (s^2 gap)  +  pose_ridge * sum_frames |t|^2 / (t0 z)^2 + |omega|^2 / o0^2,

    e^2 = d^T S^-1 d,   d = Q_i(p) - Q_j(q),   S = (sigma z)^2 I + sum over both ends of (noise |p|)^2 r r^T

(a Mahalanobis distance: `sigma` is the error of the match, `noise` that of depth along the unit rays r, both as shares of depth; with
little parallax or noisy depth, what remains is the reprojection error)

by iteratively reweighted least squares (Geman-McClure, c from lenient to strict). Each step relinearises the poses and runs
preconditioned conjugate gradients. The ridge is the gauge: what the matches leave open takes the value of least displacement summed over
all frames, so no frame is trusted more than another. From the gradient the part that noise in depth makes up is taken off
(`depth_noise`), else the gauge would give way to it and the scene contract. Whether the cameras move at all is decided in `pose_evidence`.

"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from configs.stage1_align import SolverConfig
from utils.cameras import se3
from utils.deformation.lattice.numba import cell_coordinate
from utils.device.threads import ranges, run_chunks
from utils.matching.contract import MatchSet
from utils.registration.depth_noise import DepthNoise
from utils.registration.resume import Checkpoints
from utils.types import Array, CameraSet, LatticeFields

PARTS = 4  # accumulators of the parallel sums; fixed, so that a result does not depend on the number of cores


_SMOOTH_SCALE = 0.0017  # displacement difference of neighbouring nodes that costs `smoothness`, in median depths


_RIDGE_SCALE = 0.0067  # displacement that costs `ridge`, in median depths


_SHIFT_SCALE = 0.0011  # camera shift that costs `pose_ridge`, in median depths


_TURN_SCALE = 0.001  # camera turn that costs `pose_ridge`, in radians


DATA_WEIGHT = 0.05  # per match, when a pair has the number of samples below


REFERENCE_SAMPLES = 504 * 280 / 16  # an image of that size, every fourth pixel in both axes


TOLERANCE = 1e-4  # relative residual norm at which conjugate gradients stop


@dataclass(frozen=True)
class Problem:
    """Matches in the form the kernels read. Two ends per match; frame -1 marks a fixed end, whose point is canonical.

    Attributes:
        frames: (M, 2) int32 frame of each end.
        base: (M, 2) int32 lowest of the eight nodes, within the frame's lattice.
        weights: (M, 2, 4) float32 fractions across and down, depth times weight of the far and near layer of nodes.
        rates: (M, 2, 2) float32 change of the latter two per distance along the ray.
        points: (M, 2, 3) float64 camera-space points (canonical ones for fixed ends).
        information: (M, 6) float32 inverse covariance S^-1 of the distance of the ends, world axes: xx, xy, xz, yy, yz, zz.
        depth: (M,) float32 mean depth of both ends.
    """

    frames: Array
    base: Array
    weights: Array
    rates: Array
    points: Array
    information: Array
    depth: Array


@dataclass
class State:
    """Current solution: poses, nodes in world axes and the pose's accumulated update (for its prior)."""

    c2w: Array
    nodes: Array
    update: Array


@dataclass(frozen=True)
class SavedSteps:
    """States after each reweighting step, kept under the name of their solve."""

    checkpoints: Checkpoints
    name: str

    def load(self, step: int) -> State | None:
        """The state after a step that an interrupted run finished."""
        arrays = self.checkpoints.load(f"{self.name}_{step}")
        return None if arrays is None else State(**arrays)

    def save(self, step: int, state: State) -> None:
        """Keeps the state after a step."""
        self.checkpoints.save(f"{self.name}_{step}", vars(state))


@dataclass(frozen=True)
class LatticeShape:
    """Nodes and inverse-depth bounds of all frames.

    Attributes:
        nodes: nu, nv, nz.
        inv_depth: (F, 2).
        unit: length of one unit of X at depth `unit`: the scene's median depth.
        links: (F - 1,) how strongly each frame's nodes are held to those of the next, relative to `temporal`; None: not at all.
    """

    nodes: tuple[int, int, int]
    inv_depth: Array
    unit: float
    links: Array | None = None

    @property
    def count(self) -> int:
        """Nodes of one frame."""
        nu, nv, nz = self.nodes
        return nu * nv * nz

    def amplitudes(self) -> Array:
        """(F, nz) depth of each node layer in median depths."""
        low, high = self.inv_depth[:, :1], self.inv_depth[:, 1:]
        return 1.0 / (low + (high - low) * np.linspace(0, 1, self.nodes[2])) / self.unit


def build_problem(
    matches: list[MatchSet],
    cameras: CameraSet,
    shape: LatticeShape,
    sigma: float,
    fixed: Sequence[Array | None] | None = None,
    trust: Array | None = None,
    noise: DepthNoise | None = None,
) -> Problem:
    """The matches as kernel input.

    Args:
        matches: of any pairs.
        cameras: for K and the image size.
        shape: of the lattices to be solved.
        sigma: expected error of a match in depths.
        fixed: per match set, canonical points (M, 3) of its target ends, which then do not move, or None.
        trust: (M,) factors of the information of all matches, see `matching.match_trust`.
        noise: of depth along the rays; None: no more than `sigma`.
    """
    counts = [len(match) for match in matches]
    column = lambda name: np.concatenate([getattr(match, name) for match in matches])  # noqa: E731
    pixels = np.stack([column("source_px"), column("target_px")], 1)
    depths = np.stack([column("source_depth"), column("target_depth")], 1)
    fixed = [None] * len(matches) if fixed is None else fixed
    targets = [match.target if held is None else -1 for match, held in zip(matches, fixed, strict=True)]
    frames = np.repeat(np.array([[match.source for match in matches], targets], np.int32).T, counts, 0)
    rows = len(frames)
    base, weights, points = np.empty((rows, 2), np.int32), np.empty((rows, 2, 4), np.float32), np.empty((rows, 2, 3))
    rates = np.zeros((rows, 2, 2), np.float32)
    lattice = cameras.K, cameras.size, shape.nodes, shape.inv_depth
    run_chunks(_ends, ranges(rows), frames, pixels, depths, *lattice, base, weights, rates, points)
    for end, count, held in zip(np.cumsum(counts), counts, fixed, strict=True):
        if held is not None:
            points[end - count : end, 1] = held
    depth = depths.mean(1, dtype=np.float32)
    shares = np.zeros((rows, 2)) if noise is None else noise.at(depths)
    trust = np.ones(rows) if trust is None else np.asarray(trust, float)
    information = np.empty((rows, 6), np.float32)
    run_chunks(_information, ranges(rows), frames, points, cameras.c2w, sigma * depth, shares, trust, information)
    return Problem(frames, base, weights, rates, points, information, depth)


@njit(nogil=True, cache=True)
def _information(begin, end, frames, points, c2w, sigma, noise, trust, out):  # type: ignore[no-untyped-def]
    """Writes the inverse covariances (M, 6), see `Problem`, times `trust` (M,).

    Args:
        begin: first match.
        end: match to stop before.
        frames: (M, 2), -1 for fixed ends, whose noise lies along the ray of the other end.
        points: (M, 2, 3) camera space.
        c2w: (F, 4, 4).
        sigma: (M,) error of the matches, scene units.
        noise: (M, 2) of depth at both ends, as a share of it.
        trust: (M,).
        out: receives the result.
    """
    for m in range(begin, end):
        s00 = s11 = s22 = sigma[m] ** 2
        s01 = s02 = s12 = 0.0
        for side in range(2):
            seen = side if frames[m, side] >= 0 else 0
            f, share = frames[m, seen], noise[m, side]
            p0, p1, p2 = share * points[m, seen, 0], share * points[m, seen, 1], share * points[m, seen, 2]
            x = c2w[f, 0, 0] * p0 + c2w[f, 0, 1] * p1 + c2w[f, 0, 2] * p2
            y = c2w[f, 1, 0] * p0 + c2w[f, 1, 1] * p1 + c2w[f, 1, 2] * p2
            z = c2w[f, 2, 0] * p0 + c2w[f, 2, 1] * p1 + c2w[f, 2, 2] * p2
            s00, s11, s22 = s00 + x * x, s11 + y * y, s22 + z * z
            s01, s02, s12 = s01 + x * y, s02 + x * z, s12 + y * z
        xx, xy, xz = s11 * s22 - s12 * s12, s02 * s12 - s01 * s22, s01 * s12 - s02 * s11
        scale = trust[m] / (s00 * xx + s01 * xy + s02 * xz)
        out[m, 0], out[m, 1], out[m, 2] = scale * xx, scale * xy, scale * xz
        out[m, 3] = scale * (s00 * s22 - s02 * s02)
        out[m, 4] = scale * (s01 * s02 - s00 * s12)
        out[m, 5] = scale * (s00 * s11 - s01 * s01)


def squared_sigmas(information: Array, difference: Array) -> Array:
    """(M,) d^T S^-1 d of distances d (M, 3) under inverse covariances (M, 6)."""
    x, y, z = difference.astype(np.float64).T
    xx, xy, xz, yy, yz, zz = information.astype(np.float64).T
    total: Array = xx * x * x + yy * y * y + zz * z * z + 2 * (xy * x * y + xz * x * z + yz * y * z)
    return total


@njit(nogil=True, cache=True)
def _ends(begin, stop, frames, pixels, depths, K, size, nodes, inv_depth, base, weights, rates, points):  # type: ignore[no-untyped-def]
    """Writes lowest node (M, 2), weights (M, 2, 4), their rates (M, 2, 2) and camera-space points (M, 2, 3) of both ends; see `Problem`.

    Args:
        begin: first match.
        stop: match to stop before.
        frames: (M, 2), -1 for fixed ends, which get nodes and weights of the other one and no point.
        pixels: (M, 2, 2).
        depths: (M, 2).
        K: (F, 3, 3).
        size: h, w.
        nodes: nu, nv, nz.
        inv_depth: (F, 2).
        base: receives the nodes.
        weights: receives the weights.
        rates: zeros; receives the rates.
        points: receives the points.
    """
    nu, nv, nz = nodes
    for m in range(begin, stop):
        for end in range(2):
            f, x, y, z = frames[m, end], float(pixels[m, end, 0]), float(pixels[m, end, 1]), float(depths[m, end])
            if f < 0:
                base[m, end] = base[m, 0]
                for k in range(4):
                    weights[m, end, k] = weights[m, 0, k]
                continue
            points[m, end, 0] = (x - K[f, 0, 2]) / K[f, 0, 0] * z
            points[m, end, 1] = (y - K[f, 1, 2]) / K[f, 1, 1] * z
            points[m, end, 2] = z
            a, across = cell_coordinate(x / size[1] * (nu - 1), nu)
            b, down = cell_coordinate(y / size[0] * (nv - 1), nv)
            layers = (nz - 1) / (inv_depth[f, 1] - inv_depth[f, 0])
            c, deep = cell_coordinate((1.0 / z - inv_depth[f, 0]) * layers, nz)
            base[m, end] = (c * nv + b) * nu + a
            weights[m, end, 0], weights[m, end, 1] = across, down
            weights[m, end, 2], weights[m, end, 3] = (1 - deep) * z, deep * z
            # The coordinate falls by layers / z^2 per depth, within the lattice, and depth grows by z / |p| per distance.
            growth = z / np.sqrt(points[m, end, 0] ** 2 + points[m, end, 1] ** 2 + z * z)
            slope = layers / z if inv_depth[f, 0] < 1.0 / z < inv_depth[f, 1] else 0.0
            rates[m, end, 0], rates[m, end, 1] = (1 - deep + slope) * growth, (deep - slope) * growth


def initial_state(cameras: CameraSet, shape: LatticeShape) -> State:
    """Poses as given, no displacement."""
    return State(cameras.c2w.copy(), np.zeros((len(cameras) * shape.count, 3)), np.zeros((len(cameras), 6)))


def to_fields(state: State, shape: LatticeShape) -> LatticeFields:
    """The nodes of a state as camera-space displacement fields."""
    nu, nv, nz = shape.nodes
    frames = len(state.c2w)
    world = state.nodes.reshape(frames, nz, nv, nu, 3) * (shape.amplitudes() * shape.unit)[:, :, None, None, None]
    camera = np.einsum("fba,fzvub->fzvua", state.c2w[:, :3, :3], world)
    return LatticeFields(nodes=camera.astype(np.float32), inv_depth_range=shape.inv_depth)


def from_fields(fields: LatticeFields, cameras: CameraSet, shape: LatticeShape) -> Array:
    """(F*N, 3) nodes of a state for camera-space displacement fields: the inverse of `to_fields`."""
    world = np.einsum("fab,fzvub->fzvua", cameras.c2w[:, :3, :3], fields.nodes.astype(np.float64))
    nodes: Array = (world / (shape.amplitudes() * shape.unit)[:, :, None, None, None]).reshape(-1, 3)
    return nodes


def residuals(problem: Problem, state: State, shape: LatticeShape) -> tuple[Array, Array]:
    """Q_i(p) - Q_j(q) (M, 3) float32, and the ends relative to their camera centres (M, 2, 3) float32, world axes."""
    nu, nv, _ = shape.nodes
    ends = problem.frames, problem.base, problem.weights, problem.points
    difference, relative = np.empty((len(ends[0]), 3), np.float32), np.empty((len(ends[0]), 2, 3), np.float32)
    strides = shape.count, nu, nu * nv
    run_chunks(residuals_kernel, ranges(len(ends[0])), *ends, state.c2w, state.nodes, *strides, difference, relative)
    return difference, relative


def relative_errors(problem: Problem, state: State, shape: LatticeShape) -> Array:
    """(M,) distance of matched points, in depths."""
    difference, _ = residuals(problem, state, shape)
    return np.linalg.norm(difference, axis=1) / problem.depth


def errors_in_sigmas(problem: Problem, state: State, shape: LatticeShape) -> Array:
    """(M,) distance of matched points in standard deviations (Mahalanobis distance)."""
    return np.sqrt(squared_sigmas(problem.information, residuals(problem, state, shape)[0]))


@dataclass(frozen=True)
class Regularisation:
    """Weights of the terms that do not depend on matches.

    Attributes:
        smooth: of differences between neighbouring nodes.
        ridge: of the nodes.
        pose: (6,) of the updates [t, omega].
        links: (F - 1,) of differences between the nodes of a frame and of the next.
    """

    smooth: float
    ridge: float
    pose: Array
    links: Array

    def link_degree(self) -> Array:
        """(F,) sum of the weights of the links of each frame."""
        return np.r_[self.links, 0.0] + np.r_[0.0, self.links]


def regularisation(config: SolverConfig, shape: LatticeShape) -> Regularisation:
    """The weights of a solve."""
    pose = np.array([1 / (_SHIFT_SCALE * shape.unit) ** 2] * 3 + [1 / _TURN_SCALE**2] * 3)
    links = np.zeros(max(len(shape.inv_depth) - 1, 0)) if shape.links is None else np.asarray(shape.links, float)
    return Regularisation(
        smooth=config.smoothness / _SMOOTH_SCALE**2,
        ridge=config.ridge / _RIDGE_SCALE**2,
        pose=config.pose_ridge * pose,
        links=config.temporal / _SMOOTH_SCALE**2 * links,
    )


def move_cameras(c2w: Array, update: Array) -> None:
    """Turns each camera about its centre by omega and shifts it by t, in world axes; update is (F, 6) [t, omega]."""
    twist = torch.from_numpy(np.concatenate([update[:, 3:], np.zeros_like(update[:, :3])], 1))
    c2w[:, :3, :3] = se3.exp(twist)[:, :3, :3].numpy() @ c2w[:, :3, :3]
    c2w[:, :3, 3] += update[:, :3]


@njit(cache=True)
def corner_weight(c, fx, fy, near, far, stride_y, stride_z):  # type: ignore[no-untyped-def]
    """Weight and node offset of corner c of a cell."""
    weight = (fx if c & 1 else 1 - fx) * (fy if c & 2 else 1 - fy) * (far if c & 4 else near)
    return weight, (1 if c & 1 else 0) + (stride_y if c & 2 else 0) + (stride_z if c & 4 else 0)


@njit(nogil=True, cache=True)
def residuals_kernel(begin, stop, frames, base, weights, points, c2w, nodes, count, stride_y, stride_z, difference, relative):  # type: ignore[no-untyped-def]
    """Fills rows `begin` to `stop` of what `residuals` returns."""
    for m in range(begin, stop):
        e0, e1, e2 = 0.0, 0.0, 0.0
        for end in range(2):
            sign = -1.0 if end else 1.0
            frame = frames[m, end]
            p0, p1, p2 = points[m, end, 0], points[m, end, 1], points[m, end, 2]
            if frame < 0:
                relative[m, end, 0] = relative[m, end, 1] = relative[m, end, 2] = 0.0
                e0, e1, e2 = e0 + sign * p0, e1 + sign * p1, e2 + sign * p2
                continue
            r0 = c2w[frame, 0, 0] * p0 + c2w[frame, 0, 1] * p1 + c2w[frame, 0, 2] * p2
            r1 = c2w[frame, 1, 0] * p0 + c2w[frame, 1, 1] * p1 + c2w[frame, 1, 2] * p2
            r2 = c2w[frame, 2, 0] * p0 + c2w[frame, 2, 1] * p1 + c2w[frame, 2, 2] * p2
            relative[m, end, 0], relative[m, end, 1], relative[m, end, 2] = r0, r1, r2
            e0 += sign * (r0 + c2w[frame, 0, 3])
            e1 += sign * (r1 + c2w[frame, 1, 3])
            e2 += sign * (r2 + c2w[frame, 2, 3])
            start = frame * count + base[m, end]
            fx, fy, near, far = weights[m, end, 0], weights[m, end, 1], weights[m, end, 2], weights[m, end, 3]
            for c in range(8):
                w, offset = corner_weight(c, fx, fy, near, far, stride_y, stride_z)
                e0 += sign * w * nodes[start + offset, 0]
                e1 += sign * w * nodes[start + offset, 1]
                e2 += sign * w * nodes[start + offset, 2]
        difference[m, 0], difference[m, 1], difference[m, 2] = e0, e1, e2
