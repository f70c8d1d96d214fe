"""Between the browser's camera and ours, and between the views a user records.

The page's unit of length is the scene's median depth, so that speeds, clipping and symbol sizes fit every scene.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.spatial.transform import Rotation

from utils.scene.trajectories import interpolate_about_pivot
from utils.types import Array, CameraSet


@dataclass(frozen=True)
class ViewPose:
    """A view in scene units: c2w (4, 4), OpenCV axes, and the vertical field of view in radians."""

    c2w: Array
    fov: float

    def intrinsics(self, size: tuple[int, int]) -> Array:
        """(3, 3) in pixels of (h, w), square pixels, centred."""
        h, w = size
        focal = 0.5 * h / np.tan(0.5 * self.fov)
        return np.array([[focal, 0, w / 2], [0, focal, h / 2], [0, 0, 1.0]])


def from_page(wxyz: Array, position: Array, fov: float, unit: float) -> ViewPose:
    """The pose of a page's camera; `unit` is the page's length in scene units."""
    c2w = np.eye(4)
    c2w[:3, :3] = Rotation.from_quat(np.asarray(wxyz, np.float64)[[1, 2, 3, 0]]).as_matrix()
    c2w[:3, 3] = unit * np.asarray(position, np.float64)
    return ViewPose(c2w, float(fov))


def to_page(c2w: Array, unit: float) -> tuple[Array, Array]:
    """Wxyz and position for the page."""
    return Rotation.from_matrix(c2w[:3, :3]).as_quat()[[3, 0, 1, 2]], c2w[:3, 3] / unit


def vertical_fov(K: Array, size: tuple[int, int]) -> float:
    """Vertical field of view in radians of intrinsics K (3, 3) for (h, w)."""
    return float(2 * np.arctan(0.5 * size[0] / K[1, 1]))


def render_size(aspect: float, longest: int) -> tuple[int, int]:
    """(h, w) with this aspect (width / height) and longest side, at least 16 pixels a side."""
    w, h = (longest, longest / aspect) if aspect >= 1 else (longest * aspect, longest)
    return max(16, round(h)), max(16, round(w))


def path_through(views: list[ViewPose], size: tuple[int, int], frames_between: int) -> CameraSet:
    """Cameras that visit the recorded views in order, with eased motion between them; a single view stands alone."""
    poses, fields = [views[0].c2w[None]], [np.array([views[0].fov])]
    tau = np.linspace(0, 1, frames_between + 1)[1:]
    eased = 0.5 - 0.5 * np.cos(np.pi * tau)
    for start, end in pairwise(views):
        poses.append(interpolate_about_pivot(start.c2w, end.c2w, eased))
        fields.append((1 - eased) * start.fov + eased * end.fov)
    c2w, fov = np.concatenate(poses), np.concatenate(fields)
    K = np.stack([ViewPose(pose, f).intrinsics(size) for pose, f in zip(c2w, fov, strict=True)])
    return CameraSet(c2w=c2w, K=K, size=size, frame_ids=np.arange(len(c2w)))
