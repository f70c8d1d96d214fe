"""Double walls: rays that meet two separate surfaces of the aligned cloud, one close behind the other.

Frames that were not brought to agree leave the same surface in several places. A ray that meets a table and the wall behind it meets two
surfaces as well, so only gaps of a few percent of the depth count; what is left of honest clutter is the same for all alignments of a clip.
"""

import numpy as np

from utils.cameras.projection import project, transform
from utils.types import Array, CameraSet

_VIEWS = 12
_MOST_POINTS = 1_000_000
_CELL_PX = 3.0
_BIN = 0.01
"""Step of the depth bins, as a share of the depth."""
_LEAST_GAP, _MOST_GAP = 0.02, 0.15
_LEAST_POINTS = 2
"""Points in a bin that make a surface; single ones are noise."""


def multi_layer(points: Array, cameras: CameraSet) -> float:
    """Share (0..1) of the rays that meet the cloud which meet a second surface 2 to 15 % of the depth behind the first one.

    A ray is a cell of 3x3 pixels of one of 12 cameras; surfaces are runs of occupied depth bins.

    Args:
        points: (N, 3) canonical; a random million of more.
        cameras: whose rays are tried.
    """
    if not len(points) or not len(cameras):
        return 0.0
    if len(points) > _MOST_POINTS:
        points = points[np.random.default_rng(0).choice(len(points), _MOST_POINTS, replace=False)]
    chosen = np.unique(np.linspace(0, len(cameras) - 1, min(_VIEWS, len(cameras))).round().astype(int))
    counts = [_rays(points, cameras.w2c[i], cameras.K[i], cameras.size) for i in chosen]
    met, twice = np.sum(counts, axis=0)
    return float(twice / max(met, 1))


def _rays(points: Array, w2c: Array, K: Array, size: tuple[int, int]) -> tuple[int, int]:
    """Rays of a camera that meet the cloud, and those that meet two surfaces of it."""
    x, y, z = project(transform(w2c, points.astype(np.float64)), K)
    (h, w), ahead = size, z > 0
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero(ahead & (x >= 0) & (y >= 0) & (x < w) & (y < h))
    across = int(np.ceil(w / _CELL_PX))
    cell = (y[rows] // _CELL_PX).astype(np.int64) * across + (x[rows] // _CELL_PX).astype(np.int64)
    depth = np.floor(np.log(z[rows]) / np.log1p(_BIN)).astype(np.int64)
    depth -= depth.min(initial=0)
    span = int(depth.max(initial=0)) + 1
    occupied, count = np.unique(cell * span + depth, return_counts=True)
    occupied = occupied[count >= _LEAST_POINTS]
    cell, depth = occupied // span, occupied % span
    same = np.diff(cell) == 0
    gap = np.diff(depth) - 1  # empty bins between two occupied ones
    apart = same & (gap * _BIN >= _LEAST_GAP) & (gap * _BIN <= _MOST_GAP)
    return len(np.unique(cell)), len(np.unique(cell[1:][apart]))
