"""Normals of many small neighbourhoods on the CPU: the eigenvector of the smallest eigenvalue of each scatter matrix."""

import numpy as np

from utils.runtime import in_threads
from utils.types import Array

_ROWS_AT_ONCE = 20_000


def smallest_axes(points: Array, neighbors: Array) -> Array:
    """(N, 3) unit directions in which the neighbourhoods (N, k), rows of points (M, 3) float64, are thinnest; their sign is free."""

    def normals(rows: Array) -> Array:
        offsets = points[rows] - points[rows].mean(1, keepdims=True)
        return np.linalg.eigh(np.einsum("nki,nkj->nij", offsets, offsets))[1][:, :, 0]

    parts = np.array_split(neighbors, max(1, len(points) // _ROWS_AT_ONCE))
    return np.concatenate(in_threads(normals, parts))
