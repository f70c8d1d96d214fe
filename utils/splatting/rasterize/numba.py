"""The embedded CPU rasteriser: Numba kernels under `torch.autograd.Function`, float32, as many threads as torch has.

Stages: project Gaussians to screen rows, list (Gaussian, tile) pairs in depth order, composite tiles. Backward: composite again
front to back, leaving one gradient row per pair, then sum each Gaussian's rows and take them through the projection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.device.threads import bands, in_parallel, num_chunks, ranges, run_chunks
from utils.errors import MissingDependencyError
from utils.splatting.rasterize.contract import FRUSTUM_MARGIN, NEAR, SplatMode
from utils.splatting.rasterize.numba_gaussians import composite_gaussians, composite_gaussians_vjp
from utils.splatting.rasterize.numba_projection import (
    GAUSSIAN_ROW,
    SURFEL_ROW,
    TILE,
    project_gaussians,
    project_gaussians_vjp,
    project_surfels,
    project_surfels_vjp,
)
from utils.splatting.rasterize.numba_surfels import composite_surfels, composite_surfels_vjp
from utils.splatting.rasterize.numba_tiles import count_tiles, list_members
from utils.types import Array, CameraGaussians, RenderOutput


class NumbaRasterizer:
    """Draws on the CPU, see `Rasterizer`. Numbers are float32 inside, whatever the inputs' dtype."""

    name = "numba"

    def __init__(self, device: torch.device):
        if device.type != "cpu":
            raise MissingDependencyError(
                f"rasterizer 'numba' draws on the CPU, not on {device}", "choose --device cpu, or the rasterizer 'gsplat'"
            )

    def render(self, gaussians: CameraGaussians, K: Tensor, size: tuple[int, int], mode: SplatMode, near: float = NEAR) -> RenderOutput:
        """One view on black, see `Rasterizer`."""
        view = _View.of(K, size, near)
        given = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors)
        attributes = tuple(a.to(torch.float32).contiguous() for a in given)
        if mode == "3dgs":
            rgb, alpha, depth = _DrawGaussians.apply(view, *attributes)
            return RenderOutput(rgb=rgb.permute(1, 2, 0), alpha=alpha, depth=depth)
        rgb, alpha, depth, normal, distortion = _DrawSurfels.apply(view, *attributes)
        return RenderOutput(rgb=rgb.permute(1, 2, 0), alpha=alpha, depth=depth, normal=normal.permute(1, 2, 0), distortion=distortion)


@dataclass(frozen=True)
class _View:
    """Image size and the numbers that `rasterizer_numba_projection` calls `camera`."""

    camera: Array
    height: int
    width: int

    @classmethod
    def of(cls, K: Tensor, size: tuple[int, int], near: float) -> "_View":
        height, width = size
        fx, fy, cx, cy = (float(K[i, j].detach()) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
        ratios_x = (-cx / fx - margin_x, (width - cx) / fx + margin_x)
        ratios_y = (-cy / fy - margin_y, (height - cy) / fy + margin_y)
        return cls(np.array([fx, fy, cx, cy, near, *ratios_x, *ratios_y], np.float32), height, width)


@dataclass(frozen=True)
class _Drawing:
    """What the backward pass needs from the forward pass.

    Attributes:
        rows, rects: see `rasterizer_numba_projection`.
        first: (N + 1,) where each Gaussian's pairs begin, by Gaussian.
        starts: (tiles + 1,) where each tile's pairs begin, by tile.
        members: (pairs,) Gaussians by tile, front to back.
        chunks: groups of non-empty tiles of similar cost.
    """

    rows: Array
    rects: Array
    tiles_x: int
    first: Array
    starts: Array
    members: Array
    chunks: list[tuple[Array]]


def _prepare(project: Callable[..., None], row_size: int, view: _View, attributes: tuple[Tensor, ...]) -> _Drawing:
    """Projects, and lists the Gaussians of each tile front to back."""
    count = len(attributes[0])
    rows, rects = np.empty((count, row_size), np.float32), np.empty((count, 6), np.int32)
    arrays = [a.detach().numpy() for a in attributes]
    run_chunks(project, ranges(count), *arrays, view.camera, view.height, view.width, rows, rects)

    tiles_x, tiles_y = -(-view.width // TILE), -(-view.height // TILE)
    first, starts = np.empty(count + 1, np.int64), np.empty(tiles_x * tiles_y + 1, np.int64)
    order = in_parallel(lambda: _visible_by_depth(arrays[0], rects), lambda: count_tiles(rects, tiles_x, first, starts))
    members = np.empty(first[-1], np.int32)
    run_chunks(list_members, bands(tiles_y), order, rects, tiles_x, starts, members)
    return _Drawing(rows, rects, tiles_x, first, starts, members, _tile_chunks(starts))


def _visible_by_depth(means: Array, rects: Array) -> Array:
    """Gaussians that touch the image, from near to far."""
    visible = np.flatnonzero(rects[:, 2])
    return visible[depth_order(means[visible, 2])]


def depth_order(depth: Array) -> Array:
    """(N,) rows of positive float32 depths from near to far, equal ones in their order: `argsort` in a seventh of its time.

    Positive floats sort like their bit patterns, and numpy sorts 16-bit integers by radix: first by the lower half, then by the upper.
    """
    bits = np.ascontiguousarray(depth).view(np.uint32)
    by_lower = np.argsort(bits.astype(np.uint16), kind="stable")
    return by_lower[np.argsort((bits >> 16).astype(np.uint16)[by_lower], kind="stable")]


def _tile_chunks(starts: Array) -> list[tuple[Array]]:
    """Groups of non-empty tiles, each with its share of long and short ones, longest first."""
    lengths = np.diff(starts)
    longest_first = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)].astype(np.int64)
    pieces = num_chunks()
    return [(np.ascontiguousarray(longest_first[i::pieces]),) for i in range(min(pieces, len(longest_first)))]


def _to_gaussians(vjp: Callable[..., None], view: _View, drawing: _Drawing, partial: Array, saved: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of means, quats, scales, opacities and colours from one gradient row per pair."""
    grads = [torch.empty_like(a) for a in saved]
    arrays = [a.detach().numpy() for a in saved[:3]]
    run_chunks(vjp, ranges(len(saved[0])), drawing.first, partial, *arrays, view.camera, drawing.rows, *(g.numpy() for g in grads))
    return grads


def _stacked(grads: tuple[Tensor | None, ...], like: tuple[Tensor, ...]) -> Array:
    """(C, h, w) of image gradients, 0 where the loss did not use an image."""
    height, width = like[0].shape[-2:]
    images = [torch.zeros_like(a) if g is None else g for g, a in zip(grads, like, strict=True)]
    return torch.cat([image.reshape(-1, height, width) for image in images]).numpy()


class _DrawGaussians(torch.autograd.Function):
    """(rgb (3, h, w), alpha, depth) of 3D Gaussians."""

    @staticmethod
    def forward(ctx: Any, view: _View, *attributes: Tensor) -> tuple[Tensor, ...]:
        drawing = _prepare(project_gaussians, GAUSSIAN_ROW, view, attributes)
        images = tuple(torch.zeros(*n, view.height, view.width) for n in ((3,), (), ()))
        run_chunks(
            composite_gaussians, drawing.chunks, drawing.tiles_x, drawing.starts, drawing.members, drawing.rows, drawing.rects,
            *(i.numpy() for i in images),
        )  # fmt: skip
        ctx.view, ctx.drawing = view, drawing
        ctx.save_for_backward(*attributes, *images)
        ctx.set_materialize_grads(False)
        return images

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        drawing, saved = ctx.drawing, ctx.saved_tensors
        attributes, images = saved[:5], saved[5:]
        partial = np.empty((len(drawing.members), GAUSSIAN_ROW), np.float32)
        run_chunks(
            composite_gaussians_vjp, drawing.chunks, drawing.tiles_x, drawing.starts, drawing.members, drawing.first,
            drawing.rows, drawing.rects, _stacked(images, images), _stacked(grads, images), partial,
        )  # fmt: skip
        return None, *_to_gaussians(project_gaussians_vjp, ctx.view, drawing, partial, attributes)


class _DrawSurfels(torch.autograd.Function):
    """(rgb (3, h, w), alpha, depth, normal (3, h, w), distortion) of surfels."""

    @staticmethod
    def forward(ctx: Any, view: _View, *attributes: Tensor) -> tuple[Tensor, ...]:
        drawing = _prepare(project_surfels, SURFEL_ROW, view, attributes)
        images = tuple(torch.zeros(*n, view.height, view.width) for n in ((3,), (), (), (3,), ()))
        moments = np.zeros((2, view.height, view.width), np.float32)
        run_chunks(
            composite_surfels, drawing.chunks, drawing.tiles_x, drawing.starts, drawing.members, view.camera[4], drawing.rows,
            drawing.rects, *(i.numpy() for i in images), moments,
        )  # fmt: skip
        ctx.view, ctx.drawing, ctx.moments = view, drawing, moments
        ctx.save_for_backward(*attributes, *images)
        ctx.set_materialize_grads(False)
        return images

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        drawing, saved = ctx.drawing, ctx.saved_tensors
        attributes, images = saved[:5], saved[5:]
        partial = np.empty((len(drawing.members), SURFEL_ROW), np.float32)
        run_chunks(
            composite_surfels_vjp, drawing.chunks, drawing.tiles_x, drawing.starts, drawing.members, drawing.first,
            ctx.view.camera[4], drawing.rows, drawing.rects, _stacked(images[:4], images[:4]), ctx.moments,
            _stacked(grads, images), partial,
        )  # fmt: skip
        return None, *_to_gaussians(project_surfels_vjp, ctx.view, drawing, partial, attributes)
