"""How the inverse moves with the lattice: the gradient of q, where q + delta(q) = y, with respect to the nodes of delta.

By the implicit function theorem dq = -A d(delta)(q) with A = dq/dy, which `LocalWarp` holds; delta(q) is linear in the nodes. So after
the nodes have changed a little since the points were solved, `-A (delta_new - delta_old)(q)` is the first-order change of q, and its
gradient is the true one where they were solved.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.deformation.inverse import LocalWarp
from utils.deformation.lattice.numba_inverse import shift_points, shift_points_vjp
from utils.device.threads import ranges, run_chunks
from utils.device.triton_support import triton_ready


def node_shift(change: Tensor, local: LocalWarp, camera: Tensor, *, is_zero: bool) -> Tensor:
    """(N, 3) first-order change of `local.q0` for a change of the nodes since it was solved; differentiable in the change.

    Args:
        change: (nz, nv, nu, 3) new nodes minus those that `local` was solved with.
        local: solved points, camera space.
        camera: (7,) see `LatticeField.affine_coordinates`, on the same device.
        is_zero: the caller knows that the change is zero and wants only its gradient.
    """
    assert local.jacobian is not None
    return _NodeShift.apply(change, local.q0, local.jacobian, camera, is_zero)  # type: ignore[no-any-return]


class _NodeShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, change: Tensor, points: Tensor, jacobian: Tensor, camera: Tensor, is_zero: bool) -> Tensor:
        ctx.save_for_backward(points, jacobian, camera)
        ctx.counts = tuple(change.shape[:3])
        if is_zero:
            return torch.zeros_like(points)
        if points.device.type != "cpu":
            return _shift_torch(change, points, jacobian, camera)
        shift = torch.empty_like(points)
        nodes = change.detach().reshape(-1, 3).contiguous().numpy()
        arrays = (camera.numpy(), points.numpy(), jacobian.numpy())
        run_chunks(shift_points, ranges(len(points)), nodes, ctx.counts, *arrays, shift.numpy())
        return shift

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        points, jacobian, camera = ctx.saved_tensors
        (gradient,) = grads
        if points.device.type == "cpu":
            chunks = ranges(len(points))
            sums = np.zeros((max(1, len(chunks)), int(np.prod(ctx.counts)), 3), points.numpy().dtype)
            jobs = [(*chunk, sums[i]) for i, chunk in enumerate(chunks)]
            arrays = (camera.numpy(), points.numpy(), jacobian.numpy(), gradient.contiguous().numpy())
            run_chunks(shift_points_vjp, jobs, ctx.counts, *arrays)
            result = torch.from_numpy(sums.sum(0)).reshape(*ctx.counts, 3)
        elif points.dtype == torch.float32 and triton_ready():
            from utils.deformation.lattice import triton as lattice_triton

            result = lattice_triton.shift_vjp(ctx.counts, camera, points, jacobian, gradient)
        else:
            result = _shift_vjp_torch(ctx.counts, points, jacobian, camera, gradient)
        return result, None, None, None, None


def _corners(counts: tuple[int, int, int], points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 8) flat node indices and weights around camera-space points (N, 3)."""
    depth = points[:, 2].clamp(min=float(camera[6]))
    inverse = 1.0 / depth
    places = (
        camera[4] * inverse + camera[5],
        camera[2] * points[:, 1] * inverse + camera[3],
        camera[0] * points[:, 0] * inverse + camera[1],
    )
    index, weight = torch.zeros(len(points), 1, dtype=torch.long, device=points.device), torch.ones_like(points[:, :1])
    for place, count in zip(places, counts, strict=True):
        clamped = place.clamp(0, count - 1)
        low = clamped.long().clamp(max=max(count - 2, 0))
        high, above = (low + 1).clamp(max=count - 1), (clamped - low)[:, None]
        index = index[:, :, None] * count + torch.stack([low, high], -1)[:, None]
        along = torch.cat([1 - above, above], -1)
        if place is places[0]:  # the layers: their nodes also count by the point's depth over theirs
            along = along * depth[:, None] * (torch.stack([low, high], -1) - camera[5]) / camera[4]
        weight = weight[:, :, None] * along.to(weight)[:, None]
        index, weight = index.flatten(1), weight.flatten(1)
    return index, weight


def _shift_torch(change: Tensor, points: Tensor, jacobian: Tensor, camera: Tensor) -> Tensor:
    """The same in batched torch, for any device."""
    index, weight = _corners((change.shape[0], change.shape[1], change.shape[2]), points, camera)
    moved = (change.reshape(-1, 3)[index] * weight[..., None]).sum(1)
    return -(jacobian @ moved[:, :, None])[:, :, 0]


def _shift_vjp_torch(counts: tuple[int, int, int], points: Tensor, jacobian: Tensor, camera: Tensor, gradient: Tensor) -> Tensor:
    index, weight = _corners(counts, points, camera)
    back = -(jacobian.transpose(1, 2) @ gradient[:, :, None])[:, :, 0]
    sums = points.new_zeros(int(np.prod(counts)), 3)
    sums.index_add_(0, index.reshape(-1), (weight[..., None] * back[:, None]).reshape(-1, 3))
    return sums.reshape(*counts, 3)
