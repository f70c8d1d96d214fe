"""A cloud as a surface: nearest neighbours, normals and colour gradients along the tangent planes (numpy, k-d tree)."""

import numpy as np
from scipy.spatial import cKDTree

from utils.runtime import cpu_count, in_threads
from utils.types import Array

_ROWS_AT_ONCE = 20_000
_LUMA = np.array([0.2989, 0.5870, 0.1140])
_DAMPING = 1e-4  # of the colour gradients' normal equations


def intensity(colors: Array) -> Array:
    """(N,) float32 0..1 of uint8 sRGB colours (N, 3)."""
    return (colors.astype(np.float32) @ (_LUMA / 255.0)).astype(np.float32)


def make_tree(points: Array) -> cKDTree:
    """K-d tree built for speed of building: surfaces are searched a few hundred times, then rebuilt."""
    return cKDTree(points, balanced_tree=False, compact_nodes=False)


def nearest(tree: cKDTree, points: Array, radius: float) -> tuple[Array, Array]:
    """Rows of the points (N, 3) that have a neighbour closer than `radius`, and the neighbours' rows in the tree."""
    distance, index = tree.query(points, distance_upper_bound=radius, workers=cpu_count())
    rows = np.flatnonzero(np.isfinite(distance))
    return rows, index[rows]


def fit_normals(tree: cKDTree, points: Array, neighbors: int) -> Array:
    """(N, 3) float32 unit normals, of arbitrary sign: least spread of the `neighbors` nearest points of the tree."""
    cloud = np.asarray(tree.data)

    def fit(part: Array) -> Array:
        _, index = tree.query(part, k=min(neighbors, len(cloud)))
        offsets = cloud[index] - cloud[index].mean(1, keepdims=True)
        return np.linalg.eigh(np.einsum("nki,nkj->nij", offsets, offsets))[1][:, :, 0]

    return _in_parts(fit, points)


def color_gradients(tree: cKDTree, tree_intensity: Array, points: Array, normals: Array, own_intensity: Array, neighbors: int) -> Array:
    """(N, 3) float32 change of intensity per length along each point's tangent plane, zero along its normal.

    Least squares over the neighbours' offsets projected onto the plane (Park et al., ICCV 2017). The points are in the tree: their nearest
    neighbour is themselves.
    """
    cloud = np.asarray(tree.data)

    def fit(rows: Array) -> Array:
        p, n = points[rows].astype(np.float64), normals[rows].astype(np.float64)
        _, index = tree.query(p, k=min(neighbors + 1, len(cloud)))
        index = index[:, 1:]
        offset = cloud[index] - p[:, None]
        offset -= np.einsum("nki,ni->nk", offset, n)[..., None] * n[:, None]
        change = tree_intensity[index] - own_intensity[rows][:, None]
        left = np.einsum("nki,nkj->nij", offset, offset) + neighbors * n[:, :, None] * n[:, None, :] + _DAMPING * np.eye(3)
        return np.linalg.solve(left, np.einsum("nki,nk->ni", offset, change)[..., None])[..., 0]

    return _in_parts(fit, np.arange(len(points)))


def _in_parts(work, rows: Array) -> Array:  # type: ignore[no-untyped-def]
    """`work` over blocks of rows on all cores, concatenated."""
    if len(rows) == 0:
        return np.zeros((0, 3), np.float32)
    parts = np.array_split(rows, -(-len(rows) // _ROWS_AT_ONCE))
    return np.concatenate(in_threads(work, parts)).astype(np.float32)
