"""What stage 0 writes beside results.npz: the scene's frames, the clip's cameras, the record of the choice and the fly-through path."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from configs.preprocess import PreprocessConfig
from preprocess.frames import Footage
from preprocess.scene import Reconstruction
from utils.errors import ConfigError
from utils.exports.cameras.clip import write_clip
from utils.scene.artifacts import write_json
from utils.scene.json_files import read_json
from utils.scene.layout import SceneLayout
from utils.scene.media import image_size, write_image
from utils.scene.trajectories import extend_path, save_trajectory
from utils.scene.transaction import Output, Transaction
from utils.sfm.clip_cameras import place_clip
from utils.types import Reporter

SCHEMA = "geometry/1"


def outputs_of(layout: SceneLayout, with_frames: bool) -> list[Output]:
    """Everything that stage 0 writes, as one transaction; without results.npz, its first, none of it counts."""
    outputs = [
        Output(layout.npz_dir, SCHEMA),
        Output(layout.clip_cameras, "clip_cameras"),
        Output(layout.frames_subsampled, "frames_subsampled"),
        Output(layout.preprocess_json, "file", file=True),
        Output(layout.path_json, "file", file=True),
    ]
    return [*outputs, Output(layout.frames, "frames")] if with_frames else outputs


def write_scene(
    config: PreprocessConfig,
    layout: SceneLayout,
    transaction: Transaction,
    footage: Footage,
    made: Reconstruction,
    more: dict[str, object],
    report: Reporter,
) -> None:
    """Everything but results.npz and the clip's frames; `more` goes into the record."""
    write_subsampled(config, transaction.path(layout.frames_subsampled), footage, made)
    write_clip_cameras(config, layout, transaction.path(layout.clip_cameras), footage, made, report)
    write_record(config, transaction.path(layout.preprocess_json), footage, made, more)
    write_path(transaction.path(layout.path_json), made)


def write_subsampled(config: PreprocessConfig, folder: Path, footage: Footage, made: Reconstruction) -> None:
    """The scene's frames at their original size, without lens and shutter, numbered from 0 like the rows of results.npz."""
    for index, position in enumerate(made.positions):
        path = footage.source.frames[position]
        target = folder / f"{index:06d}.{config.image_ext}"
        if footage.straight is None and path.suffix.lower() == f".{config.image_ext}":
            target.write_bytes(path.read_bytes())
        else:
            write_image(target, footage.image(position))


def write_clip_cameras(
    config: PreprocessConfig, layout: SceneLayout, folder: Path, footage: Footage, made: Reconstruction, report: Reporter
) -> None:
    """Cameras of every frame of the clip at its own size: transforms.json, a COLMAP model and the scene's points.

    The frames are those on disk. With a shutter no camera model of those formats holds for them, so they are written without it.

    Args:
        config: says whether every frame is wanted.
        layout: of the scene.
        folder: the folder that will be `exports/cameras/`.
        footage: the clip's frames.
        made: the scene and its frames' positions.
        report: told which frames could not be placed.
    """
    source, scene, straight = footage.source, made.scene, footage.straight
    everything = list(range(len(source.frames))) if made.shown is None else made.shown
    shown = everything if config.every_frame else made.positions
    called = [source.names[position] for position in shown]
    rows = np.searchsorted(shown, made.positions)
    totals = _by_clip(shown, source.totals) if config.every_frame else [len(shown)]
    found = place_clip(scene, rows, totals, lambda row: footage.gray(shown[row], scene.cameras.size), report)
    missing = [name for name, placed in zip(called, found.placed, strict=True) if not placed]
    if missing:
        report.note(f"cameras: {len(missing)} of {len(called)} frames of the clip could not be placed: {_abridged(missing)}")
    size = image_size(source.frames[0])
    if straight is None or not straight.camera.readout:
        place = os.path.realpath(layout.clip_cameras)
        names = [Path(os.path.relpath(os.path.realpath(source.place(i)), place)).as_posix() for i in shown]
        write_clip(folder, found, names, size, scene, None if straight is None else straight.camera.lens, called, made.offset)
        return
    called = [Path(name).with_suffix(f".{config.image_ext}").as_posix() for name in called]
    names = [f"images/{name}" for name in called]
    for index in np.flatnonzero(found.placed):
        (folder / names[index]).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / names[index], footage.image(shown[index]))
    write_clip(folder, found, names, size, scene, None, called, made.offset)


def _by_clip(positions: list[int], totals: list[int]) -> list[int]:
    """How many of the positions are in each clip, of so many frames each."""
    counts: list[int] = np.histogram(positions, np.cumsum([0, *totals]) - 0.5)[0].tolist()
    return counts


def _abridged(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def write_record(config: PreprocessConfig, path: Path, footage: Footage, made: Reconstruction, more: dict[str, object]) -> None:
    """`preprocess_frames.json`: what was chosen from what."""
    source, straight = footage.source, footage.straight
    record = {
        "frames_dir": SceneLayout(config.root).frames_subsampled.name,
        "source_frames_dir": os.path.relpath(source.folder, config.root),
        "image_ext": config.image_ext,
        "source": "input_video" if config.input_video else "frames_dir",
        "input": [path.name for path in config.input_video] or [source.folder.name],
        "max_frames": config.max_frames,
        "max_stride": config.max_stride,
        "actual_stride": round((len(source.frames) - 1) / max(len(made.positions) - 1, 1), 3),
        "num_frames_used": len(made.positions),
        "positions": made.positions,
        "frames": source.names,
        "crop": dict(zip(("top", "bottom", "left", "right"), source.crop.sides, strict=True)),
        "findings": [dataclasses.asdict(finding) for finding in source.findings],
        "clip_frames": source.totals,
        "fps": source.fps,
        "world_offset": made.offset,
        "camera": None if straight is None else straight.described(source.fps),
        **({} if made.shown is None else {"shown": len(made.shown)}),
        **more,
    }
    write_json(path, record)


def write_path(path: Path, made: Reconstruction) -> None:
    """The fly-through path: the scene's cameras and some way beyond."""
    save_trajectory(path, extend_path(made.scene.cameras, made.scene.median_depth))


def require_own_root(config: PreprocessConfig, layout: SceneLayout) -> None:
    """Checks that the scene at the default place is that of this input: `clip.mp4` and `clip.mov` would share one.

    Raises:
        ConfigError: it was made from an input of another name.
    """
    if config.scene_root is not None or not layout.preprocess_json.is_file():
        return
    given = config.input_video[0] if config.input_video else config.frames_dir
    names = read_json(layout.preprocess_json).get("input", [])
    if given is not None and names and names[0] != given.name:
        raise ConfigError(
            f"the scene {layout.root} was made from {names[0]}, not from {given.name}", "choose another place with --scene_root (root_path)"
        )
