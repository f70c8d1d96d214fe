"""Frame-to-model registration: each frame in turn against the frames before it, which no longer move."""

import time
from dataclasses import dataclass, field, replace

import numpy as np

from configs.stage1_align import FrameToModelICPConfig, SolverConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.lattice.numba import zero_fields
from utils.matching.contract import MATCHERS, Matcher, MatchSet, match_grid, match_pairs, prepare_pairs
from utils.matching.pairs import choose_pairs, overlaps
from utils.matching.support import match_trust, supported_matches
from utils.registration.depth_noise import DepthNoise, measure_noise
from utils.registration.pose_evidence import held_or_free
from utils.registration.result import Diagnostics, Registration, connected_parts, diagnose, inlier_share
from utils.registration.resume import NO_CHECKPOINTS, Checkpoints, keeping_matches
from utils.registration.solver import solve
from utils.registration.solver.problem import (
    LatticeShape,
    SavedSteps,
    build_problem,
    errors_in_sigmas,
    initial_state,
    relative_errors,
    to_fields,
)
from utils.reporting import number_ranges
from utils.types import NULL_REPORTER, Array, CameraSet, Reporter, Scene, StepReport

BLOCK = 8
"""Frames that are registered together: they support each other where nothing before them does, so that a gap does not end the chain."""


def align_sequential(
    scene: Scene,
    usable: Array,
    config: FrameToModelICPConfig,
    report: Reporter = NULL_REPORTER,
    matcher: Matcher | None = None,
    checkpoints: Checkpoints = NO_CHECKPOINTS,
    clips: Array | None = None,
) -> Registration:
    """Poses and fields of all frames, each registered to the aligned ones before it, from the first of those that matches connect.

    Args:
        scene: the frames, in temporal order.
        usable: (F, H, W) bool, pixels that may be matched.
        config: of stage 1.
        report: progress.
        matcher: replaces the one named in the config (tests, exact matches).
        checkpoints: parts that an interrupted run finished.
        clips: (F,) clip that each frame is from. None: all are of one.
    """
    if config.matching.matcher == "none" and matcher is None:
        return unaligned(scene)
    frames, start = len(scene), time.perf_counter()
    cameras = replace(scene.cameras, c2w=scene.cameras.c2w.copy())
    fields = zero_fields(scene.depth, scene.valid, config.solver.lattice)
    all_matches, samples = _matched(AlignedGeometry(scene, cameras, fields), usable, config, matcher, checkpoints, report, clips)
    seconds = {"matching": time.perf_counter() - start, "solving": 0.0}
    start = time.perf_counter()
    supported, saved = supported_matches(all_matches, samples), SavedSteps(checkpoints, "evidence")
    # The frame that all others follow: usually the first, but not one that shares nothing with them.
    aligned = np.arange(frames) == connected_parts(frames, [(m.source, m.target) for m in supported])[0][0]
    noise = measure_noise(supported, scene.cameras, config.solver.match_sigma)
    solver = held_or_free(supported, scene, fields.inv_depth_range, config.solver, samples, None, report, saved, noise)
    if not aligned[0]:
        report.note(f"frame {int(cameras.frame_ids[0])} shares too little with the others and is left out for now")
    residuals = _Residuals()
    for block in _blocks(frames):
        reachable = aligned.copy()
        reachable[block] = True
        matches = supported_matches([m for m in all_matches if m.source in block and reachable[m.target]], samples)
        if matches:
            name = f"frame_{block[0]}" if len(block) == 1 else f"frames_{block[0]}_{block[-1]}"
            solved = checkpoints.load(name)
            if solved is None:
                solved = _register(block, matches, AlignedGeometry(scene, cameras, fields), solver, samples, scene.median_depth, noise)
                checkpoints.save(name, solved)
            sigmas = residuals.add(matches, solved)
            for position, frame in enumerate(block):
                own = [errors for m, errors in zip(matches, sigmas, strict=True) if m.source == frame]
                if own and inlier_share(np.concatenate(own)) >= config.min_fitness:
                    aligned[frame] = True
                    cameras.c2w[frame], fields.nodes[frame] = solved["c2w"][position], solved["nodes"][position]
        for frame in block:
            values = {"matches": float(sum(len(m) for m in matches if m.source == frame))}
            report.step(StepReport("frame to model", frame - 1, frames - 1, values))
    seconds["solving"] = time.perf_counter() - start
    _note_left_out(cameras.frame_ids[1:][~aligned[1:]].tolist(), report)
    diagnostics = diagnose(frames, residuals.matches, residuals.before, residuals.after, residuals.sigmas, seconds)
    return Registration(cameras, fields, aligned, diagnostics)


@dataclass
class _Residuals:
    """Matches that frames were registered by, and the errors of each one's points, (M,) arrays in the same order.

    Attributes:
        matches: of pairs of frames.
        before: distance before registration, in depths.
        after: distance after it, in depths.
        sigmas: distance after it, in standard deviations.
    """

    matches: list[MatchSet] = field(default_factory=list)
    before: list[Array] = field(default_factory=list)
    after: list[Array] = field(default_factory=list)
    sigmas: list[Array] = field(default_factory=list)

    def add(self, matches: list[MatchSet], solved: dict[str, Array]) -> list[Array]:
        """Takes up the matches and result of one `_register`; returns their errors in standard deviations."""
        ends = np.cumsum([len(m) for m in matches])[:-1]
        sigmas = np.split(solved["sigmas"], ends)
        self.matches += matches
        self.before += np.split(solved["before"], ends)
        self.after += np.split(solved["after"], ends)
        self.sigmas += sigmas
        return sigmas


def _matched(
    geometry: AlignedGeometry,
    usable: Array,
    config: FrameToModelICPConfig,
    matcher: Matcher | None,
    checkpoints: Checkpoints,
    report: Reporter,
    clips: Array | None,
) -> tuple[list[MatchSet], float]:
    """Matches of each frame with frames before it, and the number of samples per pair.

    All start from the geometry before alignment, so that no pair waits for a frame to be aligned; flow finds what drift leaves.
    """
    scene, ids = geometry.scene, np.arange(len(geometry.scene))
    pairs = choose_pairs(overlaps(geometry, ids), ids, config.matching, clips)
    grid = match_grid(scene, len(pairs), config.matching)
    matcher = matcher or MATCHERS.load(config.matching.matcher)(scene, usable, grid, config.matching)
    matcher = keeping_matches(matcher, checkpoints, "matches")
    prepare_pairs(matcher, pairs, report)
    on_pair = lambda done: report.step(StepReport("matching", done - 1, len(pairs)))  # noqa: E731
    matches = match_pairs(matcher, [(j, i) for i, j in pairs], geometry, on_pair)
    return matches, scene.cameras.size[0] * scene.cameras.size[1] / grid**2


def _note_left_out(frame_ids: list[int], report: Reporter) -> None:
    if frame_ids:
        words = f"frame {frame_ids[0]} does" if len(frame_ids) == 1 else f"frames {number_ranges(frame_ids)} do"
        report.note(f"{words} not fit the frames before, left out for now; the joint alignment tries again")


def unaligned(scene: Scene) -> Registration:
    """Poses as they came and no displacement."""
    fields = zero_fields(scene.depth, scene.valid, (2, 2, 2))
    none = np.full(len(scene), np.nan)
    return Registration(scene.cameras, fields, np.ones(len(scene), bool), Diagnostics(np.zeros(len(scene), int), none, none, none))


def _blocks(frames: int) -> list[list[int]]:
    """The frames after the first, in the groups they are registered in."""
    count = -(-(frames - 1) // BLOCK)
    return [block.tolist() for block in np.array_split(np.arange(1, frames), count)] if count else []  # alike in size: none of one frame


def _register(
    block: list[int],
    matches: list[MatchSet],
    geometry: AlignedGeometry,
    config: SolverConfig,
    samples: float,
    unit: float,
    noise: DepthNoise,
) -> dict[str, Array]:
    """Registers frames that move against all others, which do not.

    Returns:
        c2w (B, 4, 4), nodes (B, nz, nv, nu, 3), errors (M,) of all matches before and after in depths, and after in standard deviations.
    """
    cameras: CameraSet = geometry.cameras.select(block)
    shape = LatticeShape(config.lattice, geometry.fields.inv_depth_range[block], unit)
    place = {frame: position for position, frame in enumerate(block)}
    targets = [None if m.target in place else geometry.lift(m.target, m.target_px, m.target_depth) for m in matches]
    own = [replace(m, source=place[m.source], target=place.get(m.target, -1)) for m in matches]
    trust = match_trust(geometry.scene, matches, config.confidence_power)
    problem = build_problem(own, cameras, shape, config.match_sigma, targets, trust, noise)
    start = initial_state(cameras, shape)
    state = solve(problem, start, shape, config, samples)
    before, after = (relative_errors(problem, s, shape) for s in (start, state))
    sigmas = errors_in_sigmas(problem, state, shape)
    return {"c2w": state.c2w, "nodes": to_fields(state, shape).nodes, "before": before, "after": after, "sigmas": sigmas}
