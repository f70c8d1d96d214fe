"""Which frames of a clip become the scene: spread evenly over all of it, its end included."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from utils.types import Array


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Chosen frames.

    Attributes:
        indices: (N,) int64 increasing positions in the clip.
        stride: mean step between them.
        sparse: the step is larger than was asked for, because covering the whole clip matters more.
    """

    indices: Array
    stride: float
    sparse: bool


def choose_uniform(total: int, max_frames: int, max_stride: int) -> Selection:
    """At most `max_frames` of `total` frames, evenly spread, always with the first and the last.

    The published rule keeps a whole-number stride and drops the tail of the clip; this one covers the clip with fractional steps.
    """
    count = min(total, max_frames)
    indices = np.round(np.linspace(0, total - 1, count)).astype(np.int64)
    stride = (total - 1) / max(count - 1, 1)
    return Selection(indices=indices, stride=stride, sparse=max_stride >= 1 and stride > max_stride)


def share_fairly(totals: Sequence[int], max_frames: int) -> list[int]:
    """How many of `max_frames` each of several clips gets: equal shares, what a short clip leaves goes to the others."""
    shares = [0] * len(totals)
    left = min(max_frames, sum(totals))
    while left > 0:
        open_clips = [i for i, total in enumerate(totals) if shares[i] < total]
        for i in open_clips[:left]:
            shares[i] += 1
        left -= min(left, len(open_clips))
    return shares


def sharpness(image: Array) -> float:
    """Variance of the Laplacian of the grey image: comparable between frames of one clip and one size only."""
    return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def prefer_sharp(indices: Array, scores: Array) -> Array:
    """Each index moved to the sharpest frame of its window, which reaches 40 % of the way to its neighbours.

    Args:
        indices: (N,) increasing positions.
        scores: (T,) sharpness of every frame of the clip.

    Returns:
        (N,) increasing positions; windows do not overlap, so no frame is chosen twice.
    """
    moved = indices.copy()
    for i, index in enumerate(indices):
        before = indices[max(i - 1, 0)]
        after = indices[min(i + 1, len(indices) - 1)]
        low, high = index - int(0.4 * (index - before)), index + int(0.4 * (after - index))
        moved[i] = low + int(np.argmax(scores[low : high + 1]))
    return moved


def between(indices: Array, per_gap: int) -> Array:
    """The chosen positions and up to `per_gap` more, evenly spread, in every gap; increasing."""
    extra = [round(a + (b - a) * k / (per_gap + 1)) for a, b in itertools.pairwise(indices) for k in range(1, per_gap + 1)]
    return np.unique(np.concatenate([indices, np.array(extra, np.int64)]))
