"""Stage 2 shell: reads an alignment, solves all frames jointly, publishes `after_global_optimization/`."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from configs.base import from_plain
from configs.stage1_align import FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.errors import ConfigError
from utils.points.confidence import confident_pixels
from utils.registration import align_jointly, build_cloud, usable_pixels
from utils.registration.result import Diagnostics, Registration, summary, to_alignment
from utils.scene import artifacts
from utils.scene.checkpoints import CheckpointFolder
from utils.scene.layout import SceneLayout
from utils.scene.manifest import is_current, publish, read_manifest, write_manifest
from utils.types import NULL_REPORTER, Alignment, Reporter


def run(config: GlobalOptimizationConfig, report: Reporter = NULL_REPORTER) -> Path:
    """Refines an alignment over all its frames at once; returns the folder of the result."""
    layout = SceneLayout(config.root_path)
    if not config.run:
        raise ConfigError("no alignment run is named", f"pass --config.run; there are: {', '.join(layout.runs()) or 'none yet'}")
    root = layout.run(config.run).root
    source, out = root / config.checkpoint_subdir, root / config.out_subdir
    inputs = {"results": artifacts.scene_id(config.root_path)}
    inputs[config.checkpoint_subdir] = artifacts.artifact_id(source, artifacts.ALIGNMENT_SCHEMA, made_from=dict(inputs))
    if not config.overwrite and is_current(out, artifacts.ALIGNMENT_SCHEMA, config, inputs):
        report.note(f"joint alignment: {out} is current, skipped")
        return out
    started = time.perf_counter()
    checkpoints = CheckpointFolder(out, config, inputs)
    if len(checkpoints):
        report.note(f"joint alignment: goes on with {len(checkpoints)} finished parts of an interrupted run")
    manifest = read_manifest(source, artifacts.ALIGNMENT_SCHEMA, f"python -m frame_to_model_icp --config.root-path {config.root_path}")
    stage1 = from_plain(FrameToModelICPConfig, manifest.config)
    alignment = artifacts.load_alignment(source)
    everything = artifacts.load_scene(config.root_path)
    index = alignment.cameras.frame_ids
    scene = everything.select(index)
    usable = usable_pixels(scene, confident_pixels(everything, stage1.alignment)[index], stage1.filter)
    matching = replace(config.matching, roma_cache=config.matching.roma_cache or layout.roma_cache)
    result = align_jointly(scene, _registration(alignment), usable, replace(config, matching=matching), report, checkpoints=checkpoints)
    cloud = build_cloud(scene, result.cameras, result.fields, result.aligned, usable, stage1.filter)
    with publish(out) as folder:
        artifacts.save_alignment(folder, to_alignment(scene, result, cloud), config)
        seconds = time.perf_counter() - started
        artifacts.write_json(folder / "report.json", summary(result, cloud, seconds))
        write_manifest(
            folder,
            schema=artifacts.ALIGNMENT_SCHEMA,
            config=config,
            inputs=inputs,
            backends={"matcher": config.matching.matcher},
            seconds=seconds,
        )
    checkpoints.remove()
    before, after = (100 * np.nanmedian(r) for r in (result.diagnostics.before, result.diagnostics.after))
    report.note(
        f"joint alignment: matched points were {before:.2f} % of depth apart, now {after:.2f} %; "
        f"{int(result.aligned.sum())} of {len(scene)} frames, {len(cloud)} points"
    )
    return out


def _registration(alignment: Alignment) -> Registration:
    """An alignment as the starting point of a solve."""
    none = np.full(len(alignment.cameras), np.nan)
    nothing = Diagnostics(np.zeros(len(alignment.cameras), int), none, none, none)
    return Registration(alignment.cameras, alignment.fields, alignment.aligned, nothing)
