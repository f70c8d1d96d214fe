"""Compositing of 3D Gaussians in tiles, forward and backward. Rows are laid out as `numba_projection` says."""

import numpy as np
from numba import njit

from utils.splatting.rasterize.numba_projection import F32, HALF, JIT, ONE, ZERO
from utils.splatting.rasterize.numba_tiles import (
    PIXELS,
    STOP_CHECK,
    accumulate,
    add_product,
    blend,
    blend_vjp,
    is_saturated,
    load_tile,
    opacity_at,
    pair_slot,
    pixel_span,
    set_pixel_centres,
    store_tile,
)


@njit(**JIT)
def _gaussian_alpha(row, pixel_x, pixel_y, begin, end, alpha):
    x, y, half_a, b, half_c, opacity = row[0], row[1], HALF * row[2], row[3], HALF * row[4], row[5]
    for i in range(begin, end):
        dx = x - pixel_x[i]
        dy = y - pixel_y[i]
        # Rounding can make the exponent of a thin Gaussian slightly negative.
        alpha[i] = opacity_at(opacity, max(half_a * dx * dx + half_c * dy * dy + b * dx * dy, ZERO))


@njit(**JIT)
def composite_gaussians(tiles, tiles_x, starts, members, rows, rects, rgb, alpha_image, depth_image):
    """Draws these tiles into rgb (3, h, w), alpha (h, w) and depth (h, w)."""
    pixel_x, pixel_y = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    alpha, passed = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    sums = np.empty((4, PIXELS), np.float32)
    red, green, blue, depth = sums[0], sums[1], sums[2], sums[3]
    for tile in tiles:
        tile_y = tile // tiles_x
        tile_x = tile - tile_y * tiles_x
        set_pixel_centres(pixel_x, pixel_y, tile_x, tile_y)
        passed[:] = ONE
        sums[:] = ZERO
        for j in range(starts[tile], starts[tile + 1]):
            g = members[j]
            begin, end = pixel_span(rects, g, tile_y)
            _gaussian_alpha(rows[g], pixel_x, pixel_y, begin, end, alpha)
            blend(alpha, passed, begin, end)
            accumulate(red, alpha, rows[g, 6], begin, end)
            accumulate(green, alpha, rows[g, 7], begin, end)
            accumulate(blue, alpha, rows[g, 8], begin, end)
            accumulate(depth, alpha, rows[g, 9], begin, end)
            if np.uint64(j - starts[tile] + 1) & STOP_CHECK == 0 and is_saturated(passed):
                break
        for i in range(PIXELS):
            alpha[i] = ONE - passed[i]
        for channel in range(3):
            store_tile(sums[channel], rgb[channel], tile_x, tile_y)
        store_tile(alpha, alpha_image, tile_x, tile_y)
        store_tile(depth, depth_image, tile_x, tile_y)


@njit(**JIT)
def composite_gaussians_vjp(tiles, tiles_x, starts, members, first, rows, rects, planes, grad_planes, partial):
    """Fills the rows of `partial` (pairs, GAUSSIAN_ROW) that belong to these tiles.

    `planes` (5, h, w) are rgb, alpha and depth as drawn, `grad_planes` the gradients of the loss by them.
    """
    pixel_x, pixel_y = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    alpha, passed = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    rest, dot = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    grads = np.empty((5, PIXELS), np.float32)
    g_red, g_green, g_blue, g_alpha, g_depth = grads[0], grads[1], grads[2], grads[3], grads[4]
    for tile in tiles:
        tile_y = tile // tiles_x
        tile_x = tile - tile_y * tiles_x
        set_pixel_centres(pixel_x, pixel_y, tile_x, tile_y)
        passed[:] = ONE
        rest[:] = ZERO
        for channel in range(5):
            load_tile(grad_planes[channel], tile_x, tile_y, grads[channel])
            load_tile(planes[channel], tile_x, tile_y, dot)
            add_product(rest, grads[channel], dot, np.uint64(0), np.uint64(PIXELS))
        saturated = False
        for j in range(starts[tile], starts[tile + 1]):
            g = members[j]
            out = partial[pair_slot(first, rects, g, tile_x, tile_y)]
            if saturated:
                out[:] = ZERO
                continue
            begin, end = pixel_span(rects, g, tile_y)
            row = rows[g]
            _gaussian_alpha(row, pixel_x, pixel_y, begin, end, alpha)
            r, gr, b, z = row[6], row[7], row[8], row[9]
            for i in range(begin, end):
                dot[i] = g_red[i] * r + g_green[i] * gr + g_blue[i] * b + g_alpha[i] + g_depth[i] * z
            blend_vjp(alpha, passed, rest, dot, begin, end)
            _exponent_vjp(row, pixel_x, pixel_y, alpha, begin, end, out)
            _colour_vjp(grads, dot, begin, end, out)
            saturated = np.uint64(j - starts[tile] + 1) & STOP_CHECK == 0 and is_saturated(passed)


@njit(**JIT)
def _exponent_vjp(row, pixel_x, pixel_y, strength, begin, end, out):
    """Gradients of centre, conic and opacity: moments of `strength` = alpha * dL/dalpha about the centre."""
    x, y = row[0], row[1]
    s, sx, sy, sxx, sxy, syy = F32(0), F32(0), F32(0), F32(0), F32(0), F32(0)
    for i in range(begin, end):
        e = strength[i]
        dx = x - pixel_x[i]
        dy = y - pixel_y[i]
        ex = e * dx
        ey = e * dy
        s += e
        sx += ex
        sy += ey
        sxx += ex * dx
        sxy += ex * dy
        syy += ey * dy
    out[0], out[1] = -(row[2] * sx + row[3] * sy), -(row[3] * sx + row[4] * sy)
    out[2], out[3], out[4] = -HALF * sxx, -sxy, -HALF * syy
    out[5] = s / row[5]


@njit(**JIT)
def _colour_vjp(grads, weight, begin, end, out):
    """Gradients of colour and depth."""
    g_red, g_green, g_blue, g_depth = grads[0], grads[1], grads[2], grads[4]
    red, green, blue, depth = F32(0), F32(0), F32(0), F32(0)
    for i in range(begin, end):
        w = weight[i]
        red += w * g_red[i]
        green += w * g_green[i]
        blue += w * g_blue[i]
        depth += w * g_depth[i]
    out[6], out[7], out[8], out[9] = red, green, blue, depth
