"""COLMAP models, text and binary, read with every count checked against the size of the file.

COLMAP's own reader of the text form cuts names at spaces, and believes what a damaged binary file says of itself. Points are not read:
cameras and poses are all that is taken over.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import ArtifactError, CorruptArtifactError
from utils.imports.lens import ImportedLens, camera_models
from utils.types import Array

# Number of COLMAP's camera models in binary files.
_MODELS = (
    "SIMPLE_PINHOLE PINHOLE SIMPLE_RADIAL RADIAL OPENCV OPENCV_FISHEYE FULL_OPENCV FOV SIMPLE_RADIAL_FISHEYE RADIAL_FISHEYE"
    " THIN_PRISM_FISHEYE RAD_TAN_THIN_PRISM_FISHEYE"
).split()
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|nan|inf)$", re.IGNORECASE)
# Bytes of an image's entry without name and points, and of one of its points.
_IMAGE, _POINT = struct.Struct("<i7di"), 24


@dataclass(frozen=True)
class Model:
    """A COLMAP model.

    Attributes:
        names: of the registered images, sorted.
        w2c: (N, 4, 4) float64.
        lenses: of each image.
    """

    names: tuple[str, ...]
    w2c: Array
    lenses: tuple[ImportedLens, ...]


def has_model(folder: Path) -> bool:
    """Whether a folder holds a model."""
    return any(all((folder / f"{part}.{kind}").is_file() for part in ("cameras", "images")) for kind in ("bin", "txt"))


def count_images(folder: Path) -> int:
    """Registered images of a model; 0 if it cannot be read."""
    try:
        return len(read_model(folder).names)
    except ArtifactError:
        return 0


def read_model(folder: Path) -> Model:
    """The model of a folder; the binary form is preferred, the text form stands in for a damaged one.

    Raises:
        CorruptArtifactError: unreadable, or without registered images.
        ArtifactError: a camera model that is not known.
    """
    kinds = [kind for kind in ("bin", "txt") if all((folder / f"{part}.{kind}").is_file() for part in ("cameras", "images"))]
    if not kinds:
        raise CorruptArtifactError(f"{folder} holds no COLMAP model", "give a folder with cameras and images, as .bin or .txt")
    try:
        return _read(folder, kinds[0])
    except CorruptArtifactError:
        if len(kinds) == 1:
            raise
        return _read(folder, kinds[1])


def _read(folder: Path, kind: str) -> Model:
    try:
        if kind == "bin":
            cameras = dict(_binary_cameras((folder / "cameras.bin").read_bytes()))
            images = list(_binary_images((folder / "images.bin").read_bytes()))
        else:
            cameras = dict(_text_cameras(_text(folder / "cameras.txt")))
            images = list(_text_images(_text(folder / "images.txt")))
        if not images:
            raise ValueError("it holds no registered image")
        images.sort(key=lambda image: image[0])
        lenses = tuple(cameras[camera] for _, _, camera in images)
        w2c = np.stack([_pose(values) for _, values, _ in images])
    except (OSError, ValueError, KeyError, IndexError, struct.error, OverflowError) as error:
        told = f"an image's camera {error} is not there" if isinstance(error, KeyError) else str(error)
        raise CorruptArtifactError(f"{folder} is no readable COLMAP model: {told}", "export the model again") from error
    return Model(names=tuple(name for name, _, _ in images), w2c=w2c, lenses=lenses)


def _pose(values: tuple[float, ...]) -> Array:
    """(4, 4) w2c of qw qx qy qz tx ty tz."""
    q, t = np.array(values[:4]), np.array(values[4:])
    length = np.linalg.norm(q)
    if not (np.isfinite(q).all() and np.isfinite(t).all() and 1e-6 < length < 1e6):
        raise ValueError(f"an image has the pose {values}")
    w, x, y, z = q / length
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = t
    return pose


def _count(raw: bytes, at: int, least: int) -> int:
    """A number of entries of at least so many bytes each, that the rest of the file can hold."""
    (count,) = struct.unpack_from("<Q", raw, at)
    if count * least > len(raw) - at - 8:
        raise ValueError(f"it says that it holds {count} entries, but is only {len(raw)} bytes long")
    return int(count)


def _binary_cameras(raw: bytes) -> Iterator[tuple[int, ImportedLens]]:
    known = camera_models()
    at = 8
    for _ in range(_count(raw, 0, 24)):
        camera, model, width, height = struct.unpack_from("<iiQQ", raw, at)
        name = _MODELS[model] if 0 <= model < len(_MODELS) else _newer_model(model)
        params = struct.unpack_from(f"<{known[name]}d", raw, at + 24)
        at += 24 + 8 * len(params)
        yield camera, ImportedLens(name, params, (int(height), int(width)))


def _newer_model(number: int) -> str:
    import pycolmap

    try:
        return str(pycolmap.CameraModelId(number).name)
    except (ValueError, TypeError) as error:
        raise ValueError(f"camera model {number} is not known") from error


def _binary_images(raw: bytes) -> Iterator[tuple[str, tuple[float, ...], int]]:
    at = 8
    for _ in range(_count(raw, 0, _IMAGE.size + 9)):
        _, *pose, camera = _IMAGE.unpack_from(raw, at)
        end = raw.index(b"\0", at + _IMAGE.size)
        name = raw[at + _IMAGE.size : end].decode("utf-8", "surrogateescape")
        at = end + 1
        at += 8 + _POINT * _count(raw, at, _POINT)
        if at > len(raw):
            raise ValueError("images.bin is truncated")
        yield name, tuple(pose), camera


def _text(path: Path) -> list[str]:
    """Lines without comments; blank ones stay."""
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    return [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if not line.lstrip().startswith("#")]


def _text_cameras(lines: list[str]) -> Iterator[tuple[int, ImportedLens]]:
    for line in lines:
        if words := line.split():
            width, height = int(words[2]), int(words[3])
            yield int(words[0]), ImportedLens(words[1].upper(), tuple(float(word) for word in words[4:]), (height, width))


def _text_images(lines: list[str]) -> Iterator[tuple[str, tuple[float, ...], int]]:
    """Images; between them lie lines of points, which may be blank or left out."""
    for line in lines:
        words = line.split(None, 9)
        if not words or _is_points(line):
            continue
        if len(words) < 10:
            raise ValueError(f"images.txt has the line '{line[:80]}'")
        yield words[9].rstrip(), tuple(float(word) for word in words[1:8]), int(words[8])


def _is_points(line: str) -> bool:
    """Whether a line lists image points: x y id x y id ..., nothing but numbers."""
    words = line.split()
    return len(words) % 3 == 0 and all(_NUMBER.match(word) for word in words)
