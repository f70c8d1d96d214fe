"""Kernels of a fused training step: from splats to what blending reads, and from its gradients to the next values of the splats.

In the step that autograd takes apart, pose, deformation, activations, projection and Adam each read and write every splat. Here one pair
of kernels does it each way (geometry, then colours, whose many coefficients want other shapes), and splats that no pixel of the view can
see are neither loaded nor stored: their colours, gradients, moments and values stay where they are.
"""

import math

import triton
import triton.language as tl

from utils.deformation.inverse.triton import solve_point
from utils.device.triton_columns import load3, load4, store3
from utils.splatting.rasterize.triton_project import RECORD, gaussian_vjp, unit, write_colors, write_gaussian
from utils.splatting.view.triton import basis, offset, product, rotated

BETAS, EPSILON = (0.9, 0.999), 1e-15
_RECORD = tl.constexpr(RECORD)
_BETA1, _BETA2, _EPSILON = tl.constexpr(BETAS[0]), tl.constexpr(BETAS[1]), tl.constexpr(EPSILON)
_LOG_BETA1, _LOG_BETA2 = tl.constexpr(math.log(BETAS[0])), tl.constexpr(math.log(BETAS[1]))
_SH0 = tl.constexpr(0.28209479177387814)


@triton.jit
def _camera_space(means, c2w, row, mask):
    """Rigidly moved splats; off the mask a point on the camera's axis."""
    d0, d1, d2 = offset(means, c2w, row, mask)
    x, y, z = rotated(c2w, d0, d1, d2)
    return tl.where(mask, x, 0.0), tl.where(mask, y, 0.0), tl.where(mask, z, 1.0)


@triton.jit(do_not_specialize=["num", "width", "height"])
def see_geometry(
    means, quats, log_scales, logits, c2w, turn, nodes, lattice, K, records, rects, counts, depths, solved, jacobian, harmonics,
    num, nu, nv, nz, width, height, near, tolerance, least,
    ACTIVE: tl.constexpr, WARP: tl.constexpr, FIXED_POINT_STEPS: tl.constexpr, NEWTON_STEPS: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Records without colours, touched tiles and sort depths; of seen splats also the bands of their directions, and with WARP dq/dy.

    The bands (N, 16) go through memory because the kernels of the colours lay a splat out across lanes, all of which would compute them.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    x, y, z = _camera_space(means, c2w, row, mask)
    if WARP:
        x, y, z, j00, j01, j02, j10, j11, j12, j20, j21, j22, _ = solve_point(
            nodes, lattice, x, y, z, nu, nv, nz, tolerance, least, mask, FIXED_POINT_STEPS, NEWTON_STEPS, BLOCK
        )
    bw, bx, by, bz = load4(quats, row, mask)
    w, i, j, k = product(tl.load(turn), tl.load(turn + 1), tl.load(turn + 2), tl.load(turn + 3), bw, bx, by, bz)
    w, i, j, k, _ = unit(w, i, j, k)
    s0, s1, s2 = load3(log_scales, row, mask)
    opacity = 1.0 / (1.0 + tl.exp(-tl.load(logits + row, mask, 0.0)))
    seen = write_gaussian(
        records, rects, counts, depths, row, mask, x, y, z, w, i, j, k, tl.exp(s0), tl.exp(s1), tl.exp(s2), opacity, K, near,
        width, height, TILE,
    )  # fmt: skip
    if ACTIVE > 1:
        d0, d1, d2 = offset(means, c2w, row, seen)
        values = basis(d0, d1, d2)
        for band in tl.static_range(1, ACTIVE):
            tl.store(harmonics + row * 16 + band, values[band], seen)
    if WARP:
        store3(solved, row, seen, x, y, z)
        store3(jacobian, row * 3, seen, j00, j01, j02)
        store3(jacobian, row * 3 + 1, seen, j10, j11, j12)
        store3(jacobian, row * 3 + 2, seen, j20, j21, j22)


@triton.jit(do_not_specialize=["num"])
def see_colors(base, higher, harmonics, counts, records, num, STORED: tl.constexpr, ACTIVE: tl.constexpr, BLOCK: tl.constexpr):
    """Colours of the records of seen splats: ACTIVE of 1 + STORED bands."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    seen = tl.load(counts + row, row < num, 0) > 0
    if tl.max(seen.to(tl.int32)) > 0:
        red, green, blue = load3(base, row, seen)
        red, green, blue = 0.5 + red * _SH0, 0.5 + green * _SH0, 0.5 + blue * _SH0
        if ACTIVE > 1:
            column = tl.arange(0, 64)[None, :]
            wanted = seen[:, None] & (column < 3 * (ACTIVE - 1))
            term = tl.load(higher + row[:, None] * (3 * STORED) + column, wanted, 0.0)
            term *= tl.load(harmonics + row[:, None] * 16 + column // 3 + 1, wanted, 0.0)
            red += tl.sum(tl.where(column % 3 == 0, term, 0.0), 1)
            green += tl.sum(tl.where(column % 3 == 1, term, 0.0), 1)
            blue += tl.sum(tl.where(column % 3 == 2, term, 0.0), 1)
        write_colors(records, row, seen, tl.maximum(red, 0.0), tl.maximum(green, 0.0), tl.maximum(blue, 0.0))


@triton.jit
def _adam(value, first, second, place, mask, gradient, rate, scale1, scale2):
    """One step of Adam in place; `scale1` and `scale2` are 1 / (1 - beta^t)."""
    m = tl.load(first + place, mask, 0.0)
    v = tl.load(second + place, mask, 0.0)
    m = m * _BETA1 + gradient * (1.0 - _BETA1)
    v = v * _BETA2 + gradient * (1.0 - _BETA2) * gradient
    tl.store(first + place, m, mask)
    tl.store(second + place, v, mask)
    change = rate * scale1 * m / (tl.sqrt(v * scale2) + _EPSILON)
    tl.store(value + place, tl.load(value + place, mask, 0.0) - change, mask)


@triton.jit
def _bias_corrections(step):
    """1 / (1 - beta^t) of both moments; `step` counts the steps before this one."""
    t = tl.load(step) + 1.0
    return 1.0 / (1.0 - tl.exp(t * _LOG_BETA1)), 1.0 / (1.0 - tl.exp(t * _LOG_BETA2))


@triton.jit(do_not_specialize=["num", "width", "height"])
def step_geometry(
    means, quats, log_scales, logits, c2w, turn, solved, jacobian, K, records, gradients, counts,
    means1, means2, quats1, quats2, scales1, scales2, logits1, logits2, rates, step, back, sums, num, width, height,
    WARP: tl.constexpr, MOVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adam's step of all but the colours of seen splats, from the gradients of their records.

    `back` (N, 3) takes the gradient with respect to the rigidly moved splats, 0 where unseen; `sums` (programs, 16) that of the pose:
    rotation row-major, position, quaternion. `rates`: learning rates of positions, rotations, scales and opacities.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num
    seen = tl.load(counts + row, mask, 0) > 0
    pose = sums + tl.program_id(0) * 16
    if tl.max(seen.to(tl.int32)) == 0:
        tl.store(pose + tl.arange(0, 16), tl.zeros([16], tl.float32))
        store3(back, row, mask, tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32))
        return
    d0, d1, d2 = offset(means, c2w, row, seen)
    if WARP:
        x, y, z = load3(solved, row, seen)
    else:
        x, y, z = rotated(c2w, d0, d1, d2)
    aw, ax, ay, az = tl.load(turn), tl.load(turn + 1), tl.load(turn + 2), tl.load(turn + 3)
    bw, bx, by, bz = load4(quats, row, seen)
    w, i, j, k = product(aw, ax, ay, az, bw, bx, by, bz)
    w, i, j, k, inverse = unit(w, i, j, k)
    s0, s1, s2 = load3(log_scales, row, seen)
    s0, s1, s2 = tl.exp(s0), tl.exp(s1), tl.exp(s2)
    p0, p1, p2, gw, gx, gy, gz, g0, g1, g2 = gaussian_vjp(
        records, gradients, row, seen, x, y, z, w, i, j, k, inverse, s0, s1, s2, K, width, height
    )
    if WARP:
        j00, j01, j02 = load3(jacobian, row * 3, seen)
        j10, j11, j12 = load3(jacobian, row * 3 + 1, seen)
        j20, j21, j22 = load3(jacobian, row * 3 + 2, seen)
        p0, p1, p2 = j00 * p0 + j10 * p1 + j20 * p2, j01 * p0 + j11 * p1 + j21 * p2, j02 * p0 + j12 * p1 + j22 * p2
    p0, p1, p2 = tl.where(seen, p0, 0.0), tl.where(seen, p1, 0.0), tl.where(seen, p2, 0.0)
    store3(back, row, mask, p0, p1, p2)
    m0 = tl.load(c2w) * p0 + tl.load(c2w + 1) * p1 + tl.load(c2w + 2) * p2
    m1 = tl.load(c2w + 4) * p0 + tl.load(c2w + 5) * p1 + tl.load(c2w + 6) * p2
    m2 = tl.load(c2w + 8) * p0 + tl.load(c2w + 9) * p1 + tl.load(c2w + 10) * p2
    gw, gx, gy, gz = tl.where(seen, gw, 0.0), tl.where(seen, gx, 0.0), tl.where(seen, gy, 0.0), tl.where(seen, gz, 0.0)
    d0, d1, d2 = tl.where(seen, d0, 0.0), tl.where(seen, d1, 0.0), tl.where(seen, d2, 0.0)
    tw, tx, ty, tz = product(gw, gx, gy, gz, bw, -bx, -by, -bz)
    tl.store(pose, tl.sum(d0 * p0))
    tl.store(pose + 1, tl.sum(d0 * p1))
    tl.store(pose + 2, tl.sum(d0 * p2))
    tl.store(pose + 3, tl.sum(d1 * p0))
    tl.store(pose + 4, tl.sum(d1 * p1))
    tl.store(pose + 5, tl.sum(d1 * p2))
    tl.store(pose + 6, tl.sum(d2 * p0))
    tl.store(pose + 7, tl.sum(d2 * p1))
    tl.store(pose + 8, tl.sum(d2 * p2))
    tl.store(pose + 9, -tl.sum(m0))
    tl.store(pose + 10, -tl.sum(m1))
    tl.store(pose + 11, -tl.sum(m2))
    tl.store(pose + 12, tl.sum(tw))
    tl.store(pose + 13, tl.sum(tx))
    tl.store(pose + 14, tl.sum(ty))
    tl.store(pose + 15, tl.sum(tz))
    scale1, scale2 = _bias_corrections(step)
    if MOVE:
        rate = tl.load(rates)
        _adam(means, means1, means2, row * 3, seen, m0, rate, scale1, scale2)
        _adam(means, means1, means2, row * 3 + 1, seen, m1, rate, scale1, scale2)
        _adam(means, means1, means2, row * 3 + 2, seen, m2, rate, scale1, scale2)
    rate = tl.load(rates + 1)
    gw, gx, gy, gz = product(aw, -ax, -ay, -az, gw, gx, gy, gz)
    _adam(quats, quats1, quats2, row * 4, seen, gw, rate, scale1, scale2)
    _adam(quats, quats1, quats2, row * 4 + 1, seen, gx, rate, scale1, scale2)
    _adam(quats, quats1, quats2, row * 4 + 2, seen, gy, rate, scale1, scale2)
    _adam(quats, quats1, quats2, row * 4 + 3, seen, gz, rate, scale1, scale2)
    rate = tl.load(rates + 2)
    _adam(log_scales, scales1, scales2, row * 3, seen, g0 * s0, rate, scale1, scale2)
    _adam(log_scales, scales1, scales2, row * 3 + 1, seen, g1 * s1, rate, scale1, scale2)
    _adam(log_scales, scales1, scales2, row * 3 + 2, seen, g2 * s2, rate, scale1, scale2)
    place = row.to(tl.int64) * _RECORD + 5
    opacity, gradient = tl.load(records + place, seen, 0.0), tl.load(gradients + place, seen, 0.0)
    _adam(logits, logits1, logits2, row, seen, gradient * opacity * (1.0 - opacity), tl.load(rates + 3), scale1, scale2)


@triton.jit(do_not_specialize=["num"])
def step_colors(
    base, higher, harmonics, counts, records, gradients, base1, base2, higher1, higher2, rates, step, higher_step, decay, num,
    STORED: tl.constexpr, ACTIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adam's step of the colours of seen splats; `decay` is the weight decay of the higher bands.

    `rates`: learning rates of base colour and higher bands, at their places 4 and 5.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    seen = tl.load(counts + row, row < num, 0) > 0
    if tl.max(seen.to(tl.int32)) > 0:
        place = row.to(tl.int64) * _RECORD + 6
        red, green, blue = (
            tl.load(records + place, seen, 0.0),
            tl.load(records + place + 1, seen, 0.0),
            tl.load(records + place + 2, seen, 0.0),
        )
        g0, g1, g2 = (
            tl.load(gradients + place, seen, 0.0),
            tl.load(gradients + place + 1, seen, 0.0),
            tl.load(gradients + place + 2, seen, 0.0),
        )
        g0, g1, g2 = tl.where(red > 0.0, g0, 0.0), tl.where(green > 0.0, g1, 0.0), tl.where(blue > 0.0, g2, 0.0)
        scale1, scale2 = _bias_corrections(step)
        rate = tl.load(rates + 4)
        _adam(base, base1, base2, row * 3, seen, g0 * _SH0, rate, scale1, scale2)
        _adam(base, base1, base2, row * 3 + 1, seen, g1 * _SH0, rate, scale1, scale2)
        _adam(base, base1, base2, row * 3 + 2, seen, g2 * _SH0, rate, scale1, scale2)
        if ACTIVE > 1:
            scale1, scale2 = _bias_corrections(higher_step)
            column = tl.arange(0, 64)[None, :]
            gradient = tl.where(column % 3 == 0, g0[:, None], tl.where(column % 3 == 1, g1[:, None], g2[:, None]))
            drawn = seen[:, None] & (column < 3 * (ACTIVE - 1))
            gradient *= tl.load(harmonics + row[:, None] * 16 + column // 3 + 1, drawn, 0.0)
            at, stored = row[:, None] * (3 * STORED) + column, seen[:, None] & (column < 3 * STORED)
            gradient += decay * tl.load(higher + at, stored, 0.0)
            _adam(higher, higher1, higher2, at, stored, gradient, tl.load(rates + 5), scale1, scale2)
