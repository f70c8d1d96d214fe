"""`transforms.json` and its kin: nerfstudio, instant-ngp, NeRF's synthetic scenes, Record3D, and `cameras.json` of splats."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.cameras.projection import to_4x4
from utils.errors import ArtifactError, CorruptArtifactError
from utils.imports.lens import ImportedLens, camera_models
from utils.imports.names import plain_path
from utils.scene.media import IMAGE_SUFFIXES, natural_name
from utils.types import Array

# Camera axes: OpenCV (y down, z forward) from OpenGL (y up, z backward); multiplies c2w from the right.
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
# nerfstudio's unit of stored depth: millimetres.
_DEPTH_UNIT = 1e-3
# Names of camera models that differ from COLMAP's.
_MODELS = {"PERSPECTIVE": "OPENCV", "SIMPLE_PERSPECTIVE": "OPENCV", "FISHEYE": "OPENCV_FISHEYE", "FISHEYE624": "FISHEYE624", "": "OPENCV"}
_MOST_BYTES = 500_000_000
_ADVICE = "each frame needs file_path, transform_matrix and fl_x or camera_angle_x, with w and h"


@dataclass(frozen=True)
class JsonCameras:
    """Cameras of JSON files.

    Attributes:
        names: file paths as written, with forward slashes, in natural order; empty if there are none.
        c2w: (N, 4, 4) float64, OpenCV axes.
        lenses: of each.
        depths: file of each, or None.
        masks: file of each, or None.
        depth_unit: scene units of one step of stored depth.
    """

    names: tuple[str, ...]
    c2w: Array
    lenses: tuple[ImportedLens, ...]
    depths: tuple[Path | None, ...]
    masks: tuple[Path | None, ...]
    depth_unit: float = 1.0


def load_json(path: Path) -> Any:
    """JSON in whatever encoding it was saved.

    Raises:
        CorruptArtifactError: no JSON.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size / 1e6:.0f} MB are too much for cameras")
        raw = path.read_bytes()
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            text = raw.decode("utf-16")
        elif b"\0" in raw[:4]:
            text = raw.decode("utf-16-le" if raw[1:2] == b"\0" else "utf-16-be")
        else:
            try:
                text = raw.decode("utf-8-sig")
            except UnicodeDecodeError:
                text = raw.decode("latin-1")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"{path} is no usable transforms.json: {str(error)[:200]}", "export the cameras again") from error


def read_json_cameras(paths: Sequence[Path], image_size: tuple[int, int] | None = None) -> JsonCameras:
    """The cameras of one file, or of several of one data set (`transforms_train.json` and the like).

    Args:
        paths: the files.
        image_size: (h, w) to take where neither the file nor an image beside it tells.

    Raises:
        CorruptArtifactError: no frames, or a frame without pose or intrinsics.
        ArtifactError: a camera model that cannot be taken out.
    """
    parts = [_one_file(path, image_size) for path in paths]
    units = {part.depth_unit for part in parts}
    return JsonCameras(
        names=tuple(name for part in parts for name in part.names),
        c2w=np.concatenate([part.c2w for part in parts]),
        lenses=tuple(lens for part in parts for lens in part.lenses),
        depths=tuple(depth for part in parts for depth in part.depths),
        masks=tuple(mask for part in parts for mask in part.masks),
        depth_unit=units.pop(),
    )


def files_named(paths: Sequence[Path]) -> set[Path]:
    """Depth images and masks that the frames of files name.

    Raises:
        CorruptArtifactError: no JSON.
    """
    found: set[Path] = set()
    for path in paths:
        content = load_json(path)
        frames = content.get("frames", []) if isinstance(content, dict) else []
        for frame in frames if isinstance(frames, list) else []:
            if isinstance(frame, dict):
                named = (_beside(path, frame, "depth_file_path", "depth_path"), _beside(path, frame, "mask_path", "mask_file_path"))
                found |= {name for name in named if name is not None}
    return found


def _one_file(path: Path, image_size: tuple[int, int] | None, content: Any = None) -> JsonCameras:
    content = load_json(path) if content is None else content
    try:
        if isinstance(content, list):
            return _splat_cameras(path, content)
        if "poses" in content and "frames" not in content:
            return _record3d(path, content, image_size)
        return _transforms(path, content, image_size)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, np.linalg.LinAlgError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CorruptArtifactError(f"{path} is no usable transforms.json: {told[:300]}", _ADVICE) from error


def _transforms(path: Path, content: dict[str, Any], image_size: tuple[int, int] | None) -> JsonCameras:
    frames = content["frames"]
    if isinstance(frames, dict):
        frames = [{"file_path": name, **frame} for name, frame in frames.items()]
    if not frames:
        raise ValueError("it has no frames")
    unnamed = all(frame.get("file_path") is None for frame in frames)  # SEVA's where it wrote no images: they follow each other
    if not unnamed:
        frames = sorted(frames, key=lambda frame: natural_name(str(frame["file_path"])))
    shared = {key: value for key, value in content.items() if key != "frames"}
    merged = [shared | frame for frame in frames]  # a frame's own intrinsics win
    c2w = _matrices([frame["transform_matrix"] for frame in frames]) @ OPENCV_FROM_OPENGL
    if content.get("world_offset") is not None:  # this program's own export of a geo-referenced scene
        c2w[:, :3, 3] += np.array(content["world_offset"], np.float64).reshape(3)
    known: dict[str, tuple[int, int]] = {}
    return JsonCameras(
        names=() if unnamed else tuple(plain_path(str(frame["file_path"])) for frame in frames),
        c2w=c2w,
        lenses=tuple(_lens(frame, _size(path, frame, image_size, known)) for frame in merged),
        depths=tuple(_beside(path, frame, "depth_file_path", "depth_path") for frame in frames),
        masks=tuple(_beside(path, frame, "mask_path", "mask_file_path") for frame in frames),
        depth_unit=float(content.get("depth_unit_scale_factor", _DEPTH_UNIT)),
    )


def of_frames(folder: Path, frames: list[dict[str, Any]]) -> JsonCameras:
    """Cameras of entries like those of a transforms.json, from files of their own.

    Raises:
        CorruptArtifactError: as `read_json_cameras`.
    """
    return _one_file(folder / "cameras", None, {"frames": frames})


def _matrices(rows: list[Any]) -> Array:
    """(N, 4, 4) rigid poses of nested or flat lists of 12 or 16 numbers."""
    matrices = np.array([np.array(row, np.float64).reshape(-1, 4) for row in rows])
    if matrices.ndim != 3 or matrices.shape[1] not in (3, 4):
        raise ValueError(f"transform_matrix has shape {matrices.shape[1:]}, expected (4, 4)")
    if not np.isfinite(matrices).all():
        raise ValueError("a pose is not finite")
    poses = to_4x4(matrices[:, :3])
    scale = np.cbrt(np.linalg.det(poses[:, :3, :3]))
    if not ((scale > 1e-6) & (scale < 1e6)).all():
        raise ValueError("a pose is mirrored or flat")
    poses[:, :3, :3] /= scale[:, None, None]  # poses of scaled scenes
    skew = np.abs(np.swapaxes(poses[:, :3, :3], 1, 2) @ poses[:, :3, :3] - np.eye(3)).max()
    if skew > 0.05:
        raise ValueError(f"a pose is no rigid motion (rotation deviates from orthonormal by {skew:.3g})")
    return poses


def _beside(path: Path, frame: dict[str, Any], *keys: str) -> Path | None:
    """The file that a frame names, beside the JSON file."""
    name = next((frame[key] for key in keys if frame.get(key)), None)
    return None if name is None else path.parent / plain_path(str(name))


def image_of(path: Path, name: str) -> Path | None:
    """The image that a frame of a file names, with a suffix of its own where the name has none."""
    given = path.parent / plain_path(name)
    tries = [given, *(given.with_name(given.name + suffix) for suffix in sorted(IMAGE_SUFFIXES))]
    return next((p for p in tries if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()), None)


def _size(path: Path, frame: dict[str, Any], fallback: tuple[int, int] | None, known: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """(h, w) as the file says, or else of the image itself; images of one data set are not all opened."""
    if "h" in frame and "w" in frame:
        return _whole(frame["h"]), _whole(frame["w"])
    if "all" not in known:
        image = image_of(path, str(frame.get("file_path")))
        pixels = None if image is None else cv2.imread(str(image), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            known["all"] = (pixels.shape[0], pixels.shape[1])
        elif "cx" in frame and "cy" in frame:
            known["all"] = (round(2 * float(frame["cy"])), round(2 * float(frame["cx"])))
        elif fallback is not None:
            known["all"] = fallback
        else:
            raise KeyError("w, h")
    return known["all"]


def _whole(value: Any) -> int:
    number = int(float(value))
    if not 1 <= number <= 1_000_000:
        raise ValueError(f"an image is {value} pixels wide or high")
    return number


def _lens(frame: dict[str, Any], size: tuple[int, int]) -> ImportedLens:
    height, width = size
    number = lambda name, default=0.0: float(default if frame.get(name) is None else frame[name])  # noqa: E731
    fx, fy = _focal(frame, "fl_x", "camera_angle_x", width), _focal(frame, "fl_y", "camera_angle_y", height)
    if fx is None and fy is None:
        raise KeyError("fl_x")
    fx, fy = fx or fy, fy or fx
    assert fx is not None and fy is not None
    cx, cy = number("cx", width / 2), number("cy", height / 2)
    if 0 < cx <= 1 and 0 < cy <= 1 and width > 2:  # shares of the picture
        cx, cy = cx * width, cy * height
        fx, fy = (fx * width, fy * height) if fx < 10 else (fx, fy)
    k = [number(f"k{i}") for i in range(1, 7)]
    p = [number("p1"), number("p2")]
    model = str(frame.get("camera_model") or ("OPENCV_FISHEYE" if frame.get("is_fisheye") else "OPENCV")).upper().replace("-", "_")
    model = _MODELS.get(model, model)
    if model == "OPENCV_FISHEYE":
        return ImportedLens(model, (fx, fy, cx, cy, *k[:4]), size)
    if model in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV"):
        # COLMAP's names, with the coefficients written by name: the full model holds all of them.
        return ImportedLens("FULL_OPENCV", (fx, fy, cx, cy, k[0], k[1], *p, *k[2:6]), size)
    extra = {"FOV": ["omega"], "SIMPLE_RADIAL_FISHEYE": ["k1"], "RADIAL_FISHEYE": ["k1", "k2"]}
    extra["THIN_PRISM_FISHEYE"] = ["k1", "k2", "p1", "p2", "k3", "k4", "sx1", "sy1"]
    if model in extra:
        focal = (fx, fy) if model in ("FOV", "THIN_PRISM_FISHEYE") else (fx,)
        return ImportedLens(model, (*focal, cx, cy, *(number(name) for name in extra[model])), size)
    raise ArtifactError(
        f"camera_model {model} is not supported", f"undistort the images first, or use one of: {', '.join(sorted(camera_models()))}"
    )


def _focal(frame: dict[str, Any], name: str, angle: str, side: int) -> float | None:
    """Focal length in pixels, as given or from the field of view."""
    if frame.get(name) is not None:
        return float(frame[name])
    if frame.get(angle) is None:
        return None
    half = 0.5 * float(frame[angle])
    if not 1e-4 < half < 1.57:
        raise ValueError(f"{angle} is {frame[angle]}")
    return float(0.5 * side / np.tan(half))


def _splat_cameras(path: Path, entries: list[Any]) -> JsonCameras:
    """`cameras.json` as trainers of splats write it: position and rotation (c2w, OpenCV axes), fx, fy."""
    entries = sorted(entries, key=lambda entry: str(entry["img_name"]))
    c2w = np.tile(np.eye(4), (len(entries), 1, 1))
    c2w[:, :3, :3] = [entry["rotation"] for entry in entries]
    c2w[:, :3, 3] = [entry["position"] for entry in entries]
    lenses = []
    for entry in entries:
        size = _whole(entry["height"]), _whole(entry["width"])
        lenses.append(ImportedLens("PINHOLE", (float(entry["fx"]), float(entry["fy"]), size[1] / 2, size[0] / 2), size))
    return JsonCameras(
        names=tuple(plain_path(str(entry["img_name"])) for entry in entries),
        c2w=_matrices(list(c2w)),
        lenses=tuple(lenses),
        depths=(None,) * len(entries),
        masks=(None,) * len(entries),
    )


def _record3d(path: Path, content: dict[str, Any], image_size: tuple[int, int] | None) -> JsonCameras:
    """Record3D's `metadata.json`: poses as quaternion (x, y, z, w) and position in ARKit's axes, K by columns."""
    poses = np.array(content["poses"], np.float64)
    if poses.ndim != 2 or poses.shape[1] != 7 or not np.isfinite(poses).all() or not (np.linalg.norm(poses[:, :4], axis=1) > 1e-6).all():
        raise ValueError(f"poses have shape {poses.shape}, expected (N, 7) numbers")
    x, y, z, w = (poses[:, :4] / np.linalg.norm(poses[:, :4], axis=1, keepdims=True)).T
    c2w = np.tile(np.eye(4), (len(poses), 1, 1))
    c2w[:, :3, :3] = np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        axis=1,
    )
    c2w[:, :3, 3] = poses[:, 4:]
    K = np.array(content["K"], np.float64).reshape(3, 3).T if "K" in content else None
    each = content.get("perFrameIntrinsicCoeffs")
    if K is None and not each:
        raise KeyError("K")
    if "h" in content and "w" in content:
        size = _whole(content["h"]), _whole(content["w"])
    elif image_size is not None:
        size = image_size
    else:
        raise KeyError("w, h")
    own = [tuple(float(v) for v in row[:4]) for row in each] if each else []
    shared = () if K is None else (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    return JsonCameras(
        names=tuple(f"rgb/{i}" for i in range(len(poses))),
        c2w=c2w @ OPENCV_FROM_OPENGL,
        lenses=tuple(ImportedLens("PINHOLE", own[i] if i < len(own) else shared, size) for i in range(len(poses))),
        depths=(None,) * len(poses),
        masks=(None,) * len(poses),
    )
