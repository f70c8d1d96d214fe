"""Which Gaussians lie in which tile, and the loops over a tile's pixels that both kinds of splat share.

Images are cut into tiles of 16 x 16 pixels. A kernel owns a tile and walks its Gaussians front to back; the inner loop runs over
the tile's pixels, in rows of 16, which is what the compiler turns into vector instructions. Two traps in that: bounds must
be unsigned (a signed index may wrap around, and the check for it prevents vectorisation: 4 to 5 times slower), and a loop
should touch few arrays, or the compiler gives up on proving that they do not overlap.
"""

import numpy as np
from numba import njit

from utils.splatting.rasterize.contract import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_STOP
from utils.splatting.rasterize.numba_projection import F32, HALF, JIT, ONE, TILE, ZERO

PIXELS = TILE * TILE
STOP_CHECK = np.uint64(31)
"""A tile looks for saturation every 32 Gaussians: `count & STOP_CHECK == 0`."""

_ALPHA_MIN, _ALPHA_MAX, _STOP = F32(ALPHA_MIN), F32(ALPHA_MAX), F32(TRANSMITTANCE_STOP)


def _exp_coefficients() -> list[np.float32]:
    """Degree 5 polynomial for exp on -0.5..0, fitted at Chebyshev nodes (error 2e-7)."""
    nodes = 0.25 * np.cos(np.pi * (np.arange(64) + 0.5) / 64) - 0.25
    return [F32(c) for c in np.polynomial.polynomial.polyfit(nodes, np.exp(nodes), 5)]


_C0, _C1, _C2, _C3, _C4, _C5 = _exp_coefficients()
_SIXTEENTH, _EXP_LIMIT = F32(1 / 16), F32(-0.5)


@njit(**JIT)
def opacity_at(opacity, sigma):
    """Alpha of a Gaussian where its exponent is -sigma, 0 if too faint.

    exp is (polynomial(-sigma / 16))^16, which vectorises where a call to the maths library does not. It saturates at exp(-8), less than
    ALPHA_MIN.
    """
    y = max(-sigma * _SIXTEENTH, _EXP_LIMIT)
    e = _C0 + y * (_C1 + y * (_C2 + y * (_C3 + y * (_C4 + y * _C5))))
    e = e * e
    e = e * e
    e = e * e
    alpha = min(opacity * (e * e), _ALPHA_MAX)
    return alpha if alpha >= _ALPHA_MIN else ZERO


@njit(**JIT)
def count_tiles(rects, tiles_x, first, starts):
    """Counts (Gaussian, tile) pairs.

    Fills `first` (N + 1,), where the pairs of each Gaussian begin when they are listed by Gaussian, and `starts` (tiles + 1,),
    where those of each tile begin when they are listed by tile.
    """
    total = 0
    starts[:] = 0
    for g in range(rects.shape[0]):
        first[g] = total
        total += (rects[g, 2] - rects[g, 0]) * (rects[g, 3] - rects[g, 1])
        for ty in range(rects[g, 1], rects[g, 3]):
            for tx in range(rects[g, 0], rects[g, 2]):
                starts[ty * tiles_x + tx + 1] += 1
    first[rects.shape[0]] = total
    for tile in range(starts.shape[0] - 1):
        starts[tile + 1] += starts[tile]


@njit(**JIT)
def list_members(top, bottom, order, rects, tiles_x, starts, members):
    """Fills `members` of the tile rows top..bottom: for each tile its Gaussians, front to back. `order` holds the Gaussians by depth."""
    cursor = starts[:-1].copy()
    for k in range(order.shape[0]):
        g = order[k]
        for ty in range(max(rects[g, 1], top), min(rects[g, 3], bottom)):
            for tx in range(rects[g, 0], rects[g, 2]):
                tile = ty * tiles_x + tx
                members[cursor[tile]] = g
                cursor[tile] += 1


@njit(**JIT)
def pair_slot(first, rects, g, tile_x, tile_y):
    """Position of a (Gaussian, tile) pair when pairs are listed by Gaussian.

    Each pair has a row of its own in the gradient buffer, so tiles add nothing to each other's sums and need no atomics.
    """
    return first[g] + (tile_y - rects[g, 1]) * (rects[g, 2] - rects[g, 0]) + (tile_x - rects[g, 0])


@njit(**JIT)
def pixel_span(rects, g, tile_y):
    """Range of a tile's pixels (row-major) in the rows that a Gaussian touches."""
    top = tile_y * TILE
    return np.uint64(max(rects[g, 4] - top, 0) * TILE), np.uint64(min(rects[g, 5] - top, TILE) * TILE)


@njit(**JIT)
def set_pixel_centres(pixel_x, pixel_y, tile_x, tile_y):
    """Pixel centres are at +0.5."""
    for i in range(PIXELS):
        pixel_x[i] = F32(tile_x * TILE + (i & (TILE - 1))) + HALF
        pixel_y[i] = F32(tile_y * TILE + i // TILE) + HALF


@njit(**JIT)
def store_tile(values, image, tile_x, tile_y):
    """Copies a tile's (PIXELS,) values into an image (h, w)."""
    x0, y0 = tile_x * TILE, tile_y * TILE
    width = min(TILE, image.shape[1] - x0)
    for row in range(min(TILE, image.shape[0] - y0)):
        for column in range(width):
            image[y0 + row, x0 + column] = values[row * TILE + column]


@njit(**JIT)
def load_tile(image, tile_x, tile_y, values):
    """Copies a tile out of an image (h, w); 0 outside of it."""
    values[:] = ZERO
    x0, y0 = tile_x * TILE, tile_y * TILE
    width = min(TILE, image.shape[1] - x0)
    for row in range(min(TILE, image.shape[0] - y0)):
        for column in range(width):
            values[row * TILE + column] = image[y0 + row, x0 + column]


@njit(**JIT)
def is_saturated(passed):
    """Whether no pixel of the tile takes any more."""
    most = ZERO
    for i in range(PIXELS):
        most = max(most, passed[i])
    return most <= _STOP


@njit(**JIT)
def blend(alpha, passed, begin, end):
    """Turns alpha into weights in place, and takes them from the light that is passed on."""
    for i in range(begin, end):
        before = passed[i]
        weight = (alpha[i] if before > _STOP else ZERO) * before
        alpha[i] = weight
        passed[i] = before - weight


@njit(**JIT)
def accumulate(target, weight, value, begin, end):
    """Adds weight * value."""
    for i in range(begin, end):
        target[i] += weight[i] * value


@njit(**JIT)
def add_product(target, a, b, begin, end):
    """Adds a * b."""
    for i in range(begin, end):
        target[i] += a[i] * b[i]


@njit(**JIT)
def blend_vjp(alpha, passed, rest, dot, begin, end):
    """One Gaussian of the backward pass, which runs front to back like the forward pass.

    `rest` holds, per pixel, gradient . colour summed over this and all Gaussians behind it; `dot` is this Gaussian's. With
    T the light that reaches it, dL/dalpha = T dot - (rest behind it) / (1 - alpha). Overwrites `alpha` by alpha * dL/dalpha
    (the negated gradient of the exponent) and `dot` by the blending weight.
    """
    for i in range(begin, end):
        before = passed[i]
        a = alpha[i] if before > _STOP else ZERO
        weight = a * before
        behind = rest[i] - weight * dot[i]
        rest[i] = behind
        passed[i] = before - weight
        grad = a * (before * dot[i] - behind / (ONE - a))
        alpha[i] = grad if a < _ALPHA_MAX else ZERO
        dot[i] = weight
