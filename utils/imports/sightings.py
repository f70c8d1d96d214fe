"""Places that several frames show, found without any pose: what given cameras are held against.

SIFT matches of frames that follow each other at several distances, kept where a pair agrees on some epipolar geometry. Pixel centres +0.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from utils.cameras.projection import invert_rigid
from utils.sfm.flow_depth import frame_threads
from utils.types import Array

# Features of a frame, and matches that a pair needs to be believed.
_FEATURES, LEAST_MATCHES = 1500, 25
# Lowe's ratio; how far (pixels) a match may lie off the pair's own epipolar geometry, which given cameras are not asked for.
_RATIO, _EPIPOLAR_PX = 0.8, 1.5
# Rays of a triangulated point meet at this angle (degrees) or more, and it lies so near (pixels) to where each of its frames sees it.
_LEAST_ANGLE, _TRIANGULATED_PX = 0.5, 12.0
# Points that tell the unit of depth, and by how much (logarithm) half of them may differ from it.
_LEAST_POINTS, _SPREAD = 100, 0.2


@dataclass(frozen=True, kw_only=True)
class Sightings:
    """Matches between pairs of frames.

    Attributes:
        first: (M,) int64 frame.
        second: (M,) int64 frame, another one.
        first_px: (M, 2) pixel in the first.
        second_px: (M, 2) pixel in the second.
        first_key: (M,) int64 number of the feature among those of all frames.
        second_key: (M,) int64 the same in the second.
    """

    first: Array
    second: Array
    first_px: Array
    second_px: Array
    first_key: Array
    second_key: Array

    def __len__(self) -> int:
        return len(self.first)

    def only(self, rows: Array) -> "Sightings":
        """Some of the matches."""
        return Sightings(
            first=self.first[rows],
            second=self.second[rows],
            first_px=self.first_px[rows],
            second_px=self.second_px[rows],
            first_key=self.first_key[rows],
            second_key=self.second_key[rows],
        )

    def tracks(self, K: Array) -> "Tracks":
        """The points: features that matches join, each once in a frame; K (3, 3) is the camera of all frames."""
        keys, ends = np.unique(np.concatenate([self.first_key, self.second_key]), return_inverse=True)
        a, b = ends[: len(self)], ends[len(self) :]
        _, point = connected_components(coo_matrix((np.ones(len(self)), (a, b)), shape=(len(keys), len(keys))), directed=False)
        frame, pixel = np.zeros(len(keys), np.int64), np.zeros((len(keys), 2))
        frame[a], frame[b], pixel[a], pixel[b] = self.first, self.second, self.first_px, self.second_px
        _, count = np.unique(np.column_stack([point, frame]), axis=0, return_counts=True)
        of_pair = np.unique(np.column_stack([point, frame]), axis=0)
        torn = np.unique(of_pair[count > 1, 0])  # two features of one frame: a false match joins two places
        good = ~np.isin(point, torn)
        return Tracks(np.unique(point[good], return_inverse=True)[1], frame[good], pixel[good], K)


@dataclass(frozen=True)
class Tracks:
    """Points that several frames show.

    Attributes:
        point: (O,) int64 point of each observation.
        frame: (O,) int64 frame.
        pixel: (O, 2) where.
        K: (3, 3) camera of all frames.
    """

    point: Array
    frame: Array
    pixel: Array
    K: Array

    def triangulated(self, w2c: Array, use: Array) -> tuple[Array, Array]:
        """(P, 3) points nearest to the rays of the frames to use, and (P,) bool which are known."""
        rows = np.flatnonzero(use[self.frame])
        c2w = invert_rigid(w2c[self.frame[rows]])
        local = np.column_stack([(self.pixel[rows] - self.K[:2, 2]) / self.K[[0, 1], [0, 1]], np.ones(len(rows))])
        ray = np.einsum("mij,mj->mi", c2w[:, :3, :3], local)
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        across = np.eye(3) - ray[:, :, None] * ray[:, None]
        count = int(self.point.max(initial=-1)) + 1
        A, b, mean = np.zeros((count, 3, 3)), np.zeros((count, 3)), np.zeros((count, 3))
        np.add.at(A, self.point[rows], across)
        np.add.at(b, self.point[rows], np.einsum("mij,mj->mi", across, c2w[:, :3, 3]))
        np.add.at(mean, self.point[rows], ray)
        seen = np.bincount(self.point[rows], minlength=count)
        mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
        wide = np.zeros(count)
        np.maximum.at(wide, self.point[rows], np.arccos(np.clip((ray * mean[self.point[rows]]).sum(1), -1, 1)))
        known = (seen >= 2) & (2 * np.degrees(wide) > _LEAST_ANGLE)
        where = np.zeros((count, 3))
        if known.any():
            where[known] = np.linalg.solve(A[known], b[known][..., None])[..., 0]
        error = self.errors(where, known, w2c)
        mine = use[self.frame] & known[self.point]
        worst = np.zeros(count)
        np.maximum.at(worst, self.point[mine], np.where(np.isfinite(error[mine]), error[mine], np.inf))
        return where, known & (worst < _TRIANGULATED_PX)

    def errors(self, where: Array, known: Array, w2c: Array) -> Array:
        """(O,) pixels between where points are seen and where they come to lie; NaN for unknown ones, infinite behind the camera."""
        camera = np.einsum("mij,mj->mi", w2c[self.frame, :3, :3], where[self.point]) + w2c[self.frame, :3, 3]
        z = np.where(camera[:, 2] > 1e-9, camera[:, 2], np.nan)
        shown = camera[:, :2] / z[:, None] * self.K[[0, 1], [0, 1]] + self.K[:2, 2]
        error = np.where(np.isfinite(z), np.linalg.norm(shown - self.pixel, axis=1), np.inf)
        return np.where(known[self.point], error, np.nan)


def find_sightings(grays: Sequence[Array], pairs: Sequence[tuple[int, int]]) -> Sightings:
    """Matches of pairs of frames.

    Args:
        grays: (h, w) uint8 of each frame.
        pairs: of frames.
    """
    wanted = sorted({frame for pair in pairs for frame in pair})
    with frame_threads() as pool:
        found = dict(zip(wanted, pool.map(lambda frame: _features(grays[frame]), wanted), strict=True))
        start = dict(zip(wanted, np.cumsum([0, *(len(found[f][0]) for f in wanted[:-1])]).tolist(), strict=True))
        matched = list(pool.map(lambda pair: _matched(*found[pair[0]], *found[pair[1]]), pairs))
    parts = [
        Sightings(
            first=np.full(len(rows), a),
            second=np.full(len(rows), b),
            first_px=found[a][0][rows[:, 0]],
            second_px=found[b][0][rows[:, 1]],
            first_key=start[a] + rows[:, 0],
            second_key=start[b] + rows[:, 1],
        )
        for (a, b), rows in zip(pairs, matched, strict=True)
    ]
    names = ("first", "second", "first_px", "second_px", "first_key", "second_key")
    return Sightings(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _features(gray: Array) -> tuple[Array, Array]:
    """(M, 2) pixels and (M, 128) descriptors (square roots of normalised ones: Arandjelovic and Zisserman 2012)."""
    keys, described = cv2.SIFT.create(_FEATURES).detectAndCompute(gray, None)
    if described is None or not len(keys):
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    described = np.sqrt(described / np.maximum(described.sum(1, keepdims=True), 1e-9)).astype(np.float32)
    return np.array([key.pt for key in keys], np.float64) + 0.5, described


def _matched(first_px: Array, first: Array, second_px: Array, second: Array) -> Array:
    """(M, 2) rows of features that are each other's best, clearly, and agree on an epipolar geometry."""
    none = np.zeros((0, 2), np.int64)
    if min(len(first), len(second)) < LEAST_MATCHES:
        return none
    likeness = first @ second.T
    best = likeness.argmax(1)
    rows = np.flatnonzero(likeness.argmax(0)[best] == np.arange(len(first)))
    top = np.partition(likeness[rows], -2, axis=1)[:, -2:]
    distance = np.sqrt(np.maximum(2 - 2 * top, 0))
    rows = rows[distance[:, 1] < _RATIO * distance[:, 0]]
    if len(rows) < LEAST_MATCHES:
        return none
    _, inside = cv2.findFundamentalMat(first_px[rows], second_px[best[rows]], cv2.FM_RANSAC, _EPIPOLAR_PX, 0.999, 2000)
    rows = rows[:0] if inside is None else rows[inside.ravel() > 0]
    return none if len(rows) < LEAST_MATCHES else np.column_stack([rows, best[rows]])


def depth_ratio(sightings: Sightings, w2c: Array, K: Array, stored: Mapping[int, Array]) -> float | None:
    """By what stored depth has to be multiplied to be where matches meet along the poses; None if they do not tell.

    Args:
        sightings: matches between the frames.
        w2c: (N, 4, 4) of all frames.
        K: (3, 3) of all frames.
        stored: (h, w) depth of some frames, 0 where unknown.
    """
    tracks = sightings.tracks(K)
    where, known = tracks.triangulated(w2c, np.isfinite(w2c[:, 0, 0]))
    ratios = []
    for frame, depth in stored.items():
        mine = (tracks.frame == frame) & known[tracks.point]
        z = where[tracks.point[mine]] @ w2c[frame, 2, :3] + w2c[frame, 2, 3]
        column, row = np.floor(tracks.pixel[mine]).astype(int).T
        given = depth[row.clip(0, depth.shape[0] - 1), column.clip(0, depth.shape[1] - 1)]
        good = (given > 0) & (z > 0)
        ratios.append(np.log(z[good] / given[good]))
    all_ratios = np.concatenate([*ratios, np.zeros(0)])
    if len(all_ratios) < _LEAST_POINTS:
        return None
    middle = float(np.median(all_ratios))
    return float(np.exp(middle)) if np.median(np.abs(all_ratios - middle)) < _SPREAD else None
