"""Which frames show one place, and which two places in one spot: pairs of frames that agree, and pairs that contradict each other.

Two frames whose cameras look at one spot from about the same direction must show the same there. What they do show is compared by the
brightness of the points of one frame in the picture of the other, and where that differs, by features: a frame that is merely misplaced
still shares features with the other, two places share none. Directions that lie far apart say nothing: a wall seen from behind, or a
thing that looks otherwise from there, contradicts nobody.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from utils.cameras.projection import transform, unproject_depth
from utils.device.threads import run_chunks
from utils.runtime import cpu_count
from utils.scene.clip.shots import AGREEING, agreeing, features
from utils.types import Array, Scene

_ACROSS = 42
"""Points of a frame in one row; a frame is compared at as many points as pixels of a picture of this width."""
_DIRECTION = np.cos(np.radians(25))
_SHARED = 0.35
"""Least share of either view that both look at from one direction."""
_NEAR = 0.1
"""Largest step of log depth at which two frames see one surface."""
_CONTRAST = 4.0
"""Least standard deviation of brightness (8-bit levels) by which pictures can be compared."""
_ALIKE, _UNLIKE = 0.5, 0.3
"""Correlation of brightness from which two frames show the same, and below which they may show different places."""
_LEAST_FEATURES = 40
"""Features that both frames must have where they look at one spot before their having none in common says anything."""


@dataclass(frozen=True)
class Evidence:
    """What pairs of the F frames of a scene say of each other.

    Attributes:
        agree: (F, F) bool, they show one place.
        contradict: (F, F) bool, they show different places in one spot.
        partly: (F, F) bool, a third of what both look at is unlike; frames merely misplaced may do that, so it only tells where to cut.
    """

    agree: Array
    contradict: Array
    partly: Array


@dataclass(frozen=True)
class _Views:
    """How two frames see each other's points; (F, F), row: frame of the points, column: frame that looks.

    Attributes:
        shared: share of the points that the other frame has in its picture and sees from about the same direction.
        likeness: correlation of their brightness in both pictures; NaN where too few or without contrast.
        least: the same of the third of the first picture, left, middle or right, where it is least.
    """

    shared: Array
    likeness: Array
    least: Array


def find_evidence(scene: Scene, pictures: Sequence[Array]) -> Evidence:
    """Pairs that agree and pairs that contradict each other.

    Args:
        scene: cameras and depth of F frames.
        pictures: (h, w, 3) uint8 of each, as large as there are, for features.
    """
    views = _compared(scene)
    shared = np.minimum(views.shared, views.shared.T) >= _SHARED
    agree = shared & (np.fmax(views.likeness, views.likeness.T) >= _ALIKE)
    unlike = shared & (np.fmax(views.likeness, views.likeness.T) < _UNLIKE)
    contradict = np.zeros_like(agree)
    pairs = [(int(i), int(j)) for i, j in np.argwhere(np.triu(unlike, 1))]
    with ThreadPoolExecutor(cpu_count()) as pool:
        asked = sorted({frame for pair in pairs for frame in pair})
        found = dict(zip(asked, pool.map(lambda frame: features(cv2.cvtColor(pictures[frame], cv2.COLOR_RGB2GRAY)), asked), strict=True))
        counts = list(pool.map(lambda pair: agreeing(found[pair[0]], found[pair[1]]), pairs))
    for (i, j), count in zip(pairs, counts, strict=True):
        enough = min(len(found[i][0]), len(found[j][0])) >= _LEAST_FEATURES
        target = agree if count >= AGREEING else contradict if enough else None
        if target is not None:
            target[i, j] = target[j, i] = True
    return Evidence(agree=agree, contradict=contradict, partly=shared & (np.fmax(views.least, views.least.T) < _UNLIKE))


def _compared(scene: Scene) -> _Views:
    step = max(1, scene.cameras.size[1] // _ACROSS)
    rows, columns = (np.arange(step // 2, side, step) for side in scene.cameras.size)
    sigma = 0.5 * step
    blurred = [cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), sigma) for image in scene.images]
    gray, cameras, count, valid = np.stack(blurred), scene.cameras, len(scene), scene.valid
    here = np.ix_(rows, columns)
    third = np.broadcast_to(3 * np.arange(len(columns)) // len(columns), (len(rows), len(columns)))
    known = [own[here] for own in valid]
    points = [
        transform(cameras.c2w[i], unproject_depth(scene.depth[i].astype(np.float64), cameras.K[i])[here][known[i]]) for i in range(count)
    ]
    first = np.r_[0, np.cumsum([len(own) for own in points])]
    brightness, thirds = (
        np.concatenate([v[own] for v, own in zip(values, known, strict=True)]) for values in ([g[here] for g in gray], [third] * count)
    )
    shared, likeness, least = np.zeros((count, count)), np.full((count, count), np.nan), np.full((count, count), np.nan)
    looking = np.concatenate(points).astype(np.float64), brightness.astype(np.float64), thirds, first, third.size
    frames = cameras.w2c, cameras.c2w[:, :3, 3].copy(), cameras.K, gray, scene.depth, valid
    run_chunks(_compare, [(i, i + 1) for i in range(count)], *looking, *frames, shared, likeness, least)
    return _Views(shared, likeness, least)


@njit(cache=True, nogil=True)
def _compare(begin, end, points, brightness, thirds, first, size, w2c, eyes, K, gray, depth, valid, shared, likeness, least):
    """Fills rows `begin` to `end` of the three (F, F) arrays of `_Views`.

    `points` (N, 3) are in the world, those of frame i from `first[i]` (F + 1,) on; `brightness` (N,) is that in their own frames and
    `thirds` (N,) the third of the picture that each lies in; `size` counts a frame's points, the unknown ones too. Per frame: `w2c`
    (F, 4, 4), `eyes` (F, 3), `K` (F, 3, 3), and `gray`, `depth`, `valid` (F, h, w).
    """
    frames, h, w = gray.shape
    together = np.zeros(6)
    for i in range(begin, end):
        for j in range(frames):
            if j == i:
                continue
            sums, seen = np.zeros((3, 6)), 0
            for p in range(first[i], first[i + 1]):
                x, y, z = points[p, 0], points[p, 1], points[p, 2]
                front = w2c[j, 2, 0] * x + w2c[j, 2, 1] * y + w2c[j, 2, 2] * z + w2c[j, 2, 3]
                if front <= 1e-6:
                    continue
                column = K[j, 0, 0] * (w2c[j, 0, 0] * x + w2c[j, 0, 1] * y + w2c[j, 0, 2] * z + w2c[j, 0, 3]) / front + K[j, 0, 2]
                row = K[j, 1, 1] * (w2c[j, 1, 0] * x + w2c[j, 1, 1] * y + w2c[j, 1, 2] * z + w2c[j, 1, 3]) / front + K[j, 1, 2]
                if not (0 <= column < w and 0 <= row < h):
                    continue
                along = mine = other = 0.0
                for c in range(3):
                    a, b = points[p, c] - eyes[i, c], points[p, c] - eyes[j, c]
                    along, mine, other = along + a * b, mine + a * a, other + b * b
                if along <= _DIRECTION * max(np.sqrt(mine * other), 1e-12):
                    continue
                seen += 1
                r, c = int(row), int(column)
                # what lies behind the surface that j sees is hidden from it
                if valid[j, r, c] and front < depth[j, r, c] * np.exp(_NEAR):
                    a, b, own = brightness[p], gray[j, r, c], sums[thirds[p]]
                    own[0] += 1
                    own[1] += a
                    own[2] += b
                    own[3] += a * a
                    own[4] += b * b
                    own[5] += a * b
            shared[i, j] = seen / size
            if shared[i, j] >= _SHARED:
                for c in range(6):  # a sum over an axis compiles longer than the loop
                    together[c] = sums[0, c] + sums[1, c] + sums[2, c]
                likeness[i, j] = _likeness(together, size)
                for k in range(3):
                    least[i, j] = np.fmin(least[i, j], _likeness(sums[k], size))


@njit(cache=True, nogil=True)
def _likeness(sums, size):
    """Correlation of brightness a and b from their number and the sums of a, b, aa, bb, ab.

    NaN for less than a tenth of a picture's points, and without contrast.
    """
    n = sums[0]
    if n < 0.1 * size:
        return np.nan
    a, b = sums[1] / n, sums[2] / n
    aa, bb, ab = sums[3] / n - a * a, sums[4] / n - b * b, sums[5] / n - a * b
    if aa < _CONTRAST**2 or bb < _CONTRAST**2:
        return np.nan
    return ab / np.sqrt(aa * bb)
