"""Hard cuts: where one frame shows another place than the frame before."""

import itertools

import cv2
import numpy as np

from utils.scene.clip.flow import moved_back
from utils.types import Array

# A cut's pictures stay this different after flow has moved one onto the other, over what is usual nearby,
_OUTSTANDING = 3.0
# in grey levels (mean) at least,
_LEAST_LEVELS = 10.0
# and look less alike than this (correlation after flow).
_ALIKE = 0.6
_AROUND = 12


def find_cuts(thumbs: Array, frames: Array) -> Array:
    """Positions k in `frames` such that a cut lies between frames[k - 1] and frames[k].

    Args:
        thumbs: (T, h, w) uint8 grey.
        frames: (N,) increasing positions of the frames that are looked at.
    """
    if len(frames) < 4:
        return np.zeros(0, np.int64)
    pairs = list(itertools.pairwise(frames))
    plain = np.array([np.abs(thumbs[a].astype(np.int16) - thumbs[b]).mean() for a, b in pairs])
    left, alike = plain.copy(), np.ones(len(plain))
    # Flow is only asked where pictures differ more than usual: a cut does.
    for i in np.flatnonzero(plain > 1.3 * np.median(plain)):
        a, b = pairs[i]
        left[i], alike[i] = _after_flow(thumbs[a], thumbs[b])
    nearby = _usual(left)
    cut = (left > _OUTSTANDING * nearby) & (left > _LEAST_LEVELS) & (alike < _ALIKE)
    return np.flatnonzero(cut) + 1


def _after_flow(a: Array, b: Array) -> tuple[float, float]:
    """Mean difference in levels and correlation of two pictures once flow has moved the second onto the first."""
    at, inside = moved_back(a, b, (a.shape[0], a.shape[1]))
    moved = cv2.remap(b, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    if inside.mean() < 0.2:
        inside = np.ones_like(inside)
    first, second = a[inside].astype(np.float64), moved[inside].astype(np.float64)
    scatter = first.std() * second.std()
    alike = float(((first - first.mean()) * (second - second.mean())).mean() / scatter) if scatter > 1e-6 else 0.0
    return float(np.abs(first - second).mean()), alike


def _usual(values: Array) -> Array:
    """(N,) median of the values around each one, itself left out."""
    padded = np.pad(values, _AROUND, mode="reflect" if len(values) > _AROUND else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1)
    return np.median(np.delete(windows, _AROUND, axis=1), axis=1)


def longest_shot(frames: Array, cuts: Array) -> tuple[Array, list[Array]]:
    """The frames of the longest shot, of equally long ones the first, and the frames of every shot."""
    shots = np.split(frames, cuts)
    return max(shots, key=len), shots
