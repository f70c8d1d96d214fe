"""Compositing of surfels (2D Gaussians) in tiles, forward and backward. Rows are laid out as `numba_projection` says.

With h = H (pixel - centre), the ray of a pixel meets the surfel's plane at (u, v) = h / (1 - w . h), at depth z / (1 - w . h).

Depths are summed relative to one depth per tile: distortion is a difference of sums of squares, which would cancel in float32.
"""

import numpy as np
from numba import njit

from utils.splatting.rasterize.contract import LOW_PASS, RAY_MIN
from utils.splatting.rasterize.numba_projection import F32, HALF, JIT, ONE, TWO, ZERO
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

_LOW_PASS, _RAY_MIN = F32(LOW_PASS), F32(RAY_MIN)


@njit(**JIT)
def _surfel_alpha(row, near, pixel_x, pixel_y, begin, end, alpha, depth):
    """Alpha and hit depth per pixel."""
    x, y, ux, uy, vx, vy, w_u, w_v, z, opacity = row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9]
    for i in range(begin, end):
        dx = pixel_x[i] - x
        dy = pixel_y[i] - y
        h_u = ux * dx + uy * dy
        h_v = vx * dx + vy * dy
        denominator = ONE - (w_u * h_u + w_v * h_v)
        inverse = ONE / max(denominator, _RAY_MIN)
        u = h_u * inverse
        v = h_v * inverse
        on_disc = u * u + v * v
        low_pass = _LOW_PASS * (dx * dx + dy * dy)
        hits = (on_disc <= low_pass) & (denominator > _RAY_MIN)
        hit_depth = z * inverse if hits else z
        a = opacity_at(opacity, HALF * (on_disc if hits else low_pass))
        alpha[i] = a if hit_depth >= near else ZERO
        depth[i] = hit_depth


@njit(**JIT)
def _add_depths(weight, depth, origin, first, second, begin, end):
    for i in range(begin, end):
        d = depth[i] - origin
        wd = weight[i] * d
        first[i] += wd
        second[i] += wd * d


@njit(**JIT)
def _depth_origin(starts, members, rows, tile):
    """The depth that a tile's sums are relative to: that of the middle one of its surfels."""
    return rows[members[(starts[tile] + starts[tile + 1]) // 2], 8]


@njit(**JIT)
def composite_surfels(tiles, tiles_x, starts, members, near, rows, rects, rgb, alpha_image, depth_image, normal, distortion, moments):
    """Draws these tiles into rgb (3, h, w), alpha, depth, normal (3, h, w), distortion.

    Keeps the tile-relative sums of depth and squared depth in `moments` (2, h, w) for the backward pass.
    """
    pixel_x, pixel_y = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    alpha, passed, hit_depth = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    sums = np.empty((8, PIXELS), np.float32)
    for tile in tiles:
        tile_y = tile // tiles_x
        tile_x = tile - tile_y * tiles_x
        set_pixel_centres(pixel_x, pixel_y, tile_x, tile_y)
        passed[:] = ONE
        sums[:] = ZERO
        origin = _depth_origin(starts, members, rows, tile)
        for j in range(starts[tile], starts[tile + 1]):
            g = members[j]
            begin, end = pixel_span(rects, g, tile_y)
            _surfel_alpha(rows[g], near, pixel_x, pixel_y, begin, end, alpha, hit_depth)
            blend(alpha, passed, begin, end)
            for channel in range(3):
                accumulate(sums[channel], alpha, rows[g, 10 + channel], begin, end)
                accumulate(sums[3 + channel], alpha, rows[g, 13 + channel], begin, end)
            _add_depths(alpha, hit_depth, origin, sums[6], sums[7], begin, end)
            if np.uint64(j - starts[tile] + 1) & STOP_CHECK == 0 and is_saturated(passed):
                break
        for channel in range(3):
            store_tile(sums[channel], rgb[channel], tile_x, tile_y)
            store_tile(sums[3 + channel], normal[channel], tile_x, tile_y)
        store_tile(sums[6], moments[0], tile_x, tile_y)
        store_tile(sums[7], moments[1], tile_x, tile_y)
        for i in range(PIXELS):
            total, first, second = ONE - passed[i], sums[6, i], sums[7, i]
            alpha[i] = total
            hit_depth[i] = first + origin * total
            passed[i] = max(total * second - first * first, ZERO)
        store_tile(alpha, alpha_image, tile_x, tile_y)
        store_tile(hit_depth, depth_image, tile_x, tile_y)
        store_tile(passed, distortion, tile_x, tile_y)


@njit(**JIT)
def _load_gradients(planes, moments, grad_planes, tile_x, tile_y, origin, grads, rest, scratch):
    """Gradients by the sums that the kernel forms, in the order r, g, b, alpha, depth, normal x, y, z, squared depth.

    The loss knows depth and distortion; both are turned into gradients by alpha and by the tile-relative sums first. `rest` gets
    sum * gradient, summed over the channels.
    """
    g_alpha, g_first, g_second = grads[3], grads[4], grads[8]
    for channel in range(8):
        load_tile(grad_planes[channel], tile_x, tile_y, grads[channel])
    load_tile(grad_planes[8], tile_x, tile_y, scratch[0])
    load_tile(planes[3], tile_x, tile_y, scratch[1])
    load_tile(moments[0], tile_x, tile_y, scratch[2])
    load_tile(moments[1], tile_x, tile_y, scratch[3])
    for i in range(PIXELS):
        g_distortion, total, first, second = scratch[0, i], scratch[1, i], scratch[2, i], scratch[3, i]
        g_alpha[i] += g_first[i] * origin + g_distortion * second
        g_first[i] -= TWO * g_distortion * first
        g_second[i] = g_distortion * total
        rest[i] = g_alpha[i] * total + g_first[i] * first + g_second[i] * second
    for channel in (0, 1, 2, 5, 6, 7):
        load_tile(planes[channel], tile_x, tile_y, scratch[0])
        add_product(rest, grads[channel], scratch[0], np.uint64(0), np.uint64(PIXELS))


@njit(**JIT)
def composite_surfels_vjp(tiles, tiles_x, starts, members, first, near, rows, rects, planes, moments, grad_planes, partial):
    """Fills the rows of `partial` (pairs, SURFEL_ROW) that belong to these tiles.

    `planes` (8, h, w) are rgb, alpha, depth and normal as drawn; `grad_planes` (9, h, w) the gradients of the loss by them and
    by the distortion.
    """
    pixel_x, pixel_y = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    alpha, passed, depth = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    rest, dot, by_depth = np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32), np.empty(PIXELS, np.float32)
    scratch = np.empty((4, PIXELS), np.float32)
    grads = np.empty((9, PIXELS), np.float32)
    for tile in tiles:
        tile_y = tile // tiles_x
        tile_x = tile - tile_y * tiles_x
        set_pixel_centres(pixel_x, pixel_y, tile_x, tile_y)
        passed[:] = ONE
        origin = _depth_origin(starts, members, rows, tile)
        _load_gradients(planes, moments, grad_planes, tile_x, tile_y, origin, grads, rest, scratch)
        saturated = False
        for j in range(starts[tile], starts[tile + 1]):
            g = members[j]
            out = partial[pair_slot(first, rects, g, tile_x, tile_y)]
            if saturated:
                out[:] = ZERO
                continue
            begin, end = pixel_span(rects, g, tile_y)
            row = rows[g]
            _surfel_alpha(row, near, pixel_x, pixel_y, begin, end, alpha, depth)
            _dot_with_gradients(row, grads, depth, origin, begin, end, dot, by_depth)
            blend_vjp(alpha, passed, rest, dot, begin, end)
            _feature_vjp(grads, dot, begin, end, out)
            for i in range(begin, end):
                by_depth[i] *= dot[i]
            _intersection_vjp(row, pixel_x, pixel_y, alpha, by_depth, begin, end, out)
            saturated = np.uint64(j - starts[tile] + 1) & STOP_CHECK == 0 and is_saturated(passed)


@njit(**JIT)
def _dot_with_gradients(row, grads, depth, origin, begin, end, dot, by_depth):
    """Per pixel, gradient . features of one surfel, and the gradient by its hit depth at weight 1."""
    g_red, g_green, g_blue, g_alpha, g_first = grads[0], grads[1], grads[2], grads[3], grads[4]
    g_nx, g_ny, g_nz, g_second = grads[5], grads[6], grads[7], grads[8]
    red, green, blue, nx, ny, nz = row[10], row[11], row[12], row[13], row[14], row[15]
    for i in range(begin, end):
        dot[i] = g_red[i] * red + g_green[i] * green + g_blue[i] * blue + g_alpha[i]
    for i in range(begin, end):
        dot[i] += g_nx[i] * nx + g_ny[i] * ny + g_nz[i] * nz
    for i in range(begin, end):
        d = depth[i] - origin
        slope = d * g_second[i]
        dot[i] += d * (g_first[i] + slope)
        by_depth[i] = g_first[i] + TWO * slope


@njit(**JIT)
def _feature_vjp(grads, weight, begin, end, out):
    """Gradients of colour and normal."""
    g_red, g_green, g_blue, g_nx, g_ny, g_nz = grads[0], grads[1], grads[2], grads[5], grads[6], grads[7]
    red, green, blue, nx, ny, nz = F32(0), F32(0), F32(0), F32(0), F32(0), F32(0)
    for i in range(begin, end):
        w = weight[i]
        red += w * g_red[i]
        green += w * g_green[i]
        blue += w * g_blue[i]
        nx += w * g_nx[i]
        ny += w * g_ny[i]
        nz += w * g_nz[i]
    out[10], out[11], out[12], out[13], out[14], out[15] = red, green, blue, nx, ny, nz


@njit(**JIT)
def _intersection_vjp(row, pixel_x, pixel_y, strength, by_depth, begin, end, out):
    """Gradients of centre, H, w, depth and opacity.

    `strength` is alpha * dL/dalpha = -dL/dsigma, `by_depth` dL/d(hit depth). With i = 1 / (1 - w . h): u = i h_u, depth = i z, and
    di/dh = i^2 w, di/dw = i^2 h; `along` below is i dL/di.
    """
    x, y, ux, uy, vx, vy, w_u, w_v, z = row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8]
    s_opacity, s_u, s_v, s_ux, s_uy, s_vx, s_vy = F32(0), F32(0), F32(0), F32(0), F32(0), F32(0), F32(0)
    s_wu, s_wv, s_z, s_low_x, s_low_y = F32(0), F32(0), F32(0), F32(0), F32(0)
    for i in range(begin, end):
        dx = pixel_x[i] - x
        dy = pixel_y[i] - y
        h_u = ux * dx + uy * dy
        h_v = vx * dx + vy * dy
        denominator = ONE - (w_u * h_u + w_v * h_v)
        inverse = ONE / max(denominator, _RAY_MIN)
        u = h_u * inverse
        v = h_v * inverse
        on_disc = u * u + v * v
        hits = (on_disc <= _LOW_PASS * (dx * dx + dy * dy)) & (denominator > _RAY_MIN)
        e = strength[i]
        e_disc = e if hits else ZERO
        e_low = e - e_disc
        zd = by_depth[i]
        zd_disc = zd if hits else ZERO
        along = zd_disc * z * inverse - e_disc * on_disc
        g_u = inverse * (along * w_u - e_disc * u)
        g_v = inverse * (along * w_v - e_disc * v)
        s_opacity += e
        s_u += g_u
        s_v += g_v
        s_ux += g_u * dx
        s_uy += g_u * dy
        s_vx += g_v * dx
        s_vy += g_v * dy
        s_wu += along * u
        s_wv += along * v
        s_z += zd_disc * inverse + (zd - zd_disc)
        s_low_x += e_low * dx
        s_low_y += e_low * dy
    out[0] = -(ux * s_u + vx * s_v) + _LOW_PASS * s_low_x
    out[1] = -(uy * s_u + vy * s_v) + _LOW_PASS * s_low_y
    out[2], out[3], out[4], out[5] = s_ux, s_uy, s_vx, s_vy
    out[6], out[7], out[8] = s_wu, s_wv, s_z
    out[9] = s_opacity / row[9]
