"""What an alignment returns besides poses and fields: who is aligned, how well, and where it took its time."""

from dataclasses import dataclass, field

import numpy as np

from utils.registration.matching import MatchSet
from utils.registration.solver import LatticeShape, Problem, State, relative_errors
from utils.types import Array, CameraSet, LatticeFields

AGREEING_SIGMAS = 3.0  # matches closer than this many sigmas count as agreeing
_CONTRADICTION_FACTOR = 4.0  # a long-range pair this many times worse than the median pair contradicts
_LONG_RANGE = 8  # frames


@dataclass(frozen=True)
class PairDiagnostics:
    """One matched pair of frame indices.

    Attributes:
        source: frame index.
        target: frame index.
        matches: their number.
        before: median distance of matched points before the solve, in depths.
        after: the same after it.
    """

    source: int
    target: int
    matches: int
    before: float
    after: float


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
        return [p for p in self.pairs if p.matches and p.target - p.source > _LONG_RANGE and p.after > limit]


@dataclass(frozen=True)
class Registration:
    """Result of aligning all frames of a scene.

    Attributes:
        cameras: refined poses.
        fields: displacement per frame.
        aligned: (F,) bool; frames that are not keep the pose they came with.
        diagnostics: how it went.
    """

    cameras: CameraSet
    fields: LatticeFields
    aligned: Array
    diagnostics: Diagnostics


def diagnose(
    frames: int, matches: list[MatchSet], before: list[Array], after: list[Array], sigma: float, seconds: dict[str, float]
) -> Diagnostics:
    """Statistics of matches and their errors (M,) in depths, one array per match set, before and after a solve."""
    by_frame: list[list[int]] = [[] for _ in range(frames)]
    for index, match in enumerate(matches):
        by_frame[match.source].append(index)
        by_frame[match.target].append(index)

    def collect(errors: list[Array], frame: int) -> Array:
        return np.concatenate([errors[k] for k in by_frame[frame]] or [np.zeros(0)])

    last = [collect(after, frame) for frame in range(frames)]
    return Diagnostics(
        matches=np.array([len(e) for e in last]),
        fitness=np.array([np.mean(e < AGREEING_SIGMAS * sigma) if len(e) else np.nan for e in last]),
        before=np.array([_median(collect(before, frame)) for frame in range(frames)]),
        after=np.array([_median(e) for e in last]),
        pairs=[PairDiagnostics(m.source, m.target, len(m), _median(b), _median(a)) for m, b, a in zip(matches, before, after, strict=True)],
        seconds=seconds,
    )


def errors_by_pair(problem: Problem, state: State, shape: LatticeShape, matches: list[MatchSet]) -> list[Array]:
    """Distance of matched points in depths, one array per match set of the problem."""
    return np.split(relative_errors(problem, state, shape), np.cumsum([len(m) for m in matches])[:-1])


def _median(values: Array) -> float:
    return float(np.median(values)) if len(values) else float("nan")
