"""Resolutions and table sizes of the levels of a hash grid."""

from dataclasses import dataclass

import numpy as np

from utils.types import Array

FEATURES = 2


PRIMES = (1, 2654435761, 805459861)


_ROUND_TO = 8  # entries of a level are a multiple of this


@dataclass(frozen=True)
class Levels:
    """The resolutions of a grid.

    Attributes:
        scale: (L,) float32 cells along an axis, not an integer.
        resolution: (L,) uint32 vertices along an axis.
        offset: (L + 1,) int64 first table row of each level, then the number of rows.
        hashed: (L,) bool.
    """

    scale: Array
    resolution: Array
    offset: Array
    hashed: Array

    def __len__(self) -> int:
        return len(self.scale)


def make_levels(levels: int, log2_table_size: int, min_resolution: int, max_resolution: int) -> Levels:
    """Levels whose resolutions grow geometrically from the least to the greatest."""
    growth = (max_resolution / min_resolution) ** (1 / max(levels - 1, 1))
    scale = min_resolution * growth ** np.arange(levels) - 1
    resolution = np.ceil(np.round(scale, 6)).astype(np.int64) + 1
    vertices = -(-(resolution**3) // _ROUND_TO) * _ROUND_TO
    size = np.minimum(vertices, 2**log2_table_size)
    offset = np.concatenate([[0], np.cumsum(size)])
    return Levels(scale.astype(np.float32), resolution.astype(np.uint32), offset, vertices > 2**log2_table_size)
