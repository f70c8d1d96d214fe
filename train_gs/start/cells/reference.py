"""Points in cubes, on the CPU: integer keys, sorted."""

import numpy as np

from utils.points.voxels import mean_by_key, voxel_keys
from utils.types import Array

LEVEL_KEY = 0x1E3779B97F4A7C15
"""Times the level, mixed into the key: cubes of different levels never meet."""


class HostCells:
    """Cubes of edge (N,) at points (N, 3); those of different levels (N,) never share one."""

    def __init__(self, points: Array, colors: Array, edge: Array, level: Array):
        self._points, self._colors, self._edge, self._level = points, colors, edge, level

    def _keys(self, scale: float) -> Array:
        return _cells(self._points, self._edge * scale, self._level)

    def groups(self) -> Array:
        """(N,) number of each point's cube at scale 1, without gaps."""
        return np.unique(self._keys(1.0), return_inverse=True)[1]

    def count(self, scale: float) -> int:
        """Occupied cubes."""
        return _distinct(self._keys(scale))

    def means(self, scale: float) -> tuple[Array, Array]:
        """Mean point (M, 3) and colour (M, 3) of every occupied cube."""
        return mean_by_key(self._keys(scale), self._points, self._colors)


def _distinct(values: Array) -> int:
    """How many different values there are."""
    values = np.sort(values)
    return 1 + int(np.count_nonzero(values[1:] != values[:-1]))


def _cells(points: Array, edge: Array, level: Array) -> Array:
    """(N,) int64 cell of each point, for cubes of edge (N,), apart for different levels (N,)."""
    keys = voxel_keys(points / edge[:, None], 1.0)
    with np.errstate(over="ignore"):
        return keys ^ (level.astype(np.int64) * np.int64(LEVEL_KEY))
