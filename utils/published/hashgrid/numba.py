"""CPU kernels of the hash encoding, forward and backward. Definition and oracle: `utils.published.hashgrid.reference.encode`.

Points are the unit of parallel work where every point owns its output; gradients of the table run one level per thread, since levels share
no entry. Sums run in a fixed order, so results do not depend on the number of threads.
"""

import numpy as np
from numba import njit, prange

_Y, _Z = np.uint32(2654435761), np.uint32(805459861)
_BLOCK = 2048  # points per parallel task: a level's coarse entries stay in the cache
_HALF, _ONE = np.float32(0.5), np.float32(1.0)


@njit(inline="always")
def _row(x, y, z, hashed, resolution, size):  # type: ignore[no-untyped-def]
    """Row within a level of an integer vertex."""
    if hashed:
        return np.int64((x ^ (y * _Y) ^ (z * _Z)) & (size - np.uint32(1)))
    index = np.int64(x) + np.int64(resolution) * (np.int64(y) + np.int64(resolution) * np.int64(z))
    return index if index < np.int64(size) else index % np.int64(size)


@njit(inline="always")
def _cell(value, scale):  # type: ignore[no-untyped-def]
    """Lower vertex and fraction along one axis."""
    position = value * scale + _HALF
    low = np.uint32(position)
    return low, position - np.float32(low)


@njit(parallel=True, fastmath=True, nogil=True, cache=True)
def encode_forward(points, table, scales, resolutions, offsets, hashed, out):  # type: ignore[no-untyped-def]
    """Writes the features (N, 2 L) of points (N, 3) in 0..1."""
    count = len(points)
    for block in prange((count + _BLOCK - 1) // _BLOCK):
        for level in range(len(scales)):
            scale, resolution, start = scales[level], resolutions[level], offsets[level]
            size, by_hash = np.uint32(offsets[level + 1] - start), hashed[level]
            for i in range(block * _BLOCK, min(count, (block + 1) * _BLOCK)):
                x, fx = _cell(points[i, 0], scale)
                y, fy = _cell(points[i, 1], scale)
                z, fz = _cell(points[i, 2], scale)
                first = second = np.float32(0.0)
                for corner in range(8):
                    dx, dy, dz = np.uint32(corner & 1), np.uint32((corner >> 1) & 1), np.uint32(corner >> 2)
                    weight = (fx if dx else _ONE - fx) * (fy if dy else _ONE - fy) * (fz if dz else _ONE - fz)
                    row = start + _row(x + dx, y + dy, z + dz, by_hash, resolution, size)
                    first += weight * table[row, 0]
                    second += weight * table[row, 1]
                out[i, 2 * level] = first
                out[i, 2 * level + 1] = second


@njit(parallel=True, fastmath=True, nogil=True, cache=True)
def encode_backward_table(points, scales, resolutions, offsets, hashed, gradient, out):  # type: ignore[no-untyped-def]
    """Adds the gradient of the table (T, 2), given that of the features (N, 2 L)."""
    for level in prange(len(scales)):
        scale, resolution, start = scales[level], resolutions[level], offsets[level]
        size, by_hash = np.uint32(offsets[level + 1] - start), hashed[level]
        for i in range(len(points)):
            x, fx = _cell(points[i, 0], scale)
            y, fy = _cell(points[i, 1], scale)
            z, fz = _cell(points[i, 2], scale)
            first, second = gradient[i, 2 * level], gradient[i, 2 * level + 1]
            for corner in range(8):
                dx, dy, dz = np.uint32(corner & 1), np.uint32((corner >> 1) & 1), np.uint32(corner >> 2)
                weight = (fx if dx else _ONE - fx) * (fy if dy else _ONE - fy) * (fz if dz else _ONE - fz)
                row = start + _row(x + dx, y + dy, z + dz, by_hash, resolution, size)
                out[row, 0] += weight * first
                out[row, 1] += weight * second


@njit(parallel=True, fastmath=True, nogil=True, cache=True)
def encode_backward_points(points, table, scales, resolutions, offsets, hashed, gradient, out):  # type: ignore[no-untyped-def]
    """Writes the gradient of the points (N, 3), given that of the features (N, 2 L)."""
    count = len(points)
    for i in prange(count):
        gx = gy = gz = np.float32(0.0)
        for level in range(len(scales)):
            scale, resolution, start = scales[level], resolutions[level], offsets[level]
            size, by_hash = np.uint32(offsets[level + 1] - start), hashed[level]
            x, fx = _cell(points[i, 0], scale)
            y, fy = _cell(points[i, 1], scale)
            z, fz = _cell(points[i, 2], scale)
            first, second = gradient[i, 2 * level] * scale, gradient[i, 2 * level + 1] * scale
            for corner in range(8):
                dx, dy, dz = np.uint32(corner & 1), np.uint32((corner >> 1) & 1), np.uint32(corner >> 2)
                wx, wy, wz = fx if dx else _ONE - fx, fy if dy else _ONE - fy, fz if dz else _ONE - fz
                row = start + _row(x + dx, y + dy, z + dz, by_hash, resolution, size)
                value = first * table[row, 0] + second * table[row, 1]
                gx += (value if dx else -value) * wy * wz
                gy += (value if dy else -value) * wx * wz
                gz += (value if dz else -value) * wx * wy
        out[i, 0], out[i, 1], out[i, 2] = gx, gy, gz
