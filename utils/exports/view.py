"""What the viewer in the browser needs of a world: its cameras, a fly-through, which way is up, and splats in a file that loads soon.

Kept in `<checkpoint folder>/view/`: `view.json`, and `splats.spz` where the PLY beside it would take long to load, or `splats.splat`
while a training goes on. The server that sends them need not load PyTorch.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import GeometryError
from utils.exports.ply import flatten_discs
from utils.exports.select import drop_non_finite, scene_up
from utils.exports.splat import write_splat
from utils.exports.spz import write_spz
from utils.exports.world_html import Showing, viewer_settings
from utils.splatting.checkpoint import TrainedScene
from utils.types import Array, CameraSet

FOLDER, SETTINGS, SPZ, SPLAT = "view", "view.json", "splats.spz", "splats.splat"
VERSION = 1
# A PLY up to this size is sent as it is: it is exact, and loads in a second.
LARGEST_PLY = 16_000_000
# Seconds from one chosen frame to the next where the clip's own time is not known.
SECONDS_PER_FRAME = 0.25
_MOST_PATH_POSES = 600


def view_settings(trained: TrainedScene, path: CameraSet | None) -> dict[str, Any]:
    """What `createViewer` of `utils/viewer_bundle` is given, as JSON, and what its page tells of the world.

    Args:
        trained: the world.
        path: its fly-through, if there is one.
    """
    cameras = trained.cameras
    step = -(-len(path) // _MOST_PATH_POSES) if path is not None else 1
    shown = cameras.select(np.arange(0)) if path is None else path.select(np.arange(0, len(path), step))
    showing = Showing(cameras=cameras, path=shown, up=_up(cameras), near=0.0, title="", credit="")
    settings = viewer_settings(showing)
    for camera, frame, held in zip(settings["cameras"], cameras.frame_ids, trained.heldout, strict=True):
        camera |= {"frame": int(frame), "heldout": bool(held)}
    settings["path"]["seconds"] *= step
    return {
        **{key: value for key, value in settings.items() if value},
        **({} if path is not None else {"path": None}),
        "version": VERSION,
        "renderer": trained.renderer,
        "splats": len(trained.splats),
        "seconds": SECONDS_PER_FRAME * max(len(cameras) - 1, 1),
    }


def write_view(folder: Path, trained: TrainedScene, path: CameraSet | None = None, *, unfinished: bool = False) -> None:
    """Writes the files; the settings last, so that whoever sees them finds the splats.

    Args:
        folder: the `view` folder.
        trained: the world.
        path: its fly-through.
        unfinished: the training goes on, so writing quickly matters more than a small or exact file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ply = folder.parent / f"splats_{trained.renderer}.ply"
    if not unfinished and ply.is_file() and ply.stat().st_size <= LARGEST_PLY:
        file = ply
    else:
        file = folder / (SPLAT if unfinished else SPZ)
        splats = drop_non_finite(trained.splats)
        splats = flatten_discs(splats) if trained.renderer == "2dgs" else splats
        beside = file.with_suffix(".partial")
        (write_splat if unfinished else write_spz)(beside, splats)
        beside.replace(file)
    settings = view_settings(trained, path) | {"unfinished": unfinished, "file": os.path.relpath(file, folder)}
    beside = folder / f"{SETTINGS}.partial"
    beside.write_text(json.dumps(settings))
    beside.replace(folder / SETTINGS)


def _up(cameras: CameraSet) -> Array:
    try:
        return scene_up(cameras)
    except GeometryError:
        return -cameras.c2w[0, :3, 1]
