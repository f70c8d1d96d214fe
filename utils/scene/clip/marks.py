"""Half-transparent marks: logos that are blended into every frame of a clip. The picture shows through, their edges stand still.

The median over time of the gradient at a pixel is that of the mark, since the picture's own gradients come and go (Dekel et al. 2017).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from utils.runtime import in_threads
from utils.types import Array

# Fewer frames than this tell too little.
_LEAST_FRAMES = 8
# Gradient of a mark's edge, in grey levels for each pixel, and over the usual change of the gradient there.
_EDGE, _OVER_CHANGE = 4.0, 0.8
# Parts of the clip that must each show it, at this share of its strength.
_PARTS, _AGREE = 4, 0.6
# Edges of a mark stay where they are to this many pixels over the clip, all of them together. Measured on marks blended into eleven clips
# and the demo: mostly 0.01 to 0.25; edges near what a camera turns about or zooms on: 0.28 to 1.0.
_STANDS, _REACH = 0.26, 3
# A single edge's place is known to so many pixels where the picture behind it changes; rounds in which those that are off lose weight.
_EDGE_NOISE, _ROUNDS = 0.5, 4
# ... while the picture changes by this many grey levels on both sides: behind a mark it goes on. A horizon or a dashboard is still.
_CHANGES = 1.5
# Share of textured pixels that stand still at most: with more it is the camera that does.
_STILL_CAMERA = 0.25
# Bands of rows that are judged at a time: medians over time take long.
_BANDS = 32
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
    bands = [slice(rows[0], rows[-1] + 1) for rows in np.array_split(np.arange(x.shape[1]), min(_BANDS, x.shape[1]))]
    judged = in_threads(lambda rows: (_still_edges(x[:, rows], y[:, rows]), _textured(x[:, rows], y[:, rows])), bands)
    still, textured = (np.concatenate(parts) for parts in zip(*judged, strict=True))
    still[[0, 1, -2, -1]] = still[:, [0, 1, -2, -1]] = False
    # Edges of a mark hang together; what stands still by chance is scattered.
    reach = max(3, round(0.012 * max(still.shape)))
    grown = cv2.dilate(still.astype(np.uint8), np.ones((reach, reach), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(grown)
    edges = np.bincount(labels.ravel(), weights=still.ravel(), minlength=len(stats))
    found = []
    for k in np.flatnonzero(edges[1:] >= _SMALLEST) + 1:
        seen = _across((labels == k) & still, grays, x, y)
        if seen.drift < _STANDS and seen.change > _CHANGES:
            found.append(k)
    mask = np.isin(labels, found)
    if not found or ((still & mask).sum() > _STILL_CAMERA * max(textured.sum(), 1) and (still & mask).mean() > 0.02):
        return None
    filled = _filled(mask, reach)
    if filled.mean() > _LARGEST:
        return None
    rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
    height, width = filled.shape
    return Mark(filled, (rows[0] / height, columns[0] / width, (rows[-1] + 1) / height, (columns[-1] + 1) / width))


def _textured(x: Array, y: Array) -> Array:
    """(h, w) bool where the gradient (S, h, w) is mostly that of an edge."""
    textured: Array = np.median(np.hypot(x, y), axis=0) > _EDGE
    return textured


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
class _Edges:
    """Edge pixels that hang together, and what lies across each of them.

    Attributes:
        levels: (S, steps, n) grey levels along the normal of each, at -3 .. 3 pixels.
        profile: (S, steps, n) gradients across the edge, there.
        place: (2, n) column and row of each.
        way: (2, n) its normal, x and y.
    """

    levels: Array
    profile: Array
    place: Array
    way: Array

    @property
    def drift(self) -> float:
        """How far they wander together over the parts of the clip, in pixels across themselves; the median over them.

        An edge near what the camera turns about or zooms on keeps its direction and strength as a mark's does, but creeps. Where each
        edge lies is blurred by what changes behind it, so one shift and one growth are fitted to all of them.
        """
        steps = np.arange(-_REACH, _REACH + 1)[:, None]
        centres = []
        for part in np.array_split(self.profile, _PARTS):
            weight = np.clip(np.median(part, axis=0), 0, None)
            centres.append((weight * steps).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-6))
        off = (np.stack(centres) - np.mean(centres, axis=0)).T
        place = (self.place - self.place.mean(axis=1, keepdims=True)) / max(1, *np.ptp(self.place, axis=1))
        moves = np.column_stack([*self.way, (self.way * place).sum(axis=0)])
        trust = np.ones((len(moves), 1))
        for _ in range(_ROUNDS):
            fitted = moves @ np.linalg.lstsq(moves * trust, off * trust, rcond=1e-3)[0]
            trust = 1 / (1 + (np.abs(off - fitted).mean(axis=1, keepdims=True) / _EDGE_NOISE) ** 2)
        return float(np.median(np.ptp(fitted, axis=1)))

    @property
    def change(self) -> float:
        """By how many grey levels the picture on either side usually changes: where it changes least."""
        sides = self.levels[:, [0, -1]].astype(np.float32)
        return float(np.median(np.abs(sides - np.median(sides, axis=0)), axis=(0, 2)).min())


def _across(edges: Array, grays: Array, x: Array, y: Array) -> _Edges:
    """What lies across edges (h, w) bool of pictures (S, h, w) with gradients x and y."""
    rows, columns = np.nonzero(edges)
    way = np.stack([np.median(x[:, rows, columns], axis=0), np.median(y[:, rows, columns], axis=0)])
    way /= np.maximum(np.hypot(*way), 1e-6)
    steps = np.arange(-_REACH, _REACH + 1)[:, None]
    height, width = edges.shape
    at_row = np.clip(np.rint(rows + steps * way[1]).astype(int), 0, height - 1)
    at_column = np.clip(np.rint(columns + steps * way[0]).astype(int), 0, width - 1)
    profile = x[:, at_row, at_column] * way[0] + y[:, at_row, at_column] * way[1]
    return _Edges(grays[:, at_row, at_column], profile, np.stack([columns, rows]).astype(np.float32), way)


def _filled(mask: Array, reach: int) -> Array:
    """The mask with what its outlines enclose."""
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.drawContours(np.zeros_like(closed), outlines, -1, 1, cv2.FILLED).astype(bool)
