"""The solver on the CPU: iteratively reweighted least squares, each step by preconditioned conjugate gradients, matrix-free."""

import numpy as np
from numba import njit

from configs.stage1_align import SolverConfig
from utils.device.threads import run_chunks
from utils.registration.depth_noise import add_noise_gradient
from utils.registration.solver.problem import (
    DATA_WEIGHT,
    PARTS,
    REFERENCE_SAMPLES,
    TOLERANCE,
    LatticeShape,
    Problem,
    SavedSteps,
    State,
    corner_weight,
    move_cameras,
    regularisation,
    residuals,
    squared_sigmas,
)
from utils.types import Array


def solve_on_cpu(
    problem: Problem,
    state: State,
    shape: LatticeShape,
    config: SolverConfig,
    samples: float,
    first: Array | None,
    kept: SavedSteps | None,
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
        if step == 0 and first is not None:
            squared = squared_sigmas(problem.information, first)
            known, noisy = np.linalg.norm(first, axis=1).astype(np.float32), True
        else:
            squared = squared_sigmas(problem.information, difference)
        robust = (scale * scale / (scale * scale + squared)) ** 2
        system.relinearise(relative, ((data * robust)[:, None] * problem.information).astype(np.float32))
        nodes, update = system.step(difference, state, known if noisy else None)
        state.nodes += nodes
        state.update += update
        move_cameras(state.c2w, update)
        if kept:
            kept.save(step, state)
    return state


class _System:
    """Normal equations of one linearisation, applied without being formed."""

    def __init__(self, problem: Problem, shape: LatticeShape, config: SolverConfig, frames: int, origin: Array):
        self._problem = problem
        self._origin = origin
        self._shape = shape
        self._frames = frames
        self._free = 0.0 if config.rigid_only else 1.0
        self._iterations = config.cg_iterations
        self._prior = regularisation(config, shape)

    def relinearise(self, relative: Array, weight: Array) -> None:
        """Sets the linearisation point and builds the preconditioner: diagonal for nodes, 6x6 blocks for poses."""
        self._relative, self._weight = relative, weight
        p, (nu, nv, nz) = self._problem, self._shape.nodes
        nodes = np.zeros((PARTS, self._frames * self._shape.count, 3))
        poses = np.zeros((PARTS, self._frames, 6, 6))
        strides = self._shape.count, nu, nu * nv
        run_chunks(_preconditioner, _parts(len(p.frames)), p.frames, p.base, p.weights, relative, weight, *strides, nodes, poses)
        edges = self._prior.ridge + self._prior.smooth * _degree(nz, nv, nu, self._frames)
        self._node_diagonal = nodes.sum(0) + (edges + np.repeat(self._prior.link_degree(), self._shape.count))[:, None]
        self._pose_inverse = np.linalg.inv(poses.sum(0) + np.diag(self._prior.pose))

    def _apply(self, nodes: Array, poses: Array) -> tuple[Array, Array]:
        """The matrix times a vector."""
        out_nodes, out_poses = self._data(np.zeros((0, 3), np.float32), nodes, poses)
        return self._regularise(nodes, poses, out_nodes, out_poses)

    def _data(self, difference: Array, nodes: Array, poses: Array) -> tuple[Array, Array]:
        """J^T W (J v + difference)."""
        p, (nu, nv, _) = self._problem, self._shape.nodes
        out_nodes = np.zeros((PARTS, *nodes.shape))
        out_poses = np.zeros((PARTS, *poses.shape))
        matches = p.frames, p.base, p.weights, self._relative, self._weight, difference
        strides = self._shape.count, nu, nu * nv
        run_chunks(_normal_product, _parts(len(p.frames)), *matches, nodes, poses, *strides, out_nodes, out_poses)
        return out_nodes.sum(0), out_poses.sum(0)

    def _regularise(self, nodes: Array, poses: Array, out_nodes: Array, out_poses: Array) -> tuple[Array, Array]:
        nu, nv, nz = self._shape.nodes
        prior = self._prior
        _add_smoothness(nodes.reshape(self._frames, nz, nv, nu, 3), prior.smooth, prior.ridge, prior.links, out_nodes)
        return out_nodes * self._free, out_poses + prior.pose * poses

    def _noise(self, difference: Array, known: Array, nodes: int) -> Array:
        """(F*N, 3) the part of the gradient that is due to noise in depth, see `depth_noise`."""
        p, (nu, nv, _) = self._problem, self._shape.nodes
        out = np.zeros((PARTS, nodes, 3))
        strides = (self._shape.count, nu, nu * nv)
        matches = p.frames, p.base, p.weights, p.rates, self._relative, self._weight, difference, known
        run_chunks(add_noise_gradient, _parts(len(p.frames)), *matches, *strides, out)
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


def _parts(count: int) -> list[tuple[int, int, int]]:
    """(part, begin, end) of the matches that each accumulator sums."""
    return [(part, count * part // PARTS, count * (part + 1) // PARTS) for part in range(PARTS)]


@njit(fastmath=True, cache=True)
def times(weight, m, x, y, z):  # type: ignore[no-untyped-def]
    """Product of a symmetric matrix, row m of `weight` (M, 6), with a vector."""
    xx, xy, xz, yy, yz, zz = weight[m, 0], weight[m, 1], weight[m, 2], weight[m, 3], weight[m, 4], weight[m, 5]
    return xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z


@njit(nogil=True, fastmath=True, cache=True)
def _normal_product(  # type: ignore[no-untyped-def]
    part, begin, stop, frames, base, weights, relative, weight, difference, nodes, poses, count, stride_y, stride_z, out_nodes, out_poses
):
    """Adds J^T W (J v + difference) of matches `begin` to `stop` to one accumulator; an empty `difference` counts as zero."""
    with_difference = len(difference) > 0
    for m in range(begin, stop):
        e0, e1, e2 = 0.0, 0.0, 0.0
        for end in range(2):
            f = frames[m, end]
            if f < 0:
                continue
            r0, r1, r2 = relative[m, end, 0], relative[m, end, 1], relative[m, end, 2]
            d0 = poses[f, 0] + poses[f, 4] * r2 - poses[f, 5] * r1
            d1 = poses[f, 1] + poses[f, 5] * r0 - poses[f, 3] * r2
            d2 = poses[f, 2] + poses[f, 3] * r1 - poses[f, 4] * r0
            start = f * count + base[m, end]
            fx, fy, near, far = weights[m, end, 0], weights[m, end, 1], weights[m, end, 2], weights[m, end, 3]
            for c in range(8):
                w, offset = corner_weight(c, fx, fy, near, far, stride_y, stride_z)
                d0 += w * nodes[start + offset, 0]
                d1 += w * nodes[start + offset, 1]
                d2 += w * nodes[start + offset, 2]
            if end == 0:
                e0, e1, e2 = d0, d1, d2
            else:
                e0, e1, e2 = e0 - d0, e1 - d1, e2 - d2
        if with_difference:
            e0, e1, e2 = e0 + difference[m, 0], e1 + difference[m, 1], e2 + difference[m, 2]
        t0, t1, t2 = times(weight, m, e0, e1, e2)
        for end in range(2):
            f = frames[m, end]
            if f < 0:
                continue
            if end == 1:
                t0, t1, t2 = -t0, -t1, -t2
            r0, r1, r2 = relative[m, end, 0], relative[m, end, 1], relative[m, end, 2]
            out_poses[part, f, 0] += t0
            out_poses[part, f, 1] += t1
            out_poses[part, f, 2] += t2
            out_poses[part, f, 3] += r1 * t2 - r2 * t1
            out_poses[part, f, 4] += r2 * t0 - r0 * t2
            out_poses[part, f, 5] += r0 * t1 - r1 * t0
            start = f * count + base[m, end]
            fx, fy, near, far = weights[m, end, 0], weights[m, end, 1], weights[m, end, 2], weights[m, end, 3]
            for c in range(8):
                w, offset = corner_weight(c, fx, fy, near, far, stride_y, stride_z)
                out_nodes[part, start + offset, 0] += w * t0
                out_nodes[part, start + offset, 1] += w * t1
                out_nodes[part, start + offset, 2] += w * t2


@njit(nogil=True, fastmath=True, cache=True)
def _preconditioner(part, begin, stop, frames, base, weights, relative, weight, count, stride_y, stride_z, out_nodes, out_poses):  # type: ignore[no-untyped-def]
    """Diagonal of J^T W J for the nodes (parts, F*N, 3), blocks for the poses (parts, F, 6, 6), of matches `begin` to `stop`."""
    jacobian = np.zeros((3, 6))
    jacobian[0, 0] = jacobian[1, 1] = jacobian[2, 2] = 1.0
    for m in range(begin, stop):
        for end in range(2):
            frame = frames[m, end]
            if frame < 0:
                continue
            start = frame * count + base[m, end]
            fx, fy, near, far = weights[m, end, 0], weights[m, end, 1], weights[m, end, 2], weights[m, end, 3]
            for c in range(8):
                w, offset = corner_weight(c, fx, fy, near, far, stride_y, stride_z)
                out_nodes[part, start + offset, 0] += w * w * weight[m, 0]
                out_nodes[part, start + offset, 1] += w * w * weight[m, 3]
                out_nodes[part, start + offset, 2] += w * w * weight[m, 5]
            x, y, z = relative[m, end, 0], relative[m, end, 1], relative[m, end, 2]
            jacobian[0, 4], jacobian[0, 5] = z, -y
            jacobian[1, 3], jacobian[1, 5] = -z, x
            jacobian[2, 3], jacobian[2, 4] = y, -x
            for s in range(6):
                t0, t1, t2 = times(weight, m, jacobian[0, s], jacobian[1, s], jacobian[2, s])
                for r in range(6):
                    out_poses[part, frame, r, s] += jacobian[0, r] * t0 + jacobian[1, r] * t1 + jacobian[2, r] * t2


@njit(fastmath=True, cache=True)
def _add_smoothness(nodes, smooth, ridge, links, out):  # type: ignore[no-untyped-def]
    """Adds the graph Laplacians of lattice edges (times `smooth`) and of frames (`links`), and `ridge` times the nodes, to out (F*N, 3)."""
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
                        between = 0.0
                        if f > 0:
                            between += links[f - 1] * (x - nodes[f - 1, c, b, a, k])
                        if f < frames - 1:
                            between += links[f] * (x - nodes[f + 1, c, b, a, k])
                        out[row, k] += smooth * total + between + ridge * x
