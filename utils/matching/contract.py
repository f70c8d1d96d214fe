"""What a matcher is, what it returns, and how to get one by name."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np

from configs.stage1_align import MatchingConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.registry import Registry
from utils.runtime import cpu_count
from utils.types import Array, Reporter, Scene


@dataclass(frozen=True)
class MatchSet:
    """Matches between a source and a target frame.

    Attributes:
        source: frame index.
        target: frame index.
        source_px: (M, 2) float32 x, y.
        target_px: (M, 2) float32 x, y, sub-pixel.
        source_depth: (M,) float32 depth at the source pixel.
        target_depth: (M,) float32 depth at the target position, bilinear.
    """

    source: int
    target: int
    source_px: Array
    target_px: Array
    source_depth: Array
    target_depth: Array

    def __len__(self) -> int:
        return len(self.source_px)


class Matcher(Protocol):
    """Finds matches between frames of one scene."""

    def match(self, source: int, target: int, geometry: AlignedGeometry) -> MatchSet:
        """Matches of one pair; `geometry` is the alignment so far."""
        ...


@runtime_checkable
class BatchMatcher(Protocol):
    """A matcher that finds the matches of many pairs faster together than one by one."""

    def match_all(self, pairs: list[tuple[int, int]], geometry: AlignedGeometry, on_pair: Callable[[int], None]) -> list[MatchSet]:
        """Matches of all pairs, in their order; `on_pair` hears the number of pairs that are done."""
        ...


class MatcherFactory(Protocol):
    """What the registry holds: the constructor of a matcher."""

    def __call__(self, scene: Scene, usable: Array, grid: int, config: MatchingConfig) -> Matcher:
        """A matcher for `scene` that uses pixels where `usable` (F, H, W), every `grid`-th in both axes."""
        ...


MATCHERS = Registry(
    "matcher",
    auto="utils.matching.xfeat.matcher:auto_matcher",
    flow="utils.matching.flow:flow_matcher",
    flow_dis="utils.matching.flow.dis:FlowMatcher",
    flow_torch="utils.matching.flow.batched:TorchFlowMatcher",
    none="utils.matching.contract:NoMatcher",
    romav2="utils.matching.romav2:RomaMatcher",
    xfeat="utils.matching.xfeat.matcher:xfeat_matcher",
)


def empty_matches(source: int, target: int) -> MatchSet:
    """A pair without matches."""
    pixels, depths = np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    return MatchSet(source, target, pixels, pixels, depths, depths)


class NoMatcher:
    """Finds nothing: alignment then returns what it was given."""

    def __init__(self, scene: Scene, usable: Array, grid: int, config: MatchingConfig):
        pass

    def match(self, source: int, target: int, geometry: AlignedGeometry) -> MatchSet:
        """No matches."""
        return empty_matches(source, target)


def grid_phase(source: int, target: int, grid: int) -> tuple[int, int]:
    """First row and column of the pixels of a pair that are tried."""
    return (source * 7 + target * 3) % grid, (source * 5 + target * 2) % grid


def match_grid(scene: Scene, num_pairs: int, config: MatchingConfig) -> int:
    """Pixel step at which about `matches_per_frame` matches per frame remain, if half of all pixels match."""
    h, w = scene.cameras.size
    candidates = 0.5 * h * w * num_pairs / max(len(scene), 1)
    return max(1, round(float(np.sqrt(candidates / config.matches_per_frame))))


def prepare_pairs(matcher: Matcher, pairs: list[tuple[int, int]], report: Reporter) -> None:
    """Tells a matcher that can compute many pairs at once (it has `prepare`) which ones will be asked for."""
    prepare = getattr(matcher, "prepare", None)
    if prepare is not None:
        prepare(pairs, report)


def match_pairs(
    matcher: Matcher, pairs: list[tuple[int, int]], geometry: AlignedGeometry, on_pair: Callable[[int], None]
) -> list[MatchSet]:
    """Matches of all pairs, in their order, on all cores; `on_pair` hears the number of pairs that are done."""
    if isinstance(matcher, BatchMatcher):
        return matcher.match_all(pairs, geometry, on_pair)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # pairs are the unit of parallel work
    try:
        with ThreadPoolExecutor(cpu_count()) as pool:
            done = []
            for match in pool.map(lambda pair: matcher.match(pair[0], pair[1], geometry), pairs):
                done.append(match)
                on_pair(len(done))
            return done
    finally:
        cv2.setNumThreads(threads)
