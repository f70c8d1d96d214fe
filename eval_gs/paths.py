"""Camera paths made from the trained cameras: orbit, spiral, dolly. All look where the clip looked."""

from dataclasses import replace

import numpy as np

from utils.errors import ConfigError
from utils.types import Array, CameraSet

_ORBIT_DEGREES = 15.0
_SPIRAL_SHARE = 0.06
_DOLLY_SHARE = 0.2


def make_path(kind: str, cameras: CameraSet, median_depth: float, frames: int) -> CameraSet:
    """A path of this kind around the middle camera.

    Args:
        kind: "orbit", "spiral" or "dolly".
        cameras: the trained cameras in order.
        median_depth: distance of what is looked at, scene units.
        frames: number of views.

    Raises:
        ConfigError: another kind.
    """
    makers = {"orbit": _orbit, "spiral": _spiral, "dolly": _dolly}
    if kind not in makers:
        raise ConfigError(f"there is no camera path '{kind}'", f"choose one of: {', '.join(sorted(makers))}")
    middle = len(cameras) // 2
    phase = np.linspace(0, 2 * np.pi, frames, endpoint=False)
    c2w = makers[kind](cameras.c2w[middle], median_depth, phase)
    return replace(cameras, c2w=c2w, K=np.repeat(cameras.K[middle][None], frames, axis=0), frame_ids=np.arange(frames))


def look_at(position: Array, target: Array, down: Array) -> Array:
    """(4, 4) c2w of a camera at `position` whose z axis points at `target`, its y axis as near to `down` as that allows."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(down, forward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def _orbit(pose: Array, distance: float, phase: Array) -> Array:
    """Sways on a circle about the point looked at, up to 15 degrees to either side."""
    target, down = pose[:3, 3] + distance * pose[:3, 2], pose[:3, 1]
    poses = []
    for angle in np.radians(_ORBIT_DEGREES) * np.sin(phase):
        offset = distance * (np.sin(angle) * pose[:3, 0] - np.cos(angle) * pose[:3, 2])
        poses.append(look_at(target + offset, target, down))
    return np.stack(poses)


def _spiral(pose: Array, distance: float, phase: Array) -> Array:
    """A flat ellipse across the line of sight with a slow move in depth, looking at the same point."""
    target, down = pose[:3, 3] + distance * pose[:3, 2], pose[:3, 1]
    radius = _SPIRAL_SHARE * distance
    local = np.stack([np.cos(2 * phase), 0.5 * np.sin(2 * phase), np.sin(phase)], axis=1) * radius
    return np.stack([look_at(pose[:3, 3] + pose[:3, :3] @ offset, target, down) for offset in local])


def _dolly(pose: Array, distance: float, phase: Array) -> Array:
    """Forward along the line of sight by a fifth of the distance, and back."""
    poses = np.repeat(pose[None], len(phase), axis=0)
    poses[:, :3, 3] += np.outer(0.5 * _DOLLY_SHARE * distance * (1 - np.cos(phase)), pose[:3, 2])
    return poses
