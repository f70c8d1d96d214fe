"""Correspondences between two frames: dense optical flow started from the current geometry.

The source of wrong flow is large motion. So the target image is first warped into the source view through depth, poses and
displacements as they are now; flow (DIS, Kroeger et al., ECCV 2016) only has to find what is left, and the sum of both is the match.
A match counts if flow in the other direction leads back to where it came from and both ends may be used. On a GPU
`utils.matching.flow_torch` does the same with a flow of its own, all pairs at once.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numba import njit

from configs.stage1_align import MatchingConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.device.accelerator import accelerator
from utils.registry import Registry
from utils.runtime import cpu_count
from utils.types import Array, Reporter, Scene

_FINE_FLOW_PIXELS = 100_000  # below it flow runs to full resolution: every pixel counts, and it takes 15 ms
WINDOW = (9, 9)  # pixels of the patches that are compared
FLAT = 3.0  # grey levels by which patches without texture may differ, after their means are taken off
_MIN_PAIR_SHARE = 0.02  # share of a pair's samples that must match for the pair to count
_MIN_FRAME_SHARE = 0.1  # the same for the best pair of a frame: two unrelated textures match on about 5 %


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
    flow="utils.matching.flow:flow_matcher",
    flow_dis="utils.matching.flow:FlowMatcher",
    flow_torch="utils.matching.flow_torch:TorchFlowMatcher",
    none="utils.matching.flow:NoMatcher",
    romav2="utils.matching.romav2:RomaMatcher",
)


def empty_matches(source: int, target: int) -> MatchSet:
    """A pair without matches."""
    pixels, depths = np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    return MatchSet(source, target, pixels, pixels, depths, depths)


def flow_matcher(scene: Scene, usable: Array, grid: int, config: MatchingConfig) -> Matcher:
    """Flow for all pairs at once on the GPU, or pair by pair on the CPU where there is none."""
    chosen = "flow_dis" if accelerator() is None else "flow_torch"
    return MATCHERS.load(chosen)(scene, usable, grid, config)


class NoMatcher:
    """Finds nothing: alignment then returns what it was given."""

    def __init__(self, scene: Scene, usable: Array, grid: int, config: MatchingConfig):
        pass

    def match(self, source: int, target: int, geometry: AlignedGeometry) -> MatchSet:
        """No matches."""
        return empty_matches(source, target)


class FlowMatcher:
    """Optical flow on the geometry-warped target image, both directions, checked against each other."""

    def __init__(self, scene: Scene, usable: Array, grid: int, config: MatchingConfig):
        self._depth = np.where(scene.valid, scene.depth, 0).astype(np.float32)
        self._gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in scene.images]
        self._usable = usable
        self._grid = grid
        self._max_cycle = config.max_cycle_error_px
        self._min_correlation = config.min_correlation
        self._finest = 0 if self._gray[0].size <= _FINE_FLOW_PIXELS else 1
        self._local = threading.local()

    def match(self, source: int, target: int, geometry: AlignedGeometry) -> MatchSet:
        """Matches on a grid whose phase changes from pair to pair, so that together the pairs cover all pixels."""
        there, back, warped = self._scratch()
        there_flow = self._predicted_flow(source, target, geometry, there, warped)
        alike = patches_agree(self._gray[source], warped, there_flow, self._min_correlation)
        back_flow = self._predicted_flow(target, source, geometry, back, warped)
        phase = grid_phase(source, target, self._grid)
        rows = select_matches(
            there,
            there_flow,
            back,
            back_flow,
            self._usable[source] & alike,
            self._usable[target],
            self._depth[source],
            self._depth[target],
            self._grid,
            phase,
            self._max_cycle,
        )
        return MatchSet(source, target, rows[:, 0:2], rows[:, 2:4], rows[:, 4], rows[:, 5])

    def _predicted_flow(self, source: int, target: int, geometry: AlignedGeometry, predicted: Array, warped: Array) -> Array:
        """Flow (H, W, 2) from source to warped target.

        Also writes the predicted target position (H, W, 2) of every source pixel and the warped target (H, W).
        """
        geometry.predict(source, target, predicted)
        _warp_to_source(predicted, self._gray[target], self._gray[source], warped)
        flow: Array = self._flow().calc(self._gray[source], warped, None)  # type: ignore[call-overload]
        return flow

    def _scratch(self) -> tuple[Array, Array, Array]:
        """Two predictions and a warped image of this thread: fresh ones for every pair would cost page faults that stall all threads."""
        if not hasattr(self._local, "scratch"):
            image = self._gray[0]
            self._local.scratch = (np.empty((*image.shape, 2), np.float32), np.empty((*image.shape, 2), np.float32), np.empty_like(image))
        return self._local.scratch

    def _flow(self) -> cv2.DISOpticalFlow:
        if not hasattr(self._local, "flow"):
            self._local.flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
            self._local.flow.setFinestScale(self._finest)
        return self._local.flow


def patches_agree(image: Array, other: Array, flow: Array, min_correlation: float) -> Array:
    """(H, W) bool: the patch around each pixel looks like the one its flow points to, up to brightness and contrast.

    Without this test a match where flow found nothing to hold on to would confirm the prediction it started from.
    """
    h, w = image.shape
    grid = flow + np.stack(np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)), -1)
    a = image.astype(np.float32)
    b = cv2.remap(other, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    mean_a, mean_b = cv2.blur(a, WINDOW), cv2.blur(b, WINDOW)
    var_a, var_b = cv2.blur(a * a, WINDOW) - mean_a**2, cv2.blur(b * b, WINDOW) - mean_b**2
    covariance = cv2.blur(a * b, WINDOW) - mean_a * mean_b
    correlated = covariance > min_correlation * np.sqrt(np.maximum(var_a * var_b, 0))
    return (correlated & (var_a > 0) & (var_b > 0)) | (var_a + var_b - 2 * covariance < FLAT**2)


@njit(nogil=True, cache=True)
def _warp_to_source(predicted, target, source, warped):  # type: ignore[no-untyped-def]
    """Writes to `warped` (H, W) the target image where the source's pixels are predicted; outside, the source, which yields zero flow.

    Predictions (H, W, 2) outside of the target become NaN.
    """
    h, w = target.shape
    for i in range(h):
        for j in range(w):
            x, y = predicted[i, j, 0], predicted[i, j, 1]
            if not (x > 0 and x < w and y > 0 and y < h):  # also NaN
                predicted[i, j, 0] = predicted[i, j, 1] = np.nan
                warped[i, j] = source[i, j]
                continue
            x, y = min(max(x - 0.5, 0.0), w - 1.0), min(max(y - 0.5, 0.0), h - 1.0)
            a, b = min(int(x), w - 2), min(int(y), h - 2)
            fx, fy = x - a, y - b
            top = (1 - fx) * target[b, a] + fx * target[b, a + 1]
            bottom = (1 - fx) * target[b + 1, a] + fx * target[b + 1, a + 1]
            warped[i, j] = int((1 - fy) * top + fy * bottom + 0.5)


@njit(inline="always")
def _bilinear(image, x, y, channel):  # type: ignore[no-untyped-def]
    """Sample of (H, W, C) at pixel coordinates (centres at +0.5), NaN outside or next to NaN."""
    x -= 0.5
    y -= 0.5
    if not (x >= 0 and y >= 0 and x <= image.shape[1] - 1 and y <= image.shape[0] - 1):
        return np.nan
    j, i = min(int(x), image.shape[1] - 2), min(int(y), image.shape[0] - 2)
    fx, fy = x - j, y - i
    top = image[i, j, channel] * (1 - fx) + image[i, j + 1, channel] * fx
    bottom = image[i + 1, j, channel] * (1 - fx) + image[i + 1, j + 1, channel] * fx
    return top * (1 - fy) + bottom * fy


@njit(inline="always")
def _depth_at(depth, usable, x, y):  # type: ignore[no-untyped-def]
    """Bilinear depth at a pixel coordinate, NaN if one of the four pixels is not usable."""
    x -= 0.5
    y -= 0.5
    if not (x >= 0 and y >= 0 and x <= depth.shape[1] - 1 and y <= depth.shape[0] - 1):
        return np.nan
    j, i = min(int(x), depth.shape[1] - 2), min(int(y), depth.shape[0] - 2)
    if not (usable[i, j] and usable[i, j + 1] and usable[i + 1, j] and usable[i + 1, j + 1]):
        return np.nan
    fx, fy = x - j, y - i
    top = depth[i, j] * (1 - fx) + depth[i, j + 1] * fx
    bottom = depth[i + 1, j] * (1 - fx) + depth[i + 1, j + 1] * fx
    return top * (1 - fy) + bottom * fy


@njit(inline="always")
def _follow(predicted, flow, i, j):  # type: ignore[no-untyped-def]
    """Where pixel (i, j) goes: the prediction at the pixel's flow target."""
    x, y = j + 0.5 + flow[i, j, 0], i + 0.5 + flow[i, j, 1]
    return _bilinear(predicted, x, y, 0), _bilinear(predicted, x, y, 1)


@njit(nogil=True, cache=True)
def select_matches(there, there_flow, back, back_flow, usable, usable_target, depth, depth_target, grid, phase, max_cycle):  # type: ignore[no-untyped-def]
    """(M, 6) float32: source x, y, target x, y, source depth, target depth of matches that pass every check."""
    h, w = depth.shape
    out = np.empty(((h // grid + 1) * (w // grid + 1), 6), np.float32)
    count = 0
    for i in range(phase[0], h, grid):
        for j in range(phase[1], w, grid):
            if not usable[i, j]:
                continue
            qx, qy = _follow(there, there_flow, i, j)
            z = _depth_at(depth_target, usable_target, qx, qy)
            if not z > 0:
                continue
            # The way back, interpolated between the four pixels around q.
            tx, ty = qx - 0.5, qy - 0.5
            j0, i0 = min(int(tx), w - 2), min(int(ty), h - 2)
            fx, fy = tx - j0, ty - i0
            rx = ry = 0.0
            for corner in range(4):
                dj, di = corner & 1, corner >> 1
                weight = (fx if dj else 1 - fx) * (fy if di else 1 - fy)
                bx, by = _follow(back, back_flow, i0 + di, j0 + dj)
                rx += weight * bx
                ry += weight * by
            cycle = np.hypot(rx - (j + 0.5), ry - (i + 0.5))
            if cycle < max_cycle:  # False for NaN
                out[count, 0], out[count, 1] = j + 0.5, i + 0.5
                out[count, 2], out[count, 3] = qx, qy
                out[count, 4], out[count, 5] = depth[i, j], z
                count += 1
    return out[:count]


_TRUST_RANGE = 4.0


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


def supported_matches(matches: list[MatchSet], samples: float) -> list[MatchSet]:
    """The pairs worth using: enough of the `samples` pixels tried match, and both frames have a pair that matches well."""
    best: dict[int, int] = {}
    for match in matches:
        for frame in (match.source, match.target):
            best[frame] = max(best.get(frame, 0), len(match))
    return [m for m in matches if len(m) >= _MIN_PAIR_SHARE * samples and min(best[m.source], best[m.target]) >= _MIN_FRAME_SHARE * samples]


def match_trust(scene: Scene, matches: list[MatchSet], power: float) -> Array | None:
    """(M,) how much each match counts: the confidence of its two pixels over the scene's median, to a power; None: all the same.

    The factor stays within what a confidence without a unit can be believed, and the mean is 1, so that regularisers keep their weight.
    """
    if power <= 0 or not matches:
        return None
    confidence = [
        np.minimum(scene.confidence[(m.source, *_pixel(m.source_px))], scene.confidence[(m.target, *_pixel(m.target_px))]) for m in matches
    ]
    relative = np.concatenate(confidence) / float(np.median(scene.confidence[scene.valid]))
    trust = np.clip(relative, 1 / _TRUST_RANGE, _TRUST_RANGE) ** power
    return trust / trust.mean()


def _pixel(places: Array) -> tuple[Array, Array]:
    """Row and column of the pixels that hold places (M, 2)."""
    x, y = np.floor(places).astype(np.int64).T
    return y, x


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
