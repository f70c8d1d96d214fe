"""Points followed by optical flow from frame to frame, as further matches for mapping.

Descriptors need texture that is recognised again. Where a generated clip passes something dark or smooth, a few dozen of them hold two
neighbouring frames together, and mapping puts the whole error of an orbit that does not quite close there: the clip breaks into parts that
lie apart. Flow follows any visible structure over the small step between neighbours, so that every step of a clip weighs alike.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from utils.runtime import cpu_count
from utils.sfm.matches_database import append_keypoints, frame_ids, replace_matches, verified_counts, verify
from utils.types import Array

# Matches of a pair of neighbours below which flow adds its own.
_ENOUGH = 300
# Frames over which a point is followed: each step adds an error of its own.
_LONGEST = 4
# One point is followed for each cell of this size, as a share of the longest side.
_CELL = 1 / 48
# Structure that flow can hold on to: the smaller eigenvalue of the gradients' covariance, in squared grey levels, in windows of 7 pixels.
_LEAST_EIGENVALUE = 4.0
# Largest disagreement (pixels) of the flow there and back.
_CYCLE_PX = 0.7
# A verified pair holds at least so many matches, and this share of those tried.
_LEAST_MATCHES = 30
_LEAST_SHARE = 0.3


def add_flow_tracks(database: Path, images: Array, *, seed: int, keep: Array | None = None) -> int:
    """Adds points followed by flow, and their verified matches, to a database; returns how many pairs of frames they now hold together.

    Args:
        database: with images named `<position>.png`, their features matched and verified.
        images: (F, h, w, 3) uint8, in the order of the clip.
        seed: of RANSAC.
        keep: (F, h, w) bool, where points may lie; None: everywhere.
    """
    with pycolmap.Database.open(database) as stored:
        ids = frame_ids(stored, len(images))
        held = verified_counts(stored, ids)
        near = [(a, a + gap) for gap in range(1, _LONGEST) for a in range(len(images) - gap)]
        weak = [pair for pair in near if held.get(pair, 0) < _ENOUGH]
        if not weak:
            return 0
        tracks = follow(images, keep)
        first_row = [append_keypoints(stored, image, own[:, 1:]) for image, own in zip(ids, tracks, strict=True)]
        added = []
        for a, b in weak:
            _, in_a, in_b = np.intersect1d(tracks[a][:, 0], tracks[b][:, 0], assume_unique=True, return_indices=True)
            if len(in_a) >= _LEAST_MATCHES:
                replace_matches(stored, ids[a], ids[b], np.column_stack([in_a + first_row[a], in_b + first_row[b]]))
                added.append((a, b))
    verify(database, added, seed, least=_LEAST_MATCHES, share=_LEAST_SHARE)
    with pycolmap.Database.open(database) as stored:
        now = verified_counts(stored, ids)
    return sum(now.get(pair, 0) > held.get(pair, 0) for pair in added)


def follow(images: Array, keep: Array | None = None) -> list[Array]:
    """Points of every frame (M, 3): number of the track, x and y (pixel centres at +0.5). A track ends after `_LONGEST` frames.

    Args:
        images: (F, h, w, 3) uint8.
        keep: (F, h, w) bool, where points may lie.
    """
    grays = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
    masks = [None] * len(grays) if keep is None else list(keep)
    points: list[Array] = []
    count = 0
    with ThreadPoolExecutor(cpu_count()) as pool:
        # One after another, since the flows of a whole clip need not fit into memory.
        steps = zip([None, *grays[:-1]], grays, masks, strict=True)
        for (flows, own), mask in zip(pool.map(_flow_and_corners, *zip(*steps, strict=True)), masks, strict=True):
            alive = np.zeros((0, 4)) if flows is None else _moved(points[-1], *flows, mask)
            going_on = alive[alive[:, 3] < _LONGEST]  # a track that ends here leaves its place to a new one
            fresh = own[~_near(own, going_on[:, 1:3], grays[0].shape)]
            points.append(np.concatenate([alive, np.column_stack([count + np.arange(len(fresh)), fresh, np.ones(len(fresh))])]))
            count += len(fresh)
    return [own[:, :3] for own in points]


def _flow_and_corners(before: Array | None, gray: Array, keep: Array | None) -> tuple[tuple[Array, Array] | None, Array]:
    """Flow (h, w, 2) from the frame before to this one and back, None for the first frame, and where points may start in this one."""
    if before is None:
        return None, _corners(gray, keep)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return (flow.calc(before, gray, None), flow.calc(gray, before, None)), _corners(gray, keep)


def _cell(shape: tuple[int, ...]) -> int:
    return max(4, round(_CELL * max(shape)))


def _corners(gray: Array, keep: Array | None) -> Array:
    """(M, 2) the most distinct pixel of each cell, where it is distinct enough to be followed."""
    strength = cv2.cornerMinEigenVal(gray, 7, ksize=3) * 255.0**2
    if keep is not None:
        strength = np.where(keep, strength, 0)
    strength[:4] = strength[-4:] = 0
    strength[:, :4] = strength[:, -4:] = 0
    edge, (h, w) = _cell(gray.shape), gray.shape
    padded = np.zeros((-(-h // edge) * edge, -(-w // edge) * edge), np.float32)
    padded[:h, :w] = strength
    cells = padded.reshape(padded.shape[0] // edge, edge, padded.shape[1] // edge, edge).swapaxes(1, 2).reshape(-1, edge * edge)
    best = cells.argmax(1)
    rows, columns = np.divmod(np.arange(len(cells)), padded.shape[1] // edge)
    place = np.column_stack([columns * edge + best % edge, rows * edge + best // edge]) + 0.5
    return place[cells.max(1) > _LEAST_EIGENVALUE]


def _moved(alive: Array, forward: Array, backward: Array, keep: Array | None) -> Array:
    """Tracks (M, 4) number, x, y, length in the next frame, those that flow leads there and back."""
    alive = alive[alive[:, 3] < _LONGEST]
    at = alive[:, 1:3].astype(np.float32)
    to = at + sample_field(forward, at)
    back = to + sample_field(backward, to)
    h, w = forward.shape[:2]
    good = (np.abs(back - at).max(1, initial=0) < _CYCLE_PX) & (to > 1).all(1) & (to[:, 0] < w - 1) & (to[:, 1] < h - 1)
    if keep is not None:
        column, row = np.floor(to[good]).astype(int).T
        good[good] = keep[row, column]
    return np.column_stack([alive[good, 0], to[good], alive[good, 3] + 1])


def _near(own: Array, taken: Array, shape: tuple[int, ...]) -> Array:
    """(M,) bool, places in whose cell a track already is."""
    edge, (h, w) = _cell(shape), shape[:2]
    used = np.zeros((h // edge + 1, w // edge + 1), bool)
    column, row = (np.floor(taken).astype(int) // edge).T
    used[row, column] = True
    column, row = (np.floor(own).astype(int) // edge).T
    return used[row, column]


def sample_field(field: Array, at: Array) -> Array:
    """(M, 2) bilinear values of an (h, w, 2) field at places (M, 2), pixel centres at +0.5; 1e4 outside."""
    if not len(at):
        return np.zeros((0, 2), np.float32)
    x, y = (np.ascontiguousarray(at[None, :, axis]) - 0.5 for axis in (0, 1))
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(1e4, 1e4))[0]
