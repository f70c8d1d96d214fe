"""Coverage of splats: by how many frames, and from how many directions, each is observed; renders are reliable where it is high.

A frame knows a splat that lies on the surface whose depth it has there. A splat far in front of that surface is one the frame sees
through: if no frame knows it, it floats.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.deformation.inverse import InverseWarp, camera_from_world
from utils.types import Array, CameraSet

ON_SURFACE = 0.05
"""Share of the depth within which a splat lies on a surface."""
IN_FRONT = 0.6
"""Nearer than this share of the depth, a splat stands before the surface."""
_AROUND = 5  # window in pixels of the minimum filter on the depth, so that imprecise edges make no floaters
APART_DEG = 5.0
"""Directions closer than this to the last one count as the same."""


@dataclass(frozen=True)
class Coverage:
    """How training frames observe N splats.

    Attributes:
        views: (N,) int16, frames on whose surface the splat lies (within `ON_SURFACE` of their depth).
        directions: (N,) int16, viewing directions of these at least `APART_DEG` apart, in the order of the frames.
        in_front: (N,) int16, frames that see through it: it is nearer than `IN_FRONT` of their depth.
    """

    views: Tensor
    directions: Tensor
    in_front: Tensor

    def __len__(self) -> int:
        return len(self.views)

    def select(self, index: Tensor) -> "Coverage":
        """Of the splats at these rows."""
        return Coverage(self.views[index], self.directions[index], self.in_front[index])

    @property
    def floating(self) -> Tensor:
        """(N,) bool, splats on no frame's surface that at least one frame sees through."""
        return (self.views == 0) & (self.in_front > 0)


@torch.no_grad()
def measure_coverage(means: Tensor, cameras: CameraSet, depth: Array, frames: Array, warp: InverseWarp | None) -> Coverage:
    """Coverage of splats by these frames.

    Args:
        means: (N, 3) canonical.
        cameras: of all frames, at any size.
        depth: (F, h, w) camera z of each frame, 0 where unknown: such pixels do not count.
        frames: positions of the frames that count.
        warp: inverse deformation of all frames; None for none.
    """
    views, in_front, directions = (torch.zeros(len(means), dtype=torch.int16, device=means.device) for _ in range(3))
    last = torch.zeros_like(means)
    intrinsics = cameras.resized((depth.shape[1], depth.shape[2])).K
    for i in frames.tolist():
        c2w = torch.from_numpy(cameras.c2w[i]).to(means)
        seen = camera_from_world(means, c2w)
        seen = seen if warp is None else warp.linearize(seen, i).q0
        known, before = _against_depth(seen, intrinsics[i], depth[i])
        views += known
        in_front += before
        direction = torch.nn.functional.normalize(c2w[:3, 3] - means, dim=-1)
        new = known & ((direction * last).sum(-1) < float(np.cos(np.radians(APART_DEG))))
        directions += new
        last[new] = direction[new]
    return Coverage(views, directions, in_front)


def _against_depth(points: Tensor, K: Array, depth: Array) -> tuple[Tensor, Tensor]:
    """(N,) bool each: camera-space points (N, 3) on the surface of a depth image (h, w), and those far in front of it."""
    (h, w), z = depth.shape, points[:, 2]
    safe = z.clamp(min=1e-9)
    column = (float(K[0, 0]) * points[:, 0] / safe + float(K[0, 2])).floor()
    row = (float(K[1, 1]) * points[:, 1] / safe + float(K[1, 2])).floor()
    inside = (z > 0) & (column >= 0) & (row >= 0) & (column < w) & (row < h)
    pixel = torch.where(inside, row * w + column, 0.0).long()
    there = np.where(np.isfinite(depth), depth, 0).astype(np.float32)
    nearest = cv2.erode(there, np.ones((_AROUND, _AROUND), np.uint8))
    surface, least = (torch.from_numpy(np.ascontiguousarray(d)).to(points).view(-1)[pixel] for d in (there, nearest))
    known = inside & (surface > 0) & ((z - surface).abs() < ON_SURFACE * surface)
    return known, inside & (z < IN_FRONT * least)
