"""Whether the path of a clip's cameras is whole: no single step of it is far longer than those around it."""

import numpy as np

from utils.geometry_backend import SparseModel
from utils.types import Array

# A step of the path that is so many times as long as the steps around it, and turns or moves so far, is no motion of a camera.
_BREAK_RATIO, _BREAK_DEG, _BREAK_MOVE = 2.5, 8.0, 0.15
# Steps on either side that it is compared with.
_AROUND = 3
# Steps at either end of the path that never count: too little is around them, and two frames are no part.
_ENDS = 2
# Frames whose path breaks more often, as a share of them, are no clip: they may lie anywhere.
_MOST_BREAKS = 0.15


def path_breaks(model: SparseModel, clips: Array | None = None) -> Array:
    """(R - 1,) how many times the limit the steps between registered frames exceed what the path does around them; 0 where they do not.

    A clip's camera speeds up and slows down over several frames. One step that turns or moves several times as far as those before and
    after it is where mapping has joined two parts that hardly share points.

    Args:
        model: with R frames.
        clips: (F,) clip of each of the images it was made from: steps from one clip to the next count for nothing. None: all are of one.
    """
    return np.maximum(turn_breaks(model, clips), move_breaks(model, clips))


def turn_breaks(model: SparseModel, clips: Array | None = None) -> Array:
    """`path_breaks` by rotation alone."""
    rotation = model.w2c[:, :3, :3]
    cosine = (np.einsum("nij,nij->n", rotation[1:], rotation[:-1]) - 1) / 2
    return _breaks(model, np.degrees(np.arccos(np.clip(cosine, -1, 1))), _BREAK_DEG, clips)


def move_breaks(model: SparseModel, clips: Array | None = None) -> Array:
    """`path_breaks` by the distance moved, as a share of that to the points seen, alone: parts that differ in scale break so too."""
    centers = np.linalg.inv(model.w2c)[:, :3, 3]
    moves = np.linalg.norm(np.diff(centers, axis=0), axis=1) / np.maximum(_distances(model, centers), 1e-9)
    return _breaks(model, moves, _BREAK_MOVE, clips)


def _breaks(model: SparseModel, steps: Array, least: float, clips: Array | None) -> Array:
    """Breaks of steps (R - 1,) that are longer than `least`, by their lengths per frame of the clip."""
    breaks = np.zeros(len(steps))
    if len(model.frames) < 2 * _AROUND:
        return breaks
    within = np.ones(len(steps), bool) if clips is None else np.diff(clips[model.frames]) == 0
    rate = np.where(within, steps / np.diff(model.frames), np.nan)
    for step in np.flatnonzero(within & (steps > least)):
        around = np.r_[rate[max(0, step - _AROUND) : step], rate[step + 1 : step + 1 + _AROUND]]
        around = around[np.isfinite(around)]
        ratio = rate[step] / max(float(np.median(around)), 1e-9) if len(around) else 0.0
        if ratio > _BREAK_RATIO:
            breaks[step] = ratio / _BREAK_RATIO
    breaks[:_ENDS] = breaks[-_ENDS:] = 0
    return breaks


def is_broken(breaks: Array) -> bool:
    """Whether a path with these `path_breaks` breaks, in a few places."""
    return 0 < int(np.count_nonzero(breaks)) <= max(1, _MOST_BREAKS * len(breaks))


def _distances(model: SparseModel, centers: Array) -> Array:
    """(R - 1,) median distance of the points that a frame sees, the smaller one of each two consecutive frames."""
    distance = np.linalg.norm(model.points[model.seen_point] - centers[model.seen_by], axis=1)
    order = np.argsort(model.seen_by, kind="stable")
    parts = np.split(distance[order], np.cumsum(np.bincount(model.seen_by, minlength=len(centers)))[:-1])
    own = np.array([np.median(part) if len(part) else np.inf for part in parts])
    return np.minimum(own[1:], own[:-1])


def worst_break(model: SparseModel, breaks: Array) -> str:
    """Between which frames the path breaks most."""
    at = int(np.argmax(breaks))
    return f"between frames {model.frames[at]} and {model.frames[at + 1]}"
