"""`utils.splatting.view.reference.view_gaussians` for float32 on the CPU: means, rotations and colours in one compiled pass each way.

In torch the many small steps of it and their gradients took two thirds of the time of drawing. Sums over splats, for the gradient of the
pose, are taken over blocks of fixed size and then over blocks in their order: any number of threads gives the same bits.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from utils.cameras.rotations import matrix_to_quat
from utils.deformation.inverse import LocalWarp
from utils.device.threads import ranges, run_chunks
from utils.splatting.rasterize.numba_projection import F32, HALF, JIT, ONE, ZERO
from utils.splatting.sh import C0, C1, C2, C3
from utils.types import Array, CameraGaussians, Splats

_BLOCK = 2048
_TINY = F32(1e-12)
_C0, _C1 = F32(C0), F32(C1)
_C20, _C21, _C22 = (F32(c) for c in C2)
_C30, _C31, _C32, _C33, _C34 = (F32(c) for c in C3)
_TWO, _THREE, _FOUR = F32(2), F32(3), F32(4)


@njit(**JIT)
def _basis(x, y, z, bands, out):
    """Fills the first `bands` of out (16,) as `utils.splatting.sh.sh_basis` does."""
    out[0] = _C0
    if bands > 1:
        out[1], out[2], out[3] = -_C1 * y, _C1 * z, -_C1 * x
    xx, yy, zz = x * x, y * y, z * z
    if bands > 4:
        out[4], out[5], out[6] = _C20 * x * y, -_C20 * y * z, _C21 * (_TWO * zz - xx - yy)
        out[7], out[8] = -_C20 * x * z, _C22 * (xx - yy)
    if bands > 9:
        out[9], out[10] = -_C30 * y * (_THREE * xx - yy), _C31 * x * y * z
        out[11], out[12] = -_C32 * y * (_FOUR * zz - xx - yy), _C33 * z * (_TWO * zz - _THREE * xx - _THREE * yy)
        out[13], out[14] = -_C32 * x * (_FOUR * zz - xx - yy), _C34 * z * (xx - yy)
        out[15] = -_C30 * x * (xx - _THREE * yy)


@njit(**JIT)
def _product(a0, a1, a2, a3, b0, b1, b2, b3):
    """Hamilton product of wxyz quaternions."""
    return (
        a0 * b0 - a1 * b1 - a2 * b2 - a3 * b3,
        a0 * b1 + a1 * b0 + a2 * b3 - a3 * b2,
        a0 * b2 - a1 * b3 + a2 * b0 + a3 * b1,
        a0 * b3 + a1 * b2 - a2 * b1 + a3 * b0,
    )


@njit(**JIT)
def view_rows(begin, end, means, quats, base, higher, bands, c2w, pose, y0, q0, jacobian, turns, out_means, out_quats, out_colors):
    """Splats begin..end as a camera sees them; `jacobian` and `turns` have no rows where there is no deformation, or it does not turn."""
    basis = np.empty(16, np.float32)
    for g in range(begin, end):
        dx, dy, dz = means[g, 0] - c2w[0, 3], means[g, 1] - c2w[1, 3], means[g, 2] - c2w[2, 3]
        x = c2w[0, 0] * dx + c2w[1, 0] * dy + c2w[2, 0] * dz
        y = c2w[0, 1] * dx + c2w[1, 1] * dy + c2w[2, 1] * dz
        z = c2w[0, 2] * dx + c2w[1, 2] * dy + c2w[2, 2] * dz
        if jacobian.shape[0]:
            x, y, z = x - y0[g, 0], y - y0[g, 1], z - y0[g, 2]
            for i in range(3):
                out_means[g, i] = q0[g, i] + jacobian[g, i, 0] * x + jacobian[g, i, 1] * y + jacobian[g, i, 2] * z
        else:
            out_means[g, 0], out_means[g, 1], out_means[g, 2] = x, y, z
        w, i, j, k = _product(pose[0], pose[1], pose[2], pose[3], quats[g, 0], quats[g, 1], quats[g, 2], quats[g, 3])
        if turns.shape[0]:
            w, i, j, k = _product(turns[g, 0], turns[g, 1], turns[g, 2], turns[g, 3], w, i, j, k)
        out_quats[g, 0], out_quats[g, 1], out_quats[g, 2], out_quats[g, 3] = w, i, j, k
        inverse = ONE / max(math.sqrt(dx * dx + dy * dy + dz * dz), _TINY)
        _basis(dx * inverse, dy * inverse, dz * inverse, bands, basis)
        for c in range(3):
            total = HALF + basis[0] * base[g, 0, c]
            for band in range(1, bands):
                total += basis[band] * higher[g, band - 1, c]
            out_colors[g, c] = max(total, ZERO)


@njit(**JIT)
def view_rows_vjp(
    begin, end, means, quats, bands, c2w, pose, jacobian, turns, colors, g_means, g_quats, g_colors,
    out_means, out_quats, out_base, out_higher, sums,
):  # fmt: skip
    """Gradients of blocks begin..end of splats; `sums` (blocks, 16) of the pose: rotation by rows, translation, quaternion."""
    basis = np.empty(16, np.float32)
    for block in range(begin, end):
        total = sums[block]
        for g in range(block * _BLOCK, min((block + 1) * _BLOCK, means.shape[0])):
            x, y, z = g_means[g, 0], g_means[g, 1], g_means[g, 2]
            if jacobian.shape[0]:
                a = jacobian[g]
                x, y, z = (
                    a[0, 0] * x + a[1, 0] * y + a[2, 0] * z,
                    a[0, 1] * x + a[1, 1] * y + a[2, 1] * z,
                    a[0, 2] * x + a[1, 2] * y + a[2, 2] * z,
                )
            dx, dy, dz = means[g, 0] - c2w[0, 3], means[g, 1] - c2w[1, 3], means[g, 2] - c2w[2, 3]
            total[0] += dx * x
            total[1] += dx * y
            total[2] += dx * z
            total[3] += dy * x
            total[4] += dy * y
            total[5] += dy * z
            total[6] += dz * x
            total[7] += dz * y
            total[8] += dz * z
            for i in range(3):
                back = c2w[i, 0] * x + c2w[i, 1] * y + c2w[i, 2] * z
                out_means[g, i] = back
                total[9 + i] -= back
            # The adjoint of multiplying by a quaternion is multiplying by its conjugate.
            w, i, j, k = g_quats[g, 0], g_quats[g, 1], g_quats[g, 2], g_quats[g, 3]
            if turns.shape[0]:
                w, i, j, k = _product(turns[g, 0], -turns[g, 1], -turns[g, 2], -turns[g, 3], w, i, j, k)
            o0, o1, o2, o3 = _product(pose[0], -pose[1], -pose[2], -pose[3], w, i, j, k)
            out_quats[g, 0], out_quats[g, 1], out_quats[g, 2], out_quats[g, 3] = o0, o1, o2, o3
            o0, o1, o2, o3 = _product(w, i, j, k, quats[g, 0], -quats[g, 1], -quats[g, 2], -quats[g, 3])
            total[12] += o0
            total[13] += o1
            total[14] += o2
            total[15] += o3
            inverse = ONE / max(math.sqrt(dx * dx + dy * dy + dz * dz), _TINY)
            _basis(dx * inverse, dy * inverse, dz * inverse, bands, basis)
            for c in range(3):
                gradient = g_colors[g, c] if colors[g, c] > ZERO else ZERO
                out_base[g, 0, c] = basis[0] * gradient
                for band in range(1, bands):
                    out_higher[g, band - 1, c] = basis[band] * gradient


def view_gaussians(
    splats: Splats, c2w: Tensor, local: LocalWarp, *, active_degree: int, turn: bool, higher: Tensor | None
) -> CameraGaussians:
    """The same as `utils.splatting.view.reference.view_gaussians`, for float32 on the CPU."""
    base = splats.sh if higher is None else splats.sh[:, :1]
    rest = splats.sh[:, 1:] if higher is None else higher
    bands = (active_degree + 1) ** 2
    pose = matrix_to_quat(c2w[:3, :3].T)
    rotation = local.rotation_quaternions if turn else None
    means, quats, colors = _View.apply(splats.means, splats.quats, base[:, :1], rest[:, : bands - 1], c2w, pose, local, rotation)
    return CameraGaussians(
        means=means, quats=quats, scales=splats.log_scales.exp(), opacities=splats.logit_opacities.sigmoid(), colors=colors
    )


class _View(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        means, quats, base, higher, c2w, pose = (t.detach().contiguous() for t in given[:6])
        local, rotation = given[6:]
        jacobian = means.new_empty(0, 3, 3) if local.jacobian is None else local.jacobian.contiguous()
        turns = means.new_empty(0, 4) if rotation is None else rotation.contiguous()
        out = torch.empty_like(means), torch.empty_like(quats), torch.empty_like(means)
        tensors = (means, quats, base, higher)
        warp = (local.y0.contiguous(), local.q0.contiguous(), jacobian, turns)
        run_chunks(
            view_rows, ranges(len(means)), *(t.numpy() for t in tensors), 1 + higher.shape[1], c2w.numpy(), pose.numpy(),
            *(t.numpy() for t in warp), *(t.numpy() for t in out),
        )  # fmt: skip
        ctx.save_for_backward(means, quats, c2w, pose, jacobian, turns, out[2])
        ctx.bands = 1 + higher.shape[1]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        means, quats, c2w, pose, jacobian, turns, colors = (t.numpy() for t in ctx.saved_tensors)
        count, bands = len(means), ctx.bands
        out: tuple[Array, ...] = tuple(np.empty((count, *shape), np.float32) for shape in ((3,), (4,), (1, 3), (bands - 1, 3)))
        blocks = -(-count // _BLOCK)
        sums = np.zeros((blocks, 16))
        run_chunks(
            view_rows_vjp, ranges(blocks), means, quats, bands, c2w, pose, jacobian, turns, colors,
            *(g.contiguous().numpy() for g in grads), *out, sums,
        )  # fmt: skip
        total = torch.from_numpy(sums.sum(0).astype(np.float32))
        g_c2w = torch.zeros(4, 4)
        g_c2w[:3, :3], g_c2w[:3, 3] = total[:9].reshape(3, 3), total[9:12]
        return *(torch.from_numpy(a) for a in out), g_c2w, total[12:], None, None
