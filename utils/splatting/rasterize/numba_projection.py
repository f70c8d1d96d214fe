"""Gaussians in camera space to rows of screen-space numbers, and gradients of those rows back to the Gaussians.

The derivatives are written out by hand; `_vjp` functions take the gradient of a function's result and return that of its
arguments (vector-Jacobian products). Symbols:

* `p_x, p_y`: a camera-space vector m as pixels at the Gaussian's centre, `fx / z * (m_x - r_x m_z)` with `r_x = x / z`.
* Row of a 3D Gaussian (`GAUSSIAN_ROW` numbers): centre x, y; conic a, b, c, where `sigma = (a dx^2 + c dy^2) / 2 + b dx dy`;
  opacity; r, g, b; depth.
* Row of a surfel (`SURFEL_ROW` numbers): centre x, y; H = P^-1 as H_ux, H_uy, H_vx, H_vy, where the columns of P (2, 2) are the
  disc's axes in pixels; w_u, w_v, the axes' depth components over the centre's depth; depth; opacity; r, g, b; normal x, y, z.
* `rects` (N, 6): tiles x0, y0, x1, y1 and pixel rows y0, y1 (ends exclusive) that a Gaussian touches; all 0 if not drawn.
* `camera` (9,): fx, fy, cx, cy, near, and the least and largest x / z and y / z at which 3D Gaussians are linearised.
"""

import math

import numpy as np
from numba import njit

from utils.splatting.rasterize.contract import ALPHA_MIN, EDGE_ON, EPS2D

TILE = 16
GAUSSIAN_ROW = 10
SURFEL_ROW = 16

# `error_model` leaves out the checks for division by zero, which would keep loops from being vectorised. `fastmath` lets sums
# be reordered; it also means that a kernel cannot test for NaN.
JIT = {"fastmath": True, "error_model": "numpy", "cache": True, "nogil": True}

F32 = np.float32
# Constants must be float32: one float64 operand and a whole loop runs in float64.
ZERO, HALF, ONE, TWO = F32(0), F32(0.5), F32(1), F32(2)
_ALPHA_MIN, _EPS2D, _EDGE_ON = F32(ALPHA_MIN), F32(EPS2D), F32(EDGE_ON)
_TINY = F32(1e-12)
_ALL_IMAGE = F32(1e9)
_PLANE_MARGIN = F32(1e-3)


@njit(**JIT)
def _rotation(quat):
    """The rotation matrix of a wxyz quaternion, row by row; the quaternion is normalised first."""
    inverse = ONE / max(math.sqrt(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3]), _TINY)
    w, x, y, z = quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse
    return (
        *(ONE - TWO * (y * y + z * z), TWO * (x * y - w * z), TWO * (x * z + w * y)),
        *(TWO * (x * y + w * z), ONE - TWO * (x * x + z * z), TWO * (y * z - w * x)),
        *(TWO * (x * z - w * y), TWO * (y * z + w * x), ONE - TWO * (x * x + y * y)),
    )


@njit(**JIT)
def _rotation_vjp(quat, grad, out):
    """Writes the gradient of a wxyz quaternion to `out` (4,), from that of its rotation's nine entries, row by row."""
    inverse = ONE / max(math.sqrt(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3]), _TINY)
    w, x, y, z = quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse
    g00, g01, g02, g10, g11, g12, g20, g21, g22 = grad
    gw = TWO * (x * (g21 - g12) + y * (g02 - g20) + z * (g10 - g01))
    gx = TWO * (y * (g01 + g10) + z * (g02 + g20) + w * (g21 - g12) - TWO * x * (g11 + g22))
    gy = TWO * (x * (g01 + g10) + z * (g12 + g21) + w * (g02 - g20) - TWO * y * (g00 + g22))
    gz = TWO * (x * (g02 + g20) + y * (g12 + g21) + w * (g10 - g01) - TWO * z * (g00 + g11))
    radial = gw * w + gx * x + gy * y + gz * z  # normalisation takes away what only changes the length
    out[0] = (gw - radial * w) * inverse
    out[1] = (gx - radial * x) * inverse
    out[2] = (gy - radial * y) * inverse
    out[3] = (gz - radial * z) * inverse


@njit(**JIT)
def _to_pixels(m_x, m_y, m_z, scale_x, scale_y, ratio_x, ratio_y):
    """A camera-space vector as an offset in pixels; `scale` is f / z."""
    return scale_x * (m_x - ratio_x * m_z), scale_y * (m_y - ratio_y * m_z)


@njit(**JIT)
def _clamped(value, low, high):
    return min(max(value, low), high)


@njit(**JIT)
def _set_rect(rect, left, top, right, bottom, height, width):
    """The tiles and rows whose pixel centres lie in a box given in pixels; all 0 if there are none."""
    # Clamped as floats: a box far outside would not fit an integer.
    column0 = int(_clamped(math.ceil(left - HALF), ZERO, F32(width)))
    column1 = int(_clamped(math.floor(right - HALF) + ONE, ZERO, F32(width)))
    row0 = int(_clamped(math.ceil(top - HALF), ZERO, F32(height)))
    row1 = int(_clamped(math.floor(bottom - HALF) + ONE, ZERO, F32(height)))
    if column1 <= column0 or row1 <= row0:
        rect[:] = 0
        return
    rect[0], rect[1] = column0 // TILE, row0 // TILE
    rect[2], rect[3] = (column1 - 1) // TILE + 1, (row1 - 1) // TILE + 1
    rect[4], rect[5] = row0, row1


@njit(**JIT)
def _gaussian_axes(quat, scale, depth, ratio_x, ratio_y, camera):
    """Rows of J R S (2, 3): a 3D Gaussian's axes in pixels."""
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(quat)
    scale_x, scale_y = camera[0] / depth, camera[1] / depth
    s0, s1, s2 = scale[0], scale[1], scale[2]
    x0, y0 = _to_pixels(r00 * s0, r10 * s0, r20 * s0, scale_x, scale_y, ratio_x, ratio_y)
    x1, y1 = _to_pixels(r01 * s1, r11 * s1, r21 * s1, scale_x, scale_y, ratio_x, ratio_y)
    x2, y2 = _to_pixels(r02 * s2, r12 * s2, r22 * s2, scale_x, scale_y, ratio_x, ratio_y)
    return x0, x1, x2, y0, y1, y2


@njit(**JIT)
def project_gaussians(begin, end, means, quats, scales, opacities, colors, camera, height, width, rows, rects):
    """Fills `rows` (N, GAUSSIAN_ROW) and `rects` of 3D Gaussians begin..end."""
    for g in range(begin, end):
        x, y, z = means[g, 0], means[g, 1], means[g, 2]
        opacity = opacities[g]
        if not (z > camera[4] and opacity >= _ALPHA_MIN):
            rects[g, :] = 0
            continue
        ratio_x = _clamped(x / z, camera[5], camera[6])
        ratio_y = _clamped(y / z, camera[7], camera[8])
        x0, x1, x2, y0, y1, y2 = _gaussian_axes(quats[g], scales[g], z, ratio_x, ratio_y, camera)
        variance_x = x0 * x0 + x1 * x1 + x2 * x2 + _EPS2D
        variance_y = y0 * y0 + y1 * y1 + y2 * y2 + _EPS2D
        covariance = x0 * y0 + x1 * y1 + x2 * y2
        # |x|^2 |y|^2 - (x . y)^2 as a cross product: the difference of squares cancels for long thin Gaussians in float32.
        c01, c02, c12 = x0 * y1 - x1 * y0, x0 * y2 - x2 * y0, x1 * y2 - x2 * y1
        determinant = c01 * c01 + c02 * c02 + c12 * c12 + _EPS2D * (variance_x + variance_y - _EPS2D)
        row = rows[g]
        row[0], row[1] = camera[0] * x / z + camera[2], camera[1] * y / z + camera[3]
        row[2], row[3], row[4] = variance_y / determinant, -covariance / determinant, variance_x / determinant
        row[5], row[9] = opacity, z
        row[6], row[7], row[8] = colors[g, 0], colors[g, 1], colors[g, 2]
        reach = TWO * math.log(opacity / _ALPHA_MIN)  # Mahalanobis distance squared at which alpha is ALPHA_MIN
        half_x, half_y = math.sqrt(reach * variance_x), math.sqrt(reach * variance_y)
        _set_rect(rects[g], row[0] - half_x, row[1] - half_y, row[0] + half_x, row[1] + half_y, height, width)


@njit(**JIT)
def _sum_rows(first, last, partial, total):
    for k in range(total.shape[0]):
        total[k] = ZERO
    for slot in range(first, last):
        for k in range(total.shape[0]):
            total[k] += partial[slot, k]


@njit(**JIT)
def project_gaussians_vjp(
    begin, end, first, partial, means, quats, scales, camera, rows, g_means, g_quats, g_scales, g_opacities, g_colors
):
    """Gradients of 3D Gaussians begin..end from `partial`, one row of gradients per (Gaussian, tile) pair."""
    total = np.empty(GAUSSIAN_ROW, np.float32)
    for g in range(begin, end):
        if first[g] == first[g + 1]:
            g_means[g, :], g_quats[g, :], g_scales[g, :], g_opacities[g], g_colors[g, :] = ZERO, ZERO, ZERO, ZERO, ZERO
            continue
        _sum_rows(first[g], first[g + 1], partial, total)
        g_opacities[g] = total[5]
        g_colors[g, 0], g_colors[g, 1], g_colors[g, 2] = total[6], total[7], total[8]
        x, y, z = means[g, 0], means[g, 1], means[g, 2]
        scale_x, scale_y = camera[0] / z, camera[1] / z
        ratio_x = _clamped(x / z, camera[5], camera[6])
        ratio_y = _clamped(y / z, camera[7], camera[8])
        x0, x1, x2, y0, y1, y2 = _gaussian_axes(quats[g], scales[g], z, ratio_x, ratio_y, camera)

        # conic X = covariance^-1, so the covariance's gradient is -X G X with G the conic's as a symmetric matrix.
        a, b, c = rows[g, 2], rows[g, 3], rows[g, 4]
        g_a, g_b, g_c = total[2], HALF * total[3], total[4]
        left00, left01 = a * g_a + b * g_b, a * g_b + b * g_c
        left10, left11 = b * g_a + c * g_b, b * g_b + c * g_c
        g_xx, g_xy, g_yy = -(left00 * a + left01 * b), -(left00 * b + left01 * c), -(left10 * b + left11 * c)
        gx0, gx1, gx2 = TWO * (g_xx * x0 + g_xy * y0), TWO * (g_xx * x1 + g_xy * y1), TWO * (g_xx * x2 + g_xy * y2)
        gy0, gy1, gy2 = TWO * (g_yy * y0 + g_xy * x0), TWO * (g_yy * y1 + g_xy * x1), TWO * (g_yy * y2 + g_xy * x2)

        r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(quats[g])
        s0, s1, s2 = scales[g, 0], scales[g, 1], scales[g, 2]
        # Gradient of the columns of R S, see _to_pixels.
        m00, m10, m20 = scale_x * gx0, scale_y * gy0, -(scale_x * ratio_x * gx0 + scale_y * ratio_y * gy0)
        m01, m11, m21 = scale_x * gx1, scale_y * gy1, -(scale_x * ratio_x * gx1 + scale_y * ratio_y * gy1)
        m02, m12, m22 = scale_x * gx2, scale_y * gy2, -(scale_x * ratio_x * gx2 + scale_y * ratio_y * gy2)
        g_scales[g, 0] = m00 * r00 + m10 * r10 + m20 * r20
        g_scales[g, 1] = m01 * r01 + m11 * r11 + m21 * r21
        g_scales[g, 2] = m02 * r02 + m12 * r12 + m22 * r22
        rotation_grad = (m00 * s0, m01 * s1, m02 * s2, m10 * s0, m11 * s1, m12 * s2, m20 * s0, m21 * s1, m22 * s2)
        _rotation_vjp(quats[g], rotation_grad, g_quats[g])

        g_ratio_x = -scale_x * (gx0 * r20 * s0 + gx1 * r21 * s1 + gx2 * r22 * s2)
        g_ratio_y = -scale_y * (gy0 * r20 * s0 + gy1 * r21 * s1 + gy2 * r22 * s2)
        if ratio_x != x / z:
            g_ratio_x = ZERO
        if ratio_y != y / z:
            g_ratio_y = ZERO
        stretch = gx0 * x0 + gx1 * x1 + gx2 * x2 + gy0 * y0 + gy1 * y1 + gy2 * y2
        g_ratio_x += total[0] * camera[0]
        g_ratio_y += total[1] * camera[1]
        g_means[g, 0], g_means[g, 1] = g_ratio_x / z, g_ratio_y / z
        g_means[g, 2] = total[9] - (stretch + g_ratio_x * (x / z) + g_ratio_y * (y / z)) / z


@njit(**JIT)
def _interval(axis_u, axis_v, w_u, w_v, reach):
    """Least and largest of `axis . q / (1 + w . q)` over discs |q|^2 <= reach that stay in front of the camera."""
    margin = ONE - reach * (w_u * w_u + w_v * w_v)
    centre = -reach * (axis_u * w_u + axis_v * w_v)
    half = math.sqrt(centre * centre + margin * reach * (axis_u * axis_u + axis_v * axis_v))
    return (centre - half) / margin, (centre + half) / margin


@njit(**JIT)
def project_surfels(begin, end, means, quats, scales, opacities, colors, camera, height, width, rows, rects):
    """Fills `rows` (N, SURFEL_ROW) and `rects` of surfels begin..end."""
    for g in range(begin, end):
        x, y, z = means[g, 0], means[g, 1], means[g, 2]
        opacity = opacities[g]
        rects[g, :] = 0
        if not (z > camera[4] and opacity >= _ALPHA_MIN):
            continue
        r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(quats[g])
        s0, s1 = scales[g, 0], scales[g, 1]
        scale_x, scale_y = camera[0] / z, camera[1] / z
        x0, y0 = _to_pixels(r00 * s0, r10 * s0, r20 * s0, scale_x, scale_y, x / z, y / z)
        x1, y1 = _to_pixels(r01 * s1, r11 * s1, r21 * s1, scale_x, scale_y, x / z, y / z)
        determinant = x0 * y1 - x1 * y0
        if not (abs(determinant) > _EDGE_ON * (x0 * x0 + x1 * x1 + y0 * y0 + y1 * y1)):
            continue
        w_u, w_v = r20 * s0 / z, r21 * s1 / z
        facing = -ONE if r02 * x + r12 * y + r22 * z > ZERO else ONE
        row = rows[g]
        row[0], row[1] = camera[0] * x / z + camera[2], camera[1] * y / z + camera[3]
        row[2], row[3] = y1 / determinant, -x1 / determinant
        row[4], row[5] = -y0 / determinant, x0 / determinant
        row[6], row[7], row[8], row[9] = w_u, w_v, z, opacity
        row[10], row[11], row[12] = colors[g, 0], colors[g, 1], colors[g, 2]
        row[13], row[14], row[15] = facing * r02, facing * r12, facing * r22
        reach = TWO * math.log(opacity / _ALPHA_MIN)
        low_pass = math.sqrt(HALF * reach)
        left, right, top, bottom = -_ALL_IMAGE, _ALL_IMAGE, -_ALL_IMAGE, _ALL_IMAGE
        if reach * (w_u * w_u + w_v * w_v) < ONE - _PLANE_MARGIN:  # else the disc reaches behind the camera: no finite box
            left, right = _interval(x0, x1, w_u, w_v, reach)
            top, bottom = _interval(y0, y1, w_u, w_v, reach)
        left, right = row[0] + min(left, -low_pass), row[0] + max(right, low_pass)
        top, bottom = row[1] + min(top, -low_pass), row[1] + max(bottom, low_pass)
        _set_rect(rects[g], left, top, right, bottom, height, width)


@njit(**JIT)
def project_surfels_vjp(begin, end, first, partial, means, quats, scales, camera, rows, g_means, g_quats, g_scales, g_opacities, g_colors):
    """Gradients of surfels begin..end from `partial`, one row of gradients per (surfel, tile) pair."""
    total = np.empty(SURFEL_ROW, np.float32)
    for g in range(begin, end):
        if first[g] == first[g + 1]:
            g_means[g, :], g_quats[g, :], g_scales[g, :], g_opacities[g], g_colors[g, :] = ZERO, ZERO, ZERO, ZERO, ZERO
            continue
        _sum_rows(first[g], first[g + 1], partial, total)
        g_opacities[g] = total[9]
        g_colors[g, 0], g_colors[g, 1], g_colors[g, 2] = total[10], total[11], total[12]
        x, y, z = means[g, 0], means[g, 1], means[g, 2]
        ratio_x, ratio_y = x / z, y / z
        r00, r01, r02, r10, r11, r12, r20, r21, r22 = _rotation(quats[g])
        s0, s1 = scales[g, 0], scales[g, 1]
        scale_x, scale_y = camera[0] / z, camera[1] / z
        x0, y0 = _to_pixels(r00 * s0, r10 * s0, r20 * s0, scale_x, scale_y, ratio_x, ratio_y)
        x1, y1 = _to_pixels(r01 * s1, r11 * s1, r21 * s1, scale_x, scale_y, ratio_x, ratio_y)
        w_u, w_v = r20 * s0 / z, r21 * s1 / z

        # H = P^-1, so P's gradient is -H^T G H^T.
        ux, uy, vx, vy = rows[g, 2], rows[g, 3], rows[g, 4], rows[g, 5]
        left00, left01 = total[2] * ux + total[3] * uy, total[2] * vx + total[3] * vy
        left10, left11 = total[4] * ux + total[5] * uy, total[4] * vx + total[5] * vy
        gx0, gx1 = -(ux * left00 + vx * left10), -(ux * left01 + vx * left11)
        gy0, gy1 = -(uy * left00 + vy * left10), -(uy * left01 + vy * left11)

        m00, m10, m20 = scale_x * gx0, scale_y * gy0, -(scale_x * ratio_x * gx0 + scale_y * ratio_y * gy0) + total[6] / z
        m01, m11, m21 = scale_x * gx1, scale_y * gy1, -(scale_x * ratio_x * gx1 + scale_y * ratio_y * gy1) + total[7] / z
        g_scales[g, 0] = m00 * r00 + m10 * r10 + m20 * r20
        g_scales[g, 1] = m01 * r01 + m11 * r11 + m21 * r21
        g_scales[g, 2] = ZERO
        facing = -ONE if r02 * x + r12 * y + r22 * z > ZERO else ONE
        n0, n1, n2 = facing * total[13], facing * total[14], facing * total[15]
        _rotation_vjp(quats[g], (m00 * s0, m01 * s1, n0, m10 * s0, m11 * s1, n1, m20 * s0, m21 * s1, n2), g_quats[g])

        g_ratio_x = total[0] * camera[0] - scale_x * (gx0 * r20 * s0 + gx1 * r21 * s1)
        g_ratio_y = total[1] * camera[1] - scale_y * (gy0 * r20 * s0 + gy1 * r21 * s1)
        stretch = gx0 * x0 + gx1 * x1 + gy0 * y0 + gy1 * y1 + total[6] * w_u + total[7] * w_v
        g_means[g, 0], g_means[g, 1] = g_ratio_x / z, g_ratio_y / z
        g_means[g, 2] = total[8] - (stretch + g_ratio_x * ratio_x + g_ratio_y * ratio_y) / z
