"""Multi-resolution hash encoding of points in the unit cube (Mueller et al., "Instant Neural Graphics Primitives", 2022).

Level l has 2 features and `scale_l = base * growth^l - 1` cells along an axis; a point u lies at `u * scale_l + 0.5`. Levels with at most
2^log2_table_size vertices store every vertex, finer ones share entries by the hash
`x ^ y * 2654435761 ^ z * 805459861` modulo the table size. These are tiny-cuda-nn's definitions, so that a field behaves alike on every
backend.

`encode` is the definition, in plain torch, of any float type and on any device; `HashGridEncoding` runs the compiled kernel of
`utils.published.hashgrid.numba` for float32 on the CPU.

May import: what `utils.published` may.
Start: `reference.encode`.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from utils.published.hashgrid.levels import FEATURES, Levels
from utils.published.hashgrid.numba import encode_backward_points, encode_backward_table, encode_forward
from utils.published.hashgrid.reference import encode

_INITIAL = 1e-4  # entries start uniform within this: a field that starts as good as still


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
