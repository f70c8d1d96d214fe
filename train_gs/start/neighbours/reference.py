"""Nearest neighbours by SciPy's k-d tree, on all cores."""

from scipy.spatial import cKDTree

from utils.types import Array


def nearest(points: Array, count: int, rows: Array | slice = slice(None)) -> tuple[Array, Array]:
    """(R, count) distances from these rows to the nearest of the points (N, 3), ascending, and (R, count) the rows of those."""
    distance, index = cKDTree(points).query(points[rows], k=count, workers=-1)
    return distance.reshape(-1, count), index.reshape(-1, count)
