"""nerfstudio's `transforms.json`: camera poses in OpenGL axes, intrinsics per frame, images beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.types import Array, CameraSet

# Camera axes: OpenCV (y down, z forward) from OpenGL (y up, z backward); multiplies c2w from the right.
OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def write_transforms(
    path: Path,
    cameras: CameraSet,
    names: Sequence[str],
    ply_name: str,
    k1: float = 0.0,
    more: Sequence[dict[str, Any]] = (),
    offset: Sequence[float] | Array = (),
) -> None:
    """Writes the file.

    Args:
        path: the file.
        cameras: F cameras; nerfstudio expects a world whose z axis points up.
        names: F image paths relative to the file's folder.
        ply_name: a point cloud in the same world, relative to the file's folder.
        k1: radial distortion of all images.
        more: F further entries, one dict for each frame; other programs skip what they do not know.
        offset: what was taken off all positions of a geo-referenced input (x, y, z); empty for none.
    """
    h, w = cameras.size
    frames = [
        {
            "file_path": name,
            "transform_matrix": (c2w @ OPENGL_FROM_OPENCV).tolist(),
            "fl_x": float(k[0, 0]),
            "fl_y": float(k[1, 1]),
            "cx": float(k[0, 2]),
            "cy": float(k[1, 2]),
            "w": w,
            "h": h,
        }
        for c2w, k, name in zip(cameras.c2w, cameras.K, names, strict=True)
    ]
    if more:
        frames = [frame | entries for frame, entries in zip(frames, more, strict=True)]
    content = {"camera_model": "OPENCV", "k1": k1, "ply_file_path": ply_name, "frames": frames}
    if len(offset):
        content["world_offset"] = [float(value) for value in offset]
    path.write_text(json.dumps(content, indent=2))
