"""GPU kernel of the fixed-point inverse: the whole search of one point stays in registers, as in `numba`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from utils.deformation.lattice.triton import field

BLOCK = 128


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
    zero = tl.zeros([BLOCK], tl.float32)
    q0, q1, q2, e0, e1, e2 = y0, y1, y2, zero, zero, zero
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    length, size = zero, zero + 1.0
    # One loop, and so one copy of the field, which is what takes long to compile: fixed-point steps while `step` is negative, the first
    # residual at 0, then Newton's.
    step = -FIXED_POINT_STEPS
    while (step <= 0) | ((step <= NEWTON_STEPS) & (tl.max(length / scale) > tolerance)):
        j00, j01, j02, j10, j11, j12, j20, j21, j22 = _inverse_plus_identity(m00, m01, m02, m10, m11, m12, m20, m21, m22, least)
        s0, s1, s2 = j00 * e0 + j01 * e1 + j02 * e2, j10 * e0 + j11 * e1 + j12 * e2, j20 * e0 + j21 * e1 + j22 * e2
        # A step many times longer than the distance that is left comes from a nearly singular Jacobian.
        factor = size * tl.minimum(4.0 * length / tl.maximum(_norm(s0, s1, s2), 1e-30), 1.0)
        t0, t1, t2 = q0 - factor * s0, q1 - factor * s1, q2 - factor * s2
        d0, d1, d2, n00, n01, n02, n10, n11, n12, n20, n21, n22 = field(nodes, camera, t0, t1, t2, nu, nv, nz, mask)
        f0, f1, f2 = t0 + d0 - y0, t1 + d1 - y1, t2 + d2 - y2
        trial = tl.where(mask, _norm(f0, f1, f2), 0.0)
        open_ = length > tolerance * scale
        better = (step == 0) | ((step > 0) & open_ & (trial < length))
        size = tl.where((step > 0) & open_, tl.where(better, 1.0, 0.5 * size), size)
        early = step < 0
        q0 = tl.where(early, y0 - d0, tl.where(better, t0, q0))
        q1 = tl.where(early, y1 - d1, tl.where(better, t1, q1))
        q2 = tl.where(early, y2 - d2, tl.where(better, t2, q2))
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
