"""Flow matches pair by pair on the CPU: OpenCV's DIS flow (Kroeger et al., ECCV 2016) between a source and a geometry-warped target."""

import threading

import cv2
import numpy as np
from numba import njit

from configs.stage1_align import MatchingConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.matching.checks import patches_agree, select_matches
from utils.matching.contract import MatchSet, grid_phase
from utils.types import Array, Scene

_FINE_FLOW_PIXELS = 100_000  # below it flow runs to full resolution: every pixel counts, and it takes 15 ms


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
