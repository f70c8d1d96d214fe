"""The rasteriser for CUDA without its toolkit: projection, binning and blending in Triton, which comes with torch.

Binning sorts twice instead of once by a packed key: Gaussians by depth, then, stably, their tiles (16 bits, so two radix passes).
Nothing leaves the device but the number of (Gaussian, tile) pairs, which sizes the second sort; with a `PairBudget` not even that, so
that a whole training step can be recorded as a CUDA graph.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from utils.errors import MissingDependencyError
from utils.splatting.rasterize.contract import NEAR, SplatMode
from utils.splatting.rasterize.triton_blend import blend_gaussians, blend_gaussians_backward, blend_surfels, blend_surfels_backward
from utils.splatting.rasterize.triton_project import (
    RECORD,
    expand_tiles,
    project_gaussians,
    project_gaussians_backward,
    project_surfels,
    project_surfels_backward,
)
from utils.types import CameraGaussians, RenderOutput

BLOCK = 128
"""Gaussians per program of the projection and binning kernels."""


@dataclass(frozen=True)
class BlendShape:
    """How the blend kernels cut their work; small tiles waste few pixels on the small Gaussians of a dense cloud.

    Attributes:
        tile: side of a tile in pixels, a power of two.
        chunk: Gaussians per step of the forward pass.
        warps: warps per tile of the forward pass.
        back_chunk: Gaussians per step of the backward pass.
        back_warps: warps per tile of the backward pass.
        dot: sums over pixels on the tensor cores rather than by shuffles (3DGS backward).
        segment: Gaussians per program of the backward pass, a multiple of both chunks and of `chunk` times `steps`.
        steps: chunks of the forward pass between two looks whether a tile is opaque (3DGS).
        ahead: fetch the next chunk before blending one (3DGS forward).
    """

    tile: int = 8
    chunk: int = 4
    warps: int = 2
    back_chunk: int = 16
    back_warps: int = 1
    dot: bool = True
    segment: int = 64
    steps: int = 1
    ahead: bool = False


SHAPES: dict[SplatMode, BlendShape] = {"3dgs": BlendShape(chunk=16), "2dgs": BlendShape(back_chunk=8, back_warps=2)}
"""Fastest on an H200 at 1.2 million splats (3DGS: of a real clip, whose longest lists decide); surfels have more sums and would spill
registers with larger chunks."""


@dataclass
class PairBudget:
    """Room for the (Gaussian, tile) pairs of a rendering.

    Attributes:
        capacity: rows that are sorted; 0 reads the exact number back from the device. What does not fit is not drawn, farthest first.
        needed: (1,) int64 on the device, the most pairs of any rendering so far.
    """

    needed: Tensor
    capacity: int = 0


class TritonRasterizer:
    """3DGS and 2DGS on a CUDA device, float32.

    Attributes:
        budget: shared by all renderings; its owner watches `needed` where it sets a capacity.
    """

    name = "triton"

    def __init__(self, device: torch.device, shape: BlendShape | None = None):
        if device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise MissingDependencyError("rasterizer 'triton' needs a CUDA device", "choose rasterizer 'numba' on the CPU")
        self.device = device
        self.shape = shape
        self.budget = PairBudget(torch.zeros(1, dtype=torch.int64, device=device))

    def render(self, gaussians: CameraGaussians, K: Tensor, size: tuple[int, int], mode: SplatMode, near: float = NEAR) -> RenderOutput:
        """One view on black, see `Rasterizer`."""
        intrinsics = K.detach().to(self.device, torch.float32, non_blocking=True).contiguous()
        attributes = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors)
        arguments = (
            *(a.to(self.device, torch.float32) for a in attributes),
            intrinsics,
            size,
            near,
            self.shape or SHAPES[mode],
            self.budget,
            torch.is_grad_enabled() and any(a.requires_grad for a in attributes),
        )
        if mode == "3dgs":
            return RenderOutput(*_Gaussians.apply(*arguments))
        rgb, alpha, depth, normal, distortion = _Surfels.apply(*arguments)
        return RenderOutput(rgb, alpha, depth, normal, distortion)


@dataclass(frozen=True)
class Projected:
    """What a projection kernel fills.

    Attributes:
        records: (N, RECORD), of the Gaussians that are seen.
        rects: (N, 2) int32, first tile and tiles across.
        counts: (N,) int32 tiles touched.
        depths: (N,) camera z, infinite where nothing is seen.
    """

    records: Tensor
    rects: Tensor
    counts: Tensor
    depths: Tensor

    @classmethod
    def empty(cls, num: int, device: torch.device) -> "Projected":
        """Room for so many Gaussians."""
        records, depths = torch.empty(num, RECORD, device=device), torch.empty(num, device=device)
        rects, counts = (torch.empty(*n, dtype=torch.int32, device=device) for n in ((num, 2), (num,)))
        return cls(records, rects, counts, depths)


@dataclass(frozen=True)
class Binned:
    """Projected Gaussians, listed per tile in depth order.

    Attributes:
        records: (N, RECORD).
        counts: (N,) int32 tiles touched.
        gaussians: (I,) int32 row of each (Gaussian, tile) pair, by tile, then depth.
        starts: (tiles + 1,) first pair of each tile.
        tiles: down and across.
    """

    records: Tensor
    counts: Tensor
    gaussians: Tensor
    starts: Tensor
    tiles: tuple[int, int]


def bin_pairs(projected: Projected, size: tuple[int, int], shape: BlendShape, budget: PairBudget) -> Binned:
    """Lists and sorts the (Gaussian, tile) pairs."""
    depths, counts, (height, width) = projected.depths, projected.counts, size
    tiles_y, tiles_x = -(-height // shape.tile), -(-width // shape.tile)
    tile_type = torch.int16 if tiles_x * tiles_y < 2**15 - 1 else torch.int32
    bounds = torch.arange(tiles_x * tiles_y + 1, dtype=tile_type, device=depths.device)
    if len(depths) == 0:
        return Binned(projected.records, counts, counts, torch.zeros_like(bounds, dtype=torch.int64), (tiles_y, tiles_x))
    order = torch.sort(depths, stable=True).indices
    offsets = torch.cumsum(counts[order], 0)
    torch.maximum(budget.needed, offsets[-1:], out=budget.needed)
    pairs = budget.capacity or int(offsets[-1])
    # Rows that no pair takes sort behind the last tile.
    tile_of = depths.new_full((pairs,), tiles_x * tiles_y, dtype=tile_type)
    gaussian_of = depths.new_empty(pairs, dtype=torch.int32)
    if pairs:
        grid = (triton.cdiv(len(depths), BLOCK),)
        expand_tiles[grid](order, offsets, counts, projected.rects, tile_of, gaussian_of, len(depths), pairs, tiles_x, BLOCK=BLOCK)
    tile_of, by_tile = torch.sort(tile_of, stable=True)
    return Binned(projected.records, counts, gaussian_of[by_tile], torch.searchsorted(tile_of, bounds), (tiles_y, tiles_x))


def _project_and_bin(
    kernel: Any, inputs: tuple[Tensor, ...], size: tuple[int, int], near: float, shape: BlendShape, budget: PairBudget
) -> Binned:
    """Projects with `kernel` and sorts the (Gaussian, tile) pairs."""
    num, (height, width) = len(inputs[0]), size
    projected = Projected.empty(num, inputs[0].device)
    if num:
        p, grid = projected, (triton.cdiv(num, BLOCK),)
        kernel[grid](*inputs, p.records, p.rects, p.counts, p.depths, num, width, height, near, TILE=shape.tile, BLOCK=BLOCK)
    return bin_pairs(projected, size, shape, budget)


@dataclass(frozen=True)
class Segments:
    """The lists of all tiles cut into segments, and what the forward pass leaves for the way back.

    Attributes:
        first: (tiles + 1,) int32 first segment of each tile.
        tile: (S,) int32 tile of each segment; the number of tiles where there is no segment, since S is an upper bound.
        states: (S, channels, pixels) transmittance and sums in front of each segment.
        stops: (tiles,) int32 first row of each tile that nothing is seen of any more.
    """

    first: Tensor
    tile: Tensor
    states: Tensor
    stops: Tensor

    @classmethod
    def of(cls, binned: Binned, shape: BlendShape, channels: int) -> "Segments":
        """For lists as they are, without asking the device how long they are."""
        tiles, pairs = len(binned.starts) - 1, len(binned.gaussians)
        most = -(-pairs // shape.segment) + tiles
        counts = (binned.starts.diff() + (shape.segment - 1)) // shape.segment
        ends = counts.cumsum(0, dtype=torch.int32)
        tile = torch.searchsorted(ends, torch.arange(most, dtype=torch.int32, device=ends.device), right=True, out_int32=True)
        first = torch.nn.functional.pad(ends, (1, 0))
        states = binned.records.new_empty(most, channels, shape.tile**2)
        return cls(first, tile, states, torch.empty_like(ends))


def blend(binned: Binned, size: tuple[int, int], shape: BlendShape, keep: bool) -> tuple[Tensor, Tensor, Tensor, Segments | None]:
    """3DGS colour (h, w, 3), alpha and depth (h, w); with `keep` also what `blend_backward` needs."""
    records = binned.records
    rgb, alpha, depth = records.new_empty(*size, 3), records.new_empty(size), records.new_empty(size)
    tiles_y, tiles_x = binned.tiles
    cut = Segments.of(binned, shape, 6) if keep else None
    left = (binned.starts, rgb, binned.starts) if cut is None else (cut.first, cut.states, cut.stops)
    blend_gaussians[(tiles_y * tiles_x,)](
        records, binned.gaussians, binned.starts, rgb, alpha, depth, *left, size[1], size[0], tiles_x,
        TILE=shape.tile, CHUNK=shape.chunk, STEPS=shape.steps, AHEAD=shape.ahead, SEGMENT=shape.segment, KEEP=keep,
        num_warps=shape.warps,
    )  # fmt: skip
    return rgb, alpha, depth, cut


def blend_backward(binned: Binned, cut: Segments, images: tuple[Tensor, ...], incoming: tuple[Tensor, ...], shape: BlendShape) -> Tensor:
    """(N, RECORD) gradients of the records from those of `images`, the colour, alpha and depth that `blend` drew."""
    gradients = torch.zeros_like(binned.records)
    (tiles_y, tiles_x), (height, width) = binned.tiles, images[1].shape
    blend_gaussians_backward[(len(cut.tile),)](
        binned.records, binned.gaussians, binned.starts, *images, *(g.contiguous() for g in incoming), gradients,
        cut.first, cut.tile, cut.states, cut.stops, width, height, tiles_x, tiles_y * tiles_x,
        TILE=shape.tile, CHUNK=shape.back_chunk, SEGMENT=shape.segment, DOT=shape.dot, num_warps=shape.back_warps,
    )  # fmt: skip
    return gradients


class _Gaussians(torch.autograd.Function):
    """3DGS: (means, quats, scales, opacities, colors, K, size, near, shape, budget, differentiable) -> rgb, alpha, depth."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        inputs, (size, near, shape, budget, keep) = tuple(a.contiguous() for a in arguments[:6]), arguments[6:]
        binned = _project_and_bin(project_gaussians, inputs, size, near, shape, budget)
        rgb, alpha, depth, ctx.segments = blend(binned, size, shape, keep)
        ctx.save_for_backward(*inputs[:3], inputs[5], rgb, alpha, depth)
        ctx.binned, ctx.size, ctx.shape = binned, size, shape
        ctx.set_materialize_grads(True)
        return rgb, alpha, depth

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        means, quats, scales, K, *images = ctx.saved_tensors
        gradients = blend_backward(ctx.binned, ctx.segments, tuple(images), incoming, ctx.shape)
        return _project_backward(project_gaussians_backward, (means, quats, scales, K), ctx.binned, gradients, ctx.size)


class _Surfels(torch.autograd.Function):
    """2DGS: the same arguments -> rgb, alpha, depth, normal, distortion."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        inputs, (size, near, shape, budget, keep) = tuple(a.contiguous() for a in arguments[:6]), arguments[6:]
        binned = _project_and_bin(project_surfels, inputs, size, near, shape, budget)
        rgb, normal, moments = (inputs[0].new_empty(*size, channels) for channels in (3, 3, 2))
        alpha, depth, distortion = (inputs[0].new_empty(size) for _ in range(3))
        tiles_y, tiles_x = binned.tiles
        ctx.segments = Segments.of(binned, shape, 10) if keep else None
        left = (ctx.segments.first, ctx.segments.states, ctx.segments.stops) if keep else (binned.starts, rgb, binned.starts)
        blend_surfels[(tiles_y * tiles_x,)](
            binned.records, binned.gaussians, binned.starts, rgb, alpha, depth, normal, distortion, moments, *left,
            size[1], size[0], tiles_x, near,
            TILE=shape.tile, CHUNK=shape.chunk, SEGMENT=shape.segment, KEEP=keep, num_warps=shape.warps,
        )  # fmt: skip
        ctx.save_for_backward(*inputs[:3], inputs[5], rgb, alpha, normal, moments)
        ctx.binned, ctx.size, ctx.near, ctx.shape = binned, size, near, shape
        ctx.set_materialize_grads(True)
        return rgb, alpha, depth, normal, distortion

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        means, quats, scales, K, rgb, alpha, normal, moments = ctx.saved_tensors
        binned, cut, (height, width), shape = ctx.binned, ctx.segments, ctx.size, ctx.shape
        gradients = torch.zeros_like(binned.records)
        tiles_y, tiles_x = binned.tiles
        blend_surfels_backward[(len(cut.tile),)](
            binned.records, binned.gaussians, binned.starts, rgb, alpha, normal, moments, *(g.contiguous() for g in incoming), gradients,
            cut.first, cut.tile, cut.states, cut.stops, width, height, tiles_x, tiles_y * tiles_x, ctx.near,
            TILE=shape.tile, CHUNK=shape.back_chunk, SEGMENT=shape.segment, num_warps=shape.back_warps,
        )  # fmt: skip
        return _project_backward(project_surfels_backward, (means, quats, scales, K), binned, gradients, ctx.size)


def _project_backward(
    kernel: Any, inputs: tuple[Tensor, ...], binned: Binned, gradients: Tensor, size: tuple[int, int]
) -> tuple[Tensor | None, ...]:
    """Gradients of (means, quats, scales, opacities, colors) from those of the records; None for the other arguments."""
    means, quats, scales, K = inputs
    results = (
        torch.empty_like(means),
        torch.empty_like(quats),
        torch.empty_like(scales),
        means.new_empty(len(means)),
        torch.empty_like(means),
    )
    if len(means):
        kernel[(triton.cdiv(len(means), BLOCK),)](
            means, quats, scales, K, binned.records, gradients, binned.counts, *results, len(means), size[1], size[0], BLOCK=BLOCK
        )
    return (*results, None, None, None, None, None, None)
