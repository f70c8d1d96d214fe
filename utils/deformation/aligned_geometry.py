"""The current alignment of a scene: forward warp of pixels into canonical space, and projection of canonical points into frames."""

from dataclasses import dataclass

import numpy as np

from utils.cameras.projection import invert_rigid, unproject, unproject_depth
from utils.deformation.lattice.numba import forward_kernel, predict_kernel, project_kernel
from utils.types import Array, CameraSet, LatticeFields, Scene

EXACT_STEPS = 4  # fixed-point steps of the inversion where its result is final


@dataclass(frozen=True)
class AlignedGeometry:
    """A scene with poses and displacement fields.

    Attributes:
        scene: depth, images and K; its poses are those before alignment.
        cameras: current poses.
        fields: current displacements.
    """

    scene: Scene
    cameras: CameraSet
    fields: LatticeFields

    def intrinsics(self, frame: int) -> Array:
        """(4,) fx, fy, cx, cy."""
        K = self.cameras.K[frame]
        return np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])

    def forward(self, frame: int, points: Array) -> Array:
        """Canonical positions (N, 3) float32 of camera-space points (N, 3) of one frame."""
        out = np.empty((len(points), 3), np.float32)
        forward_kernel(
            np.ascontiguousarray(points, np.float64),
            self.intrinsics(frame),
            self.cameras.size,
            self.cameras.c2w[frame],
            self.fields.nodes[frame],
            self.fields.inv_depth_range[frame],
            out,
        )
        return out

    def lift(self, frame: int, pixels: Array, depth: Array) -> Array:
        """Canonical positions (M, 3) float32 of pixel coordinates (M, 2) at `depth` (M,)."""
        return self.forward(frame, unproject(pixels[:, 0], pixels[:, 1], depth, self.cameras.K[frame]))

    def canonical(self, frame: int) -> Array:
        """(H, W, 3) float32 canonical position of every pixel, NaN where depth is unknown."""
        depth = self.scene.depth[frame]
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0)
        points = unproject_depth(depth, self.cameras.K[frame])
        return self.forward(frame, points.reshape(-1, 3)).reshape(*depth.shape, 3)

    def project(self, frame: int, points: Array, steps: int = EXACT_STEPS) -> Array:
        """(N, 3) pixel x, y and original camera z of canonical points (N, 3); NaN behind the camera."""
        out = np.empty((len(points), 3), np.float32)
        project_kernel(
            np.ascontiguousarray(points, np.float64),
            self.intrinsics(frame),
            self.cameras.size,
            self.cameras.w2c[frame],
            self.fields.nodes[frame],
            self.fields.inv_depth_range[frame],
            steps,
            out,
        )
        return out

    def predict(self, source: int, target: int, out: Array) -> None:
        """Where the pixels of one frame lie in another, into `out` (H, W, 2): `project` of `canonical`, to a fraction of a pixel."""
        relative = invert_rigid(self.cameras.c2w[target]) @ self.cameras.c2w[source]
        predict_kernel(
            self.scene.depth[source],
            self.intrinsics(source),
            self.fields.nodes[source],
            self.fields.inv_depth_range[source],
            relative,
            self.intrinsics(target),
            self.fields.nodes[target],
            self.fields.inv_depth_range[target],
            bool(self.fields.nodes[source].any()),
            bool(self.fields.nodes[target].any()),
            out,
        )


def forward_points(scene: Scene, cameras: CameraSet, fields: LatticeFields) -> Array:
    """(F, H, W, 3) float32 canonical position of every pixel of every frame, NaN where depth is unknown."""
    geometry = AlignedGeometry(scene, cameras, fields)
    return np.stack([geometry.canonical(frame) for frame in range(len(scene))])
