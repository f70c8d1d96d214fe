"""What `benchmarks.alignment` compares: ways to align the predicted geometry of a synthetic world, by name.

A variant gets a `Task` and returns an `Outcome`. Another one is added with an entry in `VARIANTS`. Ablations are `ours` with one thing
changed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.alignment.metrics import true_partners
from benchmarks.alignment.open3d import align_open3d
from configs.icp import FieldName
from configs.stage1_align import FrameToModelICPConfig, MatchingConfig, SolverConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.matching.checks import select_matches
from utils.matching.contract import match_grid
from utils.matching.flow.dis import FlowMatcher
from utils.matching.pairs import choose_pairs, overlaps
from utils.published import align_frame_to_model, align_leave_one_out, refine_matched
from utils.registration import AlignedGeometry, Matcher, MatchSet, Registration, align_jointly, align_sequential, forward_points
from utils.registration.sequential import unaligned
from utils.synthetic import SyntheticWorld
from utils.types import Array, CameraSet, Scene

_WEAKER = 0.01  # factor of a regulariser in the ablations without it; zero would leave the solve singular
_NOT_ROBUST = 1e3  # sigmas: a Geman-McClure scale at which every match counts in full
_RIGID = 0.03  # prior of poses that have to explain everything
_HALF_FREE = 3.0  # prior at which poses and fields share what a frame shows wrongly
_PROJECTIVE_ROUNDS = 3  # solves, each with new partners, as ICP does
_PROJECTIVE_TOLERANCE = 0.05  # relative depth difference up to which a projected pixel is a partner


@dataclass(frozen=True)
class Task:
    """What a variant may use.

    Attributes:
        world: the truth; only the `exact` and `oracle` variants look at it.
        scene: predicted geometry.
        usable: (F, H, W) bool, pixels that may be matched; the same ones are measured.
        stage1: settings of stage 1.
        stage2: settings of stage 2.
    """

    world: SyntheticWorld
    scene: Scene
    usable: Array
    stage1: FrameToModelICPConfig
    stage2: GlobalOptimizationConfig


@dataclass(frozen=True)
class Outcome:
    """What a variant made.

    Attributes:
        points: (F, H, W, 3) canonical position of every pixel.
        cameras: the poses, None if the variant has none.
        left_out: frames that it could not align; they are measured where they came.
        seconds: wall time by part.
        registration: for those who want more than points, None if there is none.
    """

    points: Array
    cameras: CameraSet | None
    left_out: int = 0
    seconds: dict[str, float] | None = None
    registration: Registration | None = None


def grid_of(task: Task, matching: MatchingConfig) -> int:
    """The pixel step the stages match at, so that a matcher of our own is weighted like theirs."""
    start = unaligned(task.scene)
    frames = np.arange(len(task.scene))
    pairs = choose_pairs(overlaps(AlignedGeometry(task.scene, start.cameras, start.fields), frames), frames, matching)
    return match_grid(task.scene, len(pairs), matching)


class ExactMatcher:
    """Matches from the truth, where both pixels are usable: what a perfect matcher would find."""

    def __init__(self, task: Task, matching: MatchingConfig):
        self._task = task
        self._grid = grid_of(task, matching)

    def match(self, source: int, target: int, geometry: AlignedGeometry) -> MatchSet:
        """Matches of a grid of source pixels, whose phase changes from pair to pair."""
        task, grid = self._task, self._grid
        chosen = np.zeros(task.usable.shape[1:], bool)
        chosen[(source * 7 + target * 3) % grid :: grid, (source * 5 + target * 2) % grid :: grid] = True
        pixel, place, corner = true_partners(
            task.world, source, target, np.argwhere(chosen & task.usable[source] & task.world.valid[source])
        )
        usable, depth = task.usable[target], task.scene.depth[target]
        right, down = place[:, 0] - 0.5 - corner[:, 1], place[:, 1] - 0.5 - corner[:, 0]
        keep, there = np.ones(len(pixel), bool), np.zeros(len(pixel))
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            rows, columns = corner[:, 0] + i, corner[:, 1] + j
            keep &= usable[rows, columns]
            there += (down if i else 1 - down) * (right if j else 1 - right) * depth[rows, columns]
        here = task.scene.depth[source][pixel[:, 0], pixel[:, 1]]
        columns = (pixel[:, ::-1] + 0.5, place, here, there)
        return MatchSet(source, target, *(column[keep].astype(np.float32) for column in columns))


class ProjectiveMatcher:
    """Partners by projection alone: the pixel on which a point falls is taken for the one that shows it, if their depths agree."""

    def __init__(self, task: Task, matching: MatchingConfig):
        self._task = task
        self._grid = grid_of(task, matching)

    def match(self, source: int, target: int, geometry: AlignedGeometry) -> MatchSet:
        """Partners of a grid of source pixels that lead back to where they came from."""
        scene, usable = self._task.scene, self._task.usable
        size = scene.cameras.size
        there, back = np.empty((*size, 2), np.float32), np.empty((*size, 2), np.float32)
        geometry.predict(source, target, there)
        geometry.predict(target, source, back)
        none = np.zeros_like(there)
        depth = [np.where(scene.valid[f], scene.depth[f], 0).astype(np.float32) for f in (source, target)]
        phase = (source * 7 + target * 3) % self._grid, (source * 5 + target * 2) % self._grid
        rows = select_matches(there, none, back, none, usable[source], usable[target], *depth, self._grid, phase, 1.0)
        first, second = geometry.lift(source, rows[:, 0:2], rows[:, 4]), geometry.lift(target, rows[:, 2:4], rows[:, 5])
        rows = rows[np.linalg.norm(first - second, axis=1) < _PROJECTIVE_TOLERANCE * rows[:, 4]]
        return MatchSet(source, target, rows[:, 0:2], rows[:, 2:4], rows[:, 4], rows[:, 5])


class PlainFlowMatcher(FlowMatcher):
    """Optical flow from image to image, without a start from the geometry."""

    def _predicted_flow(self, source: int, target: int, geometry: AlignedGeometry, predicted: Array, warped: Array) -> Array:
        height, width = self._gray[source].shape
        predicted[..., 0], predicted[..., 1] = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        warped[:] = self._gray[target]
        flow: Array = self._flow().calc(self._gray[source], warped, None)  # type: ignore[call-overload]
        return flow


MatcherFactory = Callable[[Task, MatchingConfig], Matcher]


def plain_flow(task: Task, matching: MatchingConfig) -> Matcher:
    """The matcher of the ablation without a start from the geometry."""
    return PlainFlowMatcher(task.scene, task.usable, grid_of(task, matching), matching)


def aligned_outcome(scene: Scene, result: Registration, seconds: dict[str, float]) -> Outcome:
    """The outcome of poses and fields."""
    points = forward_points(scene, result.cameras, result.fields)
    return Outcome(points, result.cameras, int((~result.aligned).sum()), seconds, result)


def input_geometry(task: Task) -> Outcome:
    """Nothing is aligned."""
    return aligned_outcome(task.scene, unaligned(task.scene), {})


def oracle(task: Task) -> Outcome:
    """The true displacement and drifts undone; depth noise is left."""
    return Outcome(task.world.oracle_points(), None)


def both_stages(task: Task, matcher: MatcherFactory | None = None) -> Outcome:
    """Stages 1 and 2 without the disk, with another matcher if one is given."""
    clock = [time.perf_counter()]
    own = [None if matcher is None else matcher(task, stage.matching) for stage in (task.stage1, task.stage2)]
    first = align_sequential(task.scene, task.usable, task.stage1, matcher=own[0])
    clock.append(time.perf_counter())
    second = align_jointly(task.scene, first, task.usable, task.stage2, matcher=own[1])
    clock.append(time.perf_counter())
    parts = {"stage 1": clock[1] - clock[0], "stage 2": clock[2] - clock[1], **second.diagnostics.seconds}
    return aligned_outcome(task.scene, second, parts)


def stage1_only(task: Task) -> Outcome:
    """Stage 1 alone."""
    start = time.perf_counter()
    result = align_sequential(task.scene, task.usable, task.stage1)
    return aligned_outcome(task.scene, result, {"stage 1": time.perf_counter() - start})


def stage2_only(task: Task) -> Outcome:
    """Stage 2 from the geometry as it came."""
    start = time.perf_counter()
    result = align_jointly(task.scene, unaligned(task.scene), task.usable, task.stage2)
    return aligned_outcome(task.scene, result, {"stage 2": time.perf_counter() - start})


def projective(task: Task) -> Outcome:
    """The joint solve on partners by projection: what geometry without any image gives (projective ICP with the same fields)."""
    start = time.perf_counter()
    stage2 = replace(task.stage2, coarse=task.stage2.fine, rounds=1)
    matcher = ProjectiveMatcher(task, stage2.matching)
    result = unaligned(task.scene)
    for _ in range(_PROJECTIVE_ROUNDS):
        result = align_jointly(task.scene, result, task.usable, stage2, matcher=matcher)
    return aligned_outcome(task.scene, result, {"stage 2": time.perf_counter() - start})


def parity(task: Task, field: FieldName = "auto", stages: int = 2, **icp: Any) -> Outcome:
    """The published method's terms, order and schedule, with the stages' matcher for its image matches; `icp` are changes."""
    stage1 = replace(task.stage1, method="parity", field=field, icp=replace(task.stage1.icp, **icp))
    stage2 = replace(task.stage2, method="parity", field=field)
    clock = [time.perf_counter()]
    result, kept = align_frame_to_model(task.scene, task.usable, stage1)
    clock.append(time.perf_counter())
    if stages > 1:
        result = align_leave_one_out(task.scene, result, task.usable, kept, stage2)
    clock.append(time.perf_counter())
    return aligned_outcome(task.scene, result, {"stage 1": clock[1] - clock[0], "stage 2": clock[2] - clock[1]})


def hashgrid(task: Task) -> Outcome:
    """`ours` with a hash grid per frame on top of the lattices, fitted to the same kind of matches."""
    start = both_stages(task)
    assert start.registration is not None
    result = refine_matched(task.scene, start.registration, task.usable, replace(task.stage2, field="hashgrid"))
    return aligned_outcome(task.scene, result, (start.seconds or {}) | result.diagnostics.seconds)


def open3d(task: Task) -> Outcome:
    """Coloured ICP between neighbours and over gaps, then a pose graph; see `benchmarks.alignment.open3d`."""
    start = time.perf_counter()
    cameras = align_open3d(task.scene, task.usable, task.stage2.matching.gaps)
    result = replace(unaligned(task.scene), cameras=cameras)
    return aligned_outcome(task.scene, result, {"pose graph": time.perf_counter() - start})


def changed(
    matching: Callable[[MatchingConfig], MatchingConfig] | None = None,
    solver: Callable[[SolverConfig], SolverConfig] | None = None,
    stage2: Callable[[GlobalOptimizationConfig], GlobalOptimizationConfig] | None = None,
    matcher: MatcherFactory | None = None,
) -> "Variant":
    """`ours` with all its matching settings, all its solvers, stage 2 or the matcher changed."""

    def variant(task: Task) -> Outcome:
        first, second = task.stage1, task.stage2
        if matching:
            first, second = (
                replace(first, matching=matching(first.matching)),
                replace(second, matching=matching(second.matching)),
            )
        if solver:
            first = replace(first, solver=solver(first.solver))
            second = replace(second, coarse=solver(second.coarse), fine=solver(second.fine))
        if stage2:
            second = stage2(second)
        return both_stages(replace(task, stage1=first, stage2=second), matcher)

    return variant


def _times(factor: float, name: str) -> Callable[[SolverConfig], SolverConfig]:
    """Multiplies a weight of a solver."""
    return lambda config: replace(config, **{name: factor * getattr(config, name)})


def _coarser(config: SolverConfig) -> SolverConfig:
    """Half the nodes along every axis."""
    nu, nv, nz = config.lattice
    return replace(config, lattice=(max(nu // 2, 2), max(nv // 2, 2), max(nz // 2, 2)))


def _flat(config: SolverConfig) -> SolverConfig:
    """The least depth axis: one layer of nodes near, one far."""
    return replace(config, lattice=(*config.lattice[:2], 2))


Variant = Callable[[Task], Outcome]

ABLATIONS: dict[str, Variant] = {
    "stage1-only": stage1_only,
    "stage2-only": stage2_only,
    "one-round": changed(stage2=lambda c: replace(c, coarse=c.fine, rounds=1)),
    "neighbours-only": changed(matching=lambda c: replace(c, gaps=(1,), revisits_per_frame=0)),
    "no-long-gaps": changed(matching=lambda c: replace(c, gaps=(1, 2, 4), revisits_per_frame=0)),
    "fewer-matches": changed(matching=lambda c: replace(c, matches_per_frame=c.matches_per_frame // 8)),
    "no-geometry-init": changed(matcher=plain_flow),
    "no-patch-test": changed(matching=lambda c: replace(c, min_correlation=-1.0)),
    "no-cycle-test": changed(matching=lambda c: replace(c, max_cycle_error_px=1e6)),
    "coarse-lattice": changed(solver=_coarser),
    "two-depth-layers": changed(solver=_flat),
    "stiff-lattice": changed(solver=_times(30.0, "smoothness")),
    "soft-lattice": changed(solver=_times(_WEAKER, "smoothness")),
    "no-robust": changed(solver=lambda c: replace(c, robust_scales=(_NOT_ROBUST,) * len(c.robust_scales))),
    "one-reweighting": changed(solver=lambda c: replace(c, robust_scales=c.robust_scales[:1])),
    "no-ridge": changed(solver=_times(_WEAKER, "ridge")),
    "confidence": changed(solver=lambda c: replace(c, confidence_power=1.0)),
    "confidence-squared": changed(solver=lambda c: replace(c, confidence_power=2.0)),
    "free-poses": changed(solver=lambda c: replace(c, pose_evidence=0.0)),
    "half-free-poses": changed(solver=lambda c: replace(c, pose_evidence=0.0, pose_ridge=_HALF_FREE)),
}

VARIANTS: dict[str, Variant] = {
    "input": input_geometry,
    # Without fields to share the work with, poses need no prior that holds them.
    "rigid": changed(solver=lambda c: replace(c, rigid_only=True, pose_ridge=_RIGID)),
    "open3d": open3d,
    "none": projective,
    "ours": both_stages,
    "hashgrid": hashgrid,
    "parity": parity,
    "parity-stage1": partial(parity, stages=1),
    "parity-lattice": partial(parity, field="lattice"),
    "parity-no-matches": partial(parity, match_weight=0.0),
    "parity-anneal": partial(parity, start_corr_dist=0.1),
    "parity-robust": partial(parity, robust_scale=0.01),
    "parity-normals": partial(parity, min_normal_cos=0.7),
    "parity-confidence": partial(parity, confidence_weights=True),
    "parity-plus": partial(parity, start_corr_dist=0.1, robust_scale=0.01, min_normal_cos=0.7, confidence_weights=True),
    "exact": partial(both_stages, matcher=ExactMatcher),
    "oracle": oracle,
    **ABLATIONS,
}
COMPARED = ("input", "rigid", "open3d", "none", "parity", "ours", "exact", "oracle")
