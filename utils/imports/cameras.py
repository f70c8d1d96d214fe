"""Cameras from other programs, as this one has them: OpenCV axes, camera-to-world, pixel centres at +0.5.

COLMAP puts pixel centres at +0.5 too, so its intrinsics are taken over as they are; nerfstudio's come from COLMAP as a rule.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from utils.cameras.projection import invert_rigid, orthonormalized, to_4x4
from utils.errors import ArtifactError, CorruptArtifactError, InputError, MissingArtifactError
from utils.types import Array

# Camera axes: OpenCV (y down, z forward) from OpenGL (y up, z backward); multiplies c2w from the right.
_OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
# nerfstudio's unit of stored depth: millimetres.
_DEPTH_UNIT = 1e-3

# Distortion in OpenCV's order k1 k2 p1 p2 k3 k4 k5 k6, from the parameters of COLMAP's camera models after the principal point.
_COLMAP_DISTORTION: dict[str, tuple[int, ...]] = {
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "SIMPLE_RADIAL": (0,),
    "RADIAL": (0, 1),
    "OPENCV": (0, 1, 2, 3),
    "FULL_OPENCV": (0, 1, 2, 3, 4, 5, 6, 7),
}
_TRANSFORMS_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV")


@dataclass(frozen=True, kw_only=True)
class ImportedCameras:
    """Cameras of N images, each at the image's own size.

    Attributes:
        names: (N,) image names, as written in the source, possibly with folders.
        c2w: (N, 4, 4) float64.
        K: (N, 3, 3) float64, pixels of the image's `sizes`.
        sizes: (N, 2) int, height and width.
        distortion: (N, 8) float64, k1 k2 p1 p2 k3 k4 k5 k6 of OpenCV's model.
        depths: (N,) depth image or array of each, or None.
        depth_unit: scene units of one step of the stored depth.
    """

    names: tuple[str, ...]
    c2w: Array
    K: Array
    sizes: Array
    distortion: Array
    depths: tuple[Path | None, ...]
    depth_unit: float = 1.0

    def rows(self, names: Sequence[str]) -> Array:
        """(M,) row of each of these file names, -1 for none. Folders are ignored, suffixes too where they differ."""
        full = {PurePosixPath(n).name: i for i, n in enumerate(self.names)}
        stems = {PurePosixPath(n).stem: i for i, n in enumerate(self.names)}
        found = (full.get(PurePosixPath(n).name, stems.get(PurePosixPath(n).stem, -1)) for n in names)
        return np.array(list(found), np.int64)

    def intrinsics(self, row: int, size: tuple[int, int]) -> Array:
        """K (3, 3) of an image when it is resized to (h, w)."""
        return np.diag([size[1] / self.sizes[row, 1], size[0] / self.sizes[row, 0], 1.0]) @ self.K[row]

    def undistorted(self, row: int, image: Array) -> tuple[Array, Array]:
        """(h, w, 3) image as a pinhole with the same K sees it, and (h, w) bool where it shows anything."""
        h, w = image.shape[:2]
        if not self.distortion[row].any():
            return image, np.ones((h, w), bool)
        K = self.intrinsics(row, (h, w))
        K[:2, 2] -= 0.5  # OpenCV's pixel centres are at integers
        straight = cv2.undistort(image, K, self.distortion[row])
        inside = cv2.undistort(np.full((h, w), 255, np.uint8), K, self.distortion[row]) == 255
        return straight, inside

    def depth(self, row: int) -> Array:
        """(h, w) float32 camera z in scene units, 0 where unknown.

        Raises:
            InputError: no depth file, or an unreadable one.
        """
        path = self.depths[row]
        if path is None or not path.is_file():
            raise InputError(f"{self.names[row]} has no depth file{f' {path}' if path else ''}", "add it, or remove all depth_file_path")
        if path.suffix == ".npy":
            stored = np.load(path, allow_pickle=False)
        else:
            stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if stored is None or stored.squeeze().ndim != 2:
            raise InputError(f"{path} is no depth image", "give one channel: PNG with 16 bits, TIFF or NPY")
        depth = stored.squeeze().astype(np.float32) * np.float32(self.depth_unit)
        return np.where(np.isfinite(depth) & (depth > 0), depth, 0)


def read_cameras(source: Path) -> ImportedCameras:
    """Cameras of a COLMAP model folder, a nerfstudio `transforms.json`, or a folder that holds either.

    Raises:
        MissingArtifactError: nothing of the kind there.
        CorruptArtifactError: unreadable, or without cameras.
    """
    place = locate_cameras(source)
    return read_transforms(place) if place.is_file() else read_colmap(place)


def files_of_cameras(source: Path) -> list[Path]:
    """Every file that importing cameras reads: the model or transforms.json, and the depth images that it names.

    Raises:
        ArtifactError: see `read_cameras`.
    """
    place = locate_cameras(source)
    if place.is_dir():
        return sorted(p for p in place.iterdir() if p.suffix in (".bin", ".txt"))
    return [place, *sorted({depth for depth in read_transforms(place).depths if depth is not None and depth.is_file()})]


def locate_cameras(source: Path) -> Path:
    """The transforms.json, or the folder of the COLMAP model, that is meant by a path.

    Raises:
        MissingArtifactError: nothing of the kind there.
    """
    if source.is_file() and source.suffix == ".json":
        return source
    for folder in (source, source / "sparse" / "0", source / "sparse", source / "colmap" / "sparse" / "0", source / "0"):
        if any((folder / f"cameras.{kind}").is_file() for kind in ("bin", "txt")):
            return folder
    if (source / "transforms.json").is_file():
        return source / "transforms.json"
    raise MissingArtifactError(
        f"no cameras found in {source}", "give a transforms.json, or a COLMAP model: cameras and images as .bin or .txt"
    )


def read_colmap(folder: Path) -> ImportedCameras:
    """Registered images of a COLMAP model, binary or text, by name."""
    import pycolmap

    try:
        model = pycolmap.Reconstruction(str(folder))
    except (RuntimeError, ValueError) as error:
        raise CorruptArtifactError(f"{folder} is no readable COLMAP model: {error}", "export the model again") from error
    images = sorted((i for i in model.images.values() if i.has_pose), key=lambda i: i.name)
    if not images:
        raise CorruptArtifactError(f"the COLMAP model {folder} holds no registered image", "give the folder of another model")
    cameras = [model.cameras[i.camera_id] for i in images]
    w2c = np.stack([to_4x4(np.asarray(i.cam_from_world().matrix())[None])[0] for i in images])
    return ImportedCameras(
        names=tuple(i.name for i in images),
        c2w=invert_rigid(w2c),
        K=np.stack([np.asarray(c.calibration_matrix(), np.float64) for c in cameras]),
        sizes=np.array([[c.height, c.width] for c in cameras]),
        distortion=np.stack([_colmap_distortion(c) for c in cameras]),
        depths=(None,) * len(images),
    )


def _colmap_distortion(camera: Any) -> Array:
    name = camera.model_name
    if name not in _COLMAP_DISTORTION:
        raise ArtifactError(
            f"COLMAP's camera model {name} is not supported",
            f"run colmap image_undistorter first, or use one of: {', '.join(_COLMAP_DISTORTION)}",
        )
    parameters = np.asarray(camera.params)[max(camera.principal_point_idxs()) + 1 :]
    distortion = np.zeros(8)
    for position, index in enumerate(_COLMAP_DISTORTION[name]):
        distortion[position] = parameters[index]
    return distortion


def read_transforms(path: Path) -> ImportedCameras:
    """Cameras of a nerfstudio `transforms.json`, with the depth files it names.

    Raises:
        CorruptArtifactError: no JSON, no frames, or a frame without pose or intrinsics.
    """
    try:
        content = json.loads(path.read_text())
        frames = sorted(content["frames"], key=lambda f: f["file_path"])
        model = content.get("camera_model", "PINHOLE")
        if model not in _TRANSFORMS_MODELS:
            raise ArtifactError(
                f"{path}: camera_model {model} is not supported",
                f"undistort the images first, or use one of: {', '.join(_TRANSFORMS_MODELS)}",
            )
        merged = [content | frame for frame in frames]  # a frame's own intrinsics win
        sizes = np.array([_image_size(path, frame) for frame in merged])
        K = np.stack([_intrinsics(frame, *size) for frame, size in zip(merged, sizes, strict=True)])
        c2w = to_4x4(np.array([frame["transform_matrix"] for frame in frames], np.float64)) @ _OPENCV_FROM_OPENGL
        distortion = np.array([[float(f.get(k, 0.0)) for k in ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")] for f in merged])
        depths = tuple(path.parent / f["depth_file_path"] if "depth_file_path" in f else None for f in frames)
        unit = float(content.get("depth_unit_scale_factor", _DEPTH_UNIT))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptArtifactError(
            f"{path} is no usable transforms.json: {error!r}",
            "each frame needs file_path, transform_matrix and fl_x or camera_angle_x, with w and h",
        ) from error
    if not np.isfinite(c2w).all():
        raise CorruptArtifactError(f"{path} holds a pose that is not finite", "remove that frame")
    return ImportedCameras(
        names=tuple(f["file_path"] for f in frames),
        c2w=orthonormalized(c2w),
        K=K,
        sizes=sizes,
        distortion=distortion,
        depths=depths,
        depth_unit=unit,
    )


def _image_size(path: Path, frame: dict[str, Any]) -> tuple[int, int]:
    """(h, w) as the file says, or else of the image itself."""
    if "h" in frame and "w" in frame:
        return int(frame["h"]), int(frame["w"])
    image = cv2.imread(str(path.parent / frame["file_path"]))
    if image is None:
        raise KeyError("w, h")
    return image.shape[0], image.shape[1]


def _intrinsics(frame: dict[str, Any], h: int, w: int) -> Array:
    angle = frame.get("camera_angle_x")
    fx = float(frame["fl_x"]) if "fl_x" in frame else 0.5 * w / np.tan(0.5 * float(frame["camera_angle_x"] if angle is None else angle))
    fy = float(frame.get("fl_y", fx))
    return np.array([[fx, 0, float(frame.get("cx", w / 2))], [0, fy, float(frame.get("cy", h / 2))], [0, 0, 1.0]])
