"""Blending kernels in Triton: one program per square tile, a chunk of Gaussians against all its pixels at once.

A chunk is a (CHUNK, PIXELS) block whose rows are Gaussians in depth order. Transmittance along the rows is a running product and
stays within a thread. The backward pass walks front to back too: what lies behind a Gaussian is the pixel's total minus what has
been passed, so neither a last index nor a division of transmittances is needed. Sums over pixels, which a shuffle tree would
dominate, are products with a small matrix of pixel features (1, x, y, x^2, xy, y^2, the image gradients) on the tensor cores, in
three TF32 terms, which is float32 accuracy. Positions are relative to the tile's centre, where those features are exact.

The way back has one program per segment of a tile's list instead of one per tile, since the longest list would decide how long it takes
(Mallick et al., "Taming 3DGS", 2024): the forward pass leaves transmittance and sums in front of every segment.
"""

import triton
import triton.language as tl

from utils.splatting.rasterize.contract import ALPHA_MAX, ALPHA_MIN, LOW_PASS, RAY_MIN, TRANSMITTANCE_STOP
from utils.splatting.rasterize.triton_project import RECORD

_ALPHA_MIN = tl.constexpr(ALPHA_MIN)
_ALPHA_MAX = tl.constexpr(ALPHA_MAX)
_STOP = tl.constexpr(TRANSMITTANCE_STOP)
_LOW_PASS = tl.constexpr(LOW_PASS)
_RAY_MIN = tl.constexpr(RAY_MIN)
_RECORD = tl.constexpr(RECORD)


@triton.jit
def _tile_pixels(tile, tiles_x, width, height, TILE: tl.constexpr):
    """Centre of the tile, pixel centres relative to it, row-major pixel index in the image and whether it is inside."""
    pixel = tl.arange(0, TILE * TILE)
    column, line = pixel % TILE, pixel // TILE
    left, top = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
    inside = (left + column < width) & (top + line < height)
    index = (top + line) * width + left + column
    x, y = column.to(tl.float32) - (TILE / 2 - 0.5), line.to(tl.float32) - (TILE / 2 - 0.5)
    return left + TILE / 2, top + TILE / 2, x, y, index, inside


@triton.jit
def _cut(raw):
    """Alpha after the shared clamp and threshold."""
    alpha = tl.minimum(raw, _ALPHA_MAX)
    return tl.where(alpha >= _ALPHA_MIN, alpha, 0.0)


@triton.jit
def _blend(alpha, transmittance):
    """Weights and transmittances in front of each row, 1 / (1 - alpha), and the transmittance behind the chunk."""
    inverse = 1.0 / (1.0 - alpha)
    behind = transmittance[None, :] * tl.cumprod(1.0 - alpha, axis=0)
    front = behind * inverse
    weight = tl.where(front > _STOP, front * alpha, 0.0)
    return weight, front, inverse, tl.min(behind, axis=0)


@triton.jit
def _state(states, segment, lane, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """Where a segment keeps the first of its channels (transmittance, then sums) for each pixel of its tile."""
    return states + segment.to(tl.int64) * (CHANNELS * PIXELS) + lane


@triton.jit
def _segment_bounds(tile, segment, starts, segments, stops, SEGMENT: tl.constexpr):
    """First row of the tile, and rows of the segment; none where the forward pass had stopped before."""
    first = tl.load(starts + tile).to(tl.int32)
    position = first + (segment - tl.load(segments + tile)) * SEGMENT
    return first, position, tl.minimum(position + SEGMENT, tl.load(stops + tile))


@triton.jit
def _column(matrix, columns, k: tl.constexpr):
    """(CHUNK,) column k of a (CHUNK, 16) block."""
    return tl.sum(tl.where(columns == k, matrix, 0.0), axis=1)


@triton.jit
def _gaussian(records, index, mask):
    """Mean, inverse covariance, opacity, colour and depth of Gaussians."""
    record = records + index.to(tl.int64) * _RECORD
    return (
        tl.load(record, mask, 0.0),
        tl.load(record + 1, mask, 0.0),
        tl.load(record + 2, mask, 0.0),
        tl.load(record + 3, mask, 0.0),
        tl.load(record + 4, mask, 0.0),
        tl.load(record + 5, mask, 0.0),
        tl.load(record + 6, mask, 0.0),
        tl.load(record + 7, mask, 0.0),
        tl.load(record + 8, mask, 0.0),
        tl.load(record + 9, mask, 0.0),
    )


@triton.jit(do_not_specialize=["width", "height", "tiles_x"])
def blend_gaussians(
    records, gaussians, starts, rgb, alpha_out, depth_out, segments, states, stops, width, height, tiles_x,
    TILE: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr, AHEAD: tl.constexpr, SEGMENT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """3DGS colour, alpha and depth of one tile; with KEEP also what the way back needs."""
    tile = tl.program_id(0)
    center_x, center_y, x, y, pixel, inside = _tile_pixels(tile, tiles_x, width, height, TILE)
    position, end = tl.load(starts + tile).to(tl.int32), tl.load(starts + tile + 1).to(tl.int32)
    first, stop, lane = position, position, tl.arange(0, TILE * TILE)
    transmittance = tl.where(inside, 1.0, 0.0)
    red, green, blue = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    total, depth = tl.zeros_like(x), tl.zeros_like(x)
    ahead = position + tl.arange(0, CHUNK)
    index = tl.load(gaussians + ahead, ahead < end, 0)
    if AHEAD:
        mean_x, mean_y, a, b, c, opacity, r, g, bl, z = _gaussian(records, index, ahead < end)
    while position < end:
        if KEEP:
            if (position - first) % SEGMENT == 0:
                state = _state(states, tl.load(segments + tile) + (position - first) // SEGMENT, lane, 6, TILE * TILE)
                tl.store(state, transmittance)
                tl.store(state + TILE * TILE, red)
                tl.store(state + 2 * TILE * TILE, green)
                tl.store(state + 3 * TILE * TILE, blue)
                tl.store(state + 4 * TILE * TILE, total)
                tl.store(state + 5 * TILE * TILE, depth)
        stop = tl.minimum(position + CHUNK * STEPS, end)
        for _ in tl.static_range(STEPS):
            # What the next chunk needs is asked for before this one is blended, so that it does not wait for memory.
            if not AHEAD:
                mean_x, mean_y, a, b, c, opacity, r, g, bl, z = _gaussian(records, index, ahead < end)
            ahead += CHUNK
            if AHEAD:
                index = tl.load(gaussians + ahead, ahead < end, 0)
                next_x, next_y, next_a, next_b, next_c, next_o, next_r, next_g, next_bl, next_z = _gaussian(records, index, ahead < end)
            else:
                index = tl.load(gaussians + ahead, ahead < end, 0)
            dx, dy = x[None, :] - (mean_x - center_x)[:, None], y[None, :] - (mean_y - center_y)[:, None]
            s = (0.5 * a)[:, None] * dx * dx + (0.5 * c)[:, None] * dy * dy + b[:, None] * dx * dy
            alpha = _cut(opacity[:, None] * tl.exp(-s))
            weight, _, _, transmittance = _blend(alpha, transmittance)
            red += tl.sum(weight * r[:, None], axis=0)
            green += tl.sum(weight * g[:, None], axis=0)
            blue += tl.sum(weight * bl[:, None], axis=0)
            total += tl.sum(weight, axis=0)
            depth += tl.sum(weight * z[:, None], axis=0)
            if AHEAD:
                mean_x, mean_y, a, b, c, opacity, r, g, bl, z = (
                    next_x, next_y, next_a, next_b, next_c, next_o, next_r, next_g, next_bl, next_z,
                )  # fmt: skip
        position = tl.where(tl.max(transmittance, axis=0) > _STOP, position + CHUNK * STEPS, end)
    tl.store(rgb + pixel * 3, red, inside)
    tl.store(rgb + pixel * 3 + 1, green, inside)
    tl.store(rgb + pixel * 3 + 2, blue, inside)
    tl.store(alpha_out + pixel, total, inside)
    tl.store(depth_out + pixel, depth, inside)
    if KEEP:
        tl.store(stops + tile, stop)


@triton.jit(do_not_specialize=["width", "height", "tiles_x", "num_tiles"])
def blend_gaussians_backward(
    records, gaussians, starts, rgb, alpha_out, depth_out, g_rgb, g_alpha, g_depth, gradients, segments, tile_of, states, stops,
    width, height, tiles_x, num_tiles, TILE: tl.constexpr, CHUNK: tl.constexpr, SEGMENT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Adds the gradients of a tile's pixels to those of one segment's records (atomics, one row of 16 per Gaussian and tile)."""
    segment = tl.program_id(0)
    tile = tl.load(tile_of + segment)
    if tile >= num_tiles:
        return
    _, position, end = _segment_bounds(tile, segment, starts, segments, stops, SEGMENT)
    if position >= end:
        return
    center_x, center_y, x, y, pixel, inside = _tile_pixels(tile, tiles_x, width, height, TILE)
    state = _state(states, segment, tl.arange(0, TILE * TILE), 6, TILE * TILE)
    transmittance = tl.load(state)
    gr, gg, gb = (
        tl.load(g_rgb + pixel * 3, inside, 0.0),
        tl.load(g_rgb + pixel * 3 + 1, inside, 0.0),
        tl.load(g_rgb + pixel * 3 + 2, inside, 0.0),
    )
    ga, gd = tl.load(g_alpha + pixel, inside, 0.0), tl.load(g_depth + pixel, inside, 0.0)
    remaining = gr * (tl.load(rgb + pixel * 3, inside, 0.0) - tl.load(state + TILE * TILE))
    remaining += gg * (tl.load(rgb + pixel * 3 + 1, inside, 0.0) - tl.load(state + 2 * TILE * TILE))
    remaining += gb * (tl.load(rgb + pixel * 3 + 2, inside, 0.0) - tl.load(state + 3 * TILE * TILE))
    remaining += ga * (tl.load(alpha_out + pixel, inside, 0.0) - tl.load(state + 4 * TILE * TILE))
    remaining += gd * (tl.load(depth_out + pixel, inside, 0.0) - tl.load(state + 5 * TILE * TILE))
    columns = tl.arange(0, 16)[None, :]
    if DOT:
        px, py = x[:, None], y[:, None]
        moments = tl.where(columns == 0, 1.0, tl.where(columns == 1, px, tl.where(columns == 2, py, 0.0)))
        moments = tl.where(columns == 3, px * px, tl.where(columns == 4, px * py, tl.where(columns == 5, py * py, moments)))
        image = tl.where(columns == 6, gr[:, None], tl.where(columns == 7, gg[:, None], tl.where(columns == 8, gb[:, None], 0.0)))
        image = tl.where(columns == 9, gd[:, None], tl.where(columns == 10, 1.0, image))
    ahead = position + tl.arange(0, CHUNK)
    following = tl.load(gaussians + ahead, ahead < end, 0)
    while position < end:
        mask = ahead < end
        index = following.to(tl.int64) * _RECORD
        record = records + index
        ahead += CHUNK
        following = tl.load(gaussians + ahead, ahead < end, 0)
        mean_x, mean_y = tl.load(record, mask, 0.0) - center_x, tl.load(record + 1, mask, 0.0) - center_y
        a, b, c = tl.load(record + 2, mask, 0.0), tl.load(record + 3, mask, 0.0), tl.load(record + 4, mask, 0.0)
        opacity, z = tl.load(record + 5, mask, 0.0), tl.load(record + 9, mask, 0.0)
        r, g, bl = tl.load(record + 6, mask, 0.0), tl.load(record + 7, mask, 0.0), tl.load(record + 8, mask, 0.0)
        dx, dy = x[None, :] - mean_x[:, None], y[None, :] - mean_y[:, None]
        s = (0.5 * a)[:, None] * dx * dx + (0.5 * c)[:, None] * dy * dy + b[:, None] * dx * dy
        raw = opacity[:, None] * tl.exp(-s)
        alpha = _cut(raw)
        weight, front, inverse, transmittance = _blend(alpha, transmittance)
        value = gr[None, :] * r[:, None] + gg[None, :] * g[:, None] + gb[None, :] * bl[:, None] + gd[None, :] * z[:, None] + ga[None, :]
        product = weight * value
        behind = remaining[None, :] - tl.cumsum(product, axis=0)
        remaining -= tl.sum(product, axis=0)
        # alpha dL/dalpha, which is also minus the gradient of the exponent s
        e = tl.where((weight > 0.0) & (raw <= _ALPHA_MAX), alpha * (front * value - behind * inverse), 0.0)
        if DOT:
            sums = tl.dot(e, moments, input_precision="tf32x3")
            sums = tl.dot(weight, image, sums, input_precision="tf32x3")
            s0, sx, sy = _column(sums, columns, 0), _column(sums, columns, 1), _column(sums, columns, 2)
            sxx, sxy, syy = _column(sums, columns, 3), _column(sums, columns, 4), _column(sums, columns, 5)
            hit = _column(sums, columns, 10)
            ux, uy = sx - mean_x * s0, sy - mean_y * s0
            uxx = sxx - mean_x * (sx + ux)
            uyy = syy - mean_y * (sy + uy)
            uxy = sxy - mean_x * sy - mean_y * ux
        else:
            s0, hit = tl.sum(e, axis=1), tl.sum(weight, axis=1)
            ex, ey = e * dx, e * dy
            ux, uy, uxx, uyy, uxy = (
                tl.sum(ex, axis=1),
                tl.sum(ey, axis=1),
                tl.sum(ex * dx, axis=1),
                tl.sum(ey * dy, axis=1),
                tl.sum(ex * dy, axis=1),
            )
            sums = tl.where(columns == 6, tl.sum(weight * gr[None, :], axis=1)[:, None], tl.sum(weight * gg[None, :], axis=1)[:, None])
            sums = tl.where(columns == 8, tl.sum(weight * gb[None, :], axis=1)[:, None], sums)
            sums = tl.where(columns == 9, tl.sum(weight * gd[None, :], axis=1)[:, None], sums)
        sums = tl.where(columns == 0, (a * ux + b * uy)[:, None], tl.where(columns == 1, (b * ux + c * uy)[:, None], sums))
        sums = tl.where(columns == 2, (-0.5 * uxx)[:, None], tl.where(columns == 3, (-uxy)[:, None], sums))
        sums = tl.where(columns == 4, (-0.5 * uyy)[:, None], tl.where(columns == 5, (s0 / tl.maximum(opacity, _ALPHA_MIN))[:, None], sums))
        tl.atomic_add(gradients + index[:, None] + columns, sums, mask=(hit > 0.0)[:, None] & (columns < 10), sem="relaxed")
        position += CHUNK


@triton.jit
def _meet(dx, dy, i00, i01, i10, i11, p, q, z):
    """Where rays meet surfels: u, v, 1 / denominator, whether the disc (not its low-pass) counts, exponent and depth."""
    denominator = 1.0 - p[:, None] * dx - q[:, None] * dy
    ahead = denominator > _RAY_MIN
    inverse = 1.0 / tl.where(ahead, denominator, 1.0)
    u, v = (i00[:, None] * dx + i01[:, None] * dy) * inverse, (i10[:, None] * dx + i11[:, None] * dy) * inverse
    on_disc, low_pass = u * u + v * v, (dx * dx + dy * dy) * _LOW_PASS
    hits = ahead & (on_disc <= low_pass)
    inverse = tl.where(hits, inverse, 1.0)
    return u, v, inverse, hits, 0.5 * tl.where(hits, on_disc, low_pass), z[:, None] * inverse


@triton.jit(do_not_specialize=["width", "height", "tiles_x"])
def blend_surfels(
    records, gaussians, starts, rgb, alpha_out, depth_out, normal, distortion, moments_out, segments, states, stops,
    width, height, tiles_x, near, TILE: tl.constexpr, CHUNK: tl.constexpr, SEGMENT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """2DGS colour, alpha, depth, normal and distortion of one tile; `moments_out` keeps the centred depth moments for the way back."""
    tile = tl.program_id(0)
    center_x, center_y, x, y, pixel, inside = _tile_pixels(tile, tiles_x, width, height, TILE)
    position, end = tl.load(starts + tile).to(tl.int32), tl.load(starts + tile + 1).to(tl.int32)
    # The distortion does not change when all depths shift; the nearest Gaussian's depth as origin avoids cancellation.
    nearest = tl.load(gaussians + position, position < end, 0).to(tl.int64)
    origin = tl.load(records + nearest * _RECORD + 8, position < end, 0.0)
    first, stop, lane = position, position, tl.arange(0, TILE * TILE)
    transmittance = tl.where(inside, 1.0, 0.0)
    red, green, blue = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    nx, ny, nz = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    total, d1, d2 = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    ahead = position + tl.arange(0, CHUNK)
    index = tl.load(gaussians + ahead, ahead < end, 0)
    while position < end:
        if KEEP:
            if (position - first) % SEGMENT == 0:
                state = _state(states, tl.load(segments + tile) + (position - first) // SEGMENT, lane, 10, TILE * TILE)
                tl.store(state, transmittance)
                tl.store(state + TILE * TILE, red)
                tl.store(state + 2 * TILE * TILE, green)
                tl.store(state + 3 * TILE * TILE, blue)
                tl.store(state + 4 * TILE * TILE, total)
                tl.store(state + 5 * TILE * TILE, d1)
                tl.store(state + 6 * TILE * TILE, d2)
                tl.store(state + 7 * TILE * TILE, nx)
                tl.store(state + 8 * TILE * TILE, ny)
                tl.store(state + 9 * TILE * TILE, nz)
        stop = tl.minimum(position + CHUNK, end)
        mask = ahead < end
        record = records + index.to(tl.int64) * _RECORD
        ahead += CHUNK
        index = tl.load(gaussians + ahead, ahead < end, 0)  # of the next chunk, so that its records do not wait for it
        mean_x, mean_y = tl.load(record, mask, 0.0) - center_x, tl.load(record + 1, mask, 0.0) - center_y
        i00, i01 = tl.load(record + 2, mask, 0.0), tl.load(record + 3, mask, 0.0)
        i10, i11 = tl.load(record + 4, mask, 0.0), tl.load(record + 5, mask, 0.0)
        p, q = tl.load(record + 6, mask, 0.0), tl.load(record + 7, mask, 0.0)
        z, opacity = tl.load(record + 8, mask, 0.0), tl.load(record + 9, mask, 0.0)
        dx, dy = x[None, :] - mean_x[:, None], y[None, :] - mean_y[:, None]
        _, _, _, _, s, depth = _meet(dx, dy, i00, i01, i10, i11, p, q, z)
        alpha = tl.where(depth >= near, _cut(opacity[:, None] * tl.exp(-s)), 0.0)
        weight, _, _, transmittance = _blend(alpha, transmittance)
        total += tl.sum(weight, axis=0)
        centred = weight * (depth - origin)
        d1 += tl.sum(centred, axis=0)
        d2 += tl.sum(centred * (depth - origin), axis=0)
        red += tl.sum(weight * tl.load(record + 10, mask, 0.0)[:, None], axis=0)
        green += tl.sum(weight * tl.load(record + 11, mask, 0.0)[:, None], axis=0)
        blue += tl.sum(weight * tl.load(record + 12, mask, 0.0)[:, None], axis=0)
        nx += tl.sum(weight * tl.load(record + 13, mask, 0.0)[:, None], axis=0)
        ny += tl.sum(weight * tl.load(record + 14, mask, 0.0)[:, None], axis=0)
        nz += tl.sum(weight * tl.load(record + 15, mask, 0.0)[:, None], axis=0)
        position = tl.where(tl.max(transmittance, axis=0) > _STOP, position + CHUNK, end)
    tl.store(rgb + pixel * 3, red, inside)
    tl.store(rgb + pixel * 3 + 1, green, inside)
    tl.store(rgb + pixel * 3 + 2, blue, inside)
    tl.store(normal + pixel * 3, nx, inside)
    tl.store(normal + pixel * 3 + 1, ny, inside)
    tl.store(normal + pixel * 3 + 2, nz, inside)
    tl.store(alpha_out + pixel, total, inside)
    tl.store(depth_out + pixel, d1 + origin * total, inside)
    tl.store(distortion + pixel, total * d2 - d1 * d1, inside)
    tl.store(moments_out + pixel * 2, d1, inside)
    tl.store(moments_out + pixel * 2 + 1, d2, inside)
    if KEEP:
        tl.store(stops + tile, stop)


@triton.jit(do_not_specialize=["width", "height", "tiles_x", "num_tiles"])
def blend_surfels_backward(
    records, gaussians, starts, rgb, alpha_out, normal, moments, g_rgb, g_alpha, g_depth, g_normal, g_distortion, gradients,
    segments, tile_of, states, stops, width, height, tiles_x, num_tiles, near,
    TILE: tl.constexpr, CHUNK: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Adds the gradients of a tile's pixels to those of one segment's records, as `blend_gaussians_backward`."""
    segment = tl.program_id(0)
    tile = tl.load(tile_of + segment)
    if tile >= num_tiles:
        return
    first, position, end = _segment_bounds(tile, segment, starts, segments, stops, SEGMENT)
    if position >= end:
        return
    center_x, center_y, x, y, pixel, inside = _tile_pixels(tile, tiles_x, width, height, TILE)
    origin = tl.load(records + tl.load(gaussians + first).to(tl.int64) * _RECORD + 8)
    state = _state(states, segment, tl.arange(0, TILE * TILE), 10, TILE * TILE)
    transmittance = tl.load(state)
    gr, gg, gb = (
        tl.load(g_rgb + pixel * 3, inside, 0.0),
        tl.load(g_rgb + pixel * 3 + 1, inside, 0.0),
        tl.load(g_rgb + pixel * 3 + 2, inside, 0.0),
    )
    gnx, gny = tl.load(g_normal + pixel * 3, inside, 0.0), tl.load(g_normal + pixel * 3 + 1, inside, 0.0)
    gnz = tl.load(g_normal + pixel * 3 + 2, inside, 0.0)
    total, d1, d2 = (
        tl.load(alpha_out + pixel, inside, 0.0),
        tl.load(moments + pixel * 2, inside, 0.0),
        tl.load(moments + pixel * 2 + 1, inside, 0.0),
    )
    gd, gt = tl.load(g_depth + pixel, inside, 0.0), tl.load(g_distortion + pixel, inside, 0.0)
    # depth = d1 + origin total, distortion = total d2 - d1^2; each weight enters total, d1 and d2.
    ga = tl.load(g_alpha + pixel, inside, 0.0) + gd * origin + gt * d2
    g1, g2 = gd - 2.0 * gt * d1, gt * total
    remaining = gr * (tl.load(rgb + pixel * 3, inside, 0.0) - tl.load(state + TILE * TILE))
    remaining += gg * (tl.load(rgb + pixel * 3 + 1, inside, 0.0) - tl.load(state + 2 * TILE * TILE))
    remaining += gb * (tl.load(rgb + pixel * 3 + 2, inside, 0.0) - tl.load(state + 3 * TILE * TILE))
    remaining += ga * (total - tl.load(state + 4 * TILE * TILE)) + g1 * (d1 - tl.load(state + 5 * TILE * TILE))
    remaining += g2 * (d2 - tl.load(state + 6 * TILE * TILE))
    remaining += gnx * (tl.load(normal + pixel * 3, inside, 0.0) - tl.load(state + 7 * TILE * TILE))
    remaining += gny * (tl.load(normal + pixel * 3 + 1, inside, 0.0) - tl.load(state + 8 * TILE * TILE))
    remaining += gnz * (tl.load(normal + pixel * 3 + 2, inside, 0.0) - tl.load(state + 9 * TILE * TILE))
    columns = tl.arange(0, 16)[None, :]
    plane = tl.where(columns == 0, 1.0, tl.where(columns == 1, x[:, None], tl.where(columns == 2, y[:, None], 0.0)))
    image = tl.where(columns == 10, gr[:, None], tl.where(columns == 11, gg[:, None], tl.where(columns == 12, gb[:, None], 0.0)))
    image = tl.where(columns == 13, gnx[:, None], tl.where(columns == 14, gny[:, None], tl.where(columns == 15, gnz[:, None], image)))
    ahead = position + tl.arange(0, CHUNK)
    following = tl.load(gaussians + ahead, ahead < end, 0)
    while position < end:
        mask = ahead < end
        index = following.to(tl.int64) * _RECORD
        record = records + index
        ahead += CHUNK
        following = tl.load(gaussians + ahead, ahead < end, 0)
        mean_x, mean_y = tl.load(record, mask, 0.0) - center_x, tl.load(record + 1, mask, 0.0) - center_y
        i00, i01 = tl.load(record + 2, mask, 0.0), tl.load(record + 3, mask, 0.0)
        i10, i11 = tl.load(record + 4, mask, 0.0), tl.load(record + 5, mask, 0.0)
        p, q = tl.load(record + 6, mask, 0.0), tl.load(record + 7, mask, 0.0)
        z, opacity = tl.load(record + 8, mask, 0.0), tl.load(record + 9, mask, 0.0)
        dx, dy = x[None, :] - mean_x[:, None], y[None, :] - mean_y[:, None]
        u, v, slant, hits, s, depth = _meet(dx, dy, i00, i01, i10, i11, p, q, z)
        raw = opacity[:, None] * tl.exp(-s)
        alpha = tl.where(depth >= near, _cut(raw), 0.0)
        weight, front, inverse, transmittance = _blend(alpha, transmittance)
        centred = depth - origin
        value = ga[None, :] + centred * (g1[None, :] + centred * g2[None, :])
        value += gr[None, :] * tl.load(record + 10, mask, 0.0)[:, None] + gg[None, :] * tl.load(record + 11, mask, 0.0)[:, None]
        value += gb[None, :] * tl.load(record + 12, mask, 0.0)[:, None] + gnx[None, :] * tl.load(record + 13, mask, 0.0)[:, None]
        value += gny[None, :] * tl.load(record + 14, mask, 0.0)[:, None] + gnz[None, :] * tl.load(record + 15, mask, 0.0)[:, None]
        product = weight * value
        behind = remaining[None, :] - tl.cumsum(product, axis=0)
        remaining -= tl.sum(product, axis=0)
        e = tl.where((weight > 0.0) & (raw <= _ALPHA_MAX), alpha * (front * value - behind * inverse), 0.0)
        g_hit = weight * (g1[None, :] + 2.0 * centred * g2[None, :]) * slant  # depth = z slant
        on_disc = tl.where(hits, e, 0.0)
        g_nu, g_nv = -on_disc * u * slant, -on_disc * v * slant
        g_den = tl.where(hits, (e * (u * u + v * v) - g_hit * z[:, None]) * slant, 0.0)
        nu = tl.dot(g_nu, plane, input_precision="tf32x3")
        nv = tl.dot(g_nv, plane, input_precision="tf32x3")
        den = tl.dot(g_den, plane, input_precision="tf32x3")
        low = tl.dot(e - on_disc, plane, input_precision="tf32x3")
        sums = tl.dot(weight, image, input_precision="tf32x3")
        nu0, nv0, den0, low0 = _column(nu, columns, 0), _column(nv, columns, 0), _column(den, columns, 0), _column(low, columns, 0)
        nux, nuy = _column(nu, columns, 1) - mean_x * nu0, _column(nu, columns, 2) - mean_y * nu0
        nvx, nvy = _column(nv, columns, 1) - mean_x * nv0, _column(nv, columns, 2) - mean_y * nv0
        denx, deny = _column(den, columns, 1) - mean_x * den0, _column(den, columns, 2) - mean_y * den0
        lowx, lowy = _column(low, columns, 1) - mean_x * low0, _column(low, columns, 2) - mean_y * low0
        g_mean_x = p * den0 - i00 * nu0 - i10 * nv0 + lowx * _LOW_PASS
        g_mean_y = q * den0 - i01 * nu0 - i11 * nv0 + lowy * _LOW_PASS
        sums = tl.where(columns == 0, g_mean_x[:, None], tl.where(columns == 1, g_mean_y[:, None], sums))
        sums = tl.where(columns == 2, nux[:, None], tl.where(columns == 3, nuy[:, None], sums))
        sums = tl.where(columns == 4, nvx[:, None], tl.where(columns == 5, nvy[:, None], sums))
        sums = tl.where(columns == 6, -denx[:, None], tl.where(columns == 7, -deny[:, None], sums))
        g_opacity = tl.sum(e, axis=1) / tl.maximum(opacity, _ALPHA_MIN)
        sums = tl.where(columns == 8, tl.sum(g_hit, axis=1)[:, None], tl.where(columns == 9, g_opacity[:, None], sums))
        tl.atomic_add(gradients + index[:, None] + columns, sums, mask=(tl.max(weight, axis=1) > 0.0)[:, None], sem="relaxed")
        position += CHUNK
