"""Veils: splats right before the camera on the way from one frame to the next, which neither of the two frames shows.

What stands beside the path is outside the pictures of the frames around it, so training never fades it; a view from between them is
hidden by it. Splats have an extent, so views are drawn and what each splat contributes to them is compared. That finds what hides the
way from frame to frame; a view from a step aside is hidden by any splat this near, so those that no frame has on a surface go too.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from train_gs.start.clear_views import poses_between, steps_between
from utils.splatting.rasterize.contract import Rasterizer, SplatMode
from utils.splatting.view import rigid, view_gaussians
from utils.types import Array, CameraSet, Splats

# Only splats nearer than this share of the frames' median depth are drawn: nothing before them takes anything from what they contribute.
_NEAR = 0.35
# A splat on no frame's surface is in the way of views from beside the path if it is nearer to it than this share of that depth.
_BESIDE = 0.2
# Longest side of the drawn views, in pixels.
_SIDE = 128
# Views are at most this share of the median depth apart, up to a number of them in a step.
_APART, _MOST_VIEWS = 0.02, 8
# A splat veils that contributes more than this many times what it does to the frames around, and by more than this share of the picture.
_TIMES, _LEAST = 4.0, 2e-4


def veiling(
    splats: Splats, cameras: CameraSet, depth: Array, clips: Array | None, rasterizer: Rasterizer, mode: SplatMode, near: float
) -> Tensor:
    """(N,) bool, splats that hide the view from between two consecutive frames and that neither of the two shows as large.

    Args:
        splats: in canonical space, on the rasteriser's device.
        cameras: of F frames in the order of the clip, at any size.
        depth: (F, h, w) camera z of these frames, 0 where unknown.
        clips: (F,) clip of each camera: there is nothing between clips. None: all are of one.
        rasterizer: what draws them.
        mode: kind of splats.
        near: nearest depth that is drawn, scene units.
    """
    h, w = depth.shape[1:]
    scale = min(1.0, _SIDE / max(h, w))
    cameras = cameras.resized((max(1, round(h * scale)), max(1, round(w * scale))))
    middle = np.array([np.median(own[own > 0]) if (own > 0).any() else 0.0 for own in depth])
    veiled = torch.zeros(len(splats), dtype=torch.bool, device=splats.means.device)
    for first in steps_between(cameras, depth, clips):
        reach = float(min(middle[first], middle[first + 1]))
        rows = torch.nonzero(_near_segment(splats.means, cameras.centers[first : first + 2], _NEAR * reach))[:, 0]
        if not len(rows):
            continue
        close = splats.select(rows)
        ends = [_contributions(close, cameras, first, cameras.w2c[i], rasterizer, mode, near) for i in (first, first + 1)]
        least = _TIMES * torch.maximum(*ends) + _LEAST * cameras.size[0] * cameras.size[1]
        for w2c in poses_between(cameras, first, _shares(cameras, first, reach)):
            seen = _contributions(close, cameras, first, w2c, rasterizer, mode, near)
            veiled[rows[(seen > least) & (_depths(close.means, w2c) < _NEAR * reach)]] = True
    return veiled


def beside_the_path(means: Tensor, cameras: CameraSet, depth: Array, clips: Array | None) -> Tensor:
    """(N,) bool, places right beside the way of the cameras, for splats that no frame has on a surface.

    On a room filmed by Uni3C three splats of a quarter's opacity, a fortieth of the room's depth before the last frame and at the edge of
    its picture, covered all of the fly-through's views that a smoothed path sees from a tenth of a unit aside.

    Args:
        means: (N, 3).
        cameras: of F frames in the order of the clip.
        depth: (F, h, w) camera z of these frames, 0 where unknown.
        clips: (F,) clip of each camera: there is no way between clips. None: all are of one.
    """
    steps = set(steps_between(cameras, depth, clips))
    beside = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    for i, own in enumerate(depth):
        if (own > 0).any():
            ends = cameras.centers[[i, i + 1 if i in steps else i]]
            beside |= _near_segment(means, ends, _BESIDE * float(np.median(own[own > 0])))
    return beside


def _shares(cameras: CameraSet, first: int, reach: float) -> Array:
    """Where between two frames, 0..1, views are drawn: evenly spaced, `reach` being the frames' depth in scene units."""
    move = float(np.linalg.norm(cameras.centers[first + 1] - cameras.centers[first]))
    views = min(_MOST_VIEWS, max(3, int(move / (_APART * reach)))) if reach > 0 else 3
    return np.linspace(0, 1, views + 2)[1:-1]


def _near_segment(points: Tensor, ends: Array, distance: float) -> Tensor:
    """(N,) bool, points (N, 3) within a distance of the segment between two places (2, 3)."""
    start, way = torch.from_numpy(ends[0]).to(points), torch.from_numpy(ends[1] - ends[0]).to(points)
    share = ((points - start) @ way / way.square().sum().clamp(min=1e-12)).clamp(0, 1)
    return (points - start - share[:, None] * way).norm(dim=-1) < distance


def _depths(points: Tensor, w2c: Array) -> Tensor:
    row = torch.from_numpy(w2c[2]).to(points)
    return points @ row[:3] + row[3]


def _contributions(
    splats: Splats, cameras: CameraSet, view: int, w2c: Array, rasterizer: Rasterizer, mode: SplatMode, near: float
) -> Tensor:
    """(N,) sum over the picture's pixels of each splat's blending weight: the derivative of the summed picture by the splat's colour."""
    c2w = torch.from_numpy(np.linalg.inv(w2c)).to(splats.means)
    with torch.no_grad():
        gaussians = view_gaussians(splats, c2w, rigid(splats, c2w), active_degree=0, turn=False)
    colors = torch.zeros_like(gaussians.colors, requires_grad=True)
    with torch.enable_grad():
        drawn = rasterizer.render(replace(gaussians, colors=colors), torch.from_numpy(cameras.K[view]).to(colors), cameras.size, mode, near)
        (weights,) = torch.autograd.grad(drawn.rgb[..., 0].sum(), colors)
    return weights[:, 0]
