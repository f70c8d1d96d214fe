"""GPU kernel of the fixed-point inverse: the whole search of one point stays in registers, as in `numba_inverse`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from utils.device.triton_columns import load3

BLOCK = 128
_COPIES = 32
_PROGRAMS = 1320
_DOT_BLOCK, _DOT_WARPS = 16, 1
LARGEST_CORRECTION = 2048
"""Most entries of a correction, each count rounded up to a power of two, that `correction_vjp` holds in registers."""


@triton.jit
def _cell(value, count):
    """Lower node, upper node, weight, and 1 where the coordinate is strictly inside the lattice."""
    last = count - 1.0
    inside = (value > 0.0) & (value < last)
    clamped = tl.minimum(tl.maximum(value, 0.0), last)
    low = tl.minimum(clamped.to(tl.int32), tl.maximum(count - 2, 0))
    return low, tl.minimum(low + 1, count - 1), clamped - low.to(tl.float32), tl.where(inside, 1.0, 0.0)


@triton.jit
def _layer_scale(camera, layer, depth):
    """Depth of a point over that of a layer of nodes: what its nodes count for beside the linear weight, see `LatticeFields`."""
    return depth * (layer.to(tl.float32) - tl.load(camera + 5)) / tl.load(camera + 4)


@triton.jit
def _component(nodes, i000, i001, i010, i011, i100, i101, i110, i111, wa, wb, wc, z_low, z_high, mask):
    """Value and slopes along a, b, c of one component; corners are named (c, b, a), the layers' nodes are scaled by z_low and z_high."""
    v000, v001 = tl.load(nodes + i000, mask, 0.0), tl.load(nodes + i001, mask, 0.0)
    v010, v011 = tl.load(nodes + i010, mask, 0.0), tl.load(nodes + i011, mask, 0.0)
    v100, v101 = tl.load(nodes + i100, mask, 0.0), tl.load(nodes + i101, mask, 0.0)
    v110, v111 = tl.load(nodes + i110, mask, 0.0), tl.load(nodes + i111, mask, 0.0)
    s00, s01, s10, s11 = v001 - v000, v011 - v010, v101 - v100, v111 - v110
    l0, l1, h0, h1 = v000 + s00 * wa, v010 + s01 * wa, v100 + s10 * wa, v110 + s11 * wa
    l0, l1, h0, h1 = l0 * z_low, l1 * z_low, h0 * z_high, h1 * z_high
    low, high = l0 + (l1 - l0) * wb, h0 + (h1 - h0) * wb
    step_low, step_high = z_low * (s00 + (s01 - s00) * wb), z_high * (s10 + (s11 - s10) * wb)
    slope_b = (l1 - l0) + ((h1 - h0) - (l1 - l0)) * wc
    return low + (high - low) * wc, step_low + (step_high - step_low) * wc, slope_b, high - low


@triton.jit
def _field(nodes, camera, x, y, z, nu, nv, nz, mask):
    """Displacement (3) and its Jacobian (9, row-major) at camera-space points."""
    depth = tl.maximum(z, tl.load(camera + 6))
    inverse = 1.0 / depth
    per_x, per_y, per_z = tl.load(camera), tl.load(camera + 2), tl.load(camera + 4)
    a0, a1, wa, in_a = _cell(per_x * x * inverse + tl.load(camera + 1), nu)
    b0, b1, wb, in_b = _cell(per_y * y * inverse + tl.load(camera + 3), nv)
    c0, c1, wc, in_c = _cell(per_z * inverse + tl.load(camera + 5), nz)
    r00, r01, r10, r11 = (c0 * nv + b0) * nu, (c0 * nv + b1) * nu, (c1 * nv + b0) * nu, (c1 * nv + b1) * nu
    i000, i001, i010, i011 = (r00 + a0) * 3, (r00 + a1) * 3, (r01 + a0) * 3, (r01 + a1) * 3
    i100, i101, i110, i111 = (r10 + a0) * 3, (r10 + a1) * 3, (r11 + a0) * 3, (r11 + a1) * 3
    z_low, z_high = _layer_scale(camera, c0, depth), _layer_scale(camera, c1, depth)
    own = tl.where(z > tl.load(camera + 6), inverse, 0.0)
    d0, a_0, b_0, c_0 = _component(nodes, i000, i001, i010, i011, i100, i101, i110, i111, wa, wb, wc, z_low, z_high, mask)
    d1, a_1, b_1, c_1 = _component(nodes + 1, i000, i001, i010, i011, i100, i101, i110, i111, wa, wb, wc, z_low, z_high, mask)
    d2, a_2, b_2, c_2 = _component(nodes + 2, i000, i001, i010, i011, i100, i101, i110, i111, wa, wb, wc, z_low, z_high, mask)
    ax, by, cz = per_x * inverse * in_a, per_y * inverse * in_b, -per_z * inverse * inverse * in_c
    az, bz = -ax * x * inverse, -by * y * inverse
    return (
        d0, d1, d2,
        a_0 * ax, b_0 * by, a_0 * az + b_0 * bz + c_0 * cz + d0 * own,
        a_1 * ax, b_1 * by, a_1 * az + b_1 * bz + c_1 * cz + d1 * own,
        a_2 * ax, b_2 * by, a_2 * az + b_2 * bz + c_2 * cz + d2 * own,
    )  # fmt: skip


@triton.jit
def _inverse_plus_identity(m00, m01, m02, m10, m11, m12, m20, m21, m22, least):
    """(I + m)^-1 row-major, the determinant kept away from zero."""
    m00, m11, m22 = m00 + 1.0, m11 + 1.0, m22 + 1.0
    c00, c01, c02 = m11 * m22 - m12 * m21, m12 * m20 - m10 * m22, m10 * m21 - m11 * m20
    determinant = m00 * c00 + m01 * c01 + m02 * c02
    determinant = tl.where(tl.abs(determinant) < least, tl.where(determinant < 0, -least, least), determinant)
    s = 1.0 / determinant
    return (
        c00 * s, (m02 * m21 - m01 * m22) * s, (m01 * m12 - m02 * m11) * s,
        c01 * s, (m00 * m22 - m02 * m20) * s, (m02 * m10 - m00 * m12) * s,
        c02 * s, (m01 * m20 - m00 * m21) * s, (m00 * m11 - m01 * m10) * s,
    )  # fmt: skip


@triton.jit
def _norm(x, y, z):
    return tl.sqrt(x * x + y * y + z * z)


@triton.jit
def solve_point(
    nodes, camera, y0, y1, y2, nu, nv, nz, tolerance, least, mask,
    FIXED_POINT_STEPS: tl.constexpr, NEWTON_STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Solves q + delta(q) = y: q (3), dq/dy (9, row-major), relative residual; lanes off the mask need a y before the camera."""
    scale = tl.maximum(_norm(y0, y1, y2), 1e-30)
    q0, q1, q2 = y0, y1, y2
    for _ in range(FIXED_POINT_STEPS):  # not unrolled: six copies of the field in one kernel take half a minute to compile
        d0, d1, d2, _, _, _, _, _, _, _, _, _ = _field(nodes, camera, q0, q1, q2, nu, nv, nz, mask)
        q0, q1, q2 = y0 - d0, y1 - d1, y2 - d2
    d0, d1, d2, m00, m01, m02, m10, m11, m12, m20, m21, m22 = _field(nodes, camera, q0, q1, q2, nu, nv, nz, mask)
    e0, e1, e2 = q0 + d0 - y0, q1 + d1 - y1, q2 + d2 - y2
    length = tl.where(mask, _norm(e0, e1, e2), 0.0)
    size = tl.full([BLOCK], 1.0, tl.float32)
    step = 0
    while (step < NEWTON_STEPS) & (tl.max(length / scale) > tolerance):
        j00, j01, j02, j10, j11, j12, j20, j21, j22 = _inverse_plus_identity(m00, m01, m02, m10, m11, m12, m20, m21, m22, least)
        s0, s1, s2 = j00 * e0 + j01 * e1 + j02 * e2, j10 * e0 + j11 * e1 + j12 * e2, j20 * e0 + j21 * e1 + j22 * e2
        # A step many times longer than the distance that is left comes from a nearly singular Jacobian.
        factor = size * tl.minimum(4.0 * length / tl.maximum(_norm(s0, s1, s2), 1e-30), 1.0)
        t0, t1, t2 = q0 - factor * s0, q1 - factor * s1, q2 - factor * s2
        d0, d1, d2, n00, n01, n02, n10, n11, n12, n20, n21, n22 = _field(nodes, camera, t0, t1, t2, nu, nv, nz, mask)
        f0, f1, f2 = t0 + d0 - y0, t1 + d1 - y1, t2 + d2 - y2
        trial = _norm(f0, f1, f2)
        open_ = length > tolerance * scale
        better = open_ & (trial < length)
        size = tl.where(better, 1.0, tl.where(open_, 0.5 * size, size))
        q0, q1, q2 = tl.where(better, t0, q0), tl.where(better, t1, q1), tl.where(better, t2, q2)
        e0, e1, e2 = tl.where(better, f0, e0), tl.where(better, f1, e1), tl.where(better, f2, e2)
        m00, m01, m02 = tl.where(better, n00, m00), tl.where(better, n01, m01), tl.where(better, n02, m02)
        m10, m11, m12 = tl.where(better, n10, m10), tl.where(better, n11, m11), tl.where(better, n12, m12)
        m20, m21, m22 = tl.where(better, n20, m20), tl.where(better, n21, m21), tl.where(better, n22, m22)
        length = tl.where(better, trial, length)
        step += 1
    j00, j01, j02, j10, j11, j12, j20, j21, j22 = _inverse_plus_identity(m00, m01, m02, m10, m11, m12, m20, m21, m22, least)
    return q0, q1, q2, j00, j01, j02, j10, j11, j12, j20, j21, j22, length / scale


@triton.jit(do_not_specialize=["num"])
def _invert(
    nodes, camera, points, solved, jacobian, residual, num, nu, nv, nz, tolerance, least,
    FIXED_POINT_STEPS: tl.constexpr, NEWTON_STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    # Lanes beyond the end solve for a point on the axis, where nothing is singular.
    y0, y1, y2 = tl.load(points + row * 3, mask, 0.0), tl.load(points + row * 3 + 1, mask, 0.0), tl.load(points + row * 3 + 2, mask, 1.0)
    q0, q1, q2, j00, j01, j02, j10, j11, j12, j20, j21, j22, left = solve_point(
        nodes, camera, y0, y1, y2, nu, nv, nz, tolerance, least, mask, FIXED_POINT_STEPS, NEWTON_STEPS, BLOCK
    )
    tl.store(solved + row * 3, q0, mask)
    tl.store(solved + row * 3 + 1, q1, mask)
    tl.store(solved + row * 3 + 2, q2, mask)
    out = jacobian + row.to(tl.int64) * 9
    tl.store(out, j00, mask)
    tl.store(out + 1, j01, mask)
    tl.store(out + 2, j02, mask)
    tl.store(out + 3, j10, mask)
    tl.store(out + 4, j11, mask)
    tl.store(out + 5, j12, mask)
    tl.store(out + 6, j20, mask)
    tl.store(out + 7, j21, mask)
    tl.store(out + 8, j22, mask)
    tl.store(residual + row, left, mask)


def invert_lattice(nodes: Tensor, camera: Tensor, points: Tensor, settings: tuple[int, int, float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Solves q + delta(q) = y for the rows y of `points`.

    Args:
        nodes: (nz, nv, nu, 3) float32, one frame's lattice.
        camera: (7,) float32, see `LatticeField.affine_coordinates`, on the same device.
        points: (N, 3) float32, camera space.
        settings: (fixed-point steps, Newton steps, tolerance relative to |y|, least determinant).

    Returns:
        q (N, 3), dq/dy (N, 3, 3) and |q + delta(q) - y| / |y| (N,).
    """
    points, nodes = points.contiguous(), nodes.contiguous()
    num, (nz, nv, nu) = len(points), nodes.shape[:3]
    solved, residual, jacobian = torch.empty_like(points), points.new_empty(num), points.new_empty(num, 3, 3)
    fixed_point_steps, newton_steps, tolerance, least = settings
    if num:
        _invert[(triton.cdiv(num, BLOCK),)](
            nodes, camera, points, solved, jacobian, residual, num, nu, nv, nz, tolerance, least,
            FIXED_POINT_STEPS=fixed_point_steps, NEWTON_STEPS=newton_steps, BLOCK=BLOCK,
        )  # fmt: skip
    return solved, jacobian, residual


@triton.jit
def _hat(place, node):
    """Weight of a coarse node at a place between coarse nodes."""
    return tl.maximum(1.0 - tl.abs(place - node), 0.0)


@triton.jit(do_not_specialize=["num", "nu", "nv", "nz", "cu", "cv", "cz"])
def _correction_vjp(
    camera, layers, points, jacobian, gradient, sums, num, nu, nv, nz, cu, cv, cz, per_u, per_v, per_z,
    TURNED: tl.constexpr, PU: tl.constexpr, PV: tl.constexpr, PZ: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over points of (weights along z and v) x (weights along u, components): a matrix product per block, and no atomics."""
    total = tl.zeros([PZ * PV, PU * 4], tl.float32)
    left_row, right_column = tl.arange(0, PZ * PV)[:, None], tl.arange(0, PU * 4)[None, :]
    node_z, node_v = (left_row // PV).to(tl.float32), (left_row % PV).to(tl.float32)
    node_u, component = (right_column // 4).to(tl.float32), right_column % 4
    in_left, in_right = (node_z < cz) & (node_v < cv), (node_u < cu) & (component < 3)
    begin = tl.program_id(0) * BLOCK
    while begin < num:
        row = begin + tl.arange(0, BLOCK)
        mask = row < num
        g0, g1 = tl.load(gradient + row * 3, mask, 0.0), tl.load(gradient + row * 3 + 1, mask, 0.0)
        g2 = tl.load(gradient + row * 3 + 2, mask, 0.0)
        mask = (g0 != 0.0) | (g1 != 0.0) | (g2 != 0.0)
        if tl.max(mask.to(tl.int32)) > 0:  # most blocks of a world lie outside of a view
            x, y, z = (
                tl.load(points + row * 3, mask, 0.0),
                tl.load(points + row * 3 + 1, mask, 0.0),
                tl.load(points + row * 3 + 2, mask, 1.0),
            )
            depth = tl.maximum(z, tl.load(camera + 6))
            inverse = 1.0 / depth
            a0, a1, wa, _ = _cell(tl.load(camera) * x * inverse + tl.load(camera + 1), nu)
            b0, b1, wb, _ = _cell(tl.load(camera + 2) * y * inverse + tl.load(camera + 3), nv)
            c0, c1, wc, _ = _cell(tl.load(camera + 4) * inverse + tl.load(camera + 5), nz)
            if TURNED:
                back0, back1, back2 = -g0, -g1, -g2
            else:
                j00, j01, j02 = load3(jacobian, row * 3, mask)
                j10, j11, j12 = load3(jacobian, row * 3 + 1, mask)
                j20, j21, j22 = load3(jacobian, row * 3 + 2, mask)
                back0 = -(j00 * g0 + j10 * g1 + j20 * g2)
                back1 = -(j01 * g0 + j11 * g1 + j21 * g2)
                back2 = -(j02 * g0 + j12 * g1 + j22 * g2)
            near = (1.0 - wc) * tl.load(layers + c0) * _layer_scale(camera, c0, depth)
            far = wc * tl.load(layers + c1) * _layer_scale(camera, c1, depth)
            left = near[None, :] * _hat((c0 * per_z)[None, :], node_z) + far[None, :] * _hat((c1 * per_z)[None, :], node_z)
            left *= (1.0 - wb)[None, :] * _hat((b0 * per_v)[None, :], node_v) + wb[None, :] * _hat((b1 * per_v)[None, :], node_v)
            right = tl.where(component == 0, back0[:, None], tl.where(component == 1, back1[:, None], back2[:, None]))
            right *= (1.0 - wa)[:, None] * _hat((a0 * per_u)[:, None], node_u) + wa[:, None] * _hat((a1 * per_u)[:, None], node_u)
            total = tl.dot(tl.where(in_left, left, 0.0), tl.where(in_right, right, 0.0), total, input_precision="tf32x3")
        begin += PROGRAMS * BLOCK
    place = left_row * (PU * 4) + right_column
    tl.store(sums + tl.program_id(0) * (PZ * PV * PU * 4) + place, total)


def padded(coarse: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sides (z, v, u) that the tensor cores take: powers of two, at least 16 rows (z, v) and 16 columns (u, component)."""
    pz, pv, pu = (triton.next_power_of_2(n) for n in coarse)
    return pz, max(pv, 16 // pz, 1), max(pu, 4)


def fits(coarse: tuple[int, int, int]) -> bool:
    """Whether `correction_vjp` serves corrections of this many nodes."""
    pz, pv, pu = padded(coarse)
    return pz * pv * pu * 4 <= LARGEST_CORRECTION


def correction_vjp(
    counts: tuple[int, int, int],
    coarse: tuple[int, int, int],
    camera: Tensor,
    layers: Tensor,
    points: Tensor,
    jacobian: Tensor | None,
    gradient: Tensor,
) -> Tensor:
    """Gradient (cz, cv, cu, 3) with respect to corrections that are spread linearly over the nodes and scaled by a factor per layer.

    Args:
        counts: (nz, nv, nu) nodes of the lattice.
        coarse: (cz, cv, cu) nodes of the corrections, with the same ends.
        camera: (7,) or longer, see `invert_lattice`.
        layers: (nz,) factor of each layer of nodes.
        points: (N, 3) solved points; not read where the gradient is 0.
        jacobian: (N, 3, 3) dq/dy, or None if the gradient is one with respect to y.
        gradient: (N, 3) with respect to the solved points.
    """
    (nz, nv, nu), (cz, cv, cu) = counts, coarse
    pz, pv, pu = padded(coarse)
    per_z, per_v, per_u = ((c - 1) / max(n - 1, 1) for c, n in zip(coarse, counts, strict=True))
    sums = points.new_empty(_PROGRAMS, pz, pv, pu, 4)
    _correction_vjp[(_PROGRAMS,)](
        camera, layers, points, points if jacobian is None else jacobian, gradient.contiguous(), sums, len(points),
        nu, nv, nz, cu, cv, cz, per_u, per_v, per_z,
        TURNED=jacobian is None, PU=pu, PV=pv, PZ=pz, PROGRAMS=_PROGRAMS, BLOCK=_DOT_BLOCK, num_warps=_DOT_WARPS,
    )  # fmt: skip
    return sums.sum(0)[:cz, :cv, :cu, :3]


@triton.jit(do_not_specialize=["num"])
def _shift_vjp(
    camera, points, jacobian, gradient, sums, num, nu, nv, nz, COPIES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    g0, g1, g2 = (
        tl.load(gradient + row * 3, mask, 0.0),
        tl.load(gradient + row * 3 + 1, mask, 0.0),
        tl.load(gradient + row * 3 + 2, mask, 0.0),
    )
    mask = mask & ((g0 != 0.0) | (g1 != 0.0) | (g2 != 0.0))
    x, y, z = tl.load(points + row * 3, mask, 0.0), tl.load(points + row * 3 + 1, mask, 0.0), tl.load(points + row * 3 + 2, mask, 1.0)
    depth = tl.maximum(z, tl.load(camera + 6))
    inverse = 1.0 / depth
    a0, a1, wa, _ = _cell(tl.load(camera) * x * inverse + tl.load(camera + 1), nu)
    b0, b1, wb, _ = _cell(tl.load(camera + 2) * y * inverse + tl.load(camera + 3), nv)
    c0, c1, wc, _ = _cell(tl.load(camera + 4) * inverse + tl.load(camera + 5), nz)
    z_low, z_high = (1.0 - wc) * _layer_scale(camera, c0, depth), wc * _layer_scale(camera, c1, depth)
    copy = sums + (tl.program_id(0) % COPIES) * (nz * nv * nu * 3)
    place = jacobian + row.to(tl.int64) * 9
    for k in tl.static_range(3):
        back = -(tl.load(place + k, mask, 0.0) * g0 + tl.load(place + 3 + k, mask, 0.0) * g1 + tl.load(place + 6 + k, mask, 0.0) * g2)
        for corner in tl.static_range(8):
            a, ka = (a1, wa) if corner & 1 else (a0, 1.0 - wa)
            b, kb = (b1, wb) if corner & 2 else (b0, 1.0 - wb)
            c, kc = (c1, z_high) if corner & 4 else (c0, z_low)
            tl.atomic_add(copy + ((c * nv + b) * nu + a) * 3 + k, back * ka * kb * kc, mask, sem="relaxed")


def shift_vjp(counts: tuple[int, int, int], camera: Tensor, points: Tensor, jacobian: Tensor, gradient: Tensor) -> Tensor:
    """(nz, nv, nu, 3) gradient with respect to the nodes of the inverse's points; counts = (nz, nv, nu), the rest as in `invert_lattice`.

    Many points share a node, so several copies of the lattice take their sums, which are added up at the end.
    """
    nz, nv, nu = counts
    sums = points.new_zeros(_COPIES, nz, nv, nu, 3)
    if len(points):
        grid = (triton.cdiv(len(points), BLOCK),)
        _shift_vjp[grid](camera, points, jacobian, gradient.contiguous(), sums, len(points), nu, nv, nz, COPIES=_COPIES, BLOCK=BLOCK)
    return sums.sum(0)
