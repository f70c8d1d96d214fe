"""Camera trajectories that video models are given or write: JSON, text and npz without names of frames, one camera after another.

Read here into arrays by name, which `utils.scene.foreign` understands: Voyager's and WorldPlay's JSON (arrays, or one entry a frame),
the `camera_path` of nerfstudio and SEVA, Open3D's PinholeCameraTrajectory, RealEstate10K's text (CameraCtrl, MotionCtrl, Wan's camera
models), TUM's and KITTI's text, and the pose and intrinsics files of ViPE (Lyra). Which way poses point is not believed but told from the
frames, see `conventions`.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import CorruptArtifactError
from utils.scene.foreign import named
from utils.scene.json_files import json_object
from utils.types import Array

_NUMBERS = re.compile(r"(\d+)")
_MOST_BYTES = 200_000_000
# Files of a folder that are opened to see what they are.
_LOOKED_AT = 5
# What sizes are called beside cameras.
_SIZES = {"image_height": ("image_height", "height", "h"), "image_width": ("image_width", "width", "w")}
# Names of one camera's parts in a list or mapping of cameras.
_EACH = {"extrinsic": "w2c", "w2c": "w2c", "world_to_camera": "w2c", "viewmat": "w2c", "c2w": "c2w", "cam2world": "c2w", "pose": "c2w"}
_EACH |= {"camera_pose": "c2w", "camera_to_world": "c2w", "transform_matrix": "c2w", "extrinsics": "w2c", "matrix": "c2w"}
_EACH_K = ("K", "k", "intrinsic", "intrinsics", "intrinsic_matrix", "camera_intrinsics")


def of_json(path: Path, content: Any) -> dict[str, Any] | None:
    """Arrays of a JSON file that holds a trajectory; None if it holds none.

    Raises:
        ValueError: a trajectory whose entries make no sense.
    """
    if isinstance(content, dict) and isinstance(content.get("camera_path"), list):
        return _of_camera_path(content)
    if isinstance(content, dict) and "parameters" in content:  # Open3D: matrices by columns
        return _of_entries(
            [
                {
                    "extrinsic": np.reshape(entry["extrinsic"], (4, 4)).T,
                    "K": np.reshape(entry["intrinsic"]["intrinsic_matrix"], (3, 3)).T,
                    **{name: entry["intrinsic"].get(name) for name in ("width", "height")},
                }
                for entry in content["parameters"]
            ]
        )
    if isinstance(content, list):
        return _of_entries(content) if content and isinstance(content[0], dict) and _is_camera(content[0]) else None
    if not isinstance(content, dict) or "frames" in content or _is_record3d(content):
        return None
    kinds = named(content)
    if "w2c" in kinds or "c2w" in kinds:
        arrays: dict[str, Any] = {}
        for kind in ("w2c", "c2w", "K"):
            if kind in kinds and (stacked := _stacked(content[kinds[kind]])) is not None:
                arrays[kinds[kind]] = stacked
        return arrays | _sizes(content) if arrays.keys() - {kinds.get("K")} else None
    entries = {key: value for key, value in content.items() if isinstance(value, dict) and _is_camera(value)}
    if not entries:
        return None
    keys = sorted(entries, key=lambda key: (int(found[1]) if (found := _NUMBERS.search(key)) else 0, key))
    return _of_entries([entries[key] for key in keys]) | _sizes(content)


def _is_record3d(content: dict[str, Any]) -> bool:
    """Record3D's metadata.json, whose poses are quaternion and position."""
    poses = content.get("poses")
    return isinstance(poses, list) and all(isinstance(pose, list) and len(pose) == 7 for pose in poses)


def _of_camera_path(content: dict[str, Any]) -> dict[str, Any]:
    """The viewer of nerfstudio, and SEVA: c2w by rows with OpenGL's camera axes, and the vertical field of view in degrees."""
    height, width = int(content["render_height"]), int(content["render_width"])
    c2w = np.stack([_matrix(entry["camera_to_world"]) for entry in content["camera_path"]])
    focal = [0.5 * height / np.tan(0.5 * np.radians(float(entry["fov"]))) for entry in content["camera_path"]]
    K = np.array([[f, f, width / 2, height / 2] for f in focal])
    return {"c2w": c2w[:, :3] @ np.diag([1.0, -1, -1, 1]), "K": K, "image_height": np.array(height), "image_width": np.array(width)}


def _is_camera(entry: dict[str, Any]) -> bool:
    return any(name in entry for name in _EACH) and "file_path" not in entry and "img_name" not in entry


def _of_entries(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Arrays of cameras that are written one by one."""
    name = next(name for name in _EACH if name in entries[0])
    arrays: dict[str, Any] = {_EACH[name]: np.stack([_matrix(entry[name]) for entry in entries])}
    for each in _EACH_K:
        if each in entries[0]:
            arrays["K"] = np.stack([np.asarray(entry[each], np.float64) for entry in entries])
            break
    else:
        if {"fx", "fy", "cx", "cy"} <= entries[0].keys():
            arrays["K"] = np.array([[float(entry[k]) for k in ("fx", "fy", "cx", "cy")] for entry in entries])
    return arrays | _sizes(entries[0])


def _matrix(value: Any) -> Array:
    array = np.asarray(value, np.float64)
    return array.reshape(-1, 4) if array.ndim == 1 and array.size in (12, 16) else array


def _stacked(value: Any) -> Array | None:
    """(N, ...) numbers of a list, or of a mapping of frames in their order."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (int(found[1]) if (found := _NUMBERS.search(key)) else 0, key))
        value = [value[key] for key in keys]
    array = np.asarray(value, np.float64)
    return array if array.size else None


def _sizes(content: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, known in _SIZES.items():
        value = next((content[key] for key in known if isinstance(content.get(key), int | float)), None)
        if value is not None:
            found[name] = np.array(int(value))
    return found


def has_one_each(folder: Path) -> bool:
    """Whether a folder holds a camera for each picture, as a phone's program writes them."""
    files = sorted(folder.glob("*.json"))[:_LOOKED_AT] if folder.is_dir() else []
    return len(files) >= 2 and any(of_phone(json_object(path)) is not None for path in files)


def of_phone(content: Any) -> dict[str, Any] | None:
    """Pose (c2w, OpenGL's camera axes) and intrinsics of one picture of Polycam or 3D Scanner App, named as in transforms.json."""
    if not isinstance(content, dict):
        return None
    if {"t_00", "t_23", "fx", "fy", "cx", "cy"} <= content.keys():
        pose = [[content[f"t_{row}{column}"] for column in range(4)] for row in range(3)]
        K = [content[name] for name in ("fx", "fy", "cx", "cy")]
    elif {"cameraPoseARFrame", "intrinsics"} <= content.keys():
        pose = np.reshape(content["cameraPoseARFrame"], (4, 4)).tolist()
        flat = np.ravel(content["intrinsics"])
        K = [float(flat[i]) for i in (0, 4, 2, 5)]
    else:
        return None
    size = {"w": content.get("width"), "h": content.get("height")}
    plain = dict(zip(("fl_x", "fl_y", "cx", "cy"), K, strict=True))
    return {"transform_matrix": pose, **plain, **{k: v for k, v in size.items() if v}}


def of_text(path: Path) -> dict[str, Any]:
    """Arrays of a text file of poses, told by how many numbers a line has.

    Raises:
        CorruptArtifactError: no such file.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size / 1e6:.0f} MB are too much for cameras")
        lines = path.read_text("utf-8-sig", "replace").splitlines()
        rows = [row for line in lines if line.strip() and not line.lstrip().startswith("#") and (row := _row(line)) is not None]
        widths = {len(row) for row in rows}
        if not rows or len(widths) != 1:
            raise ValueError("its lines hold different counts of numbers" if rows else "it holds no poses")
        return _of_rows(np.array(rows), widths.pop())
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(
            f"{path} is no usable trajectory: {error}",
            "give lines of RealEstate10K (19 numbers), TUM (8) or KITTI (12), or a JSON or npz file",
        ) from error


def _row(line: str) -> list[float] | None:
    """The numbers of a line; None for a line of other text (an address above the poses)."""
    try:
        return [float(word) for word in line.replace(",", " ").split()]
    except ValueError:
        return None


def _of_rows(rows: Array, width: int) -> dict[str, Any]:
    if width == 19:  # RealEstate10K: time, fx fy cx cy as shares of the picture, two zeros, w2c
        return {"w2c": rows[:, 7:].reshape(-1, 3, 4), "K": rows[:, 1:5]}
    if width == 12:  # KITTI: c2w
        return {"c2w": rows.reshape(-1, 3, 4)}
    if width == 16:
        return {"c2w": rows.reshape(-1, 4, 4)}
    if width == 8:  # TUM: time, position, quaternion x y z w
        q = rows[:, 4:] / np.maximum(np.linalg.norm(rows[:, 4:], axis=1, keepdims=True), 1e-12)
        x, y, z, w = q.T
        c2w = np.tile(np.eye(4), (len(rows), 1, 1))
        c2w[:, 0, :3] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1)
        c2w[:, 1, :3] = np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1)
        c2w[:, 2, :3] = np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1)
        c2w[:, :3, 3] = rows[:, 1:4]
        return {"c2w": c2w}
    raise ValueError(f"its lines hold {width} numbers each")
