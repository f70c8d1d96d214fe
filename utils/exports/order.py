"""Splats in an order in which neighbours in the file are neighbours in space, for formats that pack runs or images of them."""

import numpy as np

from utils.types import Array

_BITS = 21


def morton_order(points: Array) -> Array:
    """(N,) rows of (N, 3) points along a Z-shaped curve through their ranks, so that far outliers do not spoil the rest."""
    codes = np.zeros(len(points), np.uint64)
    for axis in range(3):
        rank = np.empty(len(points), np.uint64)
        rank[np.argsort(points[:, axis], kind="stable")] = np.arange(len(points), dtype=np.uint64)
        bits = max(int(len(points) - 1).bit_length(), 1)
        rank = rank >> np.uint64(max(bits - _BITS, 0))
        codes |= _spread(rank) << np.uint64(axis)
    return np.argsort(codes, kind="stable")


def _spread(values: Array) -> Array:
    """Two zero bits after each of the lower 21 bits."""
    x = values & np.uint64(0x1FFFFF)
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        x = (x | (x << np.uint64(shift))) & np.uint64(mask)
    return x
