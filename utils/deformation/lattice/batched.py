"""The lattice maps of `utils.deformation.lattice.numba` for many frames at once in torch: what a GPU evaluates for all pairs together.

Same definitions, in float32, which is exact to 1e-3 pixels here; the camera-to-camera motions are formed in float64 first.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.cameras.pixels import pixel_grid
from utils.cameras.projection import invert_rigid
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.lattice.numba import NEAREST, layers
from utils.types import Array


@dataclass(frozen=True)
class DeviceGeometry:
    """An `AlignedGeometry` on a device.

    Attributes:
        size: h, w.
        K: (F, 4) fx, fy, cx, cy.
        c2w: (F, 4, 4) float64, on the host.
        nodes: (F, 3, nz, nv, nu) displacement at the nodes over their depth.
        bounds: (F, 2) inverse depths of the outermost layers.
        depth: (F, H, W), 0 where unknown.
    """

    size: tuple[int, int]
    K: Tensor
    c2w: Array
    nodes: Tensor
    bounds: Tensor
    depth: Tensor

    @classmethod
    def of(cls, geometry: AlignedGeometry, depth: Tensor) -> "DeviceGeometry":
        """A geometry whose depth (F, H, W) is on the device already, 0 where unknown."""
        cameras, fields = geometry.cameras, geometry.fields
        move = lambda array: torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(depth.device)  # noqa: E731
        K = np.stack([cameras.K[:, 0, 0], cameras.K[:, 1, 1], cameras.K[:, 0, 2], cameras.K[:, 1, 2]], 1)
        nodes = move((fields.nodes * layers(fields.inv_depth_range, fields.nodes.shape[1])).transpose(0, 4, 1, 2, 3))
        return cls(cameras.size, move(K), cameras.c2w, nodes, move(fields.inv_depth_range), depth)

    def displacement(self, frames: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """(B, 3, N) displacement of pixels x, y (B, N) at depth z (B, N) > 0 of frames (B,)."""
        bounds = self.bounds[frames]
        layer = (1.0 / z - bounds[:, :1]) / (bounds[:, 1:] - bounds[:, :1])
        places = torch.stack([x / self.size[1], y / self.size[0], layer], -1) * 2.0 - 1.0
        found = F.grid_sample(
            self.nodes[frames], places[:, None, None].clamp(-1, 1), mode="bilinear", padding_mode="border", align_corners=True
        )
        return found[:, :, 0, 0] * z[:, None]

    def moved(self, frames: Tensor, points: Tensor) -> Tensor:
        """(B, 3, N) camera-space points of frames (B,) where alignment puts them; z must be positive."""
        return points + self.displacement(frames, *self.pixel(frames, points), points[:, 2])

    def pixel(self, frames: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel coordinates x, y (B, N) of camera-space points (B, 3, N) with z > 0."""
        fx, fy, cx, cy = self.K[frames, :, None].unbind(1)
        return fx * points[:, 0] / points[:, 2] + cx, fy * points[:, 1] / points[:, 2] + cy

    def unprojected(self, frames: Tensor) -> Tensor:
        """(B, 3, H * W) camera-space points of all pixels, at depth 1 where depth is unknown."""
        fx, fy, cx, cy = self.K[frames, :, None].unbind(1)
        x, y = pixel_grid(*self.size, self.depth.device).view(-1, 2).unbind(1)
        z = self.depth[frames].flatten(1)
        z = torch.where(z > NEAREST, z, 1.0)
        return torch.stack([(x - cx) / fx * z, (y - cy) / fy * z, z], 1)

    def seen_by(self, sources: Array, targets: Array, points: Tensor) -> Tensor:
        """(B, 3, N) aligned points of the camera spaces of `sources`, in those of `targets`."""
        motion = torch.from_numpy(invert_rigid(self.c2w[targets]) @ self.c2w[sources]).float().to(points.device)
        return motion[:, :3, :3] @ points + motion[:, :3, 3:]

    def undone(self, frames: Tensor, aligned: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Points (B, 3, N) before alignment whose aligned position is given, and whether they are in front of the camera (B, N)."""
        points, front = aligned, aligned[:, 2] > NEAREST
        for _ in range(steps):
            safe = torch.where(front[:, None], points, 1.0)
            points = aligned - self.displacement(frames, *self.pixel(frames, safe), safe[:, 2])
            front = front & (points[:, 2] > NEAREST)
        return torch.where(front[:, None], points, 1.0), front

    def predict(self, sources: Array, targets: Array) -> Tensor:
        """(B, H, W, 2) where the pixels of source frames (B,) lie in target frames (B,), see `AlignedGeometry.predict`."""
        first, second = (torch.from_numpy(frames).to(self.depth.device) for frames in (sources, targets))
        points = self.seen_by(sources, targets, self.moved(first, self.unprojected(first)))
        points, front = self.undone(second, points, 1)
        places = torch.stack(self.pixel(second, points), -1)
        front &= self.depth[first].flatten(1) > NEAREST
        return torch.where(front[..., None], places, torch.nan).view(len(sources), *self.size, 2)
