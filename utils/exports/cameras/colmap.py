"""COLMAP models (cameras, images, points3D), text and binary.

One pinhole camera per frame: after alignment each frame has its own intrinsics. COLMAP's pixel centres are at +0.5, as here.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from utils.types import Array, CameraSet

_PINHOLE, _OPENCV = 1, 4


def write_colmap_text(folder: Path, cameras: CameraSet, names: Sequence[str], points: Array, colors: Array, k1: float = 0.0) -> None:
    """Writes cameras.txt, images.txt and points3D.txt.

    Args:
        folder: an existing folder.
        cameras: F cameras.
        names: F image file names.
        points: (N, 3).
        colors: (N, 3) uint8.
        k1: radial distortion of all images; not 0, and the camera model is OPENCV instead of PINHOLE.
    """
    h, w = cameras.size
    with (folder / "cameras.txt").open("w") as out:
        out.write("# CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy, and k1 k2 p1 p2 of OPENCV\n")
        for i, k in enumerate(cameras.K):
            out.write(f"{i + 1} {'OPENCV' if k1 else 'PINHOLE'} {w} {h} {_decimals(_parameters(k, k1))}\n")
    with (folder / "images.txt").open("w") as out:
        out.write("# IMAGE_ID qw qx qy qz tx ty tz CAMERA_ID NAME; second line: observations, none here\n")
        for i, (pose, name) in enumerate(zip(_poses(cameras), names, strict=True)):
            out.write(f"{i + 1} {_decimals(pose)} {i + 1} {name}\n\n")
    with (folder / "points3D.txt").open("w") as out:
        out.write("# POINT3D_ID X Y Z R G B ERROR TRACK\n")
        for i, (point, color) in enumerate(zip(points, colors, strict=True)):
            out.write(f"{i + 1} {_decimals(point)} {color[0]} {color[1]} {color[2]} 0\n")


def write_colmap_binary(folder: Path, cameras: CameraSet, names: Sequence[str], points: Array, colors: Array, k1: float = 0.0) -> None:
    """Writes cameras.bin, images.bin and points3D.bin; arguments as in `write_colmap_text`."""
    h, w = cameras.size
    with (folder / "cameras.bin").open("wb") as out:
        out.write(struct.pack("<Q", len(cameras)))
        for i, k in enumerate(cameras.K):
            parameters = _parameters(k, k1)
            model = _OPENCV if k1 else _PINHOLE
            out.write(struct.pack(f"<iiQQ{len(parameters)}d", i + 1, model, w, h, *parameters))
    with (folder / "images.bin").open("wb") as out:
        out.write(struct.pack("<Q", len(cameras)))
        for i, (pose, name) in enumerate(zip(_poses(cameras), names, strict=True)):
            out.write(struct.pack("<i7di", i + 1, *pose, i + 1) + name.encode() + b"\0" + struct.pack("<Q", 0))
    record = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
    table = np.zeros(len(points), dtype=record)
    table["id"] = np.arange(1, len(points) + 1)
    table["xyz"], table["rgb"] = points, colors
    (folder / "points3D.bin").write_bytes(struct.pack("<Q", len(points)) + table.tobytes())


def _parameters(K: Array, k1: float) -> list[float]:
    """Parameters fx fy cx cy, and k1 k2 p1 p2 where there is distortion."""
    return [K[0, 0], K[1, 1], K[0, 2], K[1, 2], *((k1, 0.0, 0.0, 0.0) if k1 else ())]


def _poses(cameras: CameraSet) -> Array:
    """(F, 7) camera-from-world rotation wxyz and translation."""
    w2c = cameras.w2c
    xyzw = Rotation.from_matrix(w2c[:, :3, :3]).as_quat()
    return np.concatenate([xyzw[:, [3, 0, 1, 2]], w2c[:, :3, 3]], axis=1)


def _decimals(values: Sequence[float] | Array) -> str:
    return " ".join(f"{float(v):.9g}" for v in values)
