"""Projection kernels in Triton: camera-space Gaussians to the records that blending reads, and the way back of their gradients.

One record of `RECORD` floats per Gaussian, so that a tile gathers one or two cache sectors per Gaussian:

* 3DGS: mean x, y (px); inverse covariance a, b, c (1/px^2); opacity; r, g, b; depth. The rest is unused.
* 2DGS: mean x, y (px); P^-1 row by row (disc units per px, 4); perspective slope p, q (1/px); depth; opacity; r, g, b; normal.

A pixel at offset d = (dx, dy) from the mean meets a surfel at (u, v) = P^-1 d / (1 - p dx - q dy) and depth z / (1 - p dx - q dy).
The formulas are those of `rasterizer_torch`; the derivatives are written out by hand.
"""

import triton
import triton.language as tl

from utils.device.triton_columns import load3, load4, store3, store4
from utils.splatting.rasterize.contract import ALPHA_MIN, EDGE_ON, EPS2D, FRUSTUM_MARGIN, LOW_PASS

RECORD = 16

_ALPHA_MIN = tl.constexpr(ALPHA_MIN)
_EPS2D = tl.constexpr(EPS2D)
_MARGIN = tl.constexpr(0.5 * FRUSTUM_MARGIN)
_LOW_PASS = tl.constexpr(LOW_PASS)
_EDGE_ON = tl.constexpr(EDGE_ON)
_RECORD = tl.constexpr(RECORD)
_SLACK = tl.constexpr(1e-3)  # px added to every bound: rounding must not lose a pixel that the blend kernel would draw


@triton.jit
def unit(w, x, y, z):
    """The normalised quaternion and its inverse norm."""
    inverse = 1.0 / tl.maximum(tl.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@triton.jit
def _load_unit_quaternion(base, row, mask):
    """Normalised w, x, y, z and the inverse norm."""
    w, x, y, z = load4(base, row, mask)
    return unit(w, x, y, z)


@triton.jit
def _rotation(w, x, y, z):
    """Row-major rotation of a unit quaternion."""
    return (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )


@triton.jit
def _quaternion_gradient(w, x, y, z, inverse, g00, g01, g02, g10, g11, g12, g20, g21, g22):
    """Gradient of the raw quaternion, from that of the rotation of the normalised one."""
    gw = 2 * (x * (g21 - g12) + y * (g02 - g20) + z * (g10 - g01))
    gx = 2 * (w * (g21 - g12) + y * (g01 + g10) + z * (g02 + g20) - 2 * x * (g11 + g22))
    gy = 2 * (w * (g02 - g20) + x * (g01 + g10) + z * (g12 + g21) - 2 * y * (g00 + g22))
    gz = 2 * (w * (g10 - g01) + x * (g02 + g20) + y * (g12 + g21) - 2 * z * (g00 + g11))
    along = gw * w + gx * x + gy * y + gz * z
    return (gw - along * w) * inverse, (gx - along * x) * inverse, (gy - along * y) * inverse, (gz - along * z) * inverse


@triton.jit
def _store_tiles(rects, counts, row, mask, drawn, left, right, top, bottom, width, height, TILE: tl.constexpr):
    """Tiles whose pixel centres lie within the bounds: the first tile and the count across in `rects`, their number in `counts`."""
    # Clamped before the conversion to int: a Gaussian may reach millions of pixels out of the image.
    first_x = tl.math.ceil(tl.minimum(tl.maximum(left - 0.5 - _SLACK, 0.0), width + 0.0)).to(tl.int32)
    first_y = tl.math.ceil(tl.minimum(tl.maximum(top - 0.5 - _SLACK, 0.0), height + 0.0)).to(tl.int32)
    last_x = tl.math.floor(tl.minimum(tl.maximum(right - 0.5 + _SLACK, -1.0), width - 1.0)).to(tl.int32)
    last_y = tl.math.floor(tl.minimum(tl.maximum(bottom - 0.5 + _SLACK, -1.0), height - 1.0)).to(tl.int32)
    seen = drawn & (last_x >= first_x) & (last_y >= first_y)
    x0, y0 = first_x // TILE, first_y // TILE
    across, down = last_x // TILE - x0 + 1, last_y // TILE - y0 + 1
    tl.store(rects + row * 2, x0 + (y0 << 16), mask)
    tl.store(rects + row * 2 + 1, across, mask)
    tl.store(counts + row, tl.where(seen, across * down, 0), mask)
    return seen


@triton.jit
def _gaussian_rows(x, y, z, qw, qx, qy, qz, s0, s1, s2, fx, fy, cx, cy, width, height):
    """Rows of the 2 x 3 factor of the projected covariance, the ratios it is linearised at, and whether these are unclamped."""
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(qw, qx, qy, qz)
    inv_z = 1.0 / z
    limit_x0, limit_x1 = -cx / fx - width * _MARGIN / fx, (width - cx) / fx + width * _MARGIN / fx
    limit_y0, limit_y1 = -cy / fy - height * _MARGIN / fy, (height - cy) / fy + height * _MARGIN / fy
    raw_x, raw_y = x * inv_z, y * inv_z
    tx = tl.minimum(tl.maximum(raw_x, limit_x0), limit_x1)
    ty = tl.minimum(tl.maximum(raw_y, limit_y0), limit_y1)
    ax, ay = fx * inv_z, fy * inv_z
    u0, u1, u2 = ax * (r00 - tx * r20) * s0, ax * (r01 - tx * r21) * s1, ax * (r02 - tx * r22) * s2
    v0, v1, v2 = ay * (r10 - ty * r20) * s0, ay * (r11 - ty * r21) * s1, ay * (r12 - ty * r22) * s2
    return u0, u1, u2, v0, v1, v2, tx, ty, tx == raw_x, ty == raw_y


@triton.jit
def write_gaussian(
    records, rects, counts, depths, row, mask, x, y, depth, qw, qx, qy, qz, s0, s1, s2, opacity, K, near, width, height,
    TILE: tl.constexpr,
):  # fmt: skip
    """Records without colours, touched tiles and sort depths of Gaussians in camera space; returns which of them are seen."""
    fx, cx, fy, cy = tl.load(K), tl.load(K + 2), tl.load(K + 4), tl.load(K + 5)
    front = mask & (depth > near)
    z = tl.where(front, depth, 1.0)
    u0, u1, u2, v0, v1, v2, _, _, _, _ = _gaussian_rows(x, y, z, qw, qx, qy, qz, s0, s1, s2, fx, fy, cx, cy, width, height)
    var_x = u0 * u0 + u1 * u1 + u2 * u2 + _EPS2D
    var_y = v0 * v0 + v1 * v1 + v2 * v2 + _EPS2D
    covariance = u0 * v0 + u1 * v1 + u2 * v2
    # The cross-product form of the determinant keeps needle-like Gaussians positive definite in float32.
    c0, c1, c2 = u1 * v2 - u2 * v1, u2 * v0 - u0 * v2, u0 * v1 - u1 * v0
    determinant = c0 * c0 + c1 * c1 + c2 * c2 + (var_x + var_y - _EPS2D) * _EPS2D
    mean_x, mean_y = fx * x / z + cx, fy * y / z + cy
    reach = 2.0 * tl.log(tl.maximum(opacity / _ALPHA_MIN, 1.0))
    radius_x, radius_y = tl.sqrt(reach * var_x), tl.sqrt(reach * var_y)
    drawn = front & (opacity >= _ALPHA_MIN)
    seen = _store_tiles(
        rects, counts, row, mask, drawn, mean_x - radius_x, mean_x + radius_x, mean_y - radius_y, mean_y + radius_y, width, height, TILE
    )  # fmt: skip
    tl.store(depths + row, tl.where(seen, depth, float("inf")), mask)
    out = records + row.to(tl.int64) * _RECORD
    tl.store(out, mean_x, seen)
    tl.store(out + 1, mean_y, seen)
    tl.store(out + 2, var_y / determinant, seen)
    tl.store(out + 3, -covariance / determinant, seen)
    tl.store(out + 4, var_x / determinant, seen)
    tl.store(out + 5, opacity, seen)
    tl.store(out + 9, depth, seen)
    return seen


@triton.jit
def write_colors(records, row, mask, red, green, blue):
    """Colours of 3DGS records."""
    out = records + row.to(tl.int64) * _RECORD + 6
    tl.store(out, red, mask)
    tl.store(out + 1, green, mask)
    tl.store(out + 2, blue, mask)


@triton.jit(do_not_specialize=["num", "width", "height"])
def project_gaussians(
    means, quats, scales, opacities, colors, K, records, rects, counts, depths, num, width, height, near,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """3DGS records, touched tiles and sort depths (infinite where nothing is seen)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    x, y, depth = load3(means, row, mask)
    qw, qx, qy, qz, _ = _load_unit_quaternion(quats, row, mask)
    s0, s1, s2 = load3(scales, row, mask)
    opacity = tl.load(opacities + row, mask, 0.0)
    seen = write_gaussian(
        records, rects, counts, depths, row, mask, x, y, depth, qw, qx, qy, qz, s0, s1, s2, opacity, K, near, width, height, TILE
    )
    red, green, blue = load3(colors, row, seen)
    write_colors(records, row, seen, red, green, blue)


@triton.jit
def gaussian_vjp(
    records, gradients, row, live, x, y, z, qw, qx, qy, qz, inverse, s0, s1, s2, K, width, height
):  # fmt: skip
    """Gradients of camera-space mean (3), raw quaternion (4) and scales (3) from those of the records."""
    fx, cx, fy, cy = tl.load(K), tl.load(K + 2), tl.load(K + 4), tl.load(K + 5)
    z = tl.where(live, z, 1.0)
    u0, u1, u2, v0, v1, v2, tx, ty, free_x, free_y = _gaussian_rows(x, y, z, qw, qx, qy, qz, s0, s1, s2, fx, fy, cx, cy, width, height)
    record, gradient = records + row.to(tl.int64) * _RECORD, gradients + row.to(tl.int64) * _RECORD
    a, b, c = tl.load(record + 2, live, 0.0), tl.load(record + 3, live, 0.0), tl.load(record + 4, live, 0.0)
    g_mx, g_my = tl.load(gradient, live, 0.0), tl.load(gradient + 1, live, 0.0)
    g_a, g_b, g_c = tl.load(gradient + 2, live, 0.0), tl.load(gradient + 3, live, 0.0), tl.load(gradient + 4, live, 0.0)
    # d inverse = - inverse (d covariance) inverse; the off-diagonal entry counts twice.
    h = 0.5 * g_b
    p, q, r, s = a * g_a + b * h, a * h + b * g_c, b * g_a + c * h, b * h + c * g_c
    g_xx, g_xy, g_yy = -(p * a + q * b), -2.0 * (p * b + q * c), -(r * b + s * c)
    gu0, gu1, gu2 = 2 * g_xx * u0 + g_xy * v0, 2 * g_xx * u1 + g_xy * v1, 2 * g_xx * u2 + g_xy * v2
    gv0, gv1, gv2 = 2 * g_yy * v0 + g_xy * u0, 2 * g_yy * v1 + g_xy * u1, 2 * g_yy * v2 + g_xy * u2
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(qw, qx, qy, qz)
    inv_z = 1.0 / z
    ax, ay = fx * inv_z, fy * inv_z
    # Through the rows u = ax (R_0 - tx R_2) s and v = ay (R_1 - ty R_2) s.
    m0, m1, m2 = -(ax * tx * gu0 + ay * ty * gv0), -(ax * tx * gu1 + ay * ty * gv1), -(ax * tx * gu2 + ay * ty * gv2)
    g_tx = tl.where(free_x, -ax * (r20 * s0 * gu0 + r21 * s1 * gu1 + r22 * s2 * gu2), 0.0)
    g_ty = tl.where(free_y, -ay * (r20 * s0 * gv0 + r21 * s1 * gv1 + r22 * s2 * gv2), 0.0)
    scaled = u0 * gu0 + u1 * gu1 + u2 * gu2 + v0 * gv0 + v1 * gv1 + v2 * gv2
    g_ratio_x, g_ratio_y = g_tx + fx * g_mx, g_ty + fy * g_my
    g_z = tl.load(gradient + 9, live, 0.0) - inv_z * (scaled + g_ratio_x * x * inv_z + g_ratio_y * y * inv_z)
    gw, gx, gy, gz = _quaternion_gradient(
        qw, qx, qy, qz, inverse,
        ax * gu0 * s0, ax * gu1 * s1, ax * gu2 * s2, ay * gv0 * s0, ay * gv1 * s1, ay * gv2 * s2, m0 * s0, m1 * s1, m2 * s2,
    )  # fmt: skip
    return (
        g_ratio_x * inv_z, g_ratio_y * inv_z, g_z, gw, gx, gy, gz,
        ax * gu0 * r00 + ay * gv0 * r10 + m0 * r20,
        ax * gu1 * r01 + ay * gv1 * r11 + m1 * r21,
        ax * gu2 * r02 + ay * gv2 * r12 + m2 * r22,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num", "width", "height"])
def project_gaussians_backward(
    means, quats, scales, K, records, gradients, counts, g_means, g_quats, g_scales, g_opacities, g_colors, num, width, height,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the Gaussians from those of their records."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    live = mask & (tl.load(counts + row, mask, 0) > 0)
    x, y, z = load3(means, row, live)
    qw, qx, qy, qz, inverse = _load_unit_quaternion(quats, row, live)
    s0, s1, s2 = load3(scales, row, live)
    g_x, g_y, g_z, gw, gx, gy, gz, g_s0, g_s1, g_s2 = gaussian_vjp(
        records, gradients, row, live, x, y, z, qw, qx, qy, qz, inverse, s0, s1, s2, K, width, height
    )
    store3(g_means, row, mask, g_x, g_y, g_z)
    store4(g_quats, row, mask, gw, gx, gy, gz)
    store3(g_scales, row, mask, g_s0, g_s1, g_s2)
    gradient = gradients + row.to(tl.int64) * _RECORD
    tl.store(g_opacities + row, tl.load(gradient + 5, live, 0.0), mask)
    store3(
        g_colors, row, mask,
        tl.load(gradient + 6, live, 0.0), tl.load(gradient + 7, live, 0.0), tl.load(gradient + 8, live, 0.0),
    )  # fmt: skip


@triton.jit
def _surfel_frame(x, y, z, qw, qx, qy, qz, s0, s1, fx, fy):
    """P row by row, the slopes w of depth over depth, P's determinant, and whether the surfel is not edge-on."""
    r00, r01, _, r10, r11, _, r20, r21, _ = _rotation(qw, qx, qy, qz)
    inv_z = 1.0 / z
    ax, ay, tx, ty = fx * inv_z, fy * inv_z, x * inv_z, y * inv_z
    u0, u1 = ax * (r00 - tx * r20) * s0, ax * (r01 - tx * r21) * s1
    v0, v1 = ay * (r10 - ty * r20) * s0, ay * (r11 - ty * r21) * s1
    determinant = u0 * v1 - u1 * v0
    open_ = tl.abs(determinant) > (u0 * u0 + u1 * u1 + v0 * v0 + v1 * v1) * _EDGE_ON
    return u0, u1, v0, v1, r20 * s0 * inv_z, r21 * s1 * inv_z, tl.where(open_, determinant, 1.0), open_


@triton.jit(do_not_specialize=["num", "width", "height"])
def project_surfels(
    means, quats, scales, opacities, colors, K, records, rects, counts, depths, num, width, height, near,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """2DGS records, touched tiles and sort depths (infinite where not drawn)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    fx, cx, fy, cy = tl.load(K), tl.load(K + 2), tl.load(K + 4), tl.load(K + 5)
    x, y, depth = load3(means, row, mask)
    front = mask & (depth > near)
    z = tl.where(front, depth, 1.0)
    qw, qx, qy, qz, _ = _load_unit_quaternion(quats, row, mask)
    s0, s1, _ = load3(scales, row, mask)
    u0, u1, v0, v1, w0, w1, determinant, open_ = _surfel_frame(x, y, z, qw, qx, qy, qz, s0, s1, fx, fy)
    i00, i01, i10, i11 = v1 / determinant, -u1 / determinant, -v0 / determinant, u0 / determinant
    _, _, n0, _, _, n1, _, _, n2 = _rotation(qw, qx, qy, qz)
    along = n0 * x + n1 * y + n2 * depth
    facing = tl.where(along > 0, -1.0, tl.where(along < 0, 1.0, 0.0))
    mean_x, mean_y = fx * x / z + cx, fy * y / z + cy
    opacity = tl.load(opacities + row, mask, 0.0)
    red, green, blue = load3(colors, row, mask)
    out = records + row.to(tl.int64) * _RECORD
    tl.store(out, mean_x, mask)
    tl.store(out + 1, mean_y, mask)
    tl.store(out + 2, i00, mask)
    tl.store(out + 3, i01, mask)
    tl.store(out + 4, i10, mask)
    tl.store(out + 5, i11, mask)
    tl.store(out + 6, w0 * i00 + w1 * i10, mask)
    tl.store(out + 7, w0 * i01 + w1 * i11, mask)
    tl.store(out + 8, depth, mask)
    tl.store(out + 9, opacity, mask)
    tl.store(out + 10, red, mask)
    tl.store(out + 11, green, mask)
    tl.store(out + 12, blue, mask)
    tl.store(out + 13, n0 * facing, mask)
    tl.store(out + 14, n1 * facing, mask)
    tl.store(out + 15, n2 * facing, mask)
    # Bounds of the image of the disc u^2 + v^2 <= reach; unbounded where the disc reaches behind the camera.
    reach = 2.0 * tl.log(tl.maximum(opacity / _ALPHA_MIN, 1.0))
    margin = 1.0 - reach * (w0 * w0 + w1 * w1)
    bounded = margin > 1e-4
    scale = reach / tl.where(bounded, margin, 1.0)
    shift_x, shift_y = -scale * (u0 * w0 + u1 * w1), -scale * (v0 * w0 + v1 * w1)
    half_x = tl.sqrt(shift_x * shift_x + scale * (u0 * u0 + u1 * u1))
    half_y = tl.sqrt(shift_y * shift_y + scale * (v0 * v0 + v1 * v1))
    disc = tl.sqrt(reach / _LOW_PASS)
    left = tl.where(bounded, mean_x + tl.minimum(shift_x - half_x, -disc), -1.0)
    right = tl.where(bounded, mean_x + tl.maximum(shift_x + half_x, disc), width + 1.0)
    top = tl.where(bounded, mean_y + tl.minimum(shift_y - half_y, -disc), -1.0)
    bottom = tl.where(bounded, mean_y + tl.maximum(shift_y + half_y, disc), height + 1.0)
    drawn = front & (opacity >= _ALPHA_MIN) & open_
    _store_tiles(rects, counts, row, mask, drawn, left, right, top, bottom, width, height, TILE)
    tl.store(depths + row, tl.where(drawn, depth, float("inf")), mask)


@triton.jit(do_not_specialize=["num", "width", "height"])
def project_surfels_backward(
    means, quats, scales, K, records, gradients, counts, g_means, g_quats, g_scales, g_opacities, g_colors, num, width, height,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the surfels from those of their records."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    live = mask & (tl.load(counts + row, mask, 0) > 0)
    fx, fy = tl.load(K), tl.load(K + 4)
    x, y, z = load3(means, row, live)
    z = tl.where(live, z, 1.0)
    qw, qx, qy, qz, inverse = _load_unit_quaternion(quats, row, live)
    s0, s1, _ = load3(scales, row, live)
    u0, u1, v0, v1, w0, w1, determinant, _ = _surfel_frame(x, y, z, qw, qx, qy, qz, s0, s1, fx, fy)
    gradient = gradients + row.to(tl.int64) * _RECORD
    g_mx, g_my = tl.load(gradient, live, 0.0), tl.load(gradient + 1, live, 0.0)
    g_i00, g_i01 = tl.load(gradient + 2, live, 0.0), tl.load(gradient + 3, live, 0.0)
    g_i10, g_i11 = tl.load(gradient + 4, live, 0.0), tl.load(gradient + 5, live, 0.0)
    g_p, g_q = tl.load(gradient + 6, live, 0.0), tl.load(gradient + 7, live, 0.0)
    i00, i01, i10, i11 = v1 / determinant, -u1 / determinant, -v0 / determinant, u0 / determinant
    # (p, q) = w P^-1
    g_w0, g_w1 = g_p * i00 + g_q * i01, g_p * i10 + g_q * i11
    g_i00 += g_p * w0
    g_i01 += g_q * w0
    g_i10 += g_p * w1
    g_i11 += g_q * w1
    # d P = - P^-T (d P^-1) P^-T
    t00, t01 = i00 * g_i00 + i10 * g_i10, i00 * g_i01 + i10 * g_i11
    t10, t11 = i01 * g_i00 + i11 * g_i10, i01 * g_i01 + i11 * g_i11
    gu0, gu1 = -(t00 * i00 + t01 * i01), -(t00 * i10 + t01 * i11)
    gv0, gv1 = -(t10 * i00 + t11 * i01), -(t10 * i10 + t11 * i11)
    r00, r01, n0, r10, r11, n1, r20, r21, n2 = _rotation(qw, qx, qy, qz)
    inv_z = 1.0 / z
    ax, ay, tx, ty = fx * inv_z, fy * inv_z, x * inv_z, y * inv_z
    # Gradients of the axes R s; slopes are w = axis_z / z.
    m0, m1 = g_w0 * inv_z - ax * tx * gu0 - ay * ty * gv0, g_w1 * inv_z - ax * tx * gu1 - ay * ty * gv1
    g_ratio_x = fx * g_mx - ax * (r20 * s0 * gu0 + r21 * s1 * gu1)
    g_ratio_y = fy * g_my - ay * (r20 * s0 * gv0 + r21 * s1 * gv1)
    scaled = u0 * gu0 + u1 * gu1 + v0 * gv0 + v1 * gv1 + g_w0 * w0 + g_w1 * w1
    g_z = tl.load(gradient + 8, live, 0.0) - inv_z * (scaled + g_ratio_x * tx + g_ratio_y * ty)
    store3(g_means, row, mask, g_ratio_x * inv_z, g_ratio_y * inv_z, g_z)
    g_s0 = ax * gu0 * r00 + ay * gv0 * r10 + m0 * r20
    g_s1 = ax * gu1 * r01 + ay * gv1 * r11 + m1 * r21
    store3(g_scales, row, mask, g_s0, g_s1, tl.zeros_like(g_s0))
    along = n0 * x + n1 * y + n2 * z
    facing = tl.where(along > 0, -1.0, tl.where(along < 0, 1.0, 0.0))
    gw, gx, gy, gz = _quaternion_gradient(
        qw, qx, qy, qz, inverse,
        ax * gu0 * s0, ax * gu1 * s1, facing * tl.load(gradient + 13, live, 0.0),
        ay * gv0 * s0, ay * gv1 * s1, facing * tl.load(gradient + 14, live, 0.0),
        m0 * s0, m1 * s1, facing * tl.load(gradient + 15, live, 0.0),
    )  # fmt: skip
    store4(g_quats, row, mask, gw, gx, gy, gz)
    tl.store(g_opacities + row, tl.load(gradient + 9, live, 0.0), mask)
    store3(
        g_colors, row, mask,
        tl.load(gradient + 10, live, 0.0), tl.load(gradient + 11, live, 0.0), tl.load(gradient + 12, live, 0.0),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num", "capacity", "tiles_x"])
def expand_tiles(order, offsets, counts, rects, tile_of, gaussian_of, num, capacity, tiles_x, BLOCK: tl.constexpr):
    """Writes the tiles of all Gaussians in depth order: `offsets` (N,) are inclusive sums of the counts in that order."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = position < num
    row = tl.load(order + position, mask, 0)
    count = tl.load(counts + row, mask, 0)
    begin = tl.load(offsets + position, mask, 0) - count
    corner, across = tl.load(rects + row * 2, mask, 0), tl.load(rects + row * 2 + 1, mask, 1)
    across = tl.maximum(across, 1)
    tile = (corner >> 16) * tiles_x + (corner & 0xFFFF)
    column = tl.zeros_like(count)
    k, most = 0, tl.max(count)
    while k < most:
        write = (k < count) & (begin + k < capacity)
        tl.store(tile_of + begin + k, (tile + column).to(tile_of.dtype.element_ty), write)
        tl.store(gaussian_of + begin + k, row.to(tl.int32), write)
        k += 1
        column += 1
        wrap = column == across
        column = tl.where(wrap, 0, column)
        tile = tl.where(wrap, tile + tiles_x, tile)
