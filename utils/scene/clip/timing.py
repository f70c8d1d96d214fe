"""Pictures that a clip shows more than once: repeats to reach a frame rate, a standing start, a clip played backwards or in a loop.

All is told from small pictures. A repeat differs from its original by what compression does, a new picture by what the camera's motion
does; the one is a small share of the other, however slow the clip is.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from utils.types import Array

# A difference below this share of the motion around it is no motion.
_REPEAT_SHARE = 0.2
# Frames on either side among which the motion around a frame is looked for.
_AROUND = 16
# Grey levels (mean over a picture) that two pictures of one moment differ by at most, however they were compressed.
_SAME = 0.05
# A picture seen before is a twin if it differs from the first by less than this share of the motion between neighbours,
_TWIN_SHARE = 0.5
# and is at least this many pictures away.
_TWIN_GAP = 3
# On a line of them they may differ by this share, in the median; a line has this many.
_LINE_SHARE, _RUN = 1.1, 6
# Contrast (standard deviation) that pictures are compared at; duller ones are not amplified further.
_CONTRAST, _DULL = 48.0, 4.0
# Twins are looked for among this many pictures at a time.
_ROWS = 256


@dataclass(frozen=True)
class Repeats:
    """Which frames show something new.

    Attributes:
        keep: (T,) bool.
        standing: frames at the beginning that show the first picture, itself included.
        period: mean number of frames a picture is shown for in the rest of the clip.
    """

    keep: Array
    standing: int
    period: float


def level(thumbs: Array) -> Array:
    """(T, h, w) uint8 pictures with the same mean and contrast, so that a fade or a flash is no motion."""
    levelled = np.empty_like(thumbs)
    for row, thumb in zip(levelled, thumbs, strict=True):
        values = thumb.astype(np.float32)
        row[:] = np.clip((values - values.mean()) * (_CONTRAST / max(float(values.std()), _DULL)) + 128.5, 0, 255)
    return levelled


def difference(a: Array, b: Array) -> float:
    """Mean difference of two grey pictures in levels."""
    return float(np.abs(a.astype(np.int16) - b).mean())


def find_repeats(thumbs: Array, usable: Array) -> Repeats:
    """Frames that show the same picture as the last one kept.

    Args:
        thumbs: (T, h, w) uint8 grey.
        usable: (T,) bool, frames that may be kept at all.
    """
    frames = np.flatnonzero(usable)
    keep = np.zeros(len(thumbs), bool)
    if len(frames) < 2:
        keep[frames] = True
        return Repeats(keep, len(frames), 1.0)
    steps = np.array([difference(thumbs[a], thumbs[b]) for a, b in itertools.pairwise(frames)])
    motion = _motion_around(steps)
    keep[frames[0]] = True
    last, standing = frames[0], 1
    moving = False
    for position, frame in enumerate(frames[1:]):
        least = max(_SAME, _REPEAT_SHARE * motion[position])
        # A slow picture counts as new as soon as it has moved enough since the last one kept.
        if difference(thumbs[last], thumbs[frame]) <= least:
            standing += not moving
            continue
        moving = True
        keep[frame] = True
        last = frame
    rest = int(keep.sum()) - 1
    return Repeats(keep, standing, (len(frames) - standing) / rest if rest else 1.0)


def _motion_around(steps: Array) -> Array:
    """(T - 1,) how much pictures near each step differ where they differ at all."""
    padded = np.pad(steps, _AROUND, mode="reflect" if len(steps) > _AROUND else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1)
    # Near the largest, so that one cut or flash among the steps does not count.
    near = np.sort(windows, axis=1)[:, -3]
    moves = steps[steps > max(_SAME, 0.2 * float(near.max()))]
    # A standing start has no motion around it; the clip's own tells then. Slow parts keep their own, smaller one.
    typical = float(np.median(moves)) if len(moves) else 0.0
    return np.where(near > 0.3 * typical, near, typical)


def find_twins(thumbs: Array, keep: Array) -> Array:
    """(T,) for every kept frame the earlier kept one whose picture it shows again, -1 for none.

    Args:
        thumbs: (T, h, w) uint8 grey.
        keep: (T,) bool, frames left after repeats are gone.
    """
    twin = np.full(len(thumbs), -1, np.int64)
    frames = np.flatnonzero(keep)
    if len(frames) <= _TWIN_GAP + 1:
        return twin
    pictures = thumbs[frames]
    step = np.array([difference(a, b) for a, b in itertools.pairwise(pictures)])
    motion = np.minimum(np.r_[step[0], step], np.r_[step, step[-1]])
    best = _nearest_earlier(pictures)
    for position in range(_TWIN_GAP, len(frames)):
        for other in _candidates(best[position], position):
            # Nothing is said of pictures that hardly differ from their own neighbours.
            limit = _TWIN_SHARE * min(motion[position], motion[other])
            if difference(pictures[position], pictures[other]) < max(limit, _SAME):
                twin[frames[position]] = frames[other]
                break
    return _along_lines(twin, frames, pictures, motion, best)


def _candidates(best: int, position: int) -> list[int]:
    return [k for k in (best, best - 1, best + 1) if 0 <= k <= position - _TWIN_GAP] if best >= 0 else []


def _nearest_earlier(pictures: Array) -> Array:
    """For every picture the most similar earlier one at least the gap away, by pictures of a fourth the size; -1 for none."""
    n, height, width = pictures.shape
    factor = max(1, min(height, width) // 24)
    cut = pictures[:, : height // factor * factor, : width // factor * factor]
    coarse = cut.reshape(n, height // factor, factor, width // factor, factor).mean((2, 4), dtype=np.float32).reshape(n, -1)
    squares = (coarse**2).sum(1)
    best = np.full(n, -1, np.int64)
    for first in range(_TWIN_GAP, n, _ROWS):
        rows = np.arange(first, min(first + _ROWS, n))
        distance = squares[None, : rows[-1] + 1] - 2 * coarse[rows] @ coarse[: rows[-1] + 1].T
        distance[np.arange(rows[-1] + 1)[None] > rows[:, None] - _TWIN_GAP] = np.inf
        best[rows] = distance.argmin(1)
    return best


def _along_lines(twin: Array, frames: Array, pictures: Array, motion: Array, best: Array) -> Array:
    """Twins, with those of a clip that is played backwards or again: there the nearest pictures lie on one line.

    Noise of compression may be as large as a slow camera's motion; that a whole run of pictures finds the right ones tells nonetheless.
    """
    asked = np.flatnonzero(best >= 0)
    for sign in (-1, 1):  # played backwards: position + original is the same for all; again: position - original
        line = asked - sign * best[asked]
        values, counts = np.unique(line, return_counts=True)
        if not len(values):
            continue
        total = int(values[counts.argmax()])
        near = asked[np.abs(line - total) <= 1]
        if len(near) < _RUN or len(near) < 0.6 * (near[-1] - near[0] + 1):
            continue
        run = np.arange(near[0], near[-1] + 1)
        originals = sign * (run - total)
        inside = (originals >= 0) & (run - originals >= 1)
        run, originals = run[inside], originals[inside]
        apart = np.array([difference(pictures[a], pictures[b]) for a, b in zip(run, originals, strict=True)])
        if np.median(apart / np.maximum(np.minimum(motion[run], motion[originals]), _SAME)) < _LINE_SHARE:
            bare = twin[frames[run]] < 0
            twin[frames[run[bare]]] = frames[originals[bare]]
    return twin
