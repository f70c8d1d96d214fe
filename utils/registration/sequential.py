"""Frame-to-model registration: each frame in turn against the frames before it, which no longer move."""

import time
from dataclasses import replace

import numpy as np

from configs.stage1_align import FrameToModelICPConfig
from utils.registration.geometry import AlignedGeometry
from utils.registration.lattice import zero_fields
from utils.registration.matching import MATCHERS, Matcher, MatchSet, match_grid, match_pairs, prepare_pairs, supported_matches
from utils.registration.pairs import choose_pairs, overlaps
from utils.registration.result import AGREEING_SIGMAS, Diagnostics, Registration, diagnose
from utils.registration.resume import NO_CHECKPOINTS, Checkpoints, keeping_matches
from utils.registration.solver import LatticeShape, build_problem, initial_state, relative_errors, solve, to_fields
from utils.types import NULL_REPORTER, Array, CameraSet, LatticeFields, Reporter, Scene, StepReport


def align_sequential(
    scene: Scene,
    usable: Array,
    config: FrameToModelICPConfig,
    report: Reporter = NULL_REPORTER,
    matcher: Matcher | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
) -> Registration:
    """Poses and fields of all frames, each registered to the aligned ones before it.

    Args:
        scene: the frames, in temporal order.
        usable: (F, H, W) bool, pixels that may be matched.
        config: of stage 1.
        report: progress.
        matcher: replaces the one named in the config (tests, exact matches).
        checkpoints: parts that an interrupted run finished.
    """
    if config.matching.matcher == "none" and matcher is None:
        return unaligned(scene)
    cameras = replace(scene.cameras, c2w=scene.cameras.c2w.copy())
    fields = zero_fields(scene.depth, scene.valid, config.solver.lattice)
    frames = len(scene)
    pairs = choose_pairs(overlaps(AlignedGeometry(scene, cameras, fields), np.arange(frames)), np.arange(frames), config.matching)
    grid = match_grid(scene, len(pairs), config.matching)
    matcher = matcher or MATCHERS.load(config.matching.matcher)(scene, usable, grid, config.matching)
    matcher = keeping_matches(matcher, checkpoints, "matches")
    prepare_pairs(matcher, pairs, report)
    samples = scene.cameras.size[0] * scene.cameras.size[1] / grid**2
    aligned = np.zeros(frames, bool)
    aligned[0] = True
    used: list[MatchSet] = []
    before: list[Array] = []
    after: list[Array] = []
    start = time.perf_counter()
    geometry = AlignedGeometry(scene, cameras, fields)
    # From the geometry as it came, so that no pair waits for a frame to be aligned; flow finds what drift leaves.
    on_pair = lambda done: report.step(StepReport("matching", done - 1, len(pairs)))  # noqa: E731
    found = match_pairs(matcher, [(j, i) for i, j in pairs], geometry, on_pair)
    seconds = {"matching": time.perf_counter() - start, "solving": 0.0}
    unit = scene.median_depth
    for frame in range(1, frames):
        geometry = AlignedGeometry(scene, cameras, fields)
        start = time.perf_counter()
        matches = supported_matches([m for m in found if m.source == frame and aligned[m.target]], samples)
        if matches:
            done = checkpoints.load(f"frame_{frame}")
            if done is None:
                done = _register(frame, matches, geometry, config, samples, unit)
                checkpoints.save(f"frame_{frame}", done)
            ends = np.cumsum([len(m) for m in matches])[:-1]
            agreeing = np.mean(done["after"] < AGREEING_SIGMAS * config.solver.match_sigma)
            if agreeing >= config.min_fitness:
                aligned[frame] = True
                cameras.c2w[frame] = done["c2w"]
                fields.nodes[frame] = done["nodes"]
            used += matches
            before += np.split(done["before"], ends)
            after += np.split(done["after"], ends)
        seconds["solving"] += time.perf_counter() - start
        if not aligned[frame]:
            report.note(f"frame {int(cameras.frame_ids[frame])} does not fit the frames before it and is left out for now")
        values = {"matches": float(sum(len(m) for m in matches))}
        report.step(StepReport("frame to model", frame - 1, frames - 1, values))
    diagnostics = diagnose(frames, used, before, after, config.solver.match_sigma, seconds)
    return Registration(cameras, fields, aligned, diagnostics)


def unaligned(scene: Scene) -> Registration:
    """Poses as they came and no displacement."""
    fields = zero_fields(scene.depth, scene.valid, (2, 2, 2))
    none = np.full(len(scene), np.nan)
    return Registration(scene.cameras, fields, np.ones(len(scene), bool), Diagnostics(np.zeros(len(scene), int), none, none, none))


def _register(
    frame: int, matches: list[MatchSet], geometry: AlignedGeometry, config: FrameToModelICPConfig, samples: float, unit: float
) -> dict[str, Array]:
    """c2w (4, 4), nodes (nz, nv, nu, 3), and errors (M,) of all matches before and after, of one frame against fixed ones."""
    camera: CameraSet = geometry.cameras.select([frame])
    bounds = geometry.fields.inv_depth_range[[frame]]
    shape = LatticeShape(config.solver.lattice, bounds, unit)
    targets = [geometry.lift(m.target, m.target_px, m.target_depth) for m in matches]
    own = [replace(match, source=0) for match in matches]
    problem = build_problem(own, camera, shape, config.solver.match_sigma, targets)
    start = initial_state(camera, shape)
    state = solve(problem, start, shape, config.solver, samples)
    fields: LatticeFields = to_fields(state, shape)
    before, after = (relative_errors(problem, s, shape) for s in (start, state))
    return {"c2w": state.c2w[0], "nodes": fields.nodes[0], "before": before, "after": after}
