"""The field of `reference` at a block of points, for GPU kernels that search or differentiate."""

import triton
import triton.language as tl


@triton.jit
def cell(value, count):
    """Lower node, upper node, weight, and 1 where the coordinate is strictly inside the lattice."""
    last = count - 1.0
    inside = (value > 0.0) & (value < last)
    clamped = tl.minimum(tl.maximum(value, 0.0), last)
    low = tl.minimum(clamped.to(tl.int32), tl.maximum(count - 2, 0))
    return low, tl.minimum(low + 1, count - 1), clamped - low.to(tl.float32), tl.where(inside, 1.0, 0.0)


@triton.jit
def layer_scale(camera, layer, depth):
    """Depth of a point over that of a layer of nodes: what its nodes count for beside the linear weight, see `LatticeFields`."""
    return depth * (layer.to(tl.float32) - tl.load(camera + 5)) / tl.load(camera + 4)


@triton.jit
def _component(nodes, i000, i001, i010, i011, i100, i101, i110, i111, wa, wb, wc, z_low, z_high, mask):
    """Value and slopes along a, b, c of one component; corners are named (c, b, a), the layers' nodes are scaled by z_low and z_high."""
    v000, v001 = tl.load(nodes + i000, mask, 0.0), tl.load(nodes + i001, mask, 0.0)
    v010, v011 = tl.load(nodes + i010, mask, 0.0), tl.load(nodes + i011, mask, 0.0)
    v100, v101 = tl.load(nodes + i100, mask, 0.0), tl.load(nodes + i101, mask, 0.0)
    v110, v111 = tl.load(nodes + i110, mask, 0.0), tl.load(nodes + i111, mask, 0.0)
    s00, s01, s10, s11 = v001 - v000, v011 - v010, v101 - v100, v111 - v110
    l0, l1, h0, h1 = v000 + s00 * wa, v010 + s01 * wa, v100 + s10 * wa, v110 + s11 * wa
    l0, l1, h0, h1 = l0 * z_low, l1 * z_low, h0 * z_high, h1 * z_high
    low, high = l0 + (l1 - l0) * wb, h0 + (h1 - h0) * wb
    step_low, step_high = z_low * (s00 + (s01 - s00) * wb), z_high * (s10 + (s11 - s10) * wb)
    slope_b = (l1 - l0) + ((h1 - h0) - (l1 - l0)) * wc
    return low + (high - low) * wc, step_low + (step_high - step_low) * wc, slope_b, high - low


@triton.jit
def field(nodes, camera, x, y, z, nu, nv, nz, mask):
    """Displacement (3) and its Jacobian (9, row-major) at camera-space points."""
    depth = tl.maximum(z, tl.load(camera + 6))
    inverse = 1.0 / depth
    per_x, per_y, per_z = tl.load(camera), tl.load(camera + 2), tl.load(camera + 4)
    a0, a1, wa, in_a = cell(per_x * x * inverse + tl.load(camera + 1), nu)
    b0, b1, wb, in_b = cell(per_y * y * inverse + tl.load(camera + 3), nv)
    c0, c1, wc, in_c = cell(per_z * inverse + tl.load(camera + 5), nz)
    r00, r01, r10, r11 = (c0 * nv + b0) * nu, (c0 * nv + b1) * nu, (c1 * nv + b0) * nu, (c1 * nv + b1) * nu
    i000, i001, i010, i011 = (r00 + a0) * 3, (r00 + a1) * 3, (r01 + a0) * 3, (r01 + a1) * 3
    i100, i101, i110, i111 = (r10 + a0) * 3, (r10 + a1) * 3, (r11 + a0) * 3, (r11 + a1) * 3
    z_low, z_high = layer_scale(camera, c0, depth), layer_scale(camera, c1, depth)
    own = tl.where(z > tl.load(camera + 6), inverse, 0.0)
    d0, a_0, b_0, c_0 = _component(nodes, i000, i001, i010, i011, i100, i101, i110, i111, wa, wb, wc, z_low, z_high, mask)
    d1, a_1, b_1, c_1 = _component(nodes + 1, i000, i001, i010, i011, i100, i101, i110, i111, wa, wb, wc, z_low, z_high, mask)
    d2, a_2, b_2, c_2 = _component(nodes + 2, i000, i001, i010, i011, i100, i101, i110, i111, wa, wb, wc, z_low, z_high, mask)
    ax, by, cz = per_x * inverse * in_a, per_y * inverse * in_b, -per_z * inverse * inverse * in_c
    az, bz = -ax * x * inverse, -by * y * inverse
    return (
        d0, d1, d2,
        a_0 * ax, b_0 * by, a_0 * az + b_0 * bz + c_0 * cz + d0 * own,
        a_1 * ax, b_1 * by, a_1 * az + b_1 * bz + c_1 * cz + d1 * own,
        a_2 * ax, b_2 * by, a_2 * az + b_2 * bz + c_2 * cz + d2 * own,
    )  # fmt: skip
