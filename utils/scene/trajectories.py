"""The fly-through of a scene: made from its cameras, written to and read from the published transforms JSON.

The path follows the clip, smoothed, and shows the parallax of its middle view by a small circle ("wander") and a zoom ("dolly").
Files hold camera-to-world matrices in OpenGL axes (y up, looking along -z), as nerfstudio does; in memory poses are OpenCV's.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from utils.cameras.projection import orthonormalized, to_4x4
from utils.errors import CorruptArtifactError
from utils.scene.artifacts import write_json
from utils.scene.json_files import read_json
from utils.types import Array, CameraSet

_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])

# The published path: 8 poses a segment, within 48..432 in all (fewer a segment beyond, aiming at 240).
_PER_SEGMENT, _MOST, _AIM, _LEAST = 8, 432, 240, 48
_SMOOTHING_TAPS = 51
_WANDER_PIXELS = 24.0
_DOLLY_DEPTH, _DOLLY_FOCUS = 0.05, 10.0
# The published path was made for scenes in metres; their median depth is about this.
_REFERENCE_DEPTH = 3.0


def samples_per_segment(views: int) -> int:
    """Poses from one view to the next, both included: 8 unless the path became too long or too short."""
    segments = max(views - 1, 1)
    if _PER_SEGMENT * segments > _MOST:
        return max(1, _AIM // segments)
    if _PER_SEGMENT * segments < _LEAST:
        return max(1, _LEAST // segments)
    return _PER_SEGMENT


def extend_path(cameras: CameraSet, median_depth: float = _REFERENCE_DEPTH) -> CameraSet:
    """The fly-through: along the clip, with a wander and a dolly at its middle.

    Args:
        cameras: the views of the scene in order.
        median_depth: of the scene; wander and dolly scale with it.
    """
    count = samples_per_segment(len(cameras))
    c2w, K = (cameras.c2w, cameras.K) if count <= 2 or len(cameras) < 2 else _interpolate_all(cameras, count)
    c2w = smooth_poses(c2w)
    middle = len(c2w) // 2
    steps = max(36, min(60, middle // 2))
    unit = median_depth / _REFERENCE_DEPTH
    wander = _wander(c2w[middle], K[middle], steps, unit)
    dolly, dolly_K = _dolly(c2w[middle], K[middle], steps, unit)
    poses = np.concatenate([c2w[:middle], wander, dolly, c2w[middle:]])
    intrinsics = np.concatenate([K[:middle], np.repeat(K[middle][None], len(wander), 0), dolly_K, K[middle:]])
    return CameraSet(c2w=poses, K=intrinsics, size=cameras.size, frame_ids=np.arange(len(poses)))


def _interpolate_all(cameras: CameraSet, count: int) -> tuple[Array, Array]:
    """Poses and K with `count` eased samples for every pair of views, the shared ends once."""
    tau = np.linspace(0, 1, count)
    eased = (np.cos(np.pi * (tau + 1)) + 1) / 2
    poses, intrinsics = [cameras.c2w[:1]], [cameras.K[:1]]
    for i in range(len(cameras) - 1):
        t = eased[1:]
        poses.append(interpolate_about_pivot(cameras.c2w[i], cameras.c2w[i + 1], t))
        intrinsics.append((1 - t)[:, None, None] * cameras.K[i] + t[:, None, None] * cameras.K[i + 1])
    return np.concatenate(poses), np.concatenate(intrinsics)


def interpolate_about_pivot(start: Array, end: Array, t: Array) -> Array:
    """Poses (S, 4, 4) from `start` to `end` at `t` (S,) in 0..1 that keep looking at what both look at.

    The pivot is the point nearest to both optical axes. Offsets from it and orientation, as yaw and pitch in axes whose second is
    the normal of the plane of both lines of sight, are interpolated linearly; turns take the shorter way.
    """
    pivot = axes_crossing(start, end)
    frame = _turning_frame(start, end)
    first, last = frame.T @ start[:3, :3], frame.T @ end[:3, :3]
    angles_first, angles_last = (Rotation.from_matrix(r).as_euler("YXZ") for r in (first, last))
    turn = (angles_last - angles_first + np.pi) % (2 * np.pi) - np.pi
    angles = angles_first + t[:, None] * turn
    offset_first, offset_last = (frame.T @ (pose[:3, 3] - pivot) for pose in (start, end))
    offsets = (1 - t)[:, None] * offset_first + t[:, None] * offset_last
    out = np.tile(np.eye(4), (len(t), 1, 1))
    out[:, :3, :3] = frame @ Rotation.from_euler("YXZ", angles).as_matrix()
    out[:, :3, 3] = offsets @ frame.T + pivot
    return out


def axes_crossing(first: Array, second: Array) -> Array:
    """(3,) point nearest to both optical axes; for parallel axes the middle of the two centres."""
    a, b, u, v = first[:3, 3], second[:3, 3], first[:3, 2], second[:3, 2]
    if abs(abs(float(u @ v)) - 1) < 1e-4:
        return (a + b) / 2
    normal_u, normal_v = np.eye(3) - np.outer(u, u), np.eye(3) - np.outer(v, v)
    return np.linalg.solve(normal_u + normal_v, normal_u @ a + normal_v @ b)


def _turning_frame(start: Array, end: Array) -> Array:
    """Rotation (3, 3) whose second axis is normal to both lines of sight; the first camera's own axes if those are parallel."""
    u, v = start[:3, 2], end[:3, 2]
    normal = np.cross(u, v)
    if np.linalg.norm(normal) < 1e-2:
        return start[:3, :3]
    normal /= np.linalg.norm(normal)
    if normal @ start[:3, 1] < 0:
        normal = -normal
    return np.stack([np.cross(normal, u), normal, u], axis=1)


def smooth_poses(c2w: Array, taps: int = _SMOOTHING_TAPS) -> Array:
    """Poses (P, 4, 4) blurred along the path by a Gaussian of up to `taps` taps, the ends reflected; rotations stay rotations."""
    taps = min(taps, len(c2w))
    taps -= 1 - taps % 2
    if taps < 3:
        return c2w.copy()
    kernel = cv2.getGaussianKernel(taps, -1)[:, 0]
    half = taps // 2
    padded = np.pad(c2w[:, :3], ((half, half), (0, 0), (0, 0)), mode="reflect")
    blurred = np.sum([weight * padded[k : k + len(c2w)] for k, weight in enumerate(kernel)], axis=0)
    out = np.tile(np.eye(4), (len(c2w), 1, 1))
    out[:, :3, 3] = blurred[:, :, 3]
    # the published path renormalises two columns and leaves a skew; the line of sight is kept exactly instead
    forward = blurred[:, :, 2] / np.linalg.norm(blurred[:, :, 2], axis=1, keepdims=True)
    down = blurred[:, :, 1] - (blurred[:, :, 1] * forward).sum(1, keepdims=True) * forward
    down /= np.linalg.norm(down, axis=1, keepdims=True)
    out[:, :3, :3] = np.stack([np.cross(down, forward), down, forward], axis=2)
    return out


def _wander(pose: Array, K: Array, steps: int, unit: float) -> Array:
    """A flat circle in the camera's axes that starts and ends at the pose."""
    radius = _WANDER_PIXELS / K[0, 0] * unit
    theta = np.linspace(0, 2 * np.pi, steps)
    local = -radius * np.stack([np.sin(theta), np.cos(theta) / 3, np.cos(theta) / 3], axis=1)
    moved = np.repeat(pose[None], steps, axis=0)
    moved[:, :3, 3] += local @ pose[:3, :3].T
    return np.concatenate([pose[None], moved, pose[None]])


def _dolly(pose: Array, K: Array, steps: int, unit: float) -> tuple[Array, Array]:
    """Back along the line of sight and forth, the focal length shrinking so that the picture stays about the same."""
    back = _DOLLY_DEPTH * (1 - np.cos(np.pi * np.linspace(0, 2, steps)))
    moved = np.repeat(pose[None], steps, axis=0)
    moved[:, :3, 3] -= unit * back[:, None] * pose[:3, 2]
    intrinsics = np.repeat(K[None], steps, axis=0)
    intrinsics[:, [0, 1], [0, 1]] *= (_DOLLY_FOCUS / (_DOLLY_FOCUS + back))[:, None]
    return moved, intrinsics


def save_trajectory(path: Path, cameras: CameraSet) -> None:
    """Writes the published JSON: c2w in OpenGL axes, K in pixels, once for the file (first pose) and for each frame.

    Raises:
        ArtifactError: the file cannot be written.
    """
    height, width = cameras.size
    name = path.name.removesuffix("_transforms.json")
    frames = [
        {"file_path": f"{name}_frame_{i:04d}.png", "transform_matrix": (c2w @ _OPENGL).tolist(), **_intrinsics(K)}
        for i, (c2w, K) in enumerate(zip(cameras.c2w, cameras.K, strict=True))
    ]
    write_json(path, {**_intrinsics(cameras.K[0]), "w": width, "h": height, "scale_factor": 1.0, "frames": frames})


def _intrinsics(K: Array) -> dict[str, float]:
    return {"fl_x": float(K[0, 0]), "fl_y": float(K[1, 1]), "cx": float(K[0, 2]), "cy": float(K[1, 2])}


def load_trajectory(path: Path) -> CameraSet:
    """The cameras of a transforms JSON, whoever wrote it.

    Accepts size and intrinsics per file or per frame, the latter in pixels or normalised (principal point up to 1), or as
    `camera_angle_x`; multiplies positions by `scale_factor`. The path is as large as its first frame.

    Raises:
        ArtifactError: no file, no JSON, or no usable frames.
    """
    document = read_json(path)
    try:
        frames = document["frames"]
        merged = [{**document, **frame} for frame in frames]
        sizes = [(int(frame["h"]), int(frame["w"])) for frame in merged]
        height, width = sizes[0]
        c2w = np.array([frame["transform_matrix"] for frame in frames], np.float64)
        if c2w.shape[1:] not in ((3, 4), (4, 4)) or not np.isfinite(c2w).all():
            raise ValueError(f"transform_matrix of shape {c2w.shape[1:]}, or not finite")
        c2w = orthonormalized(to_4x4(c2w))  # the published path's rotations are a little skew
        K = np.stack([np.diag([width / w, height / h, 1.0]) @ _matrix(f, w, h) for f, (h, w) in zip(merged, sizes, strict=True)])
        c2w[:, :3, 3] *= float(document.get("scale_factor", 1.0))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptArtifactError(
            f"{path} is no camera path: {type(error).__name__} {error}",
            "it needs w, h, fl_x or camera_angle_x, and frames with a 4x4 transform_matrix; preprocess_video.py writes one",
        ) from error
    return CameraSet(c2w=c2w @ _OPENGL, K=K, size=(height, width), frame_ids=np.arange(len(c2w)))


def _matrix(entry: dict[str, Any], width: int, height: int) -> Array:
    """K in pixels. Files of the published program are normalised: their principal point is (0.5, 0.5)."""
    if "fl_x" in entry:
        fx = float(entry["fl_x"])
        fy = float(entry.get("fl_y", fx))
    else:
        fx = fy = 0.5 * width / np.tan(0.5 * float(entry["camera_angle_x"]))
    cx, cy = float(entry.get("cx", width / 2)), float(entry.get("cy", height / 2))
    if cx <= 1:
        cx, fx = cx * width, fx * width
    if cy <= 1:
        cy, fy = cy * height, fy * height
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
