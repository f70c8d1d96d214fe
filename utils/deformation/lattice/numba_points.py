"""The field of `reference` at one point after another, for kernels that search or differentiate on a CPU."""

import numba


@numba.njit(cache=True, inline="always")
def clamp(value, count):
    """Lower cell index, weight, and whether the coordinate is strictly inside the lattice."""
    inside = 0.0 < value < count - 1
    value = min(max(value, 0.0), count - 1.0)
    low = min(int(value), max(count - 2, 0))
    return low, value - low, inside


@numba.njit(cache=True)
def field(nodes, camera, q, delta, slope):
    """Fills delta (3,) and slope (3, 3) = d delta / d(X, Y, Z) at q (3,).

    `camera` = (a per x/z, a offset, b per y/z, b offset, c per 1/z, c offset, nearest z): lattice coordinates are affine in x/z, y/z, 1/z.
    """
    nz, nv, nu = nodes.shape[0], nodes.shape[1], nodes.shape[2]
    z = max(q[2], camera[6])
    inv_z = 1.0 / z
    a0, wa, in_a = clamp(camera[0] * q[0] * inv_z + camera[1], nu)
    b0, wb, in_b = clamp(camera[2] * q[1] * inv_z + camera[3], nv)
    c0, wc, in_c = clamp(camera[4] * inv_z + camera[5], nz)
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
