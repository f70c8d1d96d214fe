"""Joint alignment of all frames: two rounds of matching and solving, each from the geometry of the one before."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from configs.stage1_align import MatchingConfig, SolverConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.cameras.blending import neighbours_in_time
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.between import blended_fields
from utils.errors import NoOverlapError
from utils.matching.contract import MATCHERS, Matcher, MatchSet, match_grid, match_pairs, prepare_pairs
from utils.matching.pairs import choose_pairs, overlaps
from utils.matching.support import match_trust, supported_matches
from utils.registration.colour import estimate_color_maps
from utils.registration.depth_noise import measure_noise
from utils.registration.gauge import common_displacement
from utils.registration.pose_evidence import held_or_free
from utils.registration.result import (
    AGREEING_SIGMAS,
    Registration,
    contradiction_words,
    diagnose,
    errors_by_pair,
    from_arrays,
    sigmas_by_pair,
    supported_parts,
    to_arrays,
)
from utils.registration.resume import NO_CHECKPOINTS, Checkpoints, keeping_matches
from utils.registration.solver import solve
from utils.registration.solver.problem import LatticeShape, SavedSteps, build_problem, from_fields, initial_state, residuals, to_fields
from utils.reporting import number_ranges
from utils.runtime import cpu_count
from utils.types import NULL_REPORTER, Array, CameraSet, LatticeFields, Reporter, Scene, StepReport


class Extras(NamedTuple):
    """Steps of the last round only, see the settings of these names."""

    gauge_lattice: tuple[int, int, int] | None
    color_drift: bool


def align_jointly(
    scene: Scene,
    start: Registration,
    usable: Array,
    config: GlobalOptimizationConfig,
    report: Reporter = NULL_REPORTER,
    matcher: Matcher | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    clips: Array | None = None,
) -> Registration:
    """Poses and fields of all frames that minimise the distance of all matches at once.

    The displacement is measured from the scene's own poses, whatever `start` is: `start` only predicts the matches and their first weights.

    Args:
        scene: the frames with their poses before any alignment.
        start: result of an earlier alignment.
        usable: (F, H, W) bool, pixels that may be matched.
        config: of stage 2.
        report: progress.
        matcher: replaces the one named in the config.
        checkpoints: parts that an interrupted run finished.
        clips: (F,) clip that each frame is from: frames of different clips are no neighbours in time. None: all are of one.

    Raises:
        NoOverlapError: no pair of frames has matches.
    """
    if config.matching.matcher == "none" and matcher is None:
        return start
    current, frames = start, np.arange(len(scene))
    clips = np.zeros(len(scene), int) if clips is None else clips
    for index, solver in enumerate((config.coarse, config.fine)[: config.rounds]):
        done = checkpoints.load(f"round_{index}")
        if done is None:
            last = index == config.rounds - 1
            extras = Extras(config.gauge_lattice if config.mean_gauge != "off" and last else None, config.color_drift and last)
            current = _round(scene, current, frames, usable, config.matching, solver, report, matcher, index, checkpoints, extras, clips)
            checkpoints.save(f"round_{index}", to_arrays(current))
        else:
            current = from_arrays(current, done)
        parts = supported_parts(current.diagnostics, config.min_fitness)
        if not parts:
            report.note("warning: no frames support each other; they stay as geometry gave them, without displacement")
            return replace(start, cameras=scene.cameras, fields=still(current.fields), aligned=np.ones(len(scene), bool))
        supported = np.sort(np.concatenate(parts))
        dropped, frames = np.setdiff1d(frames, supported), supported
        names = [number_ranges([int(scene.cameras.frame_ids[f]) for f in part]) for part in (dropped, *parts)]
        if len(dropped):
            report.note(f"left out, their matches do not agree with the other frames: {names[0]}")
        if len(parts) > 1:
            report.note(
                f"the frames fall into {len(parts)} parts that no matches connect, each is aligned in itself where the cameras of stage 0"
                f" put it: {'; '.join(names[1:])}"
            )
    aligned = np.isin(np.arange(len(scene)), frames)
    current = replace(current, fields=carried(current.fields, current.cameras, aligned, clips))
    ids = scene.cameras.frame_ids
    words = contradiction_words([(int(ids[p.source]), int(ids[p.target])) for p in current.diagnostics.contradictions()])
    if words:
        report.note(f"warning: {words}")
    return replace(current, aligned=aligned)


def _round(
    scene: Scene,
    current: Registration,
    frames: Array,
    usable: Array,
    matching: MatchingConfig,
    config: SolverConfig,
    report: Reporter,
    matcher: Matcher | None,
    index: int,
    checkpoints: Checkpoints,
    extras: Extras,
    clips: Array,
) -> Registration:
    """One matching pass and one solve over the frames of these indices."""
    clock = [time.perf_counter()]
    geometry = AlignedGeometry(scene, current.cameras, current.fields)
    pairs = choose_pairs(overlaps(geometry, frames), frames, matching, clips)
    grid = match_grid(scene, len(pairs), matching)
    matcher = matcher or MATCHERS.load(matching.matcher)(scene, usable, grid, matching)
    matcher = keeping_matches(matcher, checkpoints, f"matches_{index}")
    prepare_pairs(matcher, pairs, report)
    stage = f"joint round {index + 1}"
    matches = match_pairs(matcher, pairs, geometry, lambda n: report.step(StepReport(stage, n - 1, len(pairs))))
    samples = scene.cameras.size[0] * scene.cameras.size[1] / grid**2
    matches = supported_matches(matches, samples)
    if not matches:
        raise NoOverlapError("no two frames show the same surface", "check poses and depth of stage 0, or use fewer, closer frames")
    clock.append(time.perf_counter())
    shape = LatticeShape(config.lattice, current.fields.inv_depth_range, scene.median_depth, time_links(scene.cameras.frame_ids, clips))
    trust = match_trust(scene, matches, config.confidence_power)
    noise = measure_noise(matches, scene.cameras, config.match_sigma)
    problem = build_problem(matches, scene.cameras, shape, config.match_sigma, trust=trust, noise=noise)
    state = initial_state(scene.cameras, shape)
    before = errors_by_pair(problem, state, shape, matches)
    first = _current_distances(geometry, matches)
    evidence = SavedSteps(checkpoints, f"evidence_{index}")
    config = held_or_free(matches, scene, shape.inv_depth, config, samples, first, report, evidence, noise)
    state = solve(problem, state, shape, config, samples, first, SavedSteps(checkpoints, f"solve_{index}"))
    if extras.gauge_lattice and math.isinf(config.pose_ridge):  # where poses were wrong, the given geometry is no reference for the gauge
        solved = AlignedGeometry(scene, replace(scene.cameras, c2w=state.c2w), to_fields(state, shape))
        matched = np.intersect1d(
            frames, [frame for m in matches for frame in (m.source, m.target)]
        )  # without matches a frame votes for its given place
        common = common_displacement(solved, usable, matched, extras.gauge_lattice, clips)
        first, _ = residuals(problem, state, shape)
        # The common displacement is known to a fraction of a pixel only: one more solve, held near it, makes the frames consistent again.
        state = replace(state, nodes=state.nodes - from_fields(common, solved.cameras, shape))
        strict = replace(config, robust_scales=config.robust_scales[-1:])
        state = solve(problem, state, shape, strict, samples, first, SavedSteps(checkpoints, f"gauge_{index}"), state.nodes)
    after, sigmas = errors_by_pair(problem, state, shape, matches), sigmas_by_pair(problem, state, shape, matches)
    clock.append(time.perf_counter())
    seconds = {"matching": clock[1] - clock[0], "solving": clock[2] - clock[1]}
    seconds = {f"{name} {index + 1}": value for name, value in seconds.items()}
    diagnostics = diagnose(len(scene), matches, before, after, sigmas, current.diagnostics.seconds | seconds)
    cameras = replace(scene.cameras, c2w=state.c2w)
    colors = estimate_color_maps(scene.images, matches, sigmas, AGREEING_SIGMAS) if extras.color_drift else None
    return Registration(cameras, to_fields(state, shape), current.aligned, diagnostics, colors)


def time_links(frame_ids: Array, clips: Array) -> Array:
    """(F - 1,) how strongly fields of consecutive frames are held together: the inverse of the step between them, in usual steps.

    Zero between the last frame of one clip and the first of the next.
    """
    steps = np.diff(frame_ids).astype(float)
    if not len(steps):
        return steps
    return np.where(np.diff(clips) == 0, np.median(steps) / np.maximum(steps, 1e-9), 0.0)


def still(fields: LatticeFields) -> LatticeFields:
    """Fields without displacement on the same lattices."""
    return replace(fields, nodes=np.zeros_like(fields.nodes))


def carried(fields: LatticeFields, cameras: CameraSet, aligned: Array, clips: Array) -> LatticeFields:
    """The fields, with those of unaligned frames interpolated from their aligned neighbours in time, see `blended_fields`.

    No match supports a field of their own. In a clip without an aligned frame they are zero.
    """
    rows, others = np.flatnonzero(aligned), np.flatnonzero(~aligned)
    if not len(rows) or not len(others):
        return fields
    ids = cameras.frame_ids
    around = neighbours_in_time(ids[rows], ids[others], clips[rows], clips[others])
    known = LatticeFields(nodes=fields.nodes[rows], inv_depth_range=fields.inv_depth_range[rows])
    blended = blended_fields(known, cameras.select(rows), around, cameras.select(others))
    nodes, bounds = fields.nodes.copy(), fields.inv_depth_range.copy()
    nodes[others], bounds[others] = blended.nodes, blended.inv_depth_range
    return LatticeFields(nodes=nodes, inv_depth_range=bounds)


def _current_distances(geometry: AlignedGeometry, matches: list[MatchSet]) -> Array:
    """(M, 3) float32 distance of matched points under `geometry`, world axes; frame by frame, since pairs are many and small."""
    column = lambda *names: np.concatenate([getattr(m, name) for name in names for m in matches])  # noqa: E731
    pixels, depth = column("source_px", "target_px"), column("source_depth", "target_depth")
    frame = np.repeat([*(m.source for m in matches), *(m.target for m in matches)], 2 * [len(m) for m in matches])
    rows = np.argsort(frame, kind="stable")
    present, starts = np.unique(frame[rows], return_index=True)
    placed = np.empty((len(frame), 3), np.float32)

    def place(own: Array) -> None:
        placed[own] = geometry.lift(int(frame[own[0]]), pixels[own], depth[own])

    with ThreadPoolExecutor(min(cpu_count(), len(present))) as pool:
        list(pool.map(place, np.split(rows, starts[1:])))
    source, target = np.split(placed, 2)
    return source - target
