"""Linear interpolation over time of per-frame values (poses, fields, colour maps) for frames that have none of their own."""

from dataclasses import dataclass

import numpy as np

from utils.types import Array


@dataclass(frozen=True)
class Neighbours:
    """The known frames around each of W wanted frames.

    Attributes:
        low: (W,) row of the known frame at or before it, or of the first one after it.
        high: (W,) row of the known frame at or after it, or of the last one before it.
        weight: (W,) share of `high`, 0..1.
        found: (W,) bool, there is a known frame in the same clip.
    """

    low: Array
    high: Array
    weight: Array
    found: Array

    def select(self, wanted: Array) -> "Neighbours":
        """Those of some of the wanted frames."""
        return Neighbours(self.low[wanted], self.high[wanted], self.weight[wanted], self.found[wanted])

    def blend(self, values: Array) -> Array:
        """Values (F, ...) of the known frames at the wanted ones, linear in between; meaningless where nothing was found."""
        weight = self.weight.reshape(-1, *([1] * (values.ndim - 1)))
        return ((1 - weight) * values[self.low] + weight * values[self.high]).astype(values.dtype)


def neighbours_in_time(known: Array, wanted: Array, known_clip: Array | None = None, wanted_clip: Array | None = None) -> Neighbours:
    """The frames around each wanted one; frames of different clips are no neighbours.

    Args:
        known: (F,) ascending frame ids.
        wanted: (W,) frame ids.
        known_clip: (F,) clip of each known frame; without it all are of one clip.
        wanted_clip: (W,).
    """
    known_clip = np.zeros(len(known), int) if known_clip is None else known_clip
    wanted_clip = np.zeros(len(wanted), int) if wanted_clip is None else wanted_clip
    low, high = np.zeros(len(wanted), int), np.zeros(len(wanted), int)
    weight, found = np.zeros(len(wanted)), np.zeros(len(wanted), bool)
    for clip in np.unique(wanted_clip):
        at, rows = np.flatnonzero(wanted_clip == clip), np.flatnonzero(known_clip == clip)
        if not len(rows):
            continue
        place = np.interp(wanted[at], known[rows], np.arange(len(rows)))
        below = np.minimum(place.astype(int), max(len(rows) - 2, 0))
        low[at], high[at] = rows[below], rows[np.minimum(below + 1, len(rows) - 1)]
        weight[at], found[at] = place - below, True
    return Neighbours(low, high, weight, found)


def blended(values: Array, known: Array, wanted: Array) -> Array:
    """Values (F, ...) of the frame ids `known` (ascending), linear in between, and those of the nearest frame beyond the ends."""
    return neighbours_in_time(known, wanted).blend(values)
