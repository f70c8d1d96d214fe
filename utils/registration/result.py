"""Result of an alignment: poses and fields, which frames are aligned, residuals by frame and pair, inlier share, time by part."""

from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from utils.matching.contract import MatchSet
from utils.registration.solver.problem import LatticeShape, Problem, State, errors_in_sigmas, relative_errors
from utils.types import Alignment, Array, CameraSet, CanonicalCloud, LatticeFields, Scene

AGREEING_SIGMAS = 3.0  # matches closer than this many standard deviations count as inliers
_CONTRADICTION_FACTOR = 4.0  # a long-range pair this many times worse than the median pair contradicts
_LONG_RANGE = 8  # frames
LEAST_PART = 3  # frames that must support each other; fewer are left out
_AGREEMENT = 0.5  # share of a pair's matches that agree; with more the pair does not contradict, however well all others do


@dataclass(frozen=True)
class PairDiagnostics:
    """One matched pair of frame indices.

    Attributes:
        source: frame index.
        target: frame index.
        matches: their number.
        before: median distance of matched points before the solve, in depths.
        after: the same after it.
        fitness: share of the matches that are inliers after the solve: within `AGREEING_SIGMAS` of what match and depth are uncertain by.
    """

    source: int
    target: int
    matches: int
    before: float
    after: float
    fitness: float


@dataclass(frozen=True)
class Diagnostics:
    """Quality of an alignment by frame and by pair; arrays are (F,), NaN where a frame has no match.

    Attributes:
        matches: matches each frame takes part in.
        fitness: share of them that agree after the solve.
        before: median distance of matched points before the solve, in depths.
        after: the same after it.
        pairs: the same by pair.
        seconds: wall time by part.
    """

    matches: Array
    fitness: Array
    before: Array
    after: Array
    pairs: list[PairDiagnostics] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def contradictions(self) -> list[PairDiagnostics]:
        """Pairs far apart in time that see the same place and still disagree after alignment."""
        known = [p.after for p in self.pairs if p.matches]
        if not known:
            return []
        limit = _CONTRADICTION_FACTOR * float(np.median(known))
        far = [p for p in self.pairs if p.matches and abs(p.target - p.source) > _LONG_RANGE]
        return [p for p in far if p.after > limit and p.fitness < _AGREEMENT]


@dataclass(frozen=True)
class Registration:
    """Result of aligning all frames of a scene.

    Attributes:
        cameras: refined poses.
        fields: displacement per frame.
        aligned: (F,) bool; frames that are not keep the pose they came with.
        diagnostics: how it went.
        color_maps: (F, 3, 4) colour drift, see `colour.estimate_color_maps`; None if it was not estimated.
    """

    cameras: CameraSet
    fields: LatticeFields
    aligned: Array
    diagnostics: Diagnostics
    color_maps: Array | None = None


def to_arrays(result: Registration) -> dict[str, Array]:
    """What a solve found, as arrays for a checkpoint."""
    d = result.diagnostics
    return {
        "c2w": result.cameras.c2w,
        "nodes": result.fields.nodes,
        "inv_depth_range": result.fields.inv_depth_range,
        "by_frame": np.stack([d.matches, d.fitness, d.before, d.after]),
        "pairs": np.array([astuple(p) for p in d.pairs]).reshape(-1, 6),
        "parts": np.array(list(d.seconds), str),
        "seconds": np.array(list(d.seconds.values()), float),
        **({} if result.color_maps is None else {"color_maps": result.color_maps}),
    }


def from_arrays(start: Registration, arrays: dict[str, Array]) -> Registration:
    """The registration of `to_arrays`; what a solve does not change comes from its start."""
    matches, fitness, before, after = arrays["by_frame"]
    pairs = [PairDiagnostics(int(p[0]), int(p[1]), int(p[2]), *(float(v) for v in p[3:])) for p in arrays["pairs"]]
    seconds = {str(part): float(s) for part, s in zip(arrays["parts"], arrays["seconds"], strict=True)}
    diagnostics = Diagnostics(matches.astype(int), fitness, before, after, pairs, seconds)
    fields = LatticeFields(nodes=arrays["nodes"], inv_depth_range=arrays["inv_depth_range"])
    return Registration(replace(start.cameras, c2w=arrays["c2w"]), fields, start.aligned, diagnostics, arrays.get("color_maps"))


def diagnose(
    frames: int, matches: list[MatchSet], before: list[Array], after: list[Array], sigmas: list[Array], seconds: dict[str, float]
) -> Diagnostics:
    """Statistics of matches by frame and by pair.

    Args:
        frames: their number.
        matches: of pairs of frame indices.
        before: per match set, errors (M,) in depths before a solve.
        after: the same after it.
        sigmas: the same after it, in standard deviations.
        seconds: wall time by part.
    """
    by_frame: list[list[int]] = [[] for _ in range(frames)]
    for index, match in enumerate(matches):
        by_frame[match.source].append(index)
        by_frame[match.target].append(index)

    def collect(errors: list[Array], frame: int) -> Array:
        return np.concatenate([errors[k] for k in by_frame[frame]] or [np.zeros(0)])

    last = [collect(after, frame) for frame in range(frames)]
    return Diagnostics(
        matches=np.array([len(e) for e in last]),
        fitness=np.array([inlier_share(collect(sigmas, frame)) for frame in range(frames)]),
        before=np.array([_median(collect(before, frame)) for frame in range(frames)]),
        after=np.array([_median(e) for e in last]),
        pairs=[
            PairDiagnostics(m.source, m.target, len(m), _median(b), _median(a), inlier_share(s))
            for m, b, a, s in zip(matches, before, after, sigmas, strict=True)
        ],
        seconds=seconds,
    )


def by_pair(values: Array, matches: list[MatchSet]) -> list[Array]:
    """Values of all matches (M,), one array per match set."""
    return np.split(values, np.cumsum([len(m) for m in matches])[:-1])


def errors_by_pair(problem: Problem, state: State, shape: LatticeShape, matches: list[MatchSet]) -> list[Array]:
    """Distance of matched points in depths, one array per match set of the problem."""
    return by_pair(relative_errors(problem, state, shape), matches)


def sigmas_by_pair(problem: Problem, state: State, shape: LatticeShape, matches: list[MatchSet]) -> list[Array]:
    """Distance of matched points in standard deviations, one array per match set of the problem."""
    return by_pair(errors_in_sigmas(problem, state, shape), matches)


def supported_parts(diagnostics: Diagnostics, min_fitness: float) -> list[Array]:
    """Sets of at least `LEAST_PART` frames that pairs of at least `min_fitness` connect, ascending indices, the largest set first."""
    good = [(p.source, p.target) for p in diagnostics.pairs if p.fitness >= min_fitness]
    parts = connected_parts(len(diagnostics.matches), good)
    return [part for part in parts if len(part) >= min(LEAST_PART, len(diagnostics.matches))]


def connected_parts(frames: int, pairs: list[tuple[int, int]]) -> list[Array]:
    """Connected components of a graph of frames, ascending indices; the largest first, the earlier one of equally large ones."""
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(frames, frames))
    count, label = connected_components(graph, directed=False)
    return sorted((np.flatnonzero(label == k) for k in range(count)), key=len, reverse=True)


def to_alignment(scene: Scene, result: Registration, cloud: CanonicalCloud, heldout: Array | None = None) -> Alignment:
    """The artifact of an alignment; `heldout` are the ids of frames that took no part."""
    return Alignment(
        cameras=result.cameras,
        fields=result.fields,
        cloud=cloud,
        original_w2c=scene.cameras.w2c,
        aligned=result.aligned,
        color_maps=result.color_maps,
        heldout=np.zeros(0, np.int64) if heldout is None else heldout,
    )


def summary(result: Registration, cloud: CanonicalCloud, seconds: float) -> dict[str, Any]:
    """What `report.json` says: per frame and pair, residuals in depths before and after, matches, fitness; timings."""
    d = result.diagnostics
    ids = result.cameras.frame_ids
    contradictions = [{"frames": [int(ids[p.source]), int(ids[p.target])], "after": p.after} for p in d.contradictions()]
    return {
        "seconds": seconds,
        "seconds_by_part": d.seconds,
        "frames": ids.tolist(),
        "aligned": result.aligned.tolist(),
        "matches": d.matches.tolist(),
        "fitness": _plain(d.fitness),
        "residual_before": _plain(d.before),
        "residual_after": _plain(d.after),
        "points": len(cloud),
        "points_by_frame": np.diff(np.searchsorted(cloud.frame, [*ids, ids[-1] + 1])).tolist() if len(ids) else [],
        "pairs": [{**asdict(p), "source": int(ids[p.source]), "target": int(ids[p.target])} for p in d.pairs],
        "contradictions": contradictions,
    }


def contradiction_words(pairs: list[tuple[int, int]]) -> str:
    """One line that names frames which contradict each other, empty if there are none.

    Args:
        pairs: frame ids.
    """
    if not pairs:
        return ""
    named = ", ".join(f"{a} and {b}" for a, b in pairs[:5])
    more = f" and {len(pairs) - 5} more pairs" if len(pairs) > 5 else ""
    return f"these frames show the same place differently and could not be made to agree: {named}{more}"


def _plain(values: Array) -> list[float | None]:
    """For JSON, which knows no NaN."""
    return [float(v) if np.isfinite(v) else None for v in values]


def inlier_share(sigmas: Array) -> float:
    """Share of errors (M,) in standard deviations that are inliers; NaN if there are none."""
    return float(np.mean(sigmas < AGREEING_SIGMAS)) if len(sigmas) else float("nan")


def _median(values: Array) -> float:
    return float(np.median(values)) if len(values) else float("nan")
