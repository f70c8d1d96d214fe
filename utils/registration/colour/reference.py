"""The weighted sums over the matches of each pair that `estimate_color_maps` solves with, pair by pair in NumPy."""

from collections.abc import Iterator

from utils.matching.contract import MatchSet
from utils.types import Array

Sums = tuple[Array, Array, Array, Array, Array, Array, float]


def pair_sums(matches: list[MatchSet], pairs: list[tuple[Array, Array]], current: Array, scale: float) -> Iterator[Sums]:
    """Per pair the weighted sums of s s^T, t t^T, s t^T, t s^T (4, 4), of s d^T, t d^T (4, 3), d = s - t, and of the weights."""
    for m, (s, t) in zip(matches, pairs, strict=True):
        difference = s[:, :3] - t[:, :3]
        now = difference + s @ current[m.source] - t @ current[m.target]
        weight = (scale**2 / (scale**2 + (now**2).sum(1))) ** 2
        ws, wt = weight[:, None] * s, weight[:, None] * t
        yield ws.T @ s, wt.T @ t, ws.T @ t, wt.T @ s, ws.T @ difference, wt.T @ difference, weight.sum()
