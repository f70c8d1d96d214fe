"""`utils.registration.solver.solve` on the GPU: same equations, same schedule, nothing read back before the end.

Products with J^T W J gather and scatter with atomics, all in float64; matches come pair by pair, so a block's pose sums usually belong to
one frame and are reduced before they touch memory. Conjugate gradients run a fixed number of iterations; past the tolerance their step
is zero, which costs less than asking the device whether to stop.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from configs.stage1_align import SolverConfig
from utils.cameras import se3
from utils.registration.solver.problem import DATA_WEIGHT, REFERENCE_SAMPLES, TOLERANCE, LatticeShape, Problem, State, regularisation
from utils.types import Array

BLOCK = 128


@triton.jit
def _end(frames, base, weights, m, mask, END: tl.constexpr, count):
    """Frame, first node and the four weights of one end of a match; `moving` is False for fixed ends."""
    frame = tl.load(frames + m * 2 + END, mask, -1)
    start = tl.maximum(frame, 0) * count + tl.load(base + m * 2 + END, mask, 0)
    w = weights + m * 8 + END * 4
    fx, fy = tl.load(w, mask, 0.0).to(tl.float64), tl.load(w + 1, mask, 0.0).to(tl.float64)
    near, far = tl.load(w + 2, mask, 0.0).to(tl.float64), tl.load(w + 3, mask, 0.0).to(tl.float64)
    return frame, mask & (frame >= 0), start, fx, fy, near, far


@triton.jit
def corner_weight(fx, fy, near, far, stride_y, stride_z, C: tl.constexpr):
    """Weight and node offset of corner C of a cell."""
    weight = (fx if C & 1 else 1 - fx) * (fy if C & 2 else 1 - fy) * (far if C & 4 else near)
    return weight, (C & 1) + stride_y * ((C >> 1) & 1) + stride_z * (C >> 2)


@triton.jit
def _interpolate(nodes, start, fx, fy, near, far, mask, stride_y, stride_z):
    """Displacement from the eight nodes of a cell."""
    d0, d1, d2 = tl.zeros_like(fx), tl.zeros_like(fx), tl.zeros_like(fx)
    for c in tl.static_range(8):
        w, offset = corner_weight(fx, fy, near, far, stride_y, stride_z, c)
        node = nodes + (start + offset) * 3
        d0 += w * tl.load(node, mask, 0.0)
        d1 += w * tl.load(node + 1, mask, 0.0)
        d2 += w * tl.load(node + 2, mask, 0.0)
    return d0, d1, d2


@triton.jit
def _relative(relative, m, mask, END: tl.constexpr):
    """The end relative to its camera's centre, world axes."""
    r = relative + m * 6 + END * 3
    return tl.load(r, mask, 0.0).to(tl.float64), tl.load(r + 1, mask, 0.0).to(tl.float64), tl.load(r + 2, mask, 0.0).to(tl.float64)


@triton.jit
def _weighted(weight, m, mask, x, y, z):
    """Product of the symmetric matrices of the matches, (M, 6) xx, xy, xz, yy, yz, zz, with a vector."""
    w = weight + m * 6
    xx, xy, xz = tl.load(w, mask, 0.0).to(tl.float64), tl.load(w + 1, mask, 0.0).to(tl.float64), tl.load(w + 2, mask, 0.0).to(tl.float64)
    yy, yz, zz = (
        tl.load(w + 3, mask, 0.0).to(tl.float64),
        tl.load(w + 4, mask, 0.0).to(tl.float64),
        tl.load(w + 5, mask, 0.0).to(tl.float64),
    )
    return xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z


@triton.jit
def _add_by_frame(out, frame, mask, uniform, value):
    """Adds to one entry per frame; `uniform` blocks have one frame."""
    if uniform:
        tl.atomic_add(out + tl.max(tl.where(mask, frame, 0)), tl.sum(tl.where(mask, value, 0.0)), sem="relaxed")
    else:
        tl.atomic_add(out + frame, value, mask=mask, sem="relaxed")


@triton.jit
def _is_uniform(frame, mask):
    """Whether all lanes in use have the same frame (and there is one)."""
    return tl.min(tl.where(mask, frame, 2147483647)) == tl.max(tl.where(mask, frame, -1))


@triton.jit
def _change(poses, nodes, relative, m, moving, frame, start, fx, fy, near, far, num_frames, stride_y, stride_z, END: tl.constexpr):
    """Change of one end for a change of nodes and poses; poses are (6, F) [t, omega]."""
    r0, r1, r2 = _relative(relative, m, moving, END)
    t0, t1, t2 = (
        tl.load(poses + frame, moving, 0.0),
        tl.load(poses + num_frames + frame, moving, 0.0),
        tl.load(poses + 2 * num_frames + frame, moving, 0.0),
    )
    o0, o1, o2 = (
        tl.load(poses + 3 * num_frames + frame, moving, 0.0),
        tl.load(poses + 4 * num_frames + frame, moving, 0.0),
        tl.load(poses + 5 * num_frames + frame, moving, 0.0),
    )
    d0, d1, d2 = _interpolate(nodes, start, fx, fy, near, far, moving, stride_y, stride_z)
    return d0 + t0 + o1 * r2 - o2 * r1, d1 + t1 + o2 * r0 - o0 * r2, d2 + t2 + o0 * r1 - o1 * r0


@triton.jit
def _scatter(
    out_poses,
    out_nodes,
    relative,
    m,
    moving,
    frame,
    start,
    fx,
    fy,
    near,
    far,
    num_frames,
    stride_y,
    stride_z,
    t0,
    t1,
    t2,
    END: tl.constexpr,
):
    """Transpose of `_change`."""
    r0, r1, r2 = _relative(relative, m, moving, END)
    uniform = _is_uniform(frame, moving)
    _add_by_frame(out_poses, frame, moving, uniform, t0)
    _add_by_frame(out_poses + num_frames, frame, moving, uniform, t1)
    _add_by_frame(out_poses + 2 * num_frames, frame, moving, uniform, t2)
    _add_by_frame(out_poses + 3 * num_frames, frame, moving, uniform, r1 * t2 - r2 * t1)
    _add_by_frame(out_poses + 4 * num_frames, frame, moving, uniform, r2 * t0 - r0 * t2)
    _add_by_frame(out_poses + 5 * num_frames, frame, moving, uniform, r0 * t1 - r1 * t0)
    for c in tl.static_range(8):
        w, offset = corner_weight(fx, fy, near, far, stride_y, stride_z, c)
        node = out_nodes + (start + offset) * 3
        tl.atomic_add(node, w * t0, mask=moving, sem="relaxed")
        tl.atomic_add(node + 1, w * t1, mask=moving, sem="relaxed")
        tl.atomic_add(node + 2, w * t2, mask=moving, sem="relaxed")


@triton.jit(do_not_specialize=["num", "num_frames", "count", "stride_y", "stride_z"])
def _normal_product(
    frames, base, weights, relative, weight, difference, nodes, poses, out_nodes, out_poses, num, num_frames, count, stride_y, stride_z,
    WITH_DIFFERENCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds J^T W (J v), or J^T W difference, to the outputs."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = m < num
    f0, moving0, s0, x0, y0, n0, k0 = _end(frames, base, weights, m, mask, 0, count)
    f1, moving1, s1, x1, y1, n1, k1 = _end(frames, base, weights, m, mask, 1, count)
    if WITH_DIFFERENCE:
        e0 = tl.load(difference + m * 3, mask, 0.0).to(tl.float64)
        e1 = tl.load(difference + m * 3 + 1, mask, 0.0).to(tl.float64)
        e2 = tl.load(difference + m * 3 + 2, mask, 0.0).to(tl.float64)
    else:
        e0, e1, e2 = _change(poses, nodes, relative, m, moving0, f0, s0, x0, y0, n0, k0, num_frames, stride_y, stride_z, 0)
        b0, b1, b2 = _change(poses, nodes, relative, m, moving1, f1, s1, x1, y1, n1, k1, num_frames, stride_y, stride_z, 1)
        e0, e1, e2 = e0 - b0, e1 - b1, e2 - b2
    e0, e1, e2 = _weighted(weight, m, mask, e0, e1, e2)
    _scatter(out_poses, out_nodes, relative, m, moving0, f0, s0, x0, y0, n0, k0, num_frames, stride_y, stride_z, e0, e1, e2, 0)
    _scatter(out_poses, out_nodes, relative, m, moving1, f1, s1, x1, y1, n1, k1, num_frames, stride_y, stride_z, -e0, -e1, -e2, 1)


@triton.jit(do_not_specialize=["num", "count", "stride_y", "stride_z"])
def _noise_gradient(
    frames, base, weights, rates, relative, weight, difference, known, out, num, count, stride_y, stride_z,
    KNOWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Subtracts what noise in depth adds to the gradient, see `depth_noise`."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = m < num
    f1 = tl.load(frames + m * 2 + 1, mask, -1)
    a0, a1, a2 = _relative(relative, m, mask, 0)
    b0, b1, b2 = _relative(relative, m, mask, 1)
    dot = a0 * b0 + a1 * b1 + a2 * b2
    e0 = tl.load(difference + m * 3, mask, 0.0).to(tl.float64)
    e1 = tl.load(difference + m * 3 + 1, mask, 0.0).to(tl.float64)
    e2 = tl.load(difference + m * 3 + 2, mask, 0.0).to(tl.float64)
    for end in tl.static_range(2):
        _frame, moving, start, fx, fy, _near, _far = _end(frames, base, weights, m, mask, end, count)
        r0, r1, r2 = _relative(relative, m, mask, end)
        own = tl.where(moving, r0 * r0 + r1 * r1 + r2 * r2, 1.0)
        share = tl.where(f1 < 0, 0.5, own * own / (own * own + dot * dot))
        if KNOWN:
            size = tl.load(known + m, mask, 0.0).to(tl.float64)
            squared = size * size
        else:
            along = r0 * e0 + r1 * e1 + r2 * e2
            squared = along * along / own
        push = squared * share / tl.sqrt(own)
        t0, t1, t2 = _weighted(weight, m, mask, r0, r1, r2)
        near = tl.load(rates + m * 4 + end * 2, mask, 0.0).to(tl.float64) * push
        far = tl.load(rates + m * 4 + end * 2 + 1, mask, 0.0).to(tl.float64) * push
        for c in tl.static_range(8):
            rate, offset = corner_weight(fx, fy, near, far, stride_y, stride_z, c)
            node = out + (start + offset) * 3
            tl.atomic_add(node, -rate * t0, mask=moving, sem="relaxed")
            tl.atomic_add(node + 1, -rate * t1, mask=moving, sem="relaxed")
            tl.atomic_add(node + 2, -rate * t2, mask=moving, sem="relaxed")


@triton.jit(do_not_specialize=["num", "num_frames", "count", "stride_y", "stride_z"])
def _preconditioner(
    frames, base, weights, relative, weight, out_nodes, out_poses, num, num_frames, count, stride_y, stride_z,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Node diagonal of J^T W J (F * N, 3), and the upper triangles of its pose blocks (21, F), column by column."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = m < num
    one, zero = tl.full([BLOCK], 1.0, tl.float64), tl.zeros([BLOCK], tl.float64)
    xx, _, _ = _weighted(weight, m, mask, one, zero, zero)
    _, yy, _ = _weighted(weight, m, mask, zero, one, zero)
    _, _, zz = _weighted(weight, m, mask, zero, zero, one)
    for end in tl.static_range(2):
        frame, moving, start, fx, fy, near, far = _end(frames, base, weights, m, mask, end, count)
        for c in tl.static_range(8):
            share, offset = corner_weight(fx, fy, near, far, stride_y, stride_z, c)
            node = out_nodes + (start + offset) * 3
            tl.atomic_add(node, xx * share * share, mask=moving, sem="relaxed")
            tl.atomic_add(node + 1, yy * share * share, mask=moving, sem="relaxed")
            tl.atomic_add(node + 2, zz * share * share, mask=moving, sem="relaxed")
        r0, r1, r2 = _relative(relative, m, moving, end)
        uniform = _is_uniform(frame, moving)
        for column in tl.static_range(6):
            # Column of the Jacobian of the end for [t, omega]: a unit vector, or its cross product with the end.
            if column < 3:
                j0, j1, j2 = one if column % 3 == 0 else zero, one if column % 3 == 1 else zero, one if column % 3 == 2 else zero
            else:
                j0 = zero if column % 3 == 0 else (r2 if column % 3 == 1 else -r1)
                j1 = -r2 if column % 3 == 0 else (zero if column % 3 == 1 else r0)
                j2 = r1 if column % 3 == 0 else (-r0 if column % 3 == 1 else zero)
            t0, t1, t2 = _weighted(weight, m, moving, j0, j1, j2)
            out = out_poses + (column * (column + 1) // 2) * num_frames
            _add_by_frame(out, frame, moving, uniform, t0)
            if column >= 1:
                _add_by_frame(out + num_frames, frame, moving, uniform, t1)
            if column >= 2:
                _add_by_frame(out + 2 * num_frames, frame, moving, uniform, t2)
            if column >= 3:
                _add_by_frame(out + 3 * num_frames, frame, moving, uniform, r1 * t2 - r2 * t1)
            if column >= 4:
                _add_by_frame(out + 4 * num_frames, frame, moving, uniform, r2 * t0 - r0 * t2)
            if column >= 5:
                _add_by_frame(out + 5 * num_frames, frame, moving, uniform, r0 * t1 - r1 * t0)


@triton.jit(do_not_specialize=["num", "count", "stride_y", "stride_z"])
def residuals_kernel(frames, base, weights, points, c2w, nodes, difference, relative, num, count, stride_y, stride_z, BLOCK: tl.constexpr):
    """Distances of both ends and the ends relative to their cameras."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = m < num
    e0, e1, e2 = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for end in tl.static_range(2):
        frame, moving, start, fx, fy, near, far = _end(frames, base, weights, m, mask, end, count)
        p = points + m * 6 + end * 3
        p0, p1, p2 = tl.load(p, mask, 0.0), tl.load(p + 1, mask, 0.0), tl.load(p + 2, mask, 0.0)
        pose = c2w + tl.maximum(frame, 0) * 16
        r0 = tl.load(pose) * p0 + tl.load(pose + 1) * p1 + tl.load(pose + 2) * p2
        r1 = tl.load(pose + 4) * p0 + tl.load(pose + 5) * p1 + tl.load(pose + 6) * p2
        r2 = tl.load(pose + 8) * p0 + tl.load(pose + 9) * p1 + tl.load(pose + 10) * p2
        d0, d1, d2 = _interpolate(nodes, start, fx, fy, near, far, moving, stride_y, stride_z)
        sign = 1.0 - 2.0 * end
        e0 += sign * tl.where(moving, r0 + tl.load(pose + 3) + d0, p0)
        e1 += sign * tl.where(moving, r1 + tl.load(pose + 7) + d1, p1)
        e2 += sign * tl.where(moving, r2 + tl.load(pose + 11) + d2, p2)
        r = relative + m * 6 + end * 3
        tl.store(r, tl.where(moving, r0, 0.0).to(tl.float32), mask)
        tl.store(r + 1, tl.where(moving, r1, 0.0).to(tl.float32), mask)
        tl.store(r + 2, tl.where(moving, r2, 0.0).to(tl.float32), mask)
    tl.store(difference + m * 3, e0.to(tl.float32), mask)
    tl.store(difference + m * 3 + 1, e1.to(tl.float32), mask)
    tl.store(difference + m * 3 + 2, e2.to(tl.float32), mask)


@triton.jit(do_not_specialize=["num", "nu", "nv", "nz"])
def _regularise(nodes, links, out, num, nu, nv, nz, smooth, ridge, free, BLOCK: tl.constexpr):
    """Out = free (out + smooth * lattice Laplacian + Laplacian of the frames' links + ridge * nodes), elementwise over (F, nz, nv, nu, 3).

    `links` (F + 1,): weights to the frame before and, one further, to the next; zero at both ends.
    """
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = element < num
    node = element // 3
    a, b, c = node % nu, (node // nu) % nv, (node // (nu * nv)) % nz
    x = tl.load(nodes + element, mask, 0.0)
    down, layer = 3 * nu, 3 * nu * nv
    total = tl.where(a > 0, x - tl.load(nodes + element - 3, mask & (a > 0), 0.0), 0.0)
    total += tl.where(a < nu - 1, x - tl.load(nodes + element + 3, mask & (a < nu - 1), 0.0), 0.0)
    total += tl.where(b > 0, x - tl.load(nodes + element - down, mask & (b > 0), 0.0), 0.0)
    total += tl.where(b < nv - 1, x - tl.load(nodes + element + down, mask & (b < nv - 1), 0.0), 0.0)
    total += tl.where(c > 0, x - tl.load(nodes + element - layer, mask & (c > 0), 0.0), 0.0)
    total += tl.where(c < nz - 1, x - tl.load(nodes + element + layer, mask & (c < nz - 1), 0.0), 0.0)
    frame, whole = node // (nu * nv * nz), 3 * nu * nv * nz
    before, after = tl.load(links + frame, mask, 0.0), tl.load(links + frame + 1, mask, 0.0)
    between = before * (x - tl.load(nodes + element - whole, mask & (before > 0), 0.0))
    between += after * (x - tl.load(nodes + element + whole, mask & (after > 0), 0.0))
    tl.store(out + element, free * (tl.load(out + element, mask, 0.0) + smooth * total + between + ridge * x), mask)


class DeviceSystem:
    """The problem on the device, and its linearised normal equations.

    Vectors hold the nodes, then the poses: (F * N * 3 + 6 * F,), the latter by component [t, omega], then frame.
    """

    def __init__(self, problem: Problem, shape: LatticeShape, config: SolverConfig, num_frames: int, device: torch.device):
        arrays = (problem.frames, problem.base, problem.weights, problem.rates, problem.points)
        self._frames, self._base, self._weights, self._rates, self._points = (torch.from_numpy(a).to(device) for a in arrays)
        self._lattice, self._num_frames, self._free = shape.nodes, num_frames, 0.0 if config.rigid_only else 1.0
        prior = regularisation(config, shape)
        self._smooth, self._ridge = prior.smooth, prior.ridge
        nu, nv, nz = self._lattice
        self._strides = (nu * nv * nz, nu, nu * nv)
        self._num_nodes = num_frames * nu * nv * nz
        self._prior = torch.from_numpy(prior.pose).to(device)
        self._links = torch.from_numpy(np.r_[0.0, prior.links, 0.0]).to(device)
        within = prior.ridge + prior.smooth * _degree(self._lattice, device)
        held = torch.from_numpy(prior.link_degree()).to(device)
        self._prior_diagonal = (within + held[:, None]).flatten().repeat_interleave(3)
        self._grid = (triton.cdiv(len(self._frames), BLOCK),)
        self._relative = torch.empty(len(self._frames), 2, 3, device=device)
        self.difference = torch.empty(len(self._frames), 3, device=device)

    def linearise(self, c2w: Tensor, nodes: Tensor) -> None:
        """Residuals at poses (F, 4, 4) and nodes (F * N, 3), into `difference` (M, 3)."""
        residuals_kernel[self._grid](
            self._frames, self._base, self._weights, self._points, c2w.contiguous(), nodes, self.difference, self._relative,
            len(self._frames), *self._strides, BLOCK=BLOCK,
        )  # fmt: skip

    def weigh(self, weight: Tensor) -> None:
        """Sets the weights of the matches (M, 6), symmetric, and builds the preconditioner: diagonal for nodes, 6x6 blocks for poses."""
        self._weight, frames = weight.float().contiguous(), self._num_frames
        diagonal = weight.new_zeros(self._num_nodes, 3, dtype=torch.float64)
        triangles = weight.new_zeros(21, frames, dtype=torch.float64)
        _preconditioner[self._grid](
            self._frames, self._base, self._weights, self._relative, self._weight, diagonal, triangles,
            len(self._frames), frames, *self._strides, BLOCK=BLOCK,
        )  # fmt: skip
        self._diagonal = diagonal.flatten() + self._prior_diagonal
        column, row = np.tril_indices(6)
        blocks = triangles.new_zeros(frames, 6, 6)
        blocks[:, row, column] = blocks[:, column, row] = triangles.T
        blocks += torch.diag(self._prior)
        self._pose_inverse = torch.linalg.inv_ex(blocks).inverse

    def product(self, vector: Tensor, with_difference: bool = False, known_noise: Tensor | None = None) -> Tensor:
        """The normal matrix times a vector; or the gradient at `vector`, the accumulated unknowns.

        `known_noise` as in the compiled solver's `step`; it is for the gradient only.
        """
        out = torch.zeros_like(vector)
        size = 3 * self._num_nodes
        _normal_product[self._grid](
            self._frames, self._base, self._weights, self._relative, self._weight, self.difference, vector, vector[size:], out,
            out[size:], len(self._frames), self._num_frames, *self._strides, WITH_DIFFERENCE=with_difference, BLOCK=BLOCK,
        )  # fmt: skip
        if known_noise is not None:
            _noise_gradient[self._grid](
                self._frames, self._base, self._weights, self._rates, self._relative, self._weight, self.difference, known_noise, out,
                len(self._frames), *self._strides, KNOWN=len(known_noise) > 0, BLOCK=BLOCK,
            )  # fmt: skip
        nu, nv, nz = self._lattice
        _regularise[(triton.cdiv(size, 1024),)](
            vector, self._links, out, size, nu, nv, nz, self._smooth, self._ridge, self._free, BLOCK=1024
        )
        out[size:] += self._prior.repeat_interleave(self._num_frames) * vector[size:]
        return out

    def precondition(self, vector: Tensor) -> Tensor:
        """Approximate inverse times a vector."""
        size = 3 * self._num_nodes
        poses = torch.einsum("fab,bf->af", self._pose_inverse, vector[size:].view(6, -1))
        return torch.cat([vector[:size] / self._diagonal, poses.flatten()])

    def step(self, unknowns: Tensor, iterations: int, tolerance: float, known_noise: Tensor | None) -> Tensor:
        """Conjugate gradients from zero: the change of the accumulated unknowns, which count from where regularisation holds them."""
        r = -self.product(unknowns, with_difference=True, known_noise=known_noise)
        z = self.precondition(r)
        x, p, rz = torch.zeros_like(r), z, torch.dot(r, z)
        least = tolerance**2 * rz
        for _ in range(iterations):
            q = self.product(p)
            alpha = torch.where(rz > least, rz / torch.dot(p, q), 0.0)
            x = torch.addcmul(x, alpha, p)
            r = torch.addcmul(r, -alpha, q)
            z = self.precondition(r)
            previous, rz = rz, torch.dot(r, z)
            p = torch.addcmul(z, torch.where(previous > least, rz / previous, 0.0), p)
        return x


def _degree(lattice: tuple[int, int, int], device: torch.device) -> Tensor:
    """(N,) number of lattice edges at each node."""
    across, down, deep = (torch.full((n,), 2.0, dtype=torch.float64) for n in lattice)
    for axis in (across, down, deep):
        axis[0] -= 1
        axis[-1] -= 1
    return (deep[:, None, None] + down[:, None] + across).flatten().to(device)


def solve(
    problem: Problem,
    state: State,
    shape: LatticeShape,
    config: SolverConfig,
    samples: float,
    first: Array | None,
    origin: Array,
    device: torch.device,
) -> State:
    """The same as `utils.registration.solver.solve`."""
    system = DeviceSystem(problem, shape, config, len(state.c2w), device)
    information = torch.from_numpy(problem.information).to(device)
    known_first = None if first is None else torch.from_numpy(np.ascontiguousarray(first, np.float32)).to(device)
    data = DATA_WEIGHT * REFERENCE_SAMPLES / samples
    poses, size = torch.from_numpy(state.c2w).to(device), state.nodes.size
    unknowns = torch.from_numpy(np.concatenate([state.nodes.ravel(), state.update.T.ravel()])).to(device)
    start = torch.zeros_like(unknowns)
    start[:size] = torch.from_numpy(origin.ravel())
    for step, scale in enumerate(config.robust_scales):
        system.linearise(poses, unknowns[:size])
        known, noisy, distance = information.new_zeros(0), step > 0, system.difference
        if step == 0 and known_first is not None:
            known, noisy, distance = known_first.norm(dim=1), True, known_first
        squared = _squared_sigmas(information, distance)
        robust = (scale * scale / (scale * scale + squared)) ** 2
        system.weigh((data * robust)[:, None] * information)
        change = system.step(unknowns - start, config.cg_iterations, TOLERANCE, known if noisy else None)
        unknowns = unknowns + change
        poses = _moved(poses, change[size:].view(6, -1).T)
    result = unknowns.cpu().numpy()
    update = np.ascontiguousarray(result[size:].reshape(6, -1).T)
    return State(poses.cpu().numpy(), result[:size].reshape(state.nodes.shape), update)


def _squared_sigmas(information: Tensor, difference: Tensor) -> Tensor:
    """(M,) as `problem.squared_sigmas`."""
    x, y, z = difference.double().unbind(1)
    xx, xy, xz, yy, yz, zz = information.double().unbind(1)
    return xx * x * x + yy * y * y + zz * z * z + 2 * (xy * x * y + xz * x * z + yz * y * z)


def _moved(c2w: Tensor, update: Tensor) -> Tensor:
    """Cameras turned about their centres by omega and shifted by t, in world axes; update is (F, 6) [t, omega]."""
    moved = c2w.clone()
    turn = se3.exp(torch.cat([update[:, 3:], torch.zeros_like(update[:, 3:])], 1))
    moved[:, :3, :3] = turn[:, :3, :3] @ c2w[:, :3, :3]
    moved[:, :3, 3] += update[:, :3]
    return moved
