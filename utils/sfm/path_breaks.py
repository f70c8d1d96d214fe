"""Whether the path of a clip's cameras is whole: no single step of it is far longer than those around it."""

import numpy as np

from utils.geometry_backend import SparseModel
from utils.types import Array

# A step of the path that is so many times as long as the steps around it, and turns or moves so far, is no motion of a camera.
_BREAK_RATIO, _BREAK_DEG, _BREAK_MOVE = 2.5, 8.0, 0.15
# Steps on either side that it is compared with.
_AROUND = 3
_ENDS = 2
# Frames whose path breaks more often, as a share of them, are no clip: they may lie anywhere.
_MOST_BREAKS = 0.15


def path_breaks(model: SparseModel, clips: Array | None = None) -> Array:
    """(R - 1,) how many times the limit the steps between registered frames exceed what the path does around them; 0 where they do not.

    Steps from one clip, of the frames (F,), to the next count for nothing, nor do the first and last two: too little is around them.

    A clip's camera speeds up and slows down over several frames. One step that turns or moves several times as far as those before and
    after it is where mapping has joined two parts that hardly share points.
    """
    if len(model.frames) < 2 * _AROUND:
        return np.zeros(max(len(model.frames) - 1, 0))
    rotation, centers = model.w2c[:, :3, :3], np.linalg.inv(model.w2c)[:, :3, 3]
    cosine = (np.einsum("nij,nij->n", rotation[1:], rotation[:-1]) - 1) / 2
    time = np.diff(model.frames).astype(float)
    turns = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    moves = np.linalg.norm(np.diff(centers, axis=0), axis=1) / np.maximum(_distances(model, centers), 1e-9)
    within = np.ones(len(time), bool) if clips is None else np.diff(clips[model.frames]) == 0
    breaks = np.zeros(len(time))
    for steps, least in ((turns, _BREAK_DEG), (moves, _BREAK_MOVE)):
        rate = np.where(within, steps / time, np.nan)
        for step in np.flatnonzero(within & (steps > least)):
            around = np.r_[rate[max(0, step - _AROUND) : step], rate[step + 1 : step + 1 + _AROUND]]
            around = around[np.isfinite(around)]
            ratio = rate[step] / max(float(np.median(around)), 1e-9) if len(around) else 0.0
            if ratio > _BREAK_RATIO:
                breaks[step] = max(breaks[step], ratio / _BREAK_RATIO)
    breaks[:_ENDS] = breaks[-_ENDS:] = 0
    return breaks


def is_broken(breaks: Array) -> bool:
    """Whether a path with these `path_breaks` breaks, in a few places."""
    return 0 < int(np.count_nonzero(breaks)) <= max(1, _MOST_BREAKS * len(breaks))


def _distances(model: SparseModel, centers: Array) -> Array:
    """(R - 1,) median distance of the points that the nearer-sighted of two consecutive frames sees."""
    distance = np.linalg.norm(model.points[model.seen_point] - centers[model.seen_by], axis=1)
    order = np.argsort(model.seen_by, kind="stable")
    parts = np.split(distance[order], np.cumsum(np.bincount(model.seen_by, minlength=len(centers)))[:-1])
    own = np.array([np.median(part) if len(part) else np.inf for part in parts])
    return np.minimum(own[1:], own[:-1])


def worst_break(model: SparseModel, breaks: Array) -> str:
    """Between which frames the path breaks most."""
    at = int(np.argmax(breaks))
    return f"between frames {model.frames[at]} and {model.frames[at + 1]}"
