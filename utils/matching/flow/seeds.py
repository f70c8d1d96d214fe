"""Flow started from sparse matches: a geometry whose predictions are corrected where it is known where pixels really lie.

Flow bridges what is left between a prediction and the image; where frames are far apart and their geometry is off, that is too much.
Matches of features, which need no prediction, tell the rest: their distances from the prediction, spread smoothly over the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import cKDTree

from utils.deformation.aligned_geometry import AlignedGeometry
from utils.types import Array

MIN_SEEDS = 12
"""Matches that a pair needs for its prediction to be corrected."""
_STEP = 8  # pixels between the nodes of a correction
_NEAREST = 8  # matches that a node looks at
_SPREAD = 2.0  # steps within which nearer matches do not count for more
_BRIDGED_PX = 2.0  # flow finds what is nearer to the prediction by itself
_ODD_PX, _ODD_SHARE = 3.0, 0.5  # a correction may differ by so much, and by this share of their size, from its neighbours'


@dataclass(frozen=True)
class SeededGeometry(AlignedGeometry):
    """A geometry with better predictions for some pairs.

    Attributes:
        corrections: for (source, target) what is added to the prediction (h, w, 2), pixels of x and y, on a coarse grid over the source.
    """

    corrections: Mapping[tuple[int, int], Array]

    @classmethod
    def of(cls, geometry: AlignedGeometry, corrections: Mapping[tuple[int, int], Array]) -> "SeededGeometry":
        """`geometry` with these corrections, in addition to its own."""
        return cls(geometry.scene, geometry.cameras, geometry.fields, corrections)

    def predict(self, source: int, target: int, out: Array) -> None:
        """Where the pixels of one frame lie in another, into `out` (H, W, 2): the geometry's prediction, corrected."""
        super().predict(source, target, out)
        correction = self.corrections.get((source, target))
        if correction is not None:
            out += cv2.resize(correction, (out.shape[1], out.shape[0]), interpolation=cv2.INTER_LINEAR)


def correction(geometry: AlignedGeometry, pair: tuple[int, int], source_px: Array, target_px: Array) -> Array | None:
    """What has to be added to a pair's prediction (h, w, 2) so that it agrees with matches.

    `None` where too few are left, or where they say that the prediction is good.

    Matches whose distance from the prediction is unlike that of those around them are left out.

    Args:
        geometry: as aligned so far.
        pair: source and target frame.
        source_px: (N, 2) x, y in the source.
        target_px: (N, 2) x, y in the target.
    """
    if len(source_px) < MIN_SEEDS:
        return None
    height, width = geometry.cameras.size
    predicted = np.empty((height, width, 2), np.float32)
    geometry.predict(*pair, predicted)
    x, y = source_px[None].astype(np.float32).transpose(2, 0, 1) - 0.5
    at = cv2.remap(predicted, np.ascontiguousarray(x), np.ascontiguousarray(y), cv2.INTER_LINEAR)[0]
    known = np.isfinite(at).all(-1)
    places, offsets = source_px[known], target_px[known] - at[known]
    if len(places) < MIN_SEEDS:
        return None
    usual = _usual(places, offsets)
    like = np.linalg.norm(offsets - usual, axis=1) < _ODD_PX + _ODD_SHARE * np.linalg.norm(usual, axis=1)
    if like.sum() < MIN_SEEDS or np.median(np.linalg.norm(offsets[like], axis=1)) < _BRIDGED_PX:
        return None
    return _spread(places[like], offsets[like], (height, width))


def _usual(places: Array, offsets: Array) -> Array:
    """(N, 2) median of the offsets (N, 2) around each place (N, 2), its own not counted."""
    _, near = cKDTree(places).query(places, min(_NEAREST + 1, len(places)))
    median: Array = np.median(offsets[near[:, 1:]], axis=1)
    return median


def _spread(places: Array, offsets: Array, size: tuple[int, int]) -> Array:
    """(h, w, 2) float32 offsets (N, 2) at places (N, 2) interpolated at nodes `_STEP` pixels apart: the nearest ones by distance."""
    rows, columns = (max(1, round(side / _STEP)) for side in size)
    x, y = (np.arange(columns) + 0.5) * size[1] / columns, (np.arange(rows) + 0.5) * size[0] / rows
    nodes = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    distance, near = cKDTree(places).query(nodes, min(_NEAREST, len(places)))
    weight = 1 / (distance**2 + (_SPREAD * _STEP) ** 2)
    mean = (weight[..., None] * offsets[near]).sum(1) / weight.sum(1, keepdims=True)
    return mean.reshape(rows, columns, 2).astype(np.float32)
