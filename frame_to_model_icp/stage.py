"""Stage 1 shell: reads results.npz, registers frame after frame, publishes `after_non_rigid_icp/`."""

import time
from dataclasses import replace
from pathlib import Path

from configs.stage1_align import FrameToModelICPConfig
from frame_to_model_icp.selection import split_frames
from utils.device.accelerator import cap_accelerator
from utils.points.confidence import confident_pixels, sky_pixels
from utils.published import align_frame_to_model
from utils.registration import align_sequential, build_cloud, usable_pixels
from utils.registration.result import to_alignment
from utils.report.alignment_report import publish_alignment
from utils.reporting import tensorboard
from utils.scene import artifacts
from utils.scene.checkpoints import CheckpointFolder, forget_parts
from utils.scene.layout import SceneLayout
from utils.scene.lock import one_writer
from utils.scene.manifest import is_current
from utils.scene.transaction import Output, require_replaceable
from utils.types import NULL_REPORTER, Reporter


@one_writer(lambda config: config.root_path)
def run(config: FrameToModelICPConfig, report: Reporter = NULL_REPORTER) -> Path:
    """Aligns the selected frames one after another; returns the folder of the result."""
    layout = SceneLayout(config.root_path)
    data = config.alignment
    run_layout = layout.run(layout.run_name(data.num_frames, data.stride, data.offset, config.out_suffix))
    out = run_layout.after_non_rigid_icp
    inputs = {"results": artifacts.scene_id(config.root_path)}
    if not config.overwrite and is_current(out, artifacts.ALIGNMENT_SCHEMA, config, inputs):
        report.note(f"frame to model: {out} is current, skipped")
        forget_parts(out)
        return out
    require_replaceable([Output(out, artifacts.ALIGNMENT_SCHEMA)], reads=[layout.results_npz])
    started = time.perf_counter()
    cap_accelerator(config.max_gpu_gb)
    checkpoints = CheckpointFolder(out, config, inputs)
    if len(checkpoints):
        report.note(f"frame to model: goes on with {len(checkpoints)} finished parts of an interrupted run")
    everything = artifacts.load_scene(config.root_path)
    index, heldout = split_frames(len(everything), data)
    scene = everything.select(index)
    confident = confident_pixels(everything, data)[index]
    sky = sky_pixels(everything)[index]
    usable = usable_pixels(scene, confident, config.filter)
    matching = replace(config.matching, roma_cache=config.matching.roma_cache or layout.roma_cache)
    with tensorboard(config.tensorboard, run_layout.tensorboard(out.name), report) as board:
        settings, vote = replace(config, matching=matching), config.filter
        if config.method == "parity":
            result, usable = align_frame_to_model(scene, usable, settings, board, checkpoints=checkpoints)
            vote = replace(vote, enabled=False)  # the method has filtered already
        else:
            clips = artifacts.clip_of_frames(config.root_path, len(everything))[index]
            matched = (confident if matching.edges else usable) & ~sky
            result = align_sequential(scene, matched, settings, board, checkpoints=checkpoints, clips=clips)
        cloud = build_cloud(scene, result.cameras, result.fields, result.aligned, usable, vote)
        alignment = to_alignment(scene, result, cloud, heldout)
        publish_alignment(out, scene, result, alignment, config, inputs, started, {}, board)
    checkpoints.remove()
    report.note(f"frame to model: {int(result.aligned.sum())} of {len(scene)} frames aligned, {len(cloud)} points")
    return out
