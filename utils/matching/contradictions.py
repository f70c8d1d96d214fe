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

from utils.cameras.projection import transform, unproject_depth
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
    gray, c2w, K = np.stack(blurred), scene.cameras.c2w, scene.cameras.K
    count, valid = len(scene), scene.valid
    shared, likeness, least = np.zeros((count, count)), np.full((count, count), np.nan), np.full((count, count), np.nan)
    third = np.broadcast_to(3 * np.arange(len(columns)) // len(columns), (len(rows), len(columns)))

    def of_frame(i: int) -> None:
        known = valid[i][np.ix_(rows, columns)]
        points = transform(c2w[i], unproject_depth(scene.depth[i].astype(np.float64), K[i])[np.ix_(rows, columns)][known])
        brightness = gray[i][np.ix_(rows, columns)][known]
        for j in range(count):
            if j != i:
                share, a, b, inside = _seen_by(scene, gray[j], valid[j], j, points, c2w[i, :3, 3], brightness)
                shared[i, j] = share / known.size
                if shared[i, j] >= _SHARED:
                    likeness[i, j] = _likeness(a, b, known.size)
                    thirds = [_likeness(a[own], b[own], known.size) for own in (third[known][inside] == k for k in range(3))]
                    least[i, j] = np.fmin.reduce(thirds)

    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(of_frame, range(count)))
    return _Views(shared, likeness, least)


def _seen_by(
    scene: Scene, gray: Array, valid: Array, j: int, points: Array, eye: Array, brightness: Array
) -> tuple[int, Array, Array, Array]:
    """How many world points (N, 3) frame j looks at from the direction of `eye`, and those of them that nothing hides there.

    Returns:
        their number; brightness of the visible ones in their own frame and in frame j; (N,) bool, which they are.
    """
    h, w = scene.cameras.size
    local = transform(scene.cameras.w2c[j], points)
    front = local[:, 2] > 1e-6
    z = np.where(front, local[:, 2], 1.0)
    K = scene.cameras.K[j]
    x, y = K[0, 0] * local[:, 0] / z + K[0, 2], K[1, 1] * local[:, 1] / z + K[1, 2]
    mine, other = points - eye, points - scene.cameras.c2w[j, :3, 3]
    cosine = (mine * other).sum(1) / np.maximum(np.linalg.norm(mine, axis=1) * np.linalg.norm(other, axis=1), 1e-12)
    shown = front & (x >= 0) & (x < w) & (y >= 0) & (y < h) & (cosine > _DIRECTION)
    count = int(shown.sum())
    column, row = (np.where(shown, at, 0).astype(int) for at in (x, y))
    shown &= valid[row, column] & (z < scene.depth[j][row, column] * np.exp(_NEAR))  # what lies behind the surface j sees is hidden from it
    return count, brightness[shown], gray[row, column][shown], shown


def _likeness(a: Array, b: Array, total: int) -> float:
    """Correlation of brightness; NaN for less than a tenth of a picture's points, and without contrast."""
    if len(a) < 0.1 * total or a.std() < _CONTRAST or b.std() < _CONTRAST:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
