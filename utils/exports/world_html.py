"""A world as one HTML file: splats, viewer, cameras and fly-through inside, opened by a double click, without network."""

import base64
import html
import json
from dataclasses import dataclass
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from utils.exports.spz import write_spz
from utils.types import Array, CameraSet, Splats
from utils.viewer_bundle import FOLDER, bundled

FPS = 30
_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Showing:
    """What a viewer shows beside the splats.

    Attributes:
        cameras: the clip's; the first is where the viewer opens.
        path: the fly-through, at `FPS`.
        up: (3,) the world's up direction.
        near: nearest depth that is drawn, scene units.
        title: of the page.
        credit: who made it and what others may do with it; may be empty.
    """

    cameras: CameraSet
    path: CameraSet
    up: Array
    near: float
    title: str
    credit: str


def write_world_html(path: Path, splats: Splats, showing: Showing) -> None:
    """Writes the file; splats and cameras in x right, y down, z forward."""
    template = Template((FOLDER / "world.html").read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        packed = Path(folder) / "world.spz"
        write_spz(packed, splats)
        data = base64.b64encode(packed.read_bytes()).decode("ascii")
    page = template.substitute(
        title=html.escape(showing.title),
        credit=html.escape(showing.credit),
        viewer=bundled(),
        world=json.dumps(viewer_settings(showing)).replace("<", "\\u003c"),
        splats=data,
    )
    path.write_text(page, encoding="utf-8")


def viewer_settings(showing: Showing) -> dict[str, Any]:
    """The settings of `createViewer` in viewer.js but the splats."""
    h, w = showing.cameras.size
    cameras = [
        {"c2w": _numbers(c2w), "fx": k[0, 0], "fy": k[1, 1], "cx": k[0, 2], "cy": k[1, 2], "width": w, "height": h}
        for c2w, k in zip(showing.cameras.c2w, showing.cameras.K, strict=True)
    ]
    height = showing.path.size[0]
    poses = [
        {"c2w": _numbers(c2w), "fov": float(2 * np.arctan(0.5 * height / k[1, 1]))}
        for c2w, k in zip(showing.path.c2w, showing.path.K, strict=True)
    ]
    return {
        "cameras": cameras,
        "path": {"poses": poses, "seconds": max(len(poses) - 1, 0) / FPS},
        "up": _numbers(showing.up),
        "near": showing.near,
    }


def _numbers(values: Array) -> list[float]:
    return np.round(np.asarray(values, np.float64), _DIGITS).ravel().tolist()
