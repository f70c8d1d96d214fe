"""Cameras as priors: those of a video model's trajectory stay where the frames' matches agree, the others are placed anew among them.

A video model follows its trajectory roughly, and in parts not at all. Frames whose matches agree with their given cameras hold the rest:
points are triangulated from them, and each other frame is placed by the points that it shows (PnP).
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from utils.cameras.resection import resect
from utils.imports.conventions import off_by
from utils.imports.sightings import Sightings, Tracks
from utils.types import Array

# A match agrees with the cameras of its frames within so many pixels; a camera stays where so large a share of its matches does.
_AGREES_PX, _LEAST_SHARE = 1.5, 0.5
# Matches that a frame needs to be judged, points and largest reprojection error (pixels) to be placed or to stay.
_LEAST_MATCHES, _LEAST_POINTS, _REPROJECTED_PX = 20, 15, 3.0
# Rounds in which points and the frames placed by them settle.
_ROUNDS = 10


@dataclass(frozen=True)
class Placed:
    """Cameras after the frames' matches have been heard.

    Attributes:
        w2c: (N, 4, 4) of all frames.
        stays: (N,) bool, as given, and matches agree.
        moved: (N,) bool, placed anew.
    """

    w2c: Array
    stays: Array
    moved: Array

    @property
    def unjudged(self) -> Array:
        """(N,) bool, as given, since nothing tells."""
        return ~(self.stays | self.moved)


def hold_or_place(sightings: Sightings, w2c: Array, K: Array) -> Placed:
    """Cameras that matches agree with stay to the last digit; those that they contradict are placed anew where enough points allow it.

    Args:
        sightings: matches between the frames.
        w2c: (N, 4, 4) as given.
        K: (3, 3) in pixels of the matches.
    """
    good = off_by(sightings, w2c, K) < _AGREES_PX
    stays = _agreeing(sightings, good, len(w2c))
    tracks = sightings.tracks(K)
    stays = _reprojecting(tracks, w2c, stays)
    placed, moved = w2c.copy(), np.zeros(len(w2c), bool)
    judged = np.bincount(np.concatenate([sightings.first, sightings.second]), minlength=len(w2c)) >= 2 * _LEAST_MATCHES
    waiting = judged & ~stays
    while waiting.any() and (stays | moved).sum() >= 2:
        where, known = tracks.triangulated(placed, stays | moved)
        counts = np.bincount(tracks.frame[known[tracks.point]], minlength=len(w2c)) * waiting
        for row in np.argsort(-counts, kind="stable"):
            pose = _resected(tracks, int(row), where, known, placed[row]) if counts[row] else None
            if pose is not None:
                placed[row], moved[row], waiting[row] = pose, True, False
                break
        else:
            break
    for _ in range(_ROUNDS if moved.any() else 0):
        where, known = tracks.triangulated(placed, stays | moved)
        for row in np.flatnonzero(moved).tolist():
            pose = _resected(tracks, row, where, known, placed[row])
            placed[row] = placed[row] if pose is None else pose
    return Placed(placed, stays, moved)


def _agreeing(sightings: Sightings, good: Array, frames: int) -> Array:
    """(N,) bool frames most of whose matches with each other agree: the worst frame leaves until that holds for all that are left."""
    stays = np.bincount(np.concatenate([sightings.first, sightings.second]), minlength=frames) >= _LEAST_MATCHES
    while stays.any():
        both = stays[sightings.first] & stays[sightings.second]
        ends = np.concatenate([sightings.first[both], sightings.second[both]])
        total = np.bincount(ends, minlength=frames)
        share = np.bincount(ends, np.tile(good[both], 2), minlength=frames) / np.maximum(total, 1)
        share = np.where(stays, np.where(total >= _LEAST_MATCHES, share, 0), np.inf)
        worst = int(share.argmin())
        if share[worst] >= _LEAST_SHARE:
            break
        stays[worst] = False
    return _together(sightings, good, stays)


def _together(sightings: Sightings, good: Array, stays: Array) -> Array:
    """(N,) bool the largest part of the frames that is held together by pairs that agree: others may agree within themselves only."""
    frames = len(stays)
    pair = sightings.first * frames + sightings.second
    total, agree = np.bincount(pair, minlength=frames**2), np.bincount(pair, good, minlength=frames**2)
    joined = ((total >= _LEAST_MATCHES) & (agree >= _LEAST_SHARE * total)).reshape(frames, frames) & stays & stays[:, None]
    _, part = connected_components(csr_matrix(joined), directed=False)
    return stays & (part == np.bincount(part[stays], minlength=1).argmax())


def _reprojecting(tracks: Tracks, w2c: Array, stays: Array) -> Array:
    """The frames that stay (N,) without those in which points of all of them come to lie elsewhere: their steps have other lengths."""
    stays = stays.copy()
    while stays.sum() > 2:
        where, known = tracks.triangulated(w2c, stays)
        error = tracks.errors(where, known, w2c)
        middle = np.full(len(w2c), -1.0)
        for row in np.flatnonzero(stays):
            mine = error[tracks.frame == row]
            mine = mine[np.isfinite(mine)]
            middle[row] = np.median(mine) if len(mine) >= _LEAST_POINTS else 0
        worst = int(middle.argmax())
        if middle[worst] <= _REPROJECTED_PX:
            break
        stays[worst] = False
    return stays


def _resected(tracks: Tracks, row: int, where: Array, known: Array, start: Array) -> Array | None:
    """(4, 4) world-to-camera pose of a frame by the known points (P, 3) that it shows; None if too few agree on any."""
    mine = (tracks.frame == row) & known[tracks.point]
    return resect(where[tracks.point[mine]], tracks.pixel[mine], tracks.K, start, _REPROJECTED_PX, _LEAST_POINTS, 0.3)
