"""The frames of a scene as point sets in units, and the way back from optimised twists to poses and lattices."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from configs.icp import TwistFieldConfig
from utils.cameras import se3
from utils.cameras.projection import unproject_depth
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.lattice.numba import zero_fields
from utils.deformation.lattice_fit import fit_lattice
from utils.points.surface import intensity
from utils.published.twist_fields import FrameBox
from utils.types import Array, CameraSet, LatticeFields, Reporter, Scene

UNITS_PER_DEPTH = 3.0  # units in a scene's median depth


@dataclass(frozen=True)
class FramePoints:
    """The pixels of one frame that take part.

    Attributes:
        points: (N, 3) float32 camera space, units.
        pixel: (N,) int64, y * W + x, ascending.
        intensity: (N,) float32 0..1.
        confidence: (N,) float32 over the scene's median.
        box: bounds and intrinsics.
    """

    points: Array
    pixel: Array
    intensity: Array
    confidence: Array
    box: FrameBox

    def __len__(self) -> int:
        return len(self.points)

    def select(self, keep: Array) -> "FramePoints":
        """The points of these rows; the box stays."""
        return replace(
            self, points=self.points[keep], pixel=self.pixel[keep], intensity=self.intensity[keep], confidence=self.confidence[keep]
        )


def unit_scale(scene: Scene) -> float:
    """Units per scene length."""
    return UNITS_PER_DEPTH / scene.median_depth


def frame_points(scene: Scene, usable: Array) -> list[FramePoints]:
    """The usable (F, H, W) pixels of every frame."""
    scale = unit_scale(scene)
    ranges = zero_fields(scene.depth, scene.valid, (2, 2, 2)).inv_depth_range / scale
    usual = float(np.median(scene.confidence[scene.valid])) if scene.valid.any() else 1.0
    frames = []
    for f in range(len(scene)):
        K = scene.cameras.K[f]
        pixel = np.flatnonzero(usable[f] & scene.valid[f])
        points = unproject_depth(scene.depth[f], K).reshape(-1, 3)[pixel] * np.float32(scale)
        box = FrameBox.around(points if len(points) else np.ones((1, 3)), K, scene.cameras.size, ranges[f])
        confidence = (scene.confidence[f].reshape(-1)[pixel] / usual).astype(np.float32)
        frames.append(FramePoints(points, pixel, intensity(scene.images[f].reshape(-1, 3)[pixel]), confidence, box))
    return frames


def pose_twists(cameras: CameraSet, scale: float) -> Array:
    """(F, 6) float64 twists of the camera-to-world transforms, in units."""
    c2w = cameras.c2w.copy()
    c2w[:, :3, 3] *= scale
    return se3.log(torch.from_numpy(c2w)).numpy()


def poses(twists: Array, scale: float) -> Array:
    """(F, 4, 4) float64 camera-to-world transforms in scene lengths: the inverse of `pose_twists`."""
    c2w = se3.exp(torch.from_numpy(np.asarray(twists, np.float64))).numpy().copy()
    c2w[:, :3, 3] /= scale
    return c2w


def place(pose: Tensor, twists: Tensor | None, points: Tensor) -> Tensor:
    """Canonical positions (N, 3) of camera-space points, warped by their twists (N, 6) first; pose (6,)."""
    return se3.apply(se3.exp(pose), points if twists is None else se3.warp(twists, points))


@torch.no_grad()
def field_displacement(field: nn.Module, points: Array, device: torch.device) -> Array:
    """(N, 3) float32 displacement that a field gives points (N, 3), units."""
    p = torch.from_numpy(np.ascontiguousarray(points, np.float32)).to(device)
    return (se3.warp(field(p), p) - p).cpu().numpy()


def stored_fields(
    scene: Scene,
    frames: list[FramePoints],
    displacement: Callable[[int], Array | None],
    config: TwistFieldConfig,
    report: Reporter,
) -> LatticeFields:
    """Lattices in scene lengths fitted to each frame's displacement (N, 3) in units at its points (None: still); notes the misfit."""
    scale = unit_scale(scene)
    fields = zero_fields(scene.depth, scene.valid, config.stored_lattice)
    misfits = []
    w = scene.cameras.size[1]
    for f, frame in enumerate(frames):
        moved = displacement(f)
        if moved is None or len(frame) == 0:
            continue
        pixels = np.stack([frame.pixel % w + 0.5, frame.pixel // w + 0.5], 1)
        depth = frame.points[:, 2] / scale
        nodes, misfit = fit_lattice(pixels, depth, moved / scale, scene.cameras.size, fields.inv_depth_range[f], config.stored_lattice)
        fields.nodes[f] = nodes
        misfits.append(misfit / depth)
    if misfits:
        nodes_named = "x".join(map(str, config.stored_lattice))
        report.note(f"fields stored as lattices of {nodes_named} nodes, off by {100 * np.median(np.concatenate(misfits)):.3f} % of depth")
    return fields


def displaced_points(scene: Scene, cameras: CameraSet, fields: LatticeFields, index: int, points: Array, scale: float) -> Array:
    """(N, 3) float32 camera-space points, units, after the displacement that an earlier alignment gives one frame."""
    still = replace(cameras, c2w=np.tile(np.eye(4), (len(scene), 1, 1)))
    return AlignedGeometry(scene, still, fields).forward(index, points / np.float32(scale)) * np.float32(scale)
