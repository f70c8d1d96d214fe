"""How the inverse moves with the lattice: the derivative of q, where q + delta(q) = y, with respect to the nodes of delta.

By the implicit function theorem dq = -A d(delta)(q) with A = dq/dy, which `LocalWarp` holds; delta(q) is linear in the nodes. So after
the nodes have changed a little since the points were solved, `-A (delta_new - delta_old)(q)` is the first-order change of q, and its
gradient is the true one where they were solved.

May import: what `utils.deformation` may.
Start: `node_shift`, which chooses; `reference`, `numba` (CPU), `triton` (the gradient on a GPU, also that of coarse corrections).
"""

from typing import Any

import torch
from torch import Tensor

from utils.deformation.inverse import LocalWarp
from utils.deformation.node_shift import numba, reference
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
        twin = numba if points.device.type == "cpu" else reference
        return twin.shift(change, points, jacobian, camera)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        points, jacobian, camera = ctx.saved_tensors
        (gradient,) = grads
        if points.device.type == "cpu":
            result = numba.shift_vjp(ctx.counts, points, jacobian, camera, gradient)
        elif points.dtype == torch.float32 and triton_ready():
            from utils.deformation.node_shift import triton

            result = triton.shift_vjp(ctx.counts, points, jacobian, camera, gradient)
        else:
            result = reference.shift_vjp(ctx.counts, points, jacobian, camera, gradient)
        return result, None, None, None, None
