"""Normals of many small neighbourhoods at once on a device: the eigenvector of the smallest eigenvalue in closed form."""

import torch
from torch import Tensor

_ROWS_AT_ONCE = 200_000


def smallest_axes(points: Tensor, neighbors: Tensor, device: torch.device) -> Tensor:
    """(N, 3) unit directions in which the neighbourhoods (N, k) of points (M, 3) float64 are thinnest, on the CPU."""
    points, axes = points.to(device), []
    for rows in neighbors.split(_ROWS_AT_ONCE):
        near = points[rows.to(device)]
        offsets = near - near.mean(1, keepdim=True)
        axes.append(smallest_eigenvectors(offsets.transpose(1, 2) @ offsets).cpu())
    return torch.cat(axes)


def smallest_eigenvectors(matrices: Tensor) -> Tensor:
    """(N, 3) unit eigenvectors of the smallest eigenvalues of symmetric matrices (N, 3, 3).

    Eigenvalues by the trigonometric form of the cubic (Smith, "Eigenvalues of a symmetric 3 x 3 matrix", 1961); A - lambda has rank 2,
    and the largest cross product of two of its rows is the eigenvector. Where all directions are alike, z.
    """
    size = matrices.diagonal(dim1=1, dim2=2).sum(-1).clamp(min=torch.finfo(matrices.dtype).tiny)
    a = matrices / size[:, None, None]
    eye = torch.eye(3, dtype=a.dtype, device=a.device)
    middle = a.diagonal(dim1=1, dim2=2).mean(-1)
    b = a - middle[:, None, None] * eye
    spread = (b.square().sum((1, 2)) / 6).sqrt()
    determinant = torch.linalg.cross(b[:, 0], b[:, 1]).mul(b[:, 2]).sum(-1)
    angle = (determinant / (2 * spread**3).clamp(min=1e-300)).clamp(-1, 1).arccos() / 3
    least = middle + 2 * spread * (angle + 2 * torch.pi / 3).cos()
    rest = a - least[:, None, None] * eye
    normals = torch.stack([torch.linalg.cross(rest[:, i], rest[:, j]) for i, j in ((0, 1), (1, 2), (2, 0))], 1)
    lengths = normals.norm(dim=-1)
    best = lengths.argmax(1)[:, None]
    length = lengths.gather(1, best)
    chosen = normals.gather(1, best[..., None].expand(-1, 1, 3))[:, 0]
    return torch.where(length > 1e-12, chosen / length.clamp(min=1e-300), eye[2])
