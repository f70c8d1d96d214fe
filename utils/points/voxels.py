"""Voxel keys, and statistics of values grouped by key."""

import numpy as np

from utils.types import Array

_BITS = 21  # per axis in one int64 key


def voxel_keys(points: Array, size: float) -> Array:
    """One int64 key per point (N, 3); points share a key exactly if they share a cube of edge `size`.

    Cubes more than 2^20 edges away from the points' median collapse into the outermost ones: only stray points are that far.
    """
    cells = np.floor(points / size)
    cells -= np.floor(np.median(cells, 0)) if len(cells) else 0.0
    half = 1 << (_BITS - 1)
    cells = np.clip(cells, -half, half - 1).astype(np.int64) + half
    return (cells[:, 0] << (2 * _BITS)) | (cells[:, 1] << _BITS) | cells[:, 2]


def grouped_percentile(keys: Array, values: Array, percentile: float) -> tuple[Array, Array]:
    """Per row: the percentile of `values` among the rows with the same key (linear interpolation as numpy's), and their count.

    One sort by (key, value) serves all groups.
    """
    order = np.lexsort((values, keys))
    sorted_keys, sorted_values = keys[order], values[order]
    start = np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]])
    count = np.diff(np.r_[start, len(keys)])
    position = (count - 1) * (percentile / 100)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, count - 1)
    fraction = position - low
    a, b = sorted_values[start + low].astype(np.float64), sorted_values[start + high].astype(np.float64)
    per_group = a + (b - a) * fraction
    group = np.empty(len(keys), np.int64)
    group[order] = np.repeat(np.arange(len(start)), count)
    return per_group[group], count[group]


def voxel_mean(points: Array, values: Array, size: float) -> tuple[Array, Array]:
    """Mean point (M, 3) and mean value (M, C) of every occupied cube of edge `size`."""
    _, group = np.unique(voxel_keys(points, size), return_inverse=True)
    count = np.bincount(group)[:, None]
    both = np.concatenate([points, values.reshape(len(points), -1)], 1).astype(np.float64)
    mean = np.stack([np.bincount(group, column) for column in both.T], 1) / count
    return mean[:, :3], mean[:, 3:]
