"""`utils.splatting.view.reference.view_gaussians` in one GPU kernel each way: pose, deformation, activations and colours in registers.

In batched torch the 3x3 products and the (N, bands, 3) temporaries of the colours cost several times the rasteriser.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from utils.cameras.rotations import matrix_to_quat
from utils.deformation.inverse import LocalWarp
from utils.device.triton_columns import load3, load4, store3, store4
from utils.types import CameraGaussians, Splats

BLOCK = 64
_SH0 = tl.constexpr(0.28209479177387814)


@triton.jit
def product(aw, ax, ay, az, bw, bx, by, bz):
    """Hamilton product of two quaternions."""
    return (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )


@triton.jit
def _warp_turn(j1, j2, j3, j5, j6, j7):
    """Rotation of the warp from the antisymmetric part of its Jacobian, see `LocalWarp.rotation_quaternions`."""
    x, y, z = 0.25 * (j7 - j5), 0.25 * (j2 - j6), 0.25 * (j3 - j1)
    w = tl.sqrt(tl.maximum(1.0 - (x * x + y * y + z * z), 0.0))
    inverse = 1.0 / tl.sqrt(w * w + x * x + y * y + z * z)
    return w * inverse, x * inverse, y * inverse, z * inverse


@triton.jit
def offset(means, c2w, row, mask):
    """Positions relative to the camera's centre, world axes."""
    x0, x1, x2 = load3(means, row, mask)
    return x0 - tl.load(c2w + 3), x1 - tl.load(c2w + 7), x2 - tl.load(c2w + 11)


@triton.jit
def rotated(c2w, d0, d1, d2):
    """R^T d: world axes to camera axes."""
    return (
        tl.load(c2w) * d0 + tl.load(c2w + 4) * d1 + tl.load(c2w + 8) * d2,
        tl.load(c2w + 1) * d0 + tl.load(c2w + 5) * d1 + tl.load(c2w + 9) * d2,
        tl.load(c2w + 2) * d0 + tl.load(c2w + 6) * d1 + tl.load(c2w + 10) * d2,
    )


@triton.jit
def basis(d0, d1, d2):
    """The 16 real spherical harmonics of degree 0 to 3 at directions of any length, in the order of `utils.splatting.sh`."""
    inverse = 1.0 / tl.maximum(tl.sqrt(d0 * d0 + d1 * d1 + d2 * d2), 1e-12)
    x, y, z = d0 * inverse, d1 * inverse, d2 * inverse
    xx, yy, zz = x * x, y * y, z * z
    return (
        tl.full(x.shape, _SH0, tl.float32),
        -0.4886025119029199 * y,
        0.4886025119029199 * z,
        -0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (2 * zz - xx - yy),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (xx - yy),
        -0.5900435899266435 * y * (3 * xx - yy),
        2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (4 * zz - xx - yy),
        0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
        -0.4570457994644658 * x * (4 * zz - xx - yy),
        1.445305721320277 * z * (xx - yy),
        -0.5900435899266435 * x * (xx - 3 * yy),
    )


@triton.jit
def table(values, band):
    """Block of the 16 values (N,) by band (1, C); zero beyond the last."""
    table = tl.where(band == 0, values[0][:, None], 0.0)
    for k in tl.static_range(1, 16):
        table = tl.where(band == k, values[k][:, None], table)
    return table


@triton.jit
def _place(sh, higher, row, column, STORED: tl.constexpr, SPLIT: tl.constexpr):
    """Addresses of the coefficients of splats (N, 1) in columns (1, C); with SPLIT the base colour and the higher bands lie apart."""
    if SPLIT:
        place = tl.where(column < 3, sh + row * 3 + column, higher + row * (3 * STORED - 3) + column - 3)
    else:
        place = sh + row * (3 * STORED) + column
    return place


@triton.jit(do_not_specialize=["num"])
def _forward(
    means, quats, log_scales, logits, sh, higher, c2w, turn_pose, y0, q0, jacobian,
    out_means, out_quats, out_scales, out_opacities, out_colors, num,
    STORED: tl.constexpr, ACTIVE: tl.constexpr, SPLIT: tl.constexpr, WARP: tl.constexpr, TURN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    d0, d1, d2 = offset(means, c2w, row, mask)
    p0, p1, p2 = rotated(c2w, d0, d1, d2)
    if WARP:
        a0, a1, a2 = load3(y0, row, mask)
        e0, e1, e2 = p0 - a0, p1 - a1, p2 - a2
        j0, j1, j2 = load3(jacobian, row * 3, mask)
        j3, j4, j5 = load3(jacobian, row * 3 + 1, mask)
        j6, j7, j8 = load3(jacobian, row * 3 + 2, mask)
        p0, p1, p2 = load3(q0, row, mask)
        p0, p1, p2 = p0 + j0 * e0 + j1 * e1 + j2 * e2, p1 + j3 * e0 + j4 * e1 + j5 * e2, p2 + j6 * e0 + j7 * e1 + j8 * e2
    store3(out_means, row, mask, p0, p1, p2)
    bw, bx, by, bz = load4(quats, row, mask)
    w, x, y, z = product(tl.load(turn_pose), tl.load(turn_pose + 1), tl.load(turn_pose + 2), tl.load(turn_pose + 3), bw, bx, by, bz)
    if TURN:
        tw, tx, ty, tz = _warp_turn(j1, j2, j3, j5, j6, j7)
        w, x, y, z = product(tw, tx, ty, tz, w, x, y, z)
    store4(out_quats, row, mask, w, x, y, z)
    s0, s1, s2 = load3(log_scales, row, mask)
    store3(out_scales, row, mask, tl.exp(s0), tl.exp(s1), tl.exp(s2))
    tl.store(out_opacities + row, 1.0 / (1.0 + tl.exp(-tl.load(logits + row, mask, 0.0))), mask)
    if ACTIVE == 1:
        r, g, b = load3(sh, row * (1 if SPLIT else STORED), mask)
        red, green, blue = 0.5 + r * _SH0, 0.5 + g * _SH0, 0.5 + b * _SH0
    else:
        # A splat's coefficients, band by band and r, g, b within, are neighbours in memory and so lie across lanes.
        column = tl.arange(0, 64)[None, :]
        wanted = mask[:, None] & (column < 3 * ACTIVE)
        term = tl.load(_place(sh, higher, row[:, None], column, STORED, SPLIT), wanted, 0.0) * table(basis(d0, d1, d2), column // 3)
        red = 0.5 + tl.sum(tl.where(column % 3 == 0, term, 0.0), 1)
        green = 0.5 + tl.sum(tl.where(column % 3 == 1, term, 0.0), 1)
        blue = 0.5 + tl.sum(tl.where(column % 3 == 2, term, 0.0), 1)
    store3(out_colors, row, mask, tl.maximum(red, 0.0), tl.maximum(green, 0.0), tl.maximum(blue, 0.0))


@triton.jit(do_not_specialize=["num"])
def _backward(
    means, quats, c2w, turn_pose, jacobian, scales, opacities, colors,
    i_means, i_quats, i_scales, i_opacities, i_colors,
    g_means, g_quats, g_log_scales, g_logits, g_sh, g_higher, g_pose, num,
    STORED: tl.constexpr, ACTIVE: tl.constexpr, SPLIT: tl.constexpr, WARP: tl.constexpr, TURN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    d0, d1, d2 = offset(means, c2w, row, mask)
    p0, p1, p2 = load3(i_means, row, mask)
    if WARP:
        j0, j1, j2 = load3(jacobian, row * 3, mask)
        j3, j4, j5 = load3(jacobian, row * 3 + 1, mask)
        j6, j7, j8 = load3(jacobian, row * 3 + 2, mask)
        p0, p1, p2 = j0 * p0 + j3 * p1 + j6 * p2, j1 * p0 + j4 * p1 + j7 * p2, j2 * p0 + j5 * p1 + j8 * p2
    r00, r01, r02 = tl.load(c2w), tl.load(c2w + 1), tl.load(c2w + 2)
    r10, r11, r12 = tl.load(c2w + 4), tl.load(c2w + 5), tl.load(c2w + 6)
    r20, r21, r22 = tl.load(c2w + 8), tl.load(c2w + 9), tl.load(c2w + 10)
    m0, m1, m2 = r00 * p0 + r01 * p1 + r02 * p2, r10 * p0 + r11 * p1 + r12 * p2, r20 * p0 + r21 * p1 + r22 * p2
    store3(g_means, row, mask, m0, m1, m2)
    gw, gx, gy, gz = load4(i_quats, row, mask)
    gw = tl.where(mask, gw, 0.0)
    if TURN:
        tw, tx, ty, tz = _warp_turn(j1, j2, j3, j5, j6, j7)
        gw, gx, gy, gz = product(tw, -tx, -ty, -tz, gw, gx, gy, gz)
    aw, ax, ay, az = tl.load(turn_pose), tl.load(turn_pose + 1), tl.load(turn_pose + 2), tl.load(turn_pose + 3)
    w, x, y, z = product(aw, -ax, -ay, -az, gw, gx, gy, gz)
    store4(g_quats, row, mask, w, x, y, z)
    bw, bx, by, bz = load4(quats, row, mask)
    w, x, y, z = product(gw, gx, gy, gz, bw, -bx, -by, -bz)
    # Sums for the pose: rotation row-major, position, quaternion; one row per program, added up by the caller.
    pose = g_pose + tl.program_id(0) * 16
    d0, d1, d2 = tl.where(mask, d0, 0.0), tl.where(mask, d1, 0.0), tl.where(mask, d2, 0.0)
    tl.store(pose, tl.sum(d0 * p0))
    tl.store(pose + 1, tl.sum(d0 * p1))
    tl.store(pose + 2, tl.sum(d0 * p2))
    tl.store(pose + 3, tl.sum(d1 * p0))
    tl.store(pose + 4, tl.sum(d1 * p1))
    tl.store(pose + 5, tl.sum(d1 * p2))
    tl.store(pose + 6, tl.sum(d2 * p0))
    tl.store(pose + 7, tl.sum(d2 * p1))
    tl.store(pose + 8, tl.sum(d2 * p2))
    tl.store(pose + 9, -tl.sum(m0))
    tl.store(pose + 10, -tl.sum(m1))
    tl.store(pose + 11, -tl.sum(m2))
    tl.store(pose + 12, tl.sum(w))
    tl.store(pose + 13, tl.sum(x))
    tl.store(pose + 14, tl.sum(y))
    tl.store(pose + 15, tl.sum(z))
    s0, s1, s2 = load3(scales, row, mask)
    h0, h1, h2 = load3(i_scales, row, mask)
    store3(g_log_scales, row, mask, s0 * h0, s1 * h1, s2 * h2)
    opacity = tl.load(opacities + row, mask, 0.0)
    tl.store(g_logits + row, tl.load(i_opacities + row, mask, 0.0) * opacity * (1.0 - opacity), mask)
    c0, c1, c2 = load3(colors, row, mask)
    h0, h1, h2 = load3(i_colors, row, mask)
    h0, h1, h2 = tl.where(c0 > 0.0, h0, 0.0), tl.where(c1 > 0.0, h1, 0.0), tl.where(c2 > 0.0, h2, 0.0)
    if STORED == 1:
        store3(g_sh, row, mask, h0 * _SH0, h1 * _SH0, h2 * _SH0)
    else:
        column = tl.arange(0, 64)[None, :]
        place, stored = _place(g_sh, g_higher, row[:, None], column, STORED, SPLIT), mask[:, None] & (column < 3 * STORED)
        if tl.max(tl.abs(h0) + tl.abs(h1) + tl.abs(h2)) > 0.0:
            term = tl.where(column % 3 == 0, h0[:, None], tl.where(column % 3 == 1, h1[:, None], h2[:, None]))
            term = tl.where(column < 3 * ACTIVE, term * table(basis(d0, d1, d2), column // 3), 0.0)
            tl.store(place, term, stored)
        else:  # most blocks of a world lie outside of a view
            tl.store(place, tl.zeros([BLOCK, 64], tl.float32), stored)


@triton.jit(do_not_specialize=["num"])
def _rigid(means, c2w, out, num, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    d0, d1, d2 = offset(means, c2w, row, mask)
    p0, p1, p2 = rotated(c2w, d0, d1, d2)
    store3(out, row, mask, p0, p1, p2)


def camera_from_world(points: Tensor, c2w: Tensor) -> Tensor:
    """The same as `utils.deformation.inverse.camera_from_world`, for float32 on the GPU and without gradients."""
    points, c2w, out = points.detach().contiguous(), c2w.detach().contiguous(), torch.empty_like(points)
    if len(points):
        _rigid[(triton.cdiv(len(points), 256),)](points, c2w, out, len(points), BLOCK=256)
    return out


class _View(torch.autograd.Function):
    """(means, quats, log_scales, logit_opacities, sh, higher bands, c2w, pose quaternion, warp, turn, active) -> CameraGaussians."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        means, quats, log_scales, logits, sh = (a.contiguous() for a in arguments[:5])
        higher, c2w, pose, warp, turn, active = arguments[5:]
        split = higher is not None
        higher, c2w, pose = higher.contiguous() if split else sh, c2w.contiguous(), pose.contiguous()
        outputs = (*(torch.empty_like(t) for t in (means, quats, means, logits, means)),)
        ctx.flags = {
            "STORED": 1 + higher.shape[1] if split else sh.shape[1],
            "ACTIVE": active,
            "SPLIT": split,
            "WARP": warp is not None,
            "TURN": turn and warp is not None,
            "BLOCK": BLOCK,
        }
        y0, q0, jacobian = warp if warp is not None else (means, means, means)  # not read without a warp
        if len(means):
            _forward[(triton.cdiv(len(means), BLOCK),)](
                means, quats, log_scales, logits, sh, higher, c2w, pose, y0, q0, jacobian, *outputs, len(means), **ctx.flags
            )
        ctx.save_for_backward(means, quats, c2w, pose, jacobian, *outputs[2:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        means, quats, c2w = ctx.saved_tensors[:3]
        num, programs = len(means), triton.cdiv(len(means), BLOCK)
        stored, split = ctx.flags["STORED"], ctx.flags["SPLIT"]
        results = (*(torch.empty_like(t) for t in (means, quats, means)), means.new_empty(num))
        g_sh = means.new_empty(num, 1 if split else stored, 3)
        g_higher = means.new_empty(num, stored - 1, 3) if split else g_sh
        sums = means.new_empty(programs, 16)
        if programs:
            saved, gradients = ctx.saved_tensors, (g.contiguous() for g in incoming)
            _backward[(programs,)](*saved, *gradients, *results, g_sh, g_higher, sums, num, **ctx.flags)
        sums = sums.sum(0)
        g_c2w = torch.zeros_like(c2w)
        g_c2w[:3, :3], g_c2w[:3, 3] = sums[:9].view(3, 3), sums[9:12]
        return (*results, g_sh, g_higher if split else None, g_c2w, sums[12:], None, None, None)


def view_gaussians(
    splats: Splats,
    c2w: Tensor,
    local: LocalWarp,
    *,
    active_degree: int,
    turn: bool,
    higher: Tensor | None = None,
    quat: Tensor | None = None,
) -> CameraGaussians:
    """The same as `utils.splatting.view.reference.view_gaussians`, for float32 on the GPU."""
    pose = matrix_to_quat(c2w[:3, :3].T) if quat is None else quat
    warp = None if local.jacobian is None else (local.y0.contiguous(), local.q0.contiguous(), local.jacobian.contiguous())
    inputs = (splats.means, splats.quats, splats.log_scales, splats.logit_opacities, splats.sh, higher, c2w, pose)
    return CameraGaussians(*_View.apply(*inputs, warp, turn, (active_degree + 1) ** 2))
