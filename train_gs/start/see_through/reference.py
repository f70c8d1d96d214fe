"""`seen_through` by torch, one camera after another."""

import torch
from torch import Tensor


def seen_through(points: Tensor, projections: Tensor, least: Tensor, shares: Tensor, made_by: Tensor) -> Tensor:
    """(N,) bool, points (N, 3) that some camera sees through.

    Args:
        points: (N, 3), world.
        projections: (F, 3, 4) from the world to homogeneous pixels.
        least: (F, h, w) camera z, the least around each pixel.
        shares: (F, G) of that depth, for points made by each of G.
        made_by: (N,) which of the G made each point.
    """
    (h, w), blocking = least.shape[1:], torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for projection, shown, share in zip(projections, least, shares, strict=True):
        z = points @ projection[2, :3] + projection[2, 3]
        # Few points are so near: only they are projected.
        near = torch.nonzero((z > 0) & (z < share.max() * shown.max()))[:, 0]
        column, row = ((points[near] @ projection[:2, :3].T + projection[:2, 3]) / z[near, None]).floor().unbind(1)
        inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
        near, pixel = near[inside], (row[inside] * w + column[inside]).long()
        blocking[near[z[near] < share[made_by[near]] * shown.view(-1)[pixel]]] = True
    return blocking
