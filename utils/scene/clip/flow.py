"""Motion between two small pictures, as far as a look at a clip needs it."""

import threading

import cv2
import numpy as np

from utils.types import Array

_LOCAL = threading.local()


def moved_back(a: Array, b: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """(h, w, 2) float32 where, in a picture of `size` beside `b`, the pixels of one beside `a` are found, for `cv2.remap`; and
    (h, w) bool where that lies inside.

    Args:
        a: grey uint8.
        b: grey uint8 of the same size.
        size: (h, w) of the pictures to be moved.
    """
    if not hasattr(_LOCAL, "flow"):
        _LOCAL.flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    field = _LOCAL.flow.calc(a, b, np.zeros((*a.shape, 2), np.float32))
    height, width = size
    if size != a.shape:
        field = cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA)
        field *= np.array([width / a.shape[1], height / a.shape[0]], np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    at = field + np.stack([x, y], -1)
    inside = (at >= 0).all(-1) & (at[..., 0] <= width - 1) & (at[..., 1] <= height - 1)
    return at, inside
