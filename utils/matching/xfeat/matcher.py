"""The matchers that use learned features: dense flow, started from matches of features where the geometry's prediction is too far off.

`auto` is flow, and where flow finds next to nothing between two frames (far apart, a revisit, poses that drifted) flow once more from
learned matches; `xfeat` starts flow from learned matches for every pair. Features are found once per frame and, on the CPU, matched only
for the pairs that need it.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from configs.stage1_align import MatchingConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.matching.contract import BatchMatcher, Matcher, MatchSet, match_pairs
from utils.matching.flow import flow_matcher
from utils.matching.flow.seeds import SeededGeometry, correction
from utils.matching.xfeat.features import Cells, Keypoints, XFeat, find_cells, find_keypoints
from utils.matching.xfeat.match import PlaceMatches, hopeful, match_cells, match_keypoints, verified
from utils.matching.xfeat.weights import advice, available
from utils.types import Array, Scene

_log = logging.getLogger(__name__)
_POOR = 0.1
"""Share of the pixels tried below which flow has failed: two unrelated textures match on about 5 %."""

Pair = tuple[int, int]


def auto_matcher(scene: Scene, usable: Array, grid: int, config: MatchingConfig) -> Matcher:
    """Flow, once more from learned matches where it fails; flow alone where their weights are not installed."""
    flow = flow_matcher(scene, usable, grid, config)
    if not available():
        _log.info(advice())
        return flow
    return _seeded(flow, scene, enough=_POOR * usable.shape[1] * usable.shape[2] / grid**2)


def xfeat_matcher(scene: Scene, usable: Array, grid: int, config: MatchingConfig) -> Matcher:
    """Flow started from learned matches for every pair.

    Raises:
        MissingDependencyError: the weights are not installed.
    """
    return _seeded(flow_matcher(scene, usable, grid, config), scene, enough=np.inf)


def _seeded(flow: Matcher, scene: Scene, enough: float) -> Matcher:
    kind = BatchedSeededFlow if isinstance(flow, BatchMatcher) else SeededFlow
    return kind(flow, learned_matches(scene), enough)


class SeededFlow:
    """Flow from the geometry's prediction, and where that finds too little, flow from learned matches; the richer result counts.

    Args:
        flow: finds matches from a geometry's prediction.
        learned: matches of features between the frames.
        enough: matches of a pair with which flow has succeeded; infinite: learned matches are always used.
    """

    def __init__(self, flow: Matcher, learned: "LearnedMatches", enough: float):
        self._flow, self._learned, self._enough = flow, learned, enough

    def match(self, source: int, target: int, geometry: AlignedGeometry) -> MatchSet:
        """Matches of one pair."""
        found = self._flow.match(source, target, geometry)
        if len(found) >= self._enough:
            return found
        seeded = self._from_seeds([(source, target)], geometry)
        return _richer(found, self._flow.match(source, target, seeded)) if seeded.corrections else found

    def _from_seeds(self, pairs: Sequence[Pair], geometry: AlignedGeometry) -> SeededGeometry:
        """The geometry with predictions corrected by learned matches, both ways, where there are enough of them."""
        corrections = {}
        for pair, found in self._learned.find(pairs).items():
            for way, seeds in ((pair, found), (pair[::-1], found.reversed())):
                correcting = correction(geometry, way, seeds.first_px, seeds.second_px)
                if correcting is not None:
                    corrections[way] = correcting
        return SeededGeometry.of(geometry, corrections)


class BatchedSeededFlow(SeededFlow):
    """The same for a flow that matches many pairs at once."""

    def match_all(self, pairs: list[Pair], geometry: AlignedGeometry, on_pair: Callable[[int], None] = lambda done: None) -> list[MatchSet]:
        """Matches of all pairs, in their order; `on_pair` hears the number of pairs that are done."""
        found = match_pairs(self._flow, pairs, geometry, on_pair)
        poor = [row for row, matches in enumerate(found) if len(matches) < self._enough]
        seeded = self._from_seeds([pairs[row] for row in poor], geometry)
        helped = [row for row in poor if pairs[row] in seeded.corrections]
        again = match_pairs(self._flow, [pairs[row] for row in helped], seeded, lambda done: None)
        for row, matches in zip(helped, again, strict=True):
            found[row] = _richer(found[row], matches)
        return found


def _richer(first: MatchSet, second: MatchSet) -> MatchSet:
    return second if len(second) > len(first) else first


# ------------------------------------------------------------------------------------------------ learned matches of a scene


@dataclass(frozen=True, eq=False)
class _Features:
    keypoints: Keypoints
    cells: Cells


class LearnedMatches:
    """Verified matches between images of one size; features are found once per image, matches once per pair, both when first asked for.

    Args:
        images: (F, h, w, 3) uint8.
        xfeat: the network.
    """

    def __init__(self, images: Array, xfeat: XFeat):
        self._images, self._xfeat = images, xfeat
        self._features: dict[int, _Features] = {}
        self._found: dict[Pair, PlaceMatches] = {}
        self._lock = threading.Lock()  # several threads ask, but the network uses all cores by itself

    def find(self, pairs: Sequence[Pair]) -> dict[Pair, PlaceMatches]:
        """Matches of keypoints and cells for each pair that agree with one camera motion, in the order of the pair."""
        with self._lock:
            self._complete(sorted({(min(p), max(p)) for p in pairs} - self._found.keys()))
        return {(a, b): self._found[a, b] if a < b else self._found[b, a].reversed() for a, b in pairs}

    def _complete(self, pairs: list[Pair]) -> None:
        if not pairs:
            return
        new = sorted({frame for pair in pairs for frame in pair} - self._features.keys())
        for frame, maps in zip(new, self._xfeat.maps([self._images[frame] for frame in new]), strict=True):
            self._features[frame] = _Features(find_keypoints(maps), find_cells(maps))
        used = sorted({frame for pair in pairs for frame in pair})
        keypoints, row_of = [self._features[frame].keypoints for frame in used], {frame: row for row, frame in enumerate(used)}
        close = list(hopeful(keypoints, [(row_of[a], row_of[b]) for a, b in pairs]))
        self._found |= dict.fromkeys(pairs, _NOTHING)
        for (a, b), rows in zip(close, match_keypoints(keypoints, close), strict=True):
            self._found[used[a], used[b]] = self._verified((used[a], used[b]), rows)

    def _verified(self, pair: Pair, rows: Array) -> PlaceMatches:
        """Matched keypoints `rows` (N, 2) and matched cells of a pair, those that agree with one camera motion."""
        first, second = (self._features[frame] for frame in pair)
        semi_dense = match_cells(self._xfeat.network, first.cells, second.cells)
        a = np.concatenate([first.keypoints.px.cpu().numpy()[rows[:, 0]], semi_dense.first_px])
        b = np.concatenate([second.keypoints.px.cpu().numpy()[rows[:, 1]], semi_dense.second_px])
        confidence = np.concatenate([np.ones(len(rows), np.float32), semi_dense.confidence])
        kept = verified(a, b)
        return PlaceMatches(a[kept], b[kept], confidence[kept])


_NOTHING = PlaceMatches(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, np.float32))
_latest: tuple[weakref.ref[Scene], LearnedMatches] | None = None


def learned_matches(scene: Scene) -> LearnedMatches:
    """Those of a scene; matchers made for it one after another share them.

    Raises:
        MissingDependencyError: the weights are not installed.
    """
    global _latest  # noqa: PLW0603
    if _latest is None or _latest[0]() is not scene:
        _latest = weakref.ref(scene), LearnedMatches(scene.images, XFeat.load())
    return _latest[1]
