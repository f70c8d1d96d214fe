"""One picture per clip of `benchmarks.clips`: a row per sampled frame, the input beside what each variant shows of it."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.clip_tables import Line
from utils.deformation.artifact import trained_inverse
from utils.deformation.inverse import InverseWarp
from utils.report import pictures
from utils.scene.artifacts import load_scene
from utils.scene.media import resize_area, write_image
from utils.splatting.checkpoint import load_checkpoint
from utils.splatting.rasterize.contract import Rasterizer
from utils.splatting.render import SplatView, resolve_rasterizer, rgb_image, training_settings
from utils.types import Array, Scene


def write_sheet(path: Path, root: Path, lines: list[Line], rows: int, width: int, device: str) -> None:
    """Writes the picture; nothing if no variant was trained.

    Args:
        path: PNG.
        root: scene root.
        lines: of one clip, a variant each.
        rows: frames to show, evenly spread, every second one held out where there are such.
        width: of one frame in pixels.
        device: cpu, cuda or auto.
    """
    lines = [line for line in lines if "error" not in line and (root / line["gs"]).is_dir()]
    if not lines:
        return
    scene = load_scene(root)
    rasterizer, where, _ = resolve_rasterizer("auto", device)
    views = {line["variant"]: _view(root / line["gs"], rasterizer, where) for line in lines}
    heldout = {int(f) for f in next(iter(views.values())).trained.cameras.frame_ids[next(iter(views.values())).trained.heldout]}
    frames = sampled(len(scene), heldout, rows)
    columns = [input_column(scene, frames, heldout, width)]
    for line in lines:
        view, folder = views[line["variant"]], root / line["gs"]
        columns.append([_cell(*world(view, frame, line), scene, width) for frame in frames])
        if (folder / "inverse_local.pt").is_file():
            warp = trained_inverse(folder, folder).to(view.device)
            columns.append([_cell(*deformed(view, warp, frame, line), scene, width) for frame in frames])
    write_image(path, pictures.grid([list(row) for row in zip(*columns, strict=True)]))


def sampled(count: int, heldout: set[int], rows: int) -> list[int]:
    """Ids of frames over all of the clip; every second one is the nearest held-out one."""
    frames = np.linspace(0, count - 1, min(rows, count)).round().astype(int).tolist()
    held = np.array(sorted(heldout))
    chosen = [int(held[np.abs(held - frame).argmin()]) if len(held) and n % 2 else frame for n, frame in enumerate(frames)]
    return sorted(set(chosen))


def input_column(scene: Scene, frames: list[int], heldout: set[int], width: int) -> list[Array]:
    """The frames as they are."""
    names = [f"frame {frame}" + (", held out" if frame in heldout else "") for frame in frames]
    return [_cell(scene.images[frame], name, scene, width) for frame, name in zip(frames, names, strict=True)]


def world(view: SplatView, frame: int, line: Line) -> tuple[Array, str]:
    """The world of a variant from the frame's camera as it is, and words for it; dark where the variant has no such camera."""
    cameras, at = view.trained.cameras, _position(view, frame)
    if at is None:
        return np.zeros((*cameras.size, 3), np.uint8), f"{line['variant']}: no camera"
    return rgb_image(view.render(cameras.c2w[at], cameras.K[at], cameras.size)), f"{line['variant']} {_decibels(line, frame, 'rigid_psnr')}"


def deformed(view: SplatView, warp: InverseWarp, frame: int, line: Line) -> tuple[Array, str]:
    """The same through the frame's deformation and colour map."""
    at = _position(view, frame)
    if at is None:
        return np.zeros((*view.trained.cameras.size, 3), np.uint8), f"{line['variant']}: no camera"
    return rgb_image(view.render_frame(warp, at)), f"{line['variant']}, deformed {_decibels(line, frame, 'psnr')}"


def _view(folder: Path, rasterizer: Rasterizer, device: torch.device) -> SplatView:
    turn = bool(training_settings(folder).get("deform_inverse_rotations", True))
    return SplatView(load_checkpoint(folder), rasterizer, device, turn)


def _position(view: SplatView, frame: int) -> int | None:
    found = np.flatnonzero(view.trained.cameras.frame_ids == frame)
    return int(found[0]) if len(found) else None


def _decibels(line: Line, frame: int, key: str) -> str:
    return next((f"{scores[key]:.1f} dB" for scores in line["frames"] if scores["frame_id"] == frame and scores.get(key) is not None), "")


def _cell(image: Array, words: str, scene: Scene, width: int) -> Array:
    height = round(width * scene.cameras.size[0] / scene.cameras.size[1])
    return pictures.labelled(resize_area(image, (height, width)), words)
