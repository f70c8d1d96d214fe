"""Stage 2 shell: reads an alignment, solves all frames jointly, publishes `after_global_optimization/`."""

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs.base import from_plain
from configs.stage1_align import FrameToModelICPConfig, PointFilterConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.deformation.lattice.numba import zero_fields
from utils.device.accelerator import cap_accelerator
from utils.matching.contract import MATCHERS, match_grid, match_pairs, prepare_pairs
from utils.matching.pairs import overlaps
from utils.points.confidence import confident_pixels, sky_pixels
from utils.published import align_leave_one_out, refine_matched
from utils.registration import AlignedGeometry, align_jointly, build_cloud, usable_pixels
from utils.registration.carry_over import CarryOver, measure_carry_over, pairs_with_neighbours, scaled, with_held_out
from utils.registration.heldout import held_blocks, heldout_pairs, heldout_words, measure_heldout
from utils.registration.result import Diagnostics, Registration, to_alignment
from utils.report.alignment_report import publish_alignment
from utils.reporting import tensorboard
from utils.scene import artifacts
from utils.scene.checkpoints import CheckpointFolder, forget_parts
from utils.scene.layout import SceneLayout
from utils.scene.lock import one_writer
from utils.scene.manifest import MANIFEST, is_current, read_manifest
from utils.scene.transaction import Output, require_replaceable
from utils.types import NULL_REPORTER, Alignment, Array, Reporter, Scene, StepReport


@one_writer(lambda config: config.root_path)
def run(config: GlobalOptimizationConfig, report: Reporter = NULL_REPORTER) -> Path:
    """Refines an alignment over all its frames at once; returns the folder of the result."""
    layout = SceneLayout(config.root_path)
    run_layout = layout.named_run(config.run)
    source = run_layout.part(config.checkpoint_subdir, "checkpoint_subdir")
    out = run_layout.part(config.out_subdir, "out_subdir")
    inputs = {"results": artifacts.scene_id(config.root_path)}
    inputs[config.checkpoint_subdir] = artifacts.artifact_id(source, artifacts.ALIGNMENT_SCHEMA, made_from=dict(inputs))
    if not config.overwrite and is_current(out, artifacts.ALIGNMENT_SCHEMA, config, inputs):
        report.note(f"joint alignment: {out} is current, skipped")
        forget_parts(out)
        return out
    require_replaceable([Output(out, artifacts.ALIGNMENT_SCHEMA)], reads=[layout.results_npz, source])
    started = time.perf_counter()
    cap_accelerator(config.max_gpu_gb)
    checkpoints = CheckpointFolder(out, config, inputs)
    if len(checkpoints):
        report.note(f"joint alignment: goes on with {len(checkpoints)} finished parts of an interrupted run")
    manifest = read_manifest(source, artifacts.ALIGNMENT_SCHEMA, f"python -m frame_to_model_icp --config.root-path {config.root_path}")
    stage1 = from_plain(FrameToModelICPConfig, manifest.config)
    alignment = artifacts.load_alignment(source, with_cloud=config.method == "parity")
    everything = artifacts.load_scene(config.root_path)
    index = alignment.cameras.frame_ids
    scene = everything.select(index)
    clips = artifacts.clip_of_frames(config.root_path, len(everything))[index]
    believed, unseen = confident_pixels(everything, stage1.alignment), sky_pixels(everything)  # percentiles run over all frames
    confident, sky = believed[index], unseen[index]
    usable = usable_pixels(scene, confident, stage1.filter)
    matching = replace(config.matching, roma_cache=config.matching.roma_cache or layout.roma_cache)
    blocks = held_blocks(scene.cameras.size, config.heldout_pixels)
    chosen = replace(config, matching=matching, mean_gauge=_mean_gauge(config, layout))
    with tensorboard(config.tensorboard, run_layout.tensorboard(out.name), report) as board:
        start, members, vote = _registration(alignment), usable, stage1.filter
        if config.method == "parity":
            members = alignment.cloud.pixel_mask(index, scene.cameras.size)
            result = align_leave_one_out(scene, start, usable, members & ~blocks, chosen, board, checkpoints)
            vote = replace(vote, enabled=False)  # the cloud keeps its points
        else:
            matched = (confident if matching.edges else usable) & ~sky & ~blocks
            result = align_jointly(scene, start, matched, chosen, board, checkpoints=checkpoints, clips=clips)
            if config.field == "hashgrid":
                result = refine_matched(scene, result, matched, chosen, board, checkpoints=checkpoints)
        filtered = functools.partial(_matchable, everything, believed, unseen, stage1.filter)
        carried = _carry_over(everything, result, alignment.heldout, filtered, chosen, layout, board)
        if carried is not None:
            result = _weakened(result, carried, artifacts.clip_of_frames(config.root_path, len(everything)))
        with ThreadPoolExecutor(1) as pool:  # a GPU matches while points are gathered
            measured = pool.submit(_held_out, scene, usable & ~sky, blocks, result, chosen, report)
            cloud = build_cloud(scene, result.cameras, result.fields, result.aligned, members, vote, result.color_maps)
            finished = to_alignment(scene, result, cloud, alignment.heldout)
            heldout = measured.result()
        publish_alignment(out, scene, result, finished, config, inputs, started, _figures(heldout, carried), board)
    checkpoints.remove()
    report.note(f"joint alignment: {_progress(result.diagnostics)}{int(result.aligned.sum())} of {len(scene)} frames, {len(cloud)} points")
    return out


def _mean_gauge(config: GlobalOptimizationConfig, layout: SceneLayout) -> Literal["on", "off"]:
    """What `auto` means for the scene; results without a manifest were made by another program, which had them predicted."""
    if config.mean_gauge != "auto":
        return config.mean_gauge
    made = layout.npz_dir / MANIFEST
    backends = artifacts.read_json(made).get("backends", {}) if made.is_file() else {}
    return "off" if backends.get("geometry") == "sfm" or backends.get("depth") == "measured" else "on"


def _held_out(
    scene: Scene, usable: Array, blocks: Array, result: Registration, config: GlobalOptimizationConfig, report: Reporter
) -> dict[str, Any]:
    """Reprojection error of pairs that took no part in the solve, before and after it; empty if there are none."""
    if config.matching.matcher == "none" or not config.heldout_pairs:
        return {}
    before = AlignedGeometry(scene, scene.cameras, zero_fields(scene.depth, scene.valid, (2, 2, 2)))
    frames = np.flatnonzero(result.aligned)
    solved = {(p.source, p.target) for p in result.diagnostics.pairs}
    pairs = heldout_pairs(overlaps(before, frames), frames, solved, config.matching, config.heldout_pairs)
    grid = match_grid(scene, max(len(result.diagnostics.pairs), 1), config.matching)
    matcher = MATCHERS.load(config.matching.matcher)(scene, usable, grid, config.matching)
    prepare_pairs(matcher, pairs, report)
    matches = match_pairs(matcher, pairs, before, lambda n: report.step(StepReport("held-out pairs", n - 1, len(pairs))))
    found = measure_heldout(matches, before, AlignedGeometry(scene, result.cameras, result.fields), blocks)
    if found:
        report.note("joint alignment: " + heldout_words(found))
    return found


def _carry_over(
    everything: Scene,
    result: Registration,
    heldout: Array,
    matchable: Callable[[Array], Array],
    config: GlobalOptimizationConfig,
    layout: SceneLayout,
    report: Reporter,
) -> CarryOver | None:
    """How well the fields explain the frames that took no part; None if there are none or nothing matches frames.

    `matchable` gives (F, H, W) bool, pixels of frames of these ids (F,) that may be matched.
    """
    if not len(heldout) or config.matching.matcher == "none" or not config.carry_over:
        return None
    clips = artifacts.clip_of_frames(layout.root, len(everything))
    scene, whole = with_held_out(everything, result, heldout, clips)
    ids = whole.cameras.frame_ids
    held = np.isin(ids, heldout)
    pairs = pairs_with_neighbours(whole.aligned, held, clips[ids])
    if not pairs:
        return None
    grid = match_grid(scene, max(len(result.diagnostics.pairs), 1), config.matching)
    matcher = MATCHERS.load(config.matching.matcher)(scene, matchable(ids), grid, config.matching)
    prepare_pairs(matcher, pairs, report)
    before = AlignedGeometry(scene, scene.cameras, zero_fields(scene.depth, scene.valid, (2, 2, 2)))
    matches = match_pairs(matcher, pairs, before, lambda n: report.step(StepReport("frames kept out", n - 1, len(pairs))))
    found = measure_carry_over(scene, whole, held, matches)
    if words := found.words():
        report.note(f"joint alignment: {words}")
    return found


def _matchable(everything: Scene, confident: Array, sky: Array, config: PointFilterConfig, ids: Array) -> Array:
    """(F, H, W) bool, usable pixels that are not sky, of the frames of these ids (F,)."""
    return usable_pixels(everything.select(ids), confident[ids], config) & ~sky[ids]


def _weakened(result: Registration, carried: CarryOver, clips: Array) -> Registration:
    """The registration with the strength of fields that explains the frames that took no part."""
    ids = result.cameras.frame_ids
    strength = carried.at(ids, clips[ids], clips[carried.frame_ids])
    return replace(result, fields=scaled(result.fields, strength)) if (strength < 1).any() else result


def _figures(heldout: dict[str, Any], carried: CarryOver | None) -> dict[str, Any]:
    """What is measured after the solve, for the report."""
    return {"heldout": heldout} if carried is None else {"heldout": heldout, "carry_over": carried.report()}


def _progress(diagnostics: Diagnostics) -> str:
    """How far apart matches were and are; nothing where none were measured."""
    if not np.isfinite(diagnostics.after).any():
        return ""
    before, after = (100 * np.nanmedian(errors) for errors in (diagnostics.before, diagnostics.after))
    return f"matched points were {before:.2f} % of depth apart, now {after:.2f} %; "


def _registration(alignment: Alignment) -> Registration:
    """An alignment as the starting point of a solve."""
    none = np.full(len(alignment.cameras), np.nan)
    nothing = Diagnostics(np.zeros(len(alignment.cameras), int), none, none, none)
    return Registration(alignment.cameras, alignment.fields, alignment.aligned, nothing)
