"""First-order change of the inverse with the nodes, and its gradient, in batched torch for any device and float type."""

import numpy as np
import torch
from torch import Tensor


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


def shift(change: Tensor, points: Tensor, jacobian: Tensor, camera: Tensor) -> Tensor:
    """(N, 3) -A delta'(q) for a change (nz, nv, nu, 3) of the nodes, at solved points q (N, 3) with A = dq/dy (N, 3, 3).

    `camera` (7,) see `LatticeField.affine_coordinates`.
    """
    index, weight = _corners((change.shape[0], change.shape[1], change.shape[2]), points, camera)
    moved = (change.reshape(-1, 3)[index] * weight[..., None]).sum(1)
    return -(jacobian @ moved[:, :, None])[:, :, 0]


def shift_vjp(counts: tuple[int, int, int], points: Tensor, jacobian: Tensor, camera: Tensor, gradient: Tensor) -> Tensor:
    """(nz, nv, nu, 3) gradient of `shift` with respect to the change, for `gradient` (N, 3) with respect to its result."""
    index, weight = _corners(counts, points, camera)
    back = -(jacobian.transpose(1, 2) @ gradient[:, :, None])[:, :, 0]
    sums = points.new_zeros(int(np.prod(counts)), 3)
    sums.index_add_(0, index.reshape(-1), (weight[..., None] * back[:, None]).reshape(-1, 3))
    return sums.reshape(*counts, 3)
