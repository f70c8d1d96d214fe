"""Robust least squares for poses and displacement lattices of several frames at once, matrix-free: the problem that the solvers share.

Unknown per frame: a pose update about the camera centre, and lattice nodes X in world axes, in units of the median depth and
proportional to depth (a node's displacement is `amplitude * X`, `amplitude = z_node`), so that near and far nodes are regularised alike.
A pixel with camera point p lies at `Q(p) = c2w p + sum_k w_k z_k X_k`. Minimised is, over matches m = (p in i, q in j),

    data * sum_m c^2 e^2 / (c^2 + e^2)  +  smoothness * sum_edges |X_a - X_b|^2 / s^2  +  ridge * sum_nodes |X|^2 / r^2
      + pose_ridge * sum_frames |t|^2 / (t0 z)^2 + |omega|^2 / o0^2,      e = |Q_i(p) - Q_j(q)| / (sigma z)

by iteratively reweighted least squares (Geman-McClure, c from lenient to strict). Each step relinearises the poses and runs
preconditioned conjugate gradients. The ridge is the gauge: what the matches leave open takes the value of least displacement summed over
all frames, so no frame is trusted more than another. From the gradient the part that noise in depth makes up is taken off
(`depth_noise`), else the gauge would give way to it and the scene contract. Whether the cameras move at all is decided in `pose_evidence`.

"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange

from configs.stage1_align import SolverConfig
from utils.cameras import se3
from utils.deformation.lattice.numba import cell_coordinate
from utils.matching.contract import MatchSet
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
        weights: (M, 2, 4) float32 fractions across and down, amplitude times weight of the near and far depth layer.
        rates: (M, 2, 2) float32 change of the near and far layer's weight per distance along the ray; 0 beyond the lattice.
        points: (M, 2, 3) float64 camera-space points (canonical ones for fixed ends).
        precision: (M,) float32 1 / (sigma z)^2.
        depth: (M,) float32 mean depth of both ends.
    """

    frames: Array
    base: Array
    weights: Array
    rates: Array
    points: Array
    precision: Array
    depth: Array


@dataclass
class State:
    """Current solution: poses, nodes in world axes and the pose's accumulated update (for its prior)."""

    c2w: Array
    nodes: Array
    update: Array


@dataclass(frozen=True)
class StepsKept:
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
    """

    nodes: tuple[int, int, int]
    inv_depth: Array
    unit: float

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
) -> Problem:
    """The matches as kernel input.

    Args:
        matches: of any pairs.
        cameras: for K and the image size.
        shape: of the lattices to be solved.
        sigma: expected error in depths.
        fixed: per match set, canonical points (M, 3) of its target ends, which then do not move, or None.
        trust: (M,) factors of the precision of all matches, see `matching.match_trust`.
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
    amplitudes = shape.amplitudes() * shape.unit
    _ends(frames, pixels, depths, cameras.K, cameras.size, shape.nodes, shape.inv_depth, amplitudes, base, weights, rates, points)
    for end, count, held in zip(np.cumsum(counts), counts, fixed, strict=True):
        if held is not None:
            points[end - count : end, 1] = held
    depth = depths.mean(1, dtype=np.float32)
    precision = (1.0 if trust is None else trust) / (sigma * depth) ** 2
    return Problem(frames, base, weights, rates, points, precision.astype(np.float32), depth)


@njit(cache=True)
def _ends(frames, pixels, depths, K, size, nodes, inv_depth, amplitudes, base, weights, rates, points):  # type: ignore[no-untyped-def]
    """Writes lowest node (M, 2), weights (M, 2, 4), their rates (M, 2, 2) and camera-space points (M, 2, 3) of both ends; see `Problem`.

    Args:
        frames: (M, 2), -1 for fixed ends, which get nodes and weights of the other one and no point.
        pixels: (M, 2, 2).
        depths: (M, 2).
        K: (F, 3, 3).
        size: h, w.
        nodes: nu, nv, nz.
        inv_depth: (F, 2).
        amplitudes: (F, nz) depth of each layer.
        base: receives the nodes.
        weights: receives the weights.
        rates: zeros; receives the rates.
        points: receives the points.
    """
    nu, nv, nz = nodes
    for m in range(len(frames)):
        for end in range(2):
            f, x, y, z = frames[m, end], float(pixels[m, end, 0]), float(pixels[m, end, 1]), float(depths[m, end])
            if f < 0:
                base[m, end] = base[m, 0]
                weights[m, end] = weights[m, 0]
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
            weights[m, end, 2], weights[m, end, 3] = (1 - deep) * amplitudes[f, c], deep * amplitudes[f, c + 1]
            if inv_depth[f, 0] < 1.0 / z < inv_depth[f, 1]:
                # The coordinate falls by layers / z^2 per depth, and depth grows by z / |p| per distance.
                rate = layers / (z * np.sqrt(points[m, end, 0] ** 2 + points[m, end, 1] ** 2 + z * z))
                rates[m, end, 0], rates[m, end, 1] = amplitudes[f, c] * rate, -amplitudes[f, c + 1] * rate


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
    return residuals_kernel(problem.frames, problem.base, problem.weights, problem.points, state.c2w, state.nodes, shape.count, nu, nu * nv)


def relative_errors(problem: Problem, state: State, shape: LatticeShape) -> Array:
    """(M,) distance of matched points, in depths."""
    difference, _ = residuals(problem, state, shape)
    return np.linalg.norm(difference, axis=1) / problem.depth


def regularisation(config: SolverConfig, shape: LatticeShape) -> tuple[float, float, Array]:
    """Weights of the smoothness and of the ridge, and of the pose priors (6,) of [t, omega]."""
    pose = np.array([1 / (_SHIFT_SCALE * shape.unit) ** 2] * 3 + [1 / _TURN_SCALE**2] * 3)
    return config.smoothness / _SMOOTH_SCALE**2, config.ridge / _RIDGE_SCALE**2, config.pose_ridge * pose


def move_cameras(c2w: Array, update: Array) -> None:
    """Turns each camera about its centre by omega and shifts it by t, in world axes; update is (F, 6) [t, omega]."""
    twist = torch.from_numpy(np.concatenate([update[:, 3:], np.zeros_like(update[:, :3])], 1))
    c2w[:, :3, :3] = se3.exp(twist)[:, :3, :3].numpy() @ c2w[:, :3, :3]
    c2w[:, :3, 3] += update[:, :3]


@njit(inline="always")
def corner_weight(c, fx, fy, near, far, stride_y, stride_z):  # type: ignore[no-untyped-def]
    """Weight and node offset of corner c of a cell."""
    weight = (fx if c & 1 else 1 - fx) * (fy if c & 2 else 1 - fy) * (far if c & 4 else near)
    return weight, (1 if c & 1 else 0) + (stride_y if c & 2 else 0) + (stride_z if c & 4 else 0)


@njit(parallel=True, cache=True)
def residuals_kernel(frames, base, weights, points, c2w, nodes, count, stride_y, stride_z):  # type: ignore[no-untyped-def]
    """See `residuals`."""
    difference = np.zeros((len(frames), 3), np.float32)
    relative = np.zeros((len(frames), 2, 3), np.float32)
    for m in prange(len(frames)):
        e0, e1, e2 = 0.0, 0.0, 0.0
        for end in range(2):
            sign = -1.0 if end else 1.0
            frame = frames[m, end]
            p0, p1, p2 = points[m, end, 0], points[m, end, 1], points[m, end, 2]
            if frame < 0:
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
    return difference, relative
