"""First and last frames that do not belong to the picture: blank ones, fades, and jumps of brightness or colour."""

import itertools
from dataclasses import dataclass

import cv2
import numpy as np

from utils.scene.clip.flow import moved_back
from utils.types import Array

# A frame whose grey levels vary by less than this (standard deviation, 0..255) shows nothing.
_BLANK = 3.0
# A step of this much between two frames (log of the ratio of levels) is no change of the view,
_JUMP = 0.06
# nor is one that is this many times what is usual within the clip.
_UNUSUAL = 6.0
# A fade goes on while steps of one direction are at least this large.
_FADING = 0.012
# Deviation of levels from those of the settled clip below which a frame belongs to it.
_SETTLED = 0.05
# Contrast at the end of a fade, over that of the picture.
_FLAT = 0.35
# First and last frames are looked at up to this share of the clip, and this many.
_SHARE, _MOST = 0.25, 60
# Fewer frames do not tell what is usual.
_LEAST_FRAMES = 8


@dataclass(frozen=True)
class Ends:
    """Frames at the ends of a shot that do not belong to it.

    Attributes:
        first: how many at the beginning.
        last: how many at the end.
        first_why: what is wrong with them; empty if nothing is.
        last_why: the same at the end.
    """

    first: int = 0
    last: int = 0
    first_why: str = ""
    last_why: str = ""


def blank_frames(thumbs: Array) -> Array:
    """(T,) bool: frames that show nothing but one grey level; `thumbs` (T, h, w) uint8."""
    return np.array([thumb.std() for thumb in thumbs]) < _BLANK


def find_ends(thumbs: Array, tints: Array) -> Ends:
    """Fades and jumps at both ends of the pictures of one shot, none of them blank, none shown twice.

    Args:
        thumbs: (T, h, w) uint8 grey.
        tints: (T, h, w, 3) uint8 small colour pictures.
    """
    if len(thumbs) < _LEAST_FRAMES:
        return Ends()
    gains = _gains(thumbs, tints)
    contrast = np.array([thumb.std() for thumb in thumbs])
    first, first_why = max(_unsettled(gains), _washed_out(contrast))
    last, last_why = max(_unsettled(-gains[::-1]), _washed_out(contrast[::-1]))
    return Ends(first, last, first_why, last_why)


def _gains(thumbs: Array, tints: Array) -> Array:
    """(T - 1, 3) log of each channel's level over that of the frame before; the median over the picture.

    Where levels change at the ends of the clip, motion is taken out first: a fast turn shows other things, not other light.
    """
    gains = np.array([_gain(before, after) for before, after in itertools.pairwise(tints)])
    window = _window(len(tints))
    for i in (*range(window), *range(len(gains) - window, len(gains))):
        if np.abs(gains[i]).max() > _FADING:
            field, inside = moved_back(thumbs[i], thumbs[i + 1], tints.shape[1:3])
            if inside.mean() > 0.3:
                after = cv2.remap(tints[i + 1], field[..., 0], field[..., 1], cv2.INTER_LINEAR)
                gains[i] = _gain(tints[i][inside], after[inside])
    return gains


def _gain(before: Array, after: Array) -> Array:
    """(3,) log of the ratio of levels of two colour pictures."""
    gain = np.zeros(3)
    for channel in range(3):
        a, b = (image[..., channel].astype(np.float32) for image in (before, after))
        told = (np.minimum(a, b) > 6) & (np.maximum(a, b) < 250)
        # Next to black or white only the mean is left to tell.
        gain[channel] = np.median(np.log(b[told] / a[told])) if told.mean() > 0.1 else np.log((b.mean() + 1) / (a.mean() + 1))
    return gain


def _window(frames: int) -> int:
    """How many frames at either end are looked at."""
    return min(_MOST, int(_SHARE * frames))


def _unsettled(gains: Array) -> tuple[int, str]:
    """How many frames at the beginning deviate, and how.

    Args:
        gains: (T - 1, 3) steps of level in the direction of time.
    """
    window = _window(len(gains) + 1)
    if window < 1:
        return 0, ""
    size = np.abs(gains).max(axis=1)
    usual = float(np.median(size[window:])) if len(size) > window else 0.0
    spread = float(np.percentile(size[window:], 95)) if len(size) > window else 0.0
    least = max(_JUMP, _UNUSUAL * usual, 1.5 * spread)
    large = np.flatnonzero(size[:window] > least)
    if not len(large):
        return 0, ""
    end = int(large[-1]) + 1
    # The rest of a fade has smaller steps of the same direction.
    direction = gains[large[-1]]
    while end < window and gains[end] @ direction > 0 and size[end] > max(_FADING, 2 * usual):
        end += 1
    deviation = np.abs(np.cumsum(gains[:end][::-1], axis=0)[::-1]).max(axis=1)
    if (deviation < _SETTLED).mean() > 0.5:  # it comes back: something passes by
        return 0, ""
    steps = int((size[:end] > max(_FADING, 2 * usual)).sum())
    tinted = np.ptp(gains[large], axis=1).max() > 0.5 * size[large].max()
    return end, "a fade" if steps >= 4 else "a jump of colour" if tinted else "a jump of brightness"


def _washed_out(contrast: Array) -> tuple[int, str]:
    """How many frames at the beginning come out of a flat colour: bright pictures fade to white without a change of level."""
    window = _window(len(contrast))
    end = 0
    while end < window and contrast[end + 1] > (1 + _FADING) * contrast[end]:
        end += 1
    flat = contrast[0] < _FLAT * contrast[end]
    return (end, "a fade") if end >= 3 and flat else (0, "")
