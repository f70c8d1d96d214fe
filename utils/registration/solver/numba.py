"""Robust least squares for poses and displacement lattices of several frames at once, matrix-free.

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

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numba import njit, prange

from configs.stage1_align import SolverConfig
from utils.cameras import se3
from utils.deformation.lattice.numba import cell_coordinate
from utils.device.accelerator import accelerator, or_on_cpu
from utils.device.triton_support import triton_ready
from utils.matching.flow import MatchSet
from utils.registration.depth_noise import add_noise_gradient
from utils.registration.resume import Checkpoints
from utils.types import Array, CameraSet, LatticeFields

_PARTS = 4  # accumulators of the parallel sums; fixed, so that a result does not depend on the number of cores
_SMOOTH_SCALE = 0.0017  # displacement difference of neighbouring nodes that costs `smoothness`, in median depths
_RIDGE_SCALE = 0.0067  # displacement that costs `ridge`, in median depths
_SHIFT_SCALE = 0.0011  # camera shift that costs `pose_ridge`, in median depths
_HELD = 1e6  # `pose_ridge` of cameras that stay: they would move by a millionth of what they may otherwise
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
    return _residuals(problem.frames, problem.base, problem.weights, problem.points, state.c2w, state.nodes, shape.count, nu, nu * nv)


def relative_errors(problem: Problem, state: State, shape: LatticeShape) -> Array:
    """(M,) distance of matched points, in depths."""
    difference, _ = residuals(problem, state, shape)
    return np.linalg.norm(difference, axis=1) / problem.depth


def solve(
    problem: Problem,
    state: State,
    shape: LatticeShape,
    config: SolverConfig,
    samples: float,
    first_errors: Array | None = None,
    kept: StepsKept | None = None,
    origin: Array | None = None,
) -> State:
    """The state after all reweighting steps.

    Args:
        problem: the matches.
        state: where to start; not changed.
        shape: of the lattices.
        config: weights and schedule; with an infinite `pose_ridge` the cameras keep the bits they came with.
        samples: pixels of a pair that were tried as matches; the data weight is inverse to it, so that sampling does not matter.
        first_errors: (M,) errors in depths that set the weights of the first step, if not those of `state`.
        kept: steps that an interrupted run finished (CPU only: the GPU is done before a step is on disk).
        origin: (F*N, 3) nodes that smoothness and ridge are measured from; None: zero.
    """
    origin = np.zeros_like(state.nodes) if origin is None else origin
    if math.isinf(config.pose_ridge):
        done = solve(problem, state, shape, replace(config, pose_ridge=_HELD), samples, first_errors, kept, origin)
        return State(state.c2w.copy(), done.nodes, state.update.copy())
    alone = len(state.c2w) == 1  # one frame is solved on the CPU in less time than the launches take
    if not alone and accelerator() is not None and triton_ready():
        from utils.registration.solver import triton as solver_triton

        work = functools.partial(solver_triton.solve, problem, state, shape, config, samples, first_errors, origin, torch.device("cuda"))
        return or_on_cpu(work, lambda: _solve_on_cpu(problem, state, shape, config, samples, first_errors, kept, origin), "alignment")
    return _solve_on_cpu(problem, state, shape, config, samples, first_errors, kept, origin)


def _solve_on_cpu(
    problem: Problem,
    state: State,
    shape: LatticeShape,
    config: SolverConfig,
    samples: float,
    first_errors: Array | None,
    kept: StepsKept | None,
    origin: Array,
) -> State:
    """See `solve`."""
    state = State(state.c2w.copy(), state.nodes.copy(), state.update.copy())
    system = _System(problem, shape, config, len(state.c2w), origin)
    data = DATA_WEIGHT * REFERENCE_SAMPLES / samples
    for step, scale in enumerate(config.robust_scales):
        if kept and (done := kept.load(step)):
            state = done
            continue
        difference, relative = residuals(problem, state, shape)
        # Before the first step distances show what is to be aligned, not the noise.
        known, noisy = np.zeros(0, np.float32), step > 0
        if step == 0 and first_errors is not None:
            squared = (first_errors / config.match_sigma) ** 2
            known, noisy = (first_errors * problem.depth).astype(np.float32), True
        else:
            squared = problem.precision * (difference.astype(np.float64) ** 2).sum(1)
        robust = (scale * scale / (scale * scale + squared)) ** 2
        system.relinearise(relative, (data * robust * problem.precision).astype(np.float32))
        nodes, update = system.step(difference, state, known if noisy else None)
        state.nodes += nodes
        state.update += update
        _move_cameras(state.c2w, update)
        if kept:
            kept.save(step, state)
    return state


def regularisation(config: SolverConfig, shape: LatticeShape) -> tuple[float, float, Array]:
    """Weights of the smoothness and of the ridge, and of the pose priors (6,) of [t, omega]."""
    pose = np.array([1 / (_SHIFT_SCALE * shape.unit) ** 2] * 3 + [1 / _TURN_SCALE**2] * 3)
    return config.smoothness / _SMOOTH_SCALE**2, config.ridge / _RIDGE_SCALE**2, config.pose_ridge * pose


def _move_cameras(c2w: Array, update: Array) -> None:
    """Turns each camera about its centre by omega and shifts it by t, in world axes; update is (F, 6) [t, omega]."""
    twist = torch.from_numpy(np.concatenate([update[:, 3:], np.zeros_like(update[:, :3])], 1))
    c2w[:, :3, :3] = se3.exp(twist)[:, :3, :3].numpy() @ c2w[:, :3, :3]
    c2w[:, :3, 3] += update[:, :3]


class _System:
    """Normal equations of one linearisation, applied without being formed."""

    def __init__(self, problem: Problem, shape: LatticeShape, config: SolverConfig, frames: int, origin: Array):
        self._problem = problem
        self._origin = origin
        self._shape = shape
        self._frames = frames
        self._free = 0.0 if config.rigid_only else 1.0
        self._iterations = config.cg_iterations
        self._smooth, self._ridge, self._pose_prior = regularisation(config, shape)

    def relinearise(self, relative: Array, weight: Array) -> None:
        """Sets the linearisation point and builds the preconditioner: diagonal for nodes, 6x6 blocks for poses."""
        self._relative, self._weight = relative, weight
        p, (nu, nv, nz) = self._problem, self._shape.nodes
        nodes = np.zeros((_PARTS, self._frames * self._shape.count))
        poses = np.zeros((_PARTS, self._frames, 6, 6))
        _preconditioner(p.frames, p.base, p.weights, relative, weight, self._shape.count, nu, nu * nv, nodes, poses)
        self._node_diagonal = (nodes.sum(0) + self._ridge + self._smooth * _degree(nz, nv, nu, self._frames))[:, None]
        self._pose_inverse = np.linalg.inv(poses.sum(0) + np.diag(self._pose_prior))

    def _apply(self, nodes: Array, poses: Array) -> tuple[Array, Array]:
        """The matrix times a vector."""
        out_nodes, out_poses = self._data(np.zeros((0, 3), np.float32), nodes, poses)
        return self._regularise(nodes, poses, out_nodes, out_poses)

    def _data(self, difference: Array, nodes: Array, poses: Array) -> tuple[Array, Array]:
        """J^T W (J v + difference)."""
        p, (nu, nv, _) = self._problem, self._shape.nodes
        out_nodes = np.zeros((_PARTS, *nodes.shape))
        out_poses = np.zeros((_PARTS, *poses.shape))
        _normal_product(
            p.frames,
            p.base,
            p.weights,
            self._relative,
            self._weight,
            difference,
            nodes,
            poses,
            self._shape.count,
            nu,
            nu * nv,
            out_nodes,
            out_poses,
        )
        return out_nodes.sum(0), out_poses.sum(0)

    def _regularise(self, nodes: Array, poses: Array, out_nodes: Array, out_poses: Array) -> tuple[Array, Array]:
        nu, nv, nz = self._shape.nodes
        _add_smoothness(nodes.reshape(self._frames, nz, nv, nu, 3), self._smooth, self._ridge, out_nodes)
        return out_nodes * self._free, out_poses + self._pose_prior * poses

    def _noise(self, difference: Array, known: Array, nodes: int) -> Array:
        """(F*N, 3) the part of the gradient that is due to noise in depth, see `depth_noise`."""
        p, (nu, nv, _) = self._problem, self._shape.nodes
        out = np.zeros((_PARTS, nodes, 3))
        strides = (self._shape.count, nu, nu * nv)
        add_noise_gradient(p.frames, p.base, p.weights, p.rates, self._relative, self._weight, difference, known, *strides, out)
        return out.sum(0)

    def step(self, difference: Array, state: State, known_noise: Array | None) -> tuple[Array, Array]:
        """Conjugate gradients from zero: the change of nodes (F*N, 3) and poses (F, 6) [t, omega].

        Args:
            difference: (M, 3) distances of the matches.
            state: the accumulated unknowns.
            known_noise: (M,) size of the noise in them; empty: they are noise themselves; None: noise is left in the gradient.
        """
        zero_nodes, zero_poses = np.zeros_like(state.nodes), np.zeros_like(state.update)
        data_nodes, data_poses = self._data(difference, zero_nodes, zero_poses)
        if known_noise is not None:
            data_nodes -= self._noise(difference, known_noise, len(data_nodes))
        gradient = self._regularise(state.nodes - self._origin, state.update, data_nodes, data_poses)
        rn, rp = -gradient[0], -gradient[1]
        xn, xp = zero_nodes, zero_poses
        zn, zp = rn / self._node_diagonal, np.einsum("fab,fb->fa", self._pose_inverse, rp)
        pn, pp = zn.copy(), zp.copy()
        rz = first = np.vdot(rn, zn) + np.vdot(rp, zp)
        for _ in range(self._iterations):
            if rz <= TOLERANCE**2 * first:
                break
            an, ap = self._apply(pn, pp)
            alpha = rz / (np.vdot(pn, an) + np.vdot(pp, ap))
            xn += alpha * pn
            xp += alpha * pp
            rn -= alpha * an
            rp -= alpha * ap
            zn, zp = rn / self._node_diagonal, np.einsum("fab,fb->fa", self._pose_inverse, rp)
            previous, rz = rz, np.vdot(rn, zn) + np.vdot(rp, zp)
            pn = zn + (rz / previous) * pn
            pp = zp + (rz / previous) * pp
        return xn, xp


def _degree(nz: int, nv: int, nu: int, frames: int) -> Array:
    """(F*N,) number of lattice edges at each node."""
    per_axis = [np.full(n, 2.0) - (np.arange(n) == 0) - (np.arange(n) == n - 1) for n in (nz, nv, nu)]
    degree = per_axis[0][:, None, None] + per_axis[1][:, None] + per_axis[2]
    return np.tile(degree.ravel(), frames)


@njit(inline="always")
def _corner(c, fx, fy, near, far, stride_y, stride_z):  # type: ignore[no-untyped-def]
    """Weight and node offset of corner c of a cell."""
    weight = (fx if c & 1 else 1 - fx) * (fy if c & 2 else 1 - fy) * (far if c & 4 else near)
    return weight, (1 if c & 1 else 0) + (stride_y if c & 2 else 0) + (stride_z if c & 4 else 0)


@njit(inline="always")
def _linear(nodes, poses, frames, base, weights, relative, m, end, count, stride_y, stride_z):  # type: ignore[no-untyped-def]
    """Change of one end of match m for a change of nodes and poses [t, omega]. Arrays come whole: slices cost reference counts."""
    f = frames[m, end]
    r0, r1, r2 = relative[m, end, 0], relative[m, end, 1], relative[m, end, 2]
    d0 = poses[f, 0] + poses[f, 4] * r2 - poses[f, 5] * r1
    d1 = poses[f, 1] + poses[f, 5] * r0 - poses[f, 3] * r2
    d2 = poses[f, 2] + poses[f, 3] * r1 - poses[f, 4] * r0
    start = f * count + base[m, end]
    fx, fy, near, far = weights[m, end, 0], weights[m, end, 1], weights[m, end, 2], weights[m, end, 3]
    for c in range(8):
        w, offset = _corner(c, fx, fy, near, far, stride_y, stride_z)
        d0 += w * nodes[start + offset, 0]
        d1 += w * nodes[start + offset, 1]
        d2 += w * nodes[start + offset, 2]
    return d0, d1, d2


@njit(inline="always")
def _scatter(nodes, poses, part, frames, base, weights, relative, m, end, count, stride_y, stride_z, t0, t1, t2):  # type: ignore[no-untyped-def]
    """Transpose of `_linear`, added to accumulator `part`."""
    f = frames[m, end]
    r0, r1, r2 = relative[m, end, 0], relative[m, end, 1], relative[m, end, 2]
    poses[part, f, 0] += t0
    poses[part, f, 1] += t1
    poses[part, f, 2] += t2
    poses[part, f, 3] += r1 * t2 - r2 * t1
    poses[part, f, 4] += r2 * t0 - r0 * t2
    poses[part, f, 5] += r0 * t1 - r1 * t0
    start = f * count + base[m, end]
    fx, fy, near, far = weights[m, end, 0], weights[m, end, 1], weights[m, end, 2], weights[m, end, 3]
    for c in range(8):
        w, offset = _corner(c, fx, fy, near, far, stride_y, stride_z)
        nodes[part, start + offset, 0] += w * t0
        nodes[part, start + offset, 1] += w * t1
        nodes[part, start + offset, 2] += w * t2


@njit(parallel=True, fastmath=True, cache=True)
def _normal_product(  # type: ignore[no-untyped-def]
    frames, base, weights, relative, weight, difference, nodes, poses, count, stride_y, stride_z, out_nodes, out_poses
):
    """Adds J^T W (J v + difference) to one accumulator per part; an empty `difference` counts as zero."""
    total, parts = len(frames), out_nodes.shape[0]
    with_difference = len(difference) > 0
    for part in prange(parts):
        for m in range(total * part // parts, total * (part + 1) // parts):
            e0, e1, e2 = _linear(nodes, poses, frames, base, weights, relative, m, 0, count, stride_y, stride_z)
            moving = frames[m, 1] >= 0
            if moving:
                b0, b1, b2 = _linear(nodes, poses, frames, base, weights, relative, m, 1, count, stride_y, stride_z)
                e0, e1, e2 = e0 - b0, e1 - b1, e2 - b2
            if with_difference:
                e0, e1, e2 = e0 + difference[m, 0], e1 + difference[m, 1], e2 + difference[m, 2]
            w = weight[m]
            e0, e1, e2 = w * e0, w * e1, w * e2
            _scatter(out_nodes, out_poses, part, frames, base, weights, relative, m, 0, count, stride_y, stride_z, e0, e1, e2)
            if moving:
                _scatter(
                    out_nodes, out_poses, part, frames, base, weights, relative, m, 1, count, stride_y, stride_z,
                    -e0, -e1, -e2,
                )  # fmt: skip


@njit(parallel=True, fastmath=True, cache=True)
def _preconditioner(frames, base, weights, relative, weight, count, stride_y, stride_z, out_nodes, out_poses):  # type: ignore[no-untyped-def]
    """Diagonal of J^T W J for the nodes (parts, F*N), blocks for the poses (parts, F, 6, 6)."""
    total, parts = len(frames), out_nodes.shape[0]
    for part in prange(parts):
        jacobian = np.zeros((3, 6))
        jacobian[0, 0] = jacobian[1, 1] = jacobian[2, 2] = 1.0
        for m in range(total * part // parts, total * (part + 1) // parts):
            for end in range(2):
                frame = frames[m, end]
                if frame < 0:
                    continue
                start = frame * count + base[m, end]
                fx, fy, near, far = weights[m, end, 0], weights[m, end, 1], weights[m, end, 2], weights[m, end, 3]
                for c in range(8):
                    w, offset = _corner(c, fx, fy, near, far, stride_y, stride_z)
                    out_nodes[part, start + offset] += w * w * weight[m]
                x, y, z = relative[m, end, 0], relative[m, end, 1], relative[m, end, 2]
                jacobian[0, 4], jacobian[0, 5] = z, -y
                jacobian[1, 3], jacobian[1, 5] = -z, x
                jacobian[2, 3], jacobian[2, 4] = y, -x
                for r in range(6):
                    for s in range(6):
                        dot = 0.0
                        for k in range(3):
                            dot += jacobian[k, r] * jacobian[k, s]
                        out_poses[part, frame, r, s] += weight[m] * dot


@njit(parallel=True, cache=True)
def _residuals(frames, base, weights, points, c2w, nodes, count, stride_y, stride_z):  # type: ignore[no-untyped-def]
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
                w, offset = _corner(c, fx, fy, near, far, stride_y, stride_z)
                e0 += sign * w * nodes[start + offset, 0]
                e1 += sign * w * nodes[start + offset, 1]
                e2 += sign * w * nodes[start + offset, 2]
        difference[m, 0], difference[m, 1], difference[m, 2] = e0, e1, e2
    return difference, relative


@njit(fastmath=True, cache=True)
def _add_smoothness(nodes, smooth, ridge, out):  # type: ignore[no-untyped-def]
    """Adds the graph Laplacian of the lattice edges times `smooth`, and the nodes times `ridge`, to out (F*N, 3)."""
    frames, nz, nv, nu, _ = nodes.shape
    for f in range(frames):
        for c in range(nz):
            for b in range(nv):
                for a in range(nu):
                    row = ((f * nz + c) * nv + b) * nu + a
                    for k in range(3):
                        x = nodes[f, c, b, a, k]
                        total = 0.0
                        if a > 0:
                            total += x - nodes[f, c, b, a - 1, k]
                        if a < nu - 1:
                            total += x - nodes[f, c, b, a + 1, k]
                        if b > 0:
                            total += x - nodes[f, c, b - 1, a, k]
                        if b < nv - 1:
                            total += x - nodes[f, c, b + 1, a, k]
                        if c > 0:
                            total += x - nodes[f, c - 1, b, a, k]
                        if c < nz - 1:
                            total += x - nodes[f, c + 1, b, a, k]
                        out[row, k] += smooth * total + ridge * x
