"""What stage 0 writes beside results.npz: the scene's frames, the clip's cameras, the record of the choice and the fly-through path."""

import os

import numpy as np

from configs.preprocess import PreprocessConfig
from preprocess.frames import Footage
from preprocess.scene import Reconstruction
from utils.exports.clip import write_clip
from utils.scene.artifacts import write_json
from utils.scene.layout import SceneLayout
from utils.scene.manifest import publish, writing
from utils.scene.media import image_size, write_image
from utils.scene.trajectories import extend_path, save_trajectory
from utils.sfm.clip_cameras import place_clip
from utils.types import Reporter


def write_subsampled(config: PreprocessConfig, layout: SceneLayout, footage: Footage, made: Reconstruction) -> None:
    """The scene's frames at their original size, without lens and shutter, numbered from 0 like the rows of results.npz."""
    with publish(layout.frames_subsampled) as folder:
        for index, position in enumerate(made.positions):
            path = footage.source.frames[position]
            target = folder / f"{index:06d}.{config.image_ext}"
            if footage.straight is None and path.suffix.lower() == f".{config.image_ext}":
                target.write_bytes(path.read_bytes())
            else:
                write_image(target, footage.image(position))


def write_clip_cameras(config: PreprocessConfig, layout: SceneLayout, footage: Footage, made: Reconstruction, report: Reporter) -> None:
    """Cameras of every frame of the clip at its own size: transforms.json, a COLMAP model and the scene's points.

    The frames are those on disk. With a shutter no camera model of those formats holds for them, so they are written without it.
    """
    source, scene, straight = footage.source, made.scene, footage.straight
    shown = list(range(len(source.frames))) if config.every_frame else made.positions
    paths = [source.frames[position] for position in shown]
    rows = np.array(made.positions) if config.every_frame else np.arange(len(shown))
    totals = source.totals if config.every_frame else [len(shown)]
    found = place_clip(scene, rows, totals, lambda row: footage.gray(shown[row], scene.cameras.size), report)
    missing = [path.name for path, placed in zip(paths, found.placed, strict=True) if not placed]
    if missing:
        report.note(f"cameras: {len(missing)} of {len(paths)} frames of the clip could not be placed: {_abridged(missing)}")
    size = image_size(source.frames[0])
    with publish(layout.clip_cameras) as folder:
        if straight is None or not straight.camera.readout:
            write_clip(folder, found, paths, size, scene, None if straight is None else straight.camera.lens)
            return
        names = [f"images/{path.stem}.{config.image_ext}" for path in paths]
        (folder / "images").mkdir()
        for index in np.flatnonzero(found.placed):
            write_image(folder / names[index], footage.image(shown[index]))
        write_clip(folder, found, [layout.clip_cameras / name for name in names], size, scene, None)


def _abridged(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def write_record(config: PreprocessConfig, layout: SceneLayout, footage: Footage, made: Reconstruction) -> None:
    """`preprocess_frames.json` and the fly-through path."""
    source, straight = footage.source, footage.straight
    write_json(
        layout.preprocess_json,
        {
            "frames_dir": layout.frames_subsampled.name,
            "source_frames_dir": os.path.relpath(source.folder, config.root),
            "image_ext": config.image_ext,
            "source": "input_video" if config.input_video else "frames_dir",
            "max_frames": config.max_frames,
            "max_stride": config.max_stride,
            "actual_stride": round((len(source.frames) - 1) / max(len(made.positions) - 1, 1), 3),
            "num_frames_used": len(made.positions),
            "positions": made.positions,
            "clip_frames": source.totals,
            "camera": None if straight is None else straight.described(source.fps),
        },
    )
    with writing(layout.path_json):
        layout.path_json.parent.mkdir(parents=True, exist_ok=True)
    save_trajectory(layout.path_json, extend_path(made.scene.cameras, made.scene.median_depth))
