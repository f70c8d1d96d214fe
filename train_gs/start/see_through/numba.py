"""`reference` on the CPU: one point after another, until a camera sees through it."""

import math

import numba
import torch
from torch import Tensor

from utils.device.threads import ranges, run_chunks


def seen_through(points: Tensor, projections: Tensor, least: Tensor, shares: Tensor, made_by: Tensor) -> Tensor:
    """As `reference.seen_through`."""
    blocking = torch.zeros(len(points), dtype=torch.bool)
    nearest = shares.amax(1) * least.amax((1, 2))
    arrays = [value.contiguous().numpy() for value in (points, projections, least, nearest, shares, made_by, blocking)]
    run_chunks(_mark, ranges(len(points)), *arrays)
    return blocking


@numba.njit(cache=True, nogil=True)
def _mark(first, last, points, projections, least, nearest, shares, made_by, blocking):
    """Sets rows first..last of `blocking`; `nearest` (F,) is the depth from which a camera sees through nothing."""
    frames, h, w = least.shape
    for point in range(first, last):
        x, y, z = points[point, 0], points[point, 1], points[point, 2]
        for frame in range(frames):
            p = projections[frame]
            depth = p[2, 0] * x + p[2, 1] * y + p[2, 2] * z + p[2, 3]
            if depth <= 0.0 or depth >= nearest[frame]:
                continue
            column = math.floor((p[0, 0] * x + p[0, 1] * y + p[0, 2] * z + p[0, 3]) / depth)
            row = math.floor((p[1, 0] * x + p[1, 1] * y + p[1, 2] * z + p[1, 3]) / depth)
            if not (0 <= column < w and 0 <= row < h):
                continue
            if depth < shares[frame, made_by[point]] * least[frame, int(row), int(column)]:
                blocking[point] = True
                break
