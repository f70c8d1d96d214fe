"""Stage 0 as a whole: skip what is current, else decode, reconstruct and write everything."""

import dataclasses
import time
from pathlib import Path

from configs.preprocess import PreprocessConfig
from preprocess import frames, geometry
from preprocess.outputs import write_clip_cameras, write_record, write_subsampled
from preprocess.scene import reconstruct
from preprocess.source import fingerprint, frames_on_disk
from utils.scene.artifacts import save_results
from utils.scene.captured import parse_camera
from utils.scene.layout import SceneLayout
from utils.scene.manifest import MANIFEST, is_current, publish, write_manifest
from utils.types import NULL_REPORTER, Reporter

SCHEMA = "geometry/1"


def run(config: PreprocessConfig, report: Reporter = NULL_REPORTER) -> Path:
    """Makes the scene unless it is current already; returns its root.

    Raises:
        V2WError: the input, the disk or the geometry.
    """
    started = time.monotonic()
    layout = SceneLayout(config.root)
    backend = geometry.resolve_backend(config)
    config = dataclasses.replace(config, features=geometry.resolve_features(config, backend, report))
    inputs = fingerprint(config)
    settings = geometry.settings_of(config, backend)
    if not config.overwrite and is_current(layout.npz_dir, SCHEMA, settings, inputs):
        report.note(f"stage 0: {layout.results_npz} is current, skipped")
        return config.root
    if not config.overwrite and layout.results_npz.is_file() and not (layout.npz_dir / MANIFEST).is_file():
        report.note(f"stage 0: {layout.results_npz} was made by another program and is used as it is; overwrite replaces it")
        return config.root
    if config.lens not in ("none", "estimate"):
        parse_camera(config.lens)  # a typing error shows before minutes of decoding
    footage = frames.load(config, frames_on_disk(config, layout, report), report)
    made = reconstruct(config, footage, backend, report)
    write_subsampled(config, layout, footage, made)
    write_clip_cameras(config, layout, footage, made, report)
    write_record(config, layout, footage, made)
    with publish(layout.npz_dir) as folder:
        save_results(folder, made.scene)
        write_manifest(
            folder,
            schema=SCHEMA,
            config=settings,
            inputs=inputs,
            backends=made.provenance,
            seed=config.seed,
            seconds=time.monotonic() - started,
        )
    report.note(f"stage 0: {len(made.scene)} frames at {footage.frames.size[1]}x{footage.frames.size[0]} -> {layout.results_npz}")
    return config.root
