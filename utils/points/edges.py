"""Depth discontinuities (flying pixels): pixels whose depth mixes both sides of a step, by a local plane fit in inverse depth."""

import cv2
import numpy as np

from utils.types import Array

_WINDOW = 5
"""Pixels across the neighbourhood that a slope is judged by."""
_UNEVENNESS = 0.25
"""A slope deviates from a plane by less than this share (root mean square) of its span over 3 pixels; a step by 0.4, and by 0.23 where a
mixed depth lies in its middle."""


def depth_edges(depth: Array, ratio: float) -> Array:
    """(H, W) bool: depth varies by more than `ratio` of itself within 3x3 pixels, or a neighbour has no depth.

    Slopes are no edges, however steep: ground and walls seen at a grazing angle span more than any sensible ratio between two pixels.
    """
    known = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    kernel = np.ones((3, 3), np.uint8)
    span = cv2.dilate(known, kernel) - cv2.erode(known, kernel)
    edges: Array = span > ratio * known
    steps = (edges & ~_slopes(known)).astype(np.uint8)
    # Depths that are mixed evenly from both sides of a step look like a slope one pixel wide.
    return edges & (cv2.morphologyEx(steps, cv2.MORPH_CLOSE, kernel) > 0)


def _slopes(depth: Array) -> Array:
    """(H, W) bool: the depths around a pixel lie on one plane, but for noise that is small beside its slope.

    The inverse depth of a plane is linear in the pixel. Least squares over a square window have a closed form: the mean, and one
    product with the distance from the middle along each axis.
    """
    known = depth > 0
    inverse = np.where(known, 1.0 / np.where(known, depth, np.float32(1)), np.float32(0))
    offset = np.arange(_WINDOW) - (_WINDOW - 1) / 2
    even, along, spread = np.full(_WINDOW, 1 / _WINDOW), offset / (offset**2).sum(), float((offset**2).mean())

    def filtered(values: Array, x: Array, y: Array) -> Array:
        return cv2.sepFilter2D(values, cv2.CV_32F, x, y, borderType=cv2.BORDER_REFLECT)

    slope_x, slope_y = filtered(inverse, along, even), filtered(inverse, even, along)
    variance = filtered(inverse**2, even, even) - filtered(inverse, even, even) ** 2 - spread * (slope_x**2 + slope_y**2)
    over_three = 2 * (np.abs(slope_x) + np.abs(slope_y))
    whole = cv2.erode(known.astype(np.uint8), np.ones((_WINDOW, _WINDOW), np.uint8)) > 0
    return whole & (np.sqrt(np.maximum(variance, 0)) < _UNEVENNESS * over_three)
