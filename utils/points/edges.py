"""Depth discontinuities: pixels whose depth belongs to neither side."""

import cv2
import numpy as np

from utils.types import Array


def depth_edges(depth: Array, ratio: float) -> Array:
    """(H, W) bool: depth varies by more than `ratio` of itself within 3x3 pixels, or a neighbour has no depth."""
    known = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    kernel = np.ones((3, 3), np.uint8)
    span = cv2.dilate(known, kernel) - cv2.erode(known, kernel)
    return span > ratio * known
