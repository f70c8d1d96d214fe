"""Checkpoints of an alignment: finished parts, so that a killed run resumes.

Whoever owns the disk hands in `Checkpoints`; the algorithms only name their parts. Every part depends on earlier parts and the input
alone, so a resumed run ends with the bits of one that was never stopped.
"""

from typing import Protocol

import numpy as np

from utils.deformation.aligned_geometry import AlignedGeometry
from utils.matching.contract import BatchMatcher, Matcher, MatchSet, prepare_pairs
from utils.types import Array, Reporter


class Checkpoints(Protocol):
    """Named groups of arrays. Calls come from several threads, never two at once for one name."""

    def load(self, name: str) -> dict[str, Array] | None:
        """The arrays of this name, or None."""
        ...

    def save(self, name: str, arrays: dict[str, Array]) -> None:
        """Keeps the arrays under this name."""
        ...


class NoCheckpoints:
    """Keeps nothing."""

    def load(self, name: str) -> dict[str, Array] | None:
        """None."""
        return None

    def save(self, name: str, arrays: dict[str, Array]) -> None:
        """Does nothing."""


NO_CHECKPOINTS = NoCheckpoints()


def keeping_matches(matcher: Matcher, checkpoints: Checkpoints, prefix: str) -> Matcher:
    """The matcher, its matches kept; not those of one that finds all pairs at once, which takes less time than writing them."""
    return matcher if isinstance(matcher, BatchMatcher) else KeptMatches(matcher, checkpoints, prefix)


class KeptMatches:
    """A matcher that finds the matches of a pair once: those of an earlier, interrupted run are taken over."""

    def __init__(self, inner: Matcher, checkpoints: Checkpoints, prefix: str):
        self._inner, self._checkpoints, self._prefix = inner, checkpoints, prefix

    def _name(self, source: int, target: int) -> str:
        return f"{self._prefix}_{source}_{target}"

    def prepare(self, pairs: list[tuple[int, int]], report: Reporter) -> None:
        """Prepares the pairs that are still to be matched, in either direction."""
        missing = [p for p in pairs if self._stored(*p) is None and self._stored(*p[::-1]) is None]
        if missing:
            prepare_pairs(self._inner, missing, report)

    def match(self, source: int, target: int, geometry: AlignedGeometry) -> MatchSet:
        """Matches of one pair, kept or new."""
        arrays = self._stored(source, target)
        if arrays is not None:
            return MatchSet(source, target, **arrays)
        matches = self._inner.match(source, target, geometry)
        names = ("source_px", "target_px", "source_depth", "target_depth")
        self._checkpoints.save(self._name(source, target), {n: np.ascontiguousarray(getattr(matches, n)) for n in names})
        return matches

    def _stored(self, source: int, target: int) -> dict[str, Array] | None:
        return self._checkpoints.load(self._name(source, target))
