"""Camera paths made from the trained cameras: orbit, spiral, dolly, which all look where the clip looked, and every frame of the clip."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from utils.cameras import se3
from utils.cameras.blending import blended
from utils.errors import ConfigError
from utils.imports.cameras import read_transforms
from utils.scene.json_files import read_json
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


def clip_path(path: Path, scene: CameraSet, trained: CameraSet) -> CameraSet:
    """Every frame of the clip, moved along with the frames around it as alignment and training have moved those.

    Args:
        path: transforms.json of stage 0.
        scene: its cameras of the scene's frames.
        trained: the same frames, or some of them, as they are now.

    Raises:
        ArtifactError: no such file, or an unreadable one.
    """
    row_of = {frame["file_path"]: frame.get("scene_frame") for frame in read_json(path)["frames"]}
    clip = read_transforms(path)
    rows = np.array([-1 if row_of[name] is None else row_of[name] for name in clip.names])
    at = np.array([int(np.flatnonzero(rows == frame)[0]) for frame in trained.frame_ids])
    every = np.arange(len(rows))
    twists = se3.log(torch.from_numpy(trained.w2c @ scene.c2w[trained.frame_ids])).numpy()
    w2c = se3.exp(torch.from_numpy(blended(twists, at, every))).numpy() @ np.linalg.inv(clip.c2w)
    return CameraSet(c2w=np.linalg.inv(w2c), K=blended(trained.K, at, every), size=trained.size, frame_ids=every)


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
