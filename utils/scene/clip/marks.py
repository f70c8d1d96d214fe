"""Half-transparent marks: logos that are blended into every frame of a clip. The picture shows through, their edges stand still.

The median over time of the gradient at a pixel is that of the mark, since the picture's own gradients come and go (Dekel et al. 2017).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from utils.types import Array

# Fewer frames than this tell too little.
_LEAST_FRAMES = 8
# Gradient of a mark's edge, in grey levels for each pixel, and over the usual change of the gradient there.
_EDGE, _OVER_CHANGE = 4.0, 0.8
# Parts of the clip that must each show it, at this share of its strength.
_PARTS, _AGREE = 4, 0.6
# Share of the textured pixels around it that do not stand still.
_AROUND_MOVES = 0.5
# Share of textured pixels that stand still at most: with more it is the camera that does.
_STILL_CAMERA = 0.25
# Smallest mark, in pixels of its edges, and largest, as a share of the picture.
_SMALLEST, _LARGEST = 24, 0.35


@dataclass(frozen=True)
class Mark:
    """A half-transparent mark.

    Attributes:
        mask: (h, w) bool, what it covers, with a margin.
        box: (top, left, bottom, right) as shares of height and width.
    """

    mask: Array
    box: tuple[float, float, float, float]

    @property
    def words(self) -> str:
        """Where it is."""
        top, left, bottom, right = self.box
        vertical = "top" if (top + bottom) / 2 < 0.4 else "bottom" if (top + bottom) / 2 > 0.6 else "middle"
        horizontal = "left" if (left + right) / 2 < 0.4 else "right" if (left + right) / 2 > 0.6 else "centre"
        return f"{vertical} {horizontal} ({100 * left:.0f} to {100 * right:.0f} % across, {100 * top:.0f} to {100 * bottom:.0f} % down)"


def find_mark(grays: Array) -> Mark | None:
    """The half-transparent mark on pictures of a moving camera, None if there is none or if the camera hardly moves.

    Args:
        grays: (S, h, w) uint8, spread over the clip.
    """
    if len(grays) < _LEAST_FRAMES:
        return None
    x, y = (np.stack([cv2.Sobel(g, cv2.CV_16S, dx, 1 - dx) for g in grays]).astype(np.float32) / 8 for dx in (1, 0))
    still = _still_edges(x, y)
    still[[0, 1, -2, -1]] = still[:, [0, 1, -2, -1]] = False
    textured = np.median(np.hypot(x, y), axis=0) > _EDGE
    # Edges of a mark hang together; what stands still by chance is scattered.
    reach = max(3, round(0.012 * max(still.shape)))
    grown = cv2.dilate(still.astype(np.uint8), np.ones((reach, reach), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(grown)
    edges = np.bincount(labels.ravel(), weights=still.ravel(), minlength=len(stats))
    parts = _first_and_last(x, y)
    found = [k for k in range(1, len(stats)) if edges[k] >= _SMALLEST and _stands_out(labels == k, still, parts, 3 * reach)]
    mask = np.isin(labels, found)
    if not found or ((still & mask).sum() > _STILL_CAMERA * max(textured.sum(), 1) and (still & mask).mean() > 0.02):
        return None
    filled = _filled(mask, reach)
    if filled.mean() > _LARGEST:
        return None
    rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
    height, width = filled.shape
    return Mark(filled, (rows[0] / height, columns[0] / width, (rows[-1] + 1) / height, (columns[-1] + 1) / width))


def _still_edges(x: Array, y: Array) -> Array:
    """(h, w) bool where the gradient (S, h, w) is that of something that stands still: the same in every part of the clip."""
    at_x, at_y = np.median(x, axis=0), np.median(y, axis=0)
    size = np.hypot(at_x, at_y)
    still = (size > _EDGE) & (size > _OVER_CHANGE * np.median(np.hypot(x - at_x, y - at_y), axis=0))
    for part in np.array_split(np.arange(len(x)), _PARTS):
        part_x, part_y = np.median(x[part], axis=0), np.median(y[part], axis=0)
        still &= part_x * at_x + part_y * at_y > _AGREE * size**2
    return still


@dataclass(frozen=True)
class _Parts:
    """Median gradients of the first and the last part of the clip.

    Attributes:
        strength: (h, w) the larger of both.
        alike: (h, w) bool, both show the same.
    """

    strength: Array
    alike: Array


def _first_and_last(x: Array, y: Array) -> _Parts:
    parts = [np.array_split(np.arange(len(x)), _PARTS)[k] for k in (0, -1)]
    (ax, ay), (bx, by) = [(np.median(x[part], axis=0), np.median(y[part], axis=0)) for part in parts]
    strength = np.maximum(np.hypot(ax, ay), np.hypot(bx, by))
    return _Parts(strength, ax * bx + ay * by > 0.5 * strength**2)


def _stands_out(mark: Array, still: Array, parts: _Parts, reach: int) -> bool:
    """Whether edges around a mark that are as strong as its own move: where a camera turns about a point, none near that do."""
    around = cv2.dilate(mark.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)).astype(bool) & ~mark
    own = float(np.median(parts.strength[mark & still]))
    for least in (0.6 * own, 0.5 * _EDGE):
        alike = parts.alike[around & (parts.strength > least)]
        if len(alike) >= 30:
            return float(alike.mean()) < 1 - _AROUND_MOVES
    return True


def _filled(mask: Array, reach: int) -> Array:
    """The mask with what its outlines enclose."""
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.drawContours(np.zeros_like(closed), outlines, -1, 1, cv2.FILLED).astype(bool)
