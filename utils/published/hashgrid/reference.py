"""The hash encoding in plain torch, in the dtype of its inputs."""

import torch
from torch import Tensor

from utils.published.hashgrid.levels import FEATURES, PRIMES, Levels


def encode(points: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """(N, 2 L) features of points (N, 3) in 0..1, level by level; differentiable in the points and the table (T, 2)."""
    features = []
    for level in range(len(levels)):
        position = points * float(levels.scale[level]) + 0.5
        low = position.detach().floor()
        fraction, low = position - low, low.long()
        start, stop = int(levels.offset[level]), int(levels.offset[level + 1])
        total = points.new_zeros(len(points), FEATURES)
        for corner in range(8):
            bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=points.device)
            vertex = low + bits
            weight = torch.where(bits.bool(), fraction, 1 - fraction).prod(-1, keepdim=True)
            total = total + weight * table[start + _entry(vertex, levels, level, stop - start)]
        features.append(total)
    return torch.cat(features, -1)


def _entry(vertex: Tensor, levels: Levels, level: int, size: int) -> Tensor:
    """(N,) table row, within its level, of integer vertices (N, 3)."""
    x, y, z = vertex.unbind(-1)
    if levels.hashed[level]:
        return (x ^ y * PRIMES[1] ^ z * PRIMES[2]) & (size - 1)
    resolution = int(levels.resolution[level])
    return (x + resolution * (y + resolution * z)) % size
