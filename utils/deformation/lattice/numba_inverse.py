"""CPU kernel of the fixed-point inverse: the whole search of one point stays in registers.

Same algorithm and symbols as `utils.deformation.inverse` and `.lattice.reference`, which are its oracle; 20 times faster on
two cores than the batched torch form, because nothing but the result is written to memory.
"""

import math

import numba
import numpy as np


@numba.njit(cache=True, inline="always")
def _clamp(value, count):
    """Lower cell index, weight, and whether the coordinate is strictly inside the lattice."""
    inside = 0.0 < value < count - 1
    value = min(max(value, 0.0), count - 1.0)
    low = min(int(value), max(count - 2, 0))
    return low, value - low, inside


@numba.njit(cache=True)
def _field(nodes, camera, q, delta, slope):
    """Fills delta (3,) and slope (3, 3) = d delta / d(X, Y, Z) at q (3,).

    `camera` = (a per x/z, a offset, b per y/z, b offset, c per 1/z, c offset, nearest z): lattice coordinates are affine in x/z, y/z, 1/z.
    """
    nz, nv, nu = nodes.shape[0], nodes.shape[1], nodes.shape[2]
    z = max(q[2], camera[6])
    inv_z = 1.0 / z
    a0, wa, in_a = _clamp(camera[0] * q[0] * inv_z + camera[1], nu)
    b0, wb, in_b = _clamp(camera[2] * q[1] * inv_z + camera[3], nv)
    c0, wc, in_c = _clamp(camera[4] * inv_z + camera[5], nz)
    a1, b1, c1 = min(a0 + 1, nu - 1), min(b0 + 1, nv - 1), min(c0 + 1, nz - 1)
    a_x = camera[0] * inv_z if in_a else 0.0
    b_y = camera[2] * inv_z if in_b else 0.0
    c_z = -camera[4] * inv_z * inv_z if in_c else 0.0
    a_z, b_z = -a_x * q[0] * inv_z, -b_y * q[1] * inv_z
    # Nodes over their depth are interpolated and multiplied by that of the point, see `LatticeFields`.
    z_low, z_high = z * (c0 - camera[5]) / camera[4], z * (c1 - camera[5]) / camera[4]
    per_z = inv_z if q[2] > camera[6] else 0.0
    for k in range(3):
        low_b0 = nodes[c0, b0, a0, k] + (nodes[c0, b0, a1, k] - nodes[c0, b0, a0, k]) * wa
        low_b1 = nodes[c0, b1, a0, k] + (nodes[c0, b1, a1, k] - nodes[c0, b1, a0, k]) * wa
        high_b0 = nodes[c1, b0, a0, k] + (nodes[c1, b0, a1, k] - nodes[c1, b0, a0, k]) * wa
        high_b1 = nodes[c1, b1, a0, k] + (nodes[c1, b1, a1, k] - nodes[c1, b1, a0, k]) * wa
        low, high = z_low * (low_b0 + (low_b1 - low_b0) * wb), z_high * (high_b0 + (high_b1 - high_b0) * wb)
        delta[k] = low + (high - low) * wc
        step_low = (nodes[c0, b0, a1, k] - nodes[c0, b0, a0, k]) * (1.0 - wb) + (nodes[c0, b1, a1, k] - nodes[c0, b1, a0, k]) * wb
        step_high = (nodes[c1, b0, a1, k] - nodes[c1, b0, a0, k]) * (1.0 - wb) + (nodes[c1, b1, a1, k] - nodes[c1, b1, a0, k]) * wb
        slope_a = z_low * step_low * (1.0 - wc) + z_high * step_high * wc
        slope_b = z_low * (low_b1 - low_b0) * (1.0 - wc) + z_high * (high_b1 - high_b0) * wc
        slope[k, 0] = slope_a * a_x
        slope[k, 1] = slope_b * b_y
        slope[k, 2] = slope_a * a_z + slope_b * b_z + (high - low) * c_z + delta[k] * per_z


@numba.njit(cache=True)
def _error(y, q, delta, error):
    """Fills error = q + delta - y; returns its norm."""
    total = 0.0
    for k in range(3):
        error[k] = q[k] + delta[k] - y[k]
        total += error[k] * error[k]
    return math.sqrt(total)


@numba.njit(cache=True)
def _invert(slope, least_determinant, out):
    """Fills out (3, 3) = (I + slope)^-1, the determinant kept away from zero."""
    m00, m01, m02 = 1.0 + slope[0, 0], slope[0, 1], slope[0, 2]
    m10, m11, m12 = slope[1, 0], 1.0 + slope[1, 1], slope[1, 2]
    m20, m21, m22 = slope[2, 0], slope[2, 1], 1.0 + slope[2, 2]
    c00, c01, c02 = m11 * m22 - m12 * m21, m12 * m20 - m10 * m22, m10 * m21 - m11 * m20
    determinant = m00 * c00 + m01 * c01 + m02 * c02
    if abs(determinant) < least_determinant:
        determinant = -least_determinant if determinant < 0 else least_determinant
    scale = 1.0 / determinant
    out[0, 0], out[0, 1], out[0, 2] = c00 * scale, (m02 * m21 - m01 * m22) * scale, (m01 * m12 - m02 * m11) * scale
    out[1, 0], out[1, 1], out[1, 2] = c01 * scale, (m00 * m22 - m02 * m20) * scale, (m02 * m10 - m00 * m12) * scale
    out[2, 0], out[2, 1], out[2, 2] = c02 * scale, (m01 * m20 - m00 * m21) * scale, (m00 * m11 - m01 * m10) * scale


@numba.njit(cache=True)
def _newton_step(inverse, error, length, size, q, trial):
    """Fills trial = q - size * step, the step at most four times as long as the error."""
    step = np.empty(3)
    squared = 0.0
    for k in range(3):
        step[k] = inverse[k, 0] * error[0] + inverse[k, 1] * error[1] + inverse[k, 2] * error[2]
        squared += step[k] * step[k]
    shrink = size * min(1.0, 4.0 * length / max(math.sqrt(squared), 1e-30))
    for k in range(3):
        trial[k] = q[k] - shrink * step[k]


@numba.njit(cache=True, nogil=True)
def invert_lattice(first, last, nodes, camera, points, settings, solved, jacobian, residual):
    """Solves q + delta(q) = y for the rows y of `points` (N, 3) from `first` to before `last`.

    Args:
        first: first row.
        last: row to stop before.
        nodes: (nz, nv, nu, 3) one frame's lattice.
        camera: (7,) see `_field`.
        points: (N, 3).
        settings: (fixed-point steps, Newton steps, tolerance relative to |y|, least determinant).
        solved: (N, 3) output q.
        jacobian: (N, 3, 3) output dq/dy.
        residual: (N,) output |q + delta(q) - y| / |y|.
    """
    fixed_point_steps, newton_steps, tolerance, least_determinant = settings
    y, q, trial, delta, error = np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    trial_error, slope, inverse = np.empty(3), np.empty((3, 3)), np.empty((3, 3))
    for row in range(first, last):
        squared = 0.0
        for k in range(3):
            y[k] = points[row, k]
            q[k] = y[k]
            squared += y[k] * y[k]
        scale = max(math.sqrt(squared), 1e-30)
        _field(nodes, camera, q, delta, slope)
        length = _error(y, q, delta, error)
        for _ in range(fixed_point_steps):
            if length <= tolerance * scale:
                break
            for k in range(3):
                q[k] = y[k] - delta[k]
            _field(nodes, camera, q, delta, slope)
            length = _error(y, q, delta, error)
        _invert(slope, least_determinant, inverse)
        size = 1.0
        for _ in range(newton_steps):
            if length <= tolerance * scale:
                break
            _newton_step(inverse, error, length, size, q, trial)
            _field(nodes, camera, trial, delta, slope)
            trial_length = _error(y, trial, delta, trial_error)
            if trial_length < length:
                q[:], error[:], length, size = trial, trial_error, trial_length, 1.0
                _invert(slope, least_determinant, inverse)
            else:
                size *= 0.5
        solved[row] = q
        jacobian[row] = inverse
        residual[row] = length / scale


@numba.njit(cache=True)
def _corner_weights(camera, q, counts, index, weight):
    """Fills the flat node indices and weights of the 8 corners around q (3,); counts = (nz, nv, nu)."""
    nz, nv, nu = counts
    z = max(q[2], camera[6])
    inv_z = 1.0 / z
    a0, wa, _ = _clamp(camera[0] * q[0] * inv_z + camera[1], nu)
    b0, wb, _ = _clamp(camera[2] * q[1] * inv_z + camera[3], nv)
    c0, wc, _ = _clamp(camera[4] * inv_z + camera[5], nz)
    for corner in range(8):
        da, db, dc = corner & 1, (corner >> 1) & 1, corner >> 2
        index[corner] = (min(c0 + dc, nz - 1) * nv + min(b0 + db, nv - 1)) * nu + min(a0 + da, nu - 1)
        layer = z * (min(c0 + dc, nz - 1) - camera[5]) / camera[4]
        weight[corner] = (wa if da else 1.0 - wa) * (wb if db else 1.0 - wb) * (wc if dc else 1.0 - wc) * layer


@numba.njit(cache=True, nogil=True)
def shift_points(first, last, change, counts, camera, points, jacobian, shift):
    """Fills shift = -A delta'(q) for rows q of `points` (N, 3): how the inverse moves when the nodes change by `change` (nodes, 3).

    A (N, 3, 3) is dq/dy. See `utils.deformation.node_shift`.
    """
    index, weight, moved = np.empty(8, np.int64), np.empty(8), np.empty(3)
    for row in range(first, last):
        _corner_weights(camera, points[row], counts, index, weight)
        moved[:] = 0.0
        for corner in range(8):
            for k in range(3):
                moved[k] += weight[corner] * change[index[corner], k]
        for k in range(3):
            shift[row, k] = -(jacobian[row, k, 0] * moved[0] + jacobian[row, k, 1] * moved[1] + jacobian[row, k, 2] * moved[2])


@numba.njit(cache=True, nogil=True)
def shift_points_vjp(first, last, sums, counts, camera, points, jacobian, gradient):
    """Adds the gradient of `shift_points` with respect to the nodes' change to `sums` (nodes, 3), the chunk's own."""
    index, weight = np.empty(8, np.int64), np.empty(8)
    for row in range(first, last):
        if gradient[row, 0] == 0.0 and gradient[row, 1] == 0.0 and gradient[row, 2] == 0.0:
            continue
        _corner_weights(camera, points[row], counts, index, weight)
        for k in range(3):
            back = 0.0
            for j in range(3):
                back -= jacobian[row, j, k] * gradient[row, j]
            for corner in range(8):
                sums[index[corner], k] += weight[corner] * back
