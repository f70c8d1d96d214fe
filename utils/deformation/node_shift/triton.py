"""Gradients of the inverse with respect to the nodes of its lattice, or to coarse corrections of them, on a GPU."""

import triton
import triton.language as tl
from torch import Tensor

from utils.deformation.lattice.triton import cell, layer_scale
from utils.device.triton_columns import load3

BLOCK = 128
_COPIES = 32
_PROGRAMS = 1320
_DOT_BLOCK, _DOT_WARPS = 16, 1
LARGEST_CORRECTION = 2048
"""Most entries of a correction, each count rounded up to a power of two, that `correction_vjp` holds in registers."""


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
            a0, a1, wa, _ = cell(tl.load(camera) * x * inverse + tl.load(camera + 1), nu)
            b0, b1, wb, _ = cell(tl.load(camera + 2) * y * inverse + tl.load(camera + 3), nv)
            c0, c1, wc, _ = cell(tl.load(camera + 4) * inverse + tl.load(camera + 5), nz)
            if TURNED:
                back0, back1, back2 = -g0, -g1, -g2
            else:
                j00, j01, j02 = load3(jacobian, row * 3, mask)
                j10, j11, j12 = load3(jacobian, row * 3 + 1, mask)
                j20, j21, j22 = load3(jacobian, row * 3 + 2, mask)
                back0 = -(j00 * g0 + j10 * g1 + j20 * g2)
                back1 = -(j01 * g0 + j11 * g1 + j21 * g2)
                back2 = -(j02 * g0 + j12 * g1 + j22 * g2)
            near = (1.0 - wc) * tl.load(layers + c0) * layer_scale(camera, c0, depth)
            far = wc * tl.load(layers + c1) * layer_scale(camera, c1, depth)
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
        camera: (7,) or longer, see `LatticeField.affine_coordinates`.
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
    a0, a1, wa, _ = cell(tl.load(camera) * x * inverse + tl.load(camera + 1), nu)
    b0, b1, wb, _ = cell(tl.load(camera + 2) * y * inverse + tl.load(camera + 3), nv)
    c0, c1, wc, _ = cell(tl.load(camera + 4) * inverse + tl.load(camera + 5), nz)
    z_low, z_high = (1.0 - wc) * layer_scale(camera, c0, depth), wc * layer_scale(camera, c1, depth)
    copy = sums + (tl.program_id(0) % COPIES) * (nz * nv * nu * 3)
    place = jacobian + row.to(tl.int64) * 9
    for k in tl.static_range(3):
        back = -(tl.load(place + k, mask, 0.0) * g0 + tl.load(place + 3 + k, mask, 0.0) * g1 + tl.load(place + 6 + k, mask, 0.0) * g2)
        for corner in tl.static_range(8):
            a, ka = (a1, wa) if corner & 1 else (a0, 1.0 - wa)
            b, kb = (b1, wb) if corner & 2 else (b0, 1.0 - wb)
            c, kc = (c1, z_high) if corner & 4 else (c0, z_low)
            tl.atomic_add(copy + ((c * nv + b) * nu + a) * 3 + k, back * ka * kb * kc, mask, sem="relaxed")


def shift_vjp(counts: tuple[int, int, int], points: Tensor, jacobian: Tensor, camera: Tensor, gradient: Tensor) -> Tensor:
    """As `reference.shift_vjp`, float32.

    Many points share a node, so several copies of the lattice take their sums, which are added up at the end.
    """
    nz, nv, nu = counts
    sums = points.new_zeros(_COPIES, nz, nv, nu, 3)
    if len(points):
        grid = (triton.cdiv(len(points), BLOCK),)
        _shift_vjp[grid](camera, points, jacobian, gradient.contiguous(), sums, len(points), nu, nv, nz, COPIES=_COPIES, BLOCK=BLOCK)
    return sums.sum(0)
