"""Voxel keys, and statistics of values grouped by key."""

import math

import numpy as np
from numba import njit

from utils.device.threads import ranges, run_chunks
from utils.types import Array

_BITS = 21  # per axis in one int64 key
_SAMPLED = 10_000  # points that the median is taken of


def voxel_keys(points: Array, size: float) -> Array:
    """One int64 key per point (N, 3); points share a key exactly if they share a cube of edge `size`.

    Cubes more than 2^20 edges away from about the points' median collapse into the outermost ones: only stray points are that far.
    """
    points = np.ascontiguousarray(points, np.float64)
    middle = np.floor(np.median(np.floor(points[:: max(1, len(points) // _SAMPLED)] / size), 0)) if len(points) else np.zeros(3)
    keys = np.empty(len(points), np.int64)
    run_chunks(_keys, ranges(len(points)), points, float(size), middle, keys)
    return keys


@njit(nogil=True, cache=True)
def _keys(begin, end, points, size, middle, out):  # type: ignore[no-untyped-def]
    """Packed cubes (N,) of rows `begin` to `end` of points (N, 3), counted from the cube `middle` (3,)."""
    half = 1 << (_BITS - 1)
    for m in range(begin, end):
        key = 0
        for axis in range(3):
            cell = int(min(max(math.floor(points[m, axis] / size) - middle[axis], -half), half - 1)) + half
            key = (key << _BITS) | cell
        out[m] = key


@njit(nogil=True, cache=True)
def _positions(begin, end, keys, names, out):  # type: ignore[no-untyped-def]
    """Place of each key (N,), `begin` to `end`, in the ascending `names`, which hold it."""
    for m in range(begin, end):
        low, high = 0, len(names) - 1
        while low < high:
            middle = (low + high) // 2
            if names[middle] < keys[m]:
                low = middle + 1
            else:
                high = middle
        out[m] = low


class GroupedValues:
    """Values (N,) float32 sorted within groups of equal keys (N,) int64; one sort serves every percentile.

    Group number and value share one integer, since sorting plain integers is several times faster than sorting rows by two keys.

    Attributes:
        group: (N,) number of each row's group.
        count: (G,) rows of each group.
    """

    def __init__(self, keys: Array, values: Array):
        names = np.sort(keys)
        names = names[np.r_[True, names[1:] != names[:-1]]] if len(names) else names
        self.group = np.empty(len(keys), np.int64)
        run_chunks(_positions, ranges(len(keys)), keys, names, self.group)
        self.count = np.bincount(self.group, minlength=len(names))
        bits = np.ascontiguousarray(values, np.float32).view(np.int32)
        ordered = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64) + 2**31  # order of the floats
        ordered |= self.group << 32
        ordered.sort()
        bits = ((ordered & 0xFFFFFFFF) - 2**31).astype(np.int32)
        self._sorted = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).view(np.float32)
        self._start = np.cumsum(self.count) - self.count

    def percentile(self, percentile: float) -> Array:
        """(G,) float64 percentile of each group, linear interpolation as numpy's."""
        position = (self.count - 1) * (percentile / 100)
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, self.count - 1)
        a, b = (self._sorted[self._start + rank].astype(np.float64) for rank in (low, high))
        return a + (b - a) * (position - low)


def voxel_mean(points: Array, values: Array, size: float) -> tuple[Array, Array]:
    """Mean point (M, 3) and mean value (M, C) of every occupied cube of edge `size`."""
    return mean_by_key(voxel_keys(points, size), points, values)


def mean_by_key(keys: Array, points: Array, values: Array) -> tuple[Array, Array]:
    """Mean point (M, 3) and mean value (M, C) of the rows that share a key (N,), in the order of the keys."""
    _, group = np.unique(keys, return_inverse=True)
    count = np.bincount(group)[:, None]
    both = np.concatenate([points, values.reshape(len(points), -1)], 1).astype(np.float64)
    mean = np.stack([np.bincount(group, column) for column in both.T], 1) / count
    return mean[:, :3], mean[:, 3:]
