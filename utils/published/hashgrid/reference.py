"""Multi-resolution hash encoding of points in the unit cube (Mueller et al., "Instant Neural Graphics Primitives", 2022).

Level l has 2 features and `scale_l = base * growth^l - 1` cells along an axis; a point u lies at `u * scale_l + 0.5`. Levels with at most
2^log2_table_size vertices store every vertex, finer ones share entries by the hash
`x ^ y * 2654435761 ^ z * 805459861` modulo the table size. These are tiny-cuda-nn's definitions, so that a field behaves alike on every
backend.

`encode` is the definition, in plain torch, of any float type and on any device; `HashGridEncoding` runs the compiled kernel of
`utils.published.hashgrid.numba` for float32 on the CPU.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from utils.published.hashgrid.numba import encode_backward_points, encode_backward_table, encode_forward
from utils.types import Array

FEATURES = 2
PRIMES = (1, 2654435761, 805459861)
_INITIAL = 1e-4  # entries start uniform within this: a field that starts as good as still
_ROUND_TO = 8  # entries of a level are a multiple of this


@dataclass(frozen=True)
class Levels:
    """The resolutions of a grid.

    Attributes:
        scale: (L,) float32 cells along an axis, not an integer.
        resolution: (L,) uint32 vertices along an axis.
        offset: (L + 1,) int64 first table row of each level, then the number of rows.
        hashed: (L,) bool.
    """

    scale: Array
    resolution: Array
    offset: Array
    hashed: Array

    def __len__(self) -> int:
        return len(self.scale)


def make_levels(levels: int, log2_table_size: int, min_resolution: int, max_resolution: int) -> Levels:
    """Levels whose resolutions grow geometrically from the least to the greatest."""
    growth = (max_resolution / min_resolution) ** (1 / max(levels - 1, 1))
    scale = min_resolution * growth ** np.arange(levels) - 1
    resolution = np.ceil(np.round(scale, 6)).astype(np.int64) + 1
    vertices = -(-(resolution**3) // _ROUND_TO) * _ROUND_TO
    size = np.minimum(vertices, 2**log2_table_size)
    offset = np.concatenate([[0], np.cumsum(size)])
    return Levels(scale.astype(np.float32), resolution.astype(np.uint32), offset, vertices > 2**log2_table_size)


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


class _Encode(torch.autograd.Function):
    """`encode` by the compiled kernels."""

    @staticmethod
    def forward(ctx, points: Tensor, table: Tensor, levels: Levels) -> Tensor:  # type: ignore[no-untyped-def, override]
        points = points.detach().contiguous()
        out = torch.empty(len(points), FEATURES * len(levels))
        encode_forward(points.numpy(), table.detach().numpy(), levels.scale, levels.resolution, levels.offset, levels.hashed, out.numpy())
        ctx.save_for_backward(points, table)
        ctx.levels = levels
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[no-untyped-def, override]
        points, table = ctx.saved_tensors
        levels: Levels = ctx.levels
        shape = (levels.scale, levels.resolution, levels.offset, levels.hashed)
        incoming = gradient.contiguous().numpy()
        to_points = to_table = None
        if ctx.needs_input_grad[1]:
            to_table = torch.zeros_like(table)
            encode_backward_table(points.numpy(), *shape, incoming, to_table.numpy())
        if ctx.needs_input_grad[0]:
            to_points = torch.empty_like(points)
            encode_backward_points(points.numpy(), table.detach().numpy(), *shape, incoming, to_points.numpy())
        return to_points, to_table, None


class HashGridEncoding(nn.Module):
    """The encoding with its table of entries (T, 2)."""

    def __init__(self, levels: Levels, generator: torch.Generator, backend: Literal["numba", "torch"]):
        super().__init__()
        self.levels = levels
        self.backend = backend
        self.table = nn.Parameter((torch.rand(int(levels.offset[-1]), FEATURES, generator=generator) * 2 - 1) * _INITIAL)

    @property
    def output_dim(self) -> int:
        """Features of a point."""
        return FEATURES * len(self.levels)

    def forward(self, points: Tensor) -> Tensor:
        """(N, output_dim) features of points (N, 3) in 0..1."""
        if self.backend == "numba":
            return _Encode.apply(points, self.table, self.levels)  # type: ignore[no-any-return]
        return encode(points, self.table, self.levels)
