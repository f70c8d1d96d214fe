"""Division of space into boxes that hold equally many splats."""

from dataclasses import dataclass

import numpy as np

from utils.types import Array

BORDER = 0.1
"""Width of the border that a block is trained with, as a share of what the block spans along each axis."""
_SPAN = (0.02, 0.98)  # quantiles of the positions in a box that count as its span: single far splats do not


@dataclass(frozen=True)
class Block:
    """An axis-aligned box of canonical space; boxes of one cut fill it without overlap.

    Attributes:
        low: (3,) least coordinates that belong to the core, -inf at the world's end.
        high: (3,) first coordinates that do not, inf at the world's end.
        border: (3,) how far beyond the core the block's own splats reach, scene units.
    """

    low: Array
    high: Array
    border: Array

    def core(self, points: Array) -> Array:
        """(N,) bool, points (N, 3) in the core."""
        inside: Array = np.all((points >= self.low) & (points < self.high), axis=1)
        return inside

    def reach(self, points: Array) -> Array:
        """(N,) bool, points (N, 3) in the core or its border."""
        inside: Array = np.all((points >= self.low - self.border) & (points < self.high + self.border), axis=1)
        return inside


def cut(points: Array, count: int) -> list[Block]:
    """`count` boxes with about as many of the points (N, 3) each: halved again and again across the longest side."""
    everywhere = np.full(3, np.inf)
    return _halved(points.astype(np.float64), -everywhere, everywhere, count)


def _halved(points: Array, low: Array, high: Array, count: int) -> list[Block]:
    """The boxes of one box (low, high) that holds these points."""
    ends = np.quantile(points, _SPAN, axis=0) if len(points) else np.zeros((2, 3))
    span = ends[1] - ends[0]
    if count == 1:
        return [Block(low, high, BORDER * span)]
    axis, fewer = int(span.argmax()), count // 2
    place = float(np.quantile(points[:, axis], fewer / count)) if len(points) else 0.0
    below = points[:, axis] < place
    middle_high, middle_low = high.copy(), low.copy()
    middle_high[axis] = middle_low[axis] = place
    return _halved(points[below], low, middle_high, fewer) + _halved(points[~below], middle_low, high, count - fewer)
