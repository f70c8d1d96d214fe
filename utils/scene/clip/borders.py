"""Bars around the picture: rows and columns at the edge that show one unchanging level up to a straight line."""

from dataclasses import dataclass

import numpy as np

from utils.types import Array

# Levels within a row of a bar differ by at most this (compression), and from frame to frame by this (standard deviation).
_FLAT, _STEADY = 14.0, 3.0
# The frames in which that holds: a subtitle or a flash may cross a bar in the others.
_IN_FRAMES = 90
# Rows beside a bar in which its edge is soft.
_SOFT = 4
# Beyond the edge the mean level differs by this much in the brighter frames, and at once by this share of what it does further in.
_STEP, _AT_ONCE = 4.0, 0.35
# Fewer frames do not tell; nor do frames whose lines' mean levels hardly change (standard deviation).
_LEAST_FRAMES, _MOVES = 5, 0.3
# Bars are at least this many rows, and leave at least this share of the picture.
_THINNEST, _LEAST_LEFT = 2, 0.35


@dataclass(frozen=True)
class Crop:
    """Rows and columns to leave away.

    Attributes:
        top: rows.
        bottom: rows.
        left: columns.
        right: columns.
    """

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def __bool__(self) -> bool:
        return any((self.top, self.bottom, self.left, self.right))

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of what is left of a picture of (h, w)."""
        return size[0] - self.top - self.bottom, size[1] - self.left - self.right

    def of(self, image: Array) -> Array:
        """What is left of a picture (h, w[, C])."""
        return np.ascontiguousarray(image[self.top : image.shape[0] - self.bottom, self.left : image.shape[1] - self.right])

    def joined(self, other: "Crop") -> "Crop":
        """What either leaves away."""
        return Crop(*(max(a, b) for a, b in zip(self.sides, other.sides, strict=True)))

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Top, bottom, left, right."""
        return self.top, self.bottom, self.left, self.right


def find_bars(profiles: list[tuple[Array, Array]]) -> Crop:
    """The bars of a clip, from the level profiles of some of its frames.

    Args:
        profiles: for each frame least, mean and largest level of its rows (h, 3) and columns (w, 3).
    """
    if len(profiles) < _LEAST_FRAMES:
        return Crop()
    rows, columns = np.stack([p[0] for p in profiles]), np.stack([p[1] for p in profiles])
    if max(np.median(lines[..., 1].std(axis=0)) for lines in (rows, columns)) < _MOVES:
        return Crop()  # where nothing moves, a wall stands as still as a bar
    top, bottom = _bar(rows), _bar(rows[:, ::-1])
    if (top or bottom) and rows.shape[1] - top - bottom >= _LEAST_LEFT * rows.shape[1]:
        # A bar's own rows would spoil the columns: their least and largest level is then the bar's. Means are corrected for.
        columns = _without(columns, rows, top, bottom)
    else:
        top = bottom = 0
    left, right = _bar(columns), _bar(columns[:, ::-1])
    if columns.shape[1] - left - right < _LEAST_LEFT * columns.shape[1]:
        left = right = 0
    return Crop(top, bottom, left, right)


def _without(columns: Array, rows: Array, top: int, bottom: int) -> Array:
    """Column profiles (S, w, 3) with the mean of the rows between the bars; least and largest are those of whole columns."""
    total = rows.shape[1]
    level = rows[:, :top, 1].sum(1) + rows[:, total - bottom :, 1].sum(1)
    mean = (columns[..., 1] * total - level[:, None]) / (total - top - bottom)
    return np.stack([columns[..., 0], mean, columns[..., 2]], -1)


def _bar(lines: Array) -> int:
    """How many lines at the beginning are a bar.

    Args:
        lines: (S, n, 3) least, mean and largest level of the lines of some frames.
    """
    spread = np.percentile(lines[..., 2] - lines[..., 0], _IN_FRAMES, axis=0)
    level = lines[..., 1]
    middle = np.median(level, axis=0)
    unsteady = np.percentile(np.abs(level - middle), _IN_FRAMES, axis=0)
    flat = (spread <= _FLAT) & (unsteady <= _STEADY) & (np.abs(middle - middle[0]) <= _STEADY)
    count = int(np.argmin(flat)) if not flat.all() else 0
    if count < _THINNEST or count > lines.shape[1] // 2:
        return 0
    # The edge itself is where the mean level changes most; compression smears it over a few lines.
    reach = slice(max(count - 2, 0), min(count + _SOFT, level.shape[1] - 1))
    jump = np.abs(np.diff(level, axis=1))[:, reach].mean(0)
    edge = reach.start + int(np.argmax(jump)) + 1
    beyond = np.abs(level - middle[0])
    near = np.percentile(beyond[:, min(edge + 1, beyond.shape[1] - 1)], 75)
    deeper = np.percentile(beyond[:, edge + 2 : edge + 2 + max(8, level.shape[1] // 12)].mean(axis=1), 75)
    return edge if near >= _STEP and near >= _AT_ONCE * deeper else 0
