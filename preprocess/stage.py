"""Stage 0 as a whole: skip what is current, else decode, reconstruct and write everything in one transaction."""

import dataclasses
import time
from pathlib import Path

from configs.preprocess import PreprocessConfig
from preprocess import frames, geometry, outputs, parts
from preprocess.outputs import SCHEMA
from preprocess.source import frames_on_disk, input_ids, look_at
from utils.imports.cameras import locate_cameras
from utils.scene.artifacts import save_results
from utils.scene.captured import parse_camera
from utils.scene.layout import SceneLayout
from utils.scene.lock import one_writer
from utils.scene.manifest import MANIFEST, is_current, write_manifest, writing
from utils.scene.media import list_clips
from utils.scene.transaction import Transaction
from utils.types import NULL_REPORTER, Reporter


@one_writer(lambda config: config.root)
def run(config: PreprocessConfig, report: Reporter = NULL_REPORTER) -> Path:
    """Makes the scene unless it is current already; returns its root.

    Raises:
        V2WError: the input, the disk or the geometry.
    """
    started = time.monotonic()
    layout = SceneLayout(config.root)
    backend = geometry.resolve_backend(config)
    config = dataclasses.replace(config, features=geometry.resolve_features(config, backend, report))
    inputs = input_ids(config)
    settings = geometry.settings_of(config, backend)
    if not config.overwrite and is_current(layout.npz_dir, SCHEMA, settings, inputs):
        report.note(f"stage 0: {layout.results_npz} is current, skipped")
        return config.root
    if not config.overwrite and layout.results_npz.is_file() and not (layout.npz_dir / MANIFEST).is_file():
        report.note(f"stage 0: {layout.results_npz} was made by another program and is used as it is")
        return config.root
    if config.lens not in ("none", "estimate"):
        parse_camera(config.lens)  # a typing error shows before minutes of decoding
    outputs.require_own_root(config, layout)
    reads, sources = _reads(config)
    seen = look_at(config, report)
    wanted = outputs.outputs_of(layout, with_frames=seen.writes)
    with Transaction(wanted, reads=reads, sources=sources, home=config.root, report=report) as transaction, writing(config.root):
        source, choice = frames_on_disk(config, seen, layout, transaction.path(layout.frames) if seen.writes else None, report)
        footage = frames.load(config, source, choice, report)
        division = parts.divided(config, footage, backend, report)
        told = parts.findings_of(division, footage)
        for finding in told:
            report.note(f"parts: {finding.text}")
        footage = dataclasses.replace(footage, source=dataclasses.replace(source, findings=(*source.findings, *told)))
        parts.keep(config, division, footage, backend, inputs, report)
        made = division.built
        outputs.write_scene(config, layout, transaction, footage, made, parts.record(division, footage), report)
        save_results(transaction.path(layout.npz_dir), made.scene)
        write_manifest(
            transaction.path(layout.npz_dir),
            schema=SCHEMA,
            config=settings,
            inputs=inputs,
            backends=made.provenance,
            seed=config.seed,
            seconds=time.monotonic() - started,
        )
    report.note(f"stage 0: {len(made.scene)} frames at {footage.frames.size[1]}x{footage.frames.size[0]} -> {layout.results_npz}")
    return config.root


def _reads(config: PreprocessConfig) -> tuple[list[Path], list[Path]]:
    """Clips, which may lie in the scene's folder; and folders of the user's, which no output may be written into."""
    clips = list_clips(config.input_video) if config.input_video else []
    cameras = None if config.given_cameras is None else locate_cameras(config.given_cameras)
    return clips, [path for path in (config.frames_dir, cameras, config.masks) if path is not None]
