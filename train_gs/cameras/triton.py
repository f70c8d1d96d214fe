"""`CameraRefinement.c2w` and its quaternion in one GPU kernel each way: in torch one pose takes some two hundred launches a step.

With c2w = w2c^-1 exp(-xi), a change d xi moves it by -c2w (J d xi)^, J the left Jacobian of SE(3), and turns the quaternion q of the
world-to-camera rotation by (0, omega of J d xi) q / 2. J^T is summed as the series of ad^T (Sola, Deray, Atchuthan 2018).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TERMS = tl.constexpr(14)  # of the series of J^T: float32 accuracy up to half a turn
_SERIES_BELOW = tl.constexpr(1e-2)  # see `utils.cameras.se3`


@triton.jit
def _twist(twist, scale):
    """The scaled twist omega, v."""
    return (
        tl.load(twist) * tl.load(scale),
        tl.load(twist + 1) * tl.load(scale + 1),
        tl.load(twist + 2) * tl.load(scale + 2),
        tl.load(twist + 3) * tl.load(scale + 3),
        tl.load(twist + 4) * tl.load(scale + 4),
        tl.load(twist + 5) * tl.load(scale + 5),
    )


@triton.jit
def _cross(a0, a1, a2, b0, b1, b2):
    return a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0


@triton.jit
def _turned(o0, o1, o2, p0, p1, p2, first, second):
    """P + first (omega x p) + second (omega x (omega x p))."""
    c0, c1, c2 = _cross(o0, o1, o2, p0, p1, p2)
    d0, d1, d2 = _cross(o0, o1, o2, c0, c1, c2)
    return p0 + first * c0 + second * d0, p1 + first * c1 + second * d1, p2 + first * c2 + second * d2


@triton.jit
def _forward(twist, scale, w2c, c2w, quat):
    o0, o1, o2, v0, v1, v2 = _twist(twist, scale)
    square = o0 * o0 + o1 * o1 + o2 * o2
    small = square < _SERIES_BELOW
    safe = tl.where(small, 1.0, square)
    theta, x = tl.sqrt(safe), tl.where(small, square, 0.0)
    a = tl.where(small, 1 - x / 6 * (1 - x / 20 * (1 - x / 42)), tl.sin(theta) / theta)
    b = tl.where(small, 0.5 - x / 24 * (1 - x / 30 * (1 - x / 56)), (1 - tl.cos(theta)) / safe)
    c = tl.where(small, (1 - x / 20 * (1 - x / 42 * (1 - x / 72))) / 6, (theta - tl.sin(theta)) / (safe * theta))
    t0, t1, t2 = _turned(o0, o1, o2, v0, v1, v2, b, c)
    # Columns of the world-to-camera rotation are rows of the camera-to-world one.
    m00, m10, m20 = _turned(o0, o1, o2, tl.load(w2c), tl.load(w2c + 4), tl.load(w2c + 8), a, b)
    m01, m11, m21 = _turned(o0, o1, o2, tl.load(w2c + 1), tl.load(w2c + 5), tl.load(w2c + 9), a, b)
    m02, m12, m22 = _turned(o0, o1, o2, tl.load(w2c + 2), tl.load(w2c + 6), tl.load(w2c + 10), a, b)
    p0, p1, p2 = _turned(o0, o1, o2, tl.load(w2c + 3), tl.load(w2c + 7), tl.load(w2c + 11), a, b)
    p0, p1, p2 = p0 + t0, p1 + t1, p2 + t2
    tl.store(c2w, m00)
    tl.store(c2w + 1, m10)
    tl.store(c2w + 2, m20)
    tl.store(c2w + 3, -(m00 * p0 + m10 * p1 + m20 * p2))
    tl.store(c2w + 4, m01)
    tl.store(c2w + 5, m11)
    tl.store(c2w + 6, m21)
    tl.store(c2w + 7, -(m01 * p0 + m11 * p1 + m21 * p2))
    tl.store(c2w + 8, m02)
    tl.store(c2w + 9, m12)
    tl.store(c2w + 10, m22)
    tl.store(c2w + 11, -(m02 * p0 + m12 * p1 + m22 * p2))
    tl.store(c2w + 12, 0.0)
    tl.store(c2w + 13, 0.0)
    tl.store(c2w + 14, 0.0)
    tl.store(c2w + 15, 1.0)
    # Shepperd's method, as `rotations.matrix_to_quat`.
    trace = m00 + m11 + m22
    by_w, by_x, by_y = (
        (trace >= m00) & (trace >= m11) & (trace >= m22),
        (m00 >= m11) & (m00 >= m22),
        m11 >= m22,
    )
    qw = tl.where(by_w, 1 + trace, tl.where(by_x, m21 - m12, tl.where(by_y, m02 - m20, m10 - m01)))
    qx = tl.where(by_w, m21 - m12, tl.where(by_x, 1 + m00 - m11 - m22, tl.where(by_y, m01 + m10, m02 + m20)))
    qy = tl.where(by_w, m02 - m20, tl.where(by_x, m01 + m10, tl.where(by_y, 1 - m00 + m11 - m22, m12 + m21)))
    qz = tl.where(by_w, m10 - m01, tl.where(by_x, m02 + m20, tl.where(by_y, m12 + m21, 1 - m00 - m11 + m22)))
    inverse = 1.0 / tl.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
    tl.store(quat, qw * inverse)
    tl.store(quat + 1, qx * inverse)
    tl.store(quat + 2, qy * inverse)
    tl.store(quat + 3, qz * inverse)


@triton.jit
def _backward(twist, scale, c2w, quat, g_c2w, g_quat, g_twist):
    o0, o1, o2, v0, v1, v2 = _twist(twist, scale)
    r00, r01, r02 = tl.load(c2w), tl.load(c2w + 1), tl.load(c2w + 2)
    r10, r11, r12 = tl.load(c2w + 4), tl.load(c2w + 5), tl.load(c2w + 6)
    r20, r21, r22 = tl.load(c2w + 8), tl.load(c2w + 9), tl.load(c2w + 10)
    g00, g01, g02, g03 = tl.load(g_c2w), tl.load(g_c2w + 1), tl.load(g_c2w + 2), tl.load(g_c2w + 3)
    g10, g11, g12, g13 = tl.load(g_c2w + 4), tl.load(g_c2w + 5), tl.load(g_c2w + 6), tl.load(g_c2w + 7)
    g20, g21, g22, g23 = tl.load(g_c2w + 8), tl.load(g_c2w + 9), tl.load(g_c2w + 10), tl.load(g_c2w + 11)
    b0, b1, b2 = -(r00 * g03 + r10 * g13 + r20 * g23), -(r01 * g03 + r11 * g13 + r21 * g23), -(r02 * g03 + r12 * g13 + r22 * g23)
    a01, a02 = r00 * g01 + r10 * g11 + r20 * g21, r00 * g02 + r10 * g12 + r20 * g22
    a10, a12 = r01 * g00 + r11 * g10 + r21 * g20, r01 * g02 + r11 * g12 + r21 * g22
    a20, a21 = r02 * g00 + r12 * g10 + r22 * g20, r02 * g01 + r12 * g11 + r22 * g21
    w, x, y, z = tl.load(quat), tl.load(quat + 1), tl.load(quat + 2), tl.load(quat + 3)
    gw, gx, gy, gz = tl.load(g_quat), tl.load(g_quat + 1), tl.load(g_quat + 2), tl.load(g_quat + 3)
    a0 = a12 - a21 + 0.5 * (-gw * x + gx * w - gy * z + gz * y)
    a1 = a20 - a02 + 0.5 * (-gw * y + gx * z + gy * w - gz * x)
    a2 = a01 - a10 + 0.5 * (-gw * z - gx * y + gy * x + gz * w)
    s0, s1, s2, u0, u1, u2 = a0, a1, a2, b0, b1, b2
    for n in tl.static_range(1, _TERMS):
        c0, c1, c2 = _cross(o0, o1, o2, a0, a1, a2)
        d0, d1, d2 = _cross(v0, v1, v2, b0, b1, b2)
        e0, e1, e2 = _cross(o0, o1, o2, b0, b1, b2)
        a0, a1, a2 = -(c0 + d0) / (n + 1), -(c1 + d1) / (n + 1), -(c2 + d2) / (n + 1)
        b0, b1, b2 = -e0 / (n + 1), -e1 / (n + 1), -e2 / (n + 1)
        s0, s1, s2, u0, u1, u2 = s0 + a0, s1 + a1, s2 + a2, u0 + b0, u1 + b1, u2 + b2
    tl.store(g_twist, s0 * tl.load(scale))
    tl.store(g_twist + 1, s1 * tl.load(scale + 1))
    tl.store(g_twist + 2, s2 * tl.load(scale + 2))
    tl.store(g_twist + 3, u0 * tl.load(scale + 3))
    tl.store(g_twist + 4, u1 * tl.load(scale + 4))
    tl.store(g_twist + 5, u2 * tl.load(scale + 5))


class _Pose(torch.autograd.Function):
    """(twist (6,), scale (6,), w2c (4, 4)) -> c2w (4, 4) and the quaternion of the world-to-camera rotation."""

    @staticmethod
    def forward(ctx: Any, twist: Tensor, scale: Tensor, w2c: Tensor) -> tuple[Tensor, Tensor]:
        c2w, quat = twist.new_empty(4, 4), twist.new_empty(4)
        _forward[(1,)](twist, scale, w2c, c2w, quat, num_warps=1)
        ctx.save_for_backward(twist, scale, c2w, quat)
        return c2w, quat

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None, None]:
        gradient = torch.empty_like(ctx.saved_tensors[0])
        _backward[(1,)](*ctx.saved_tensors, *(g.contiguous() for g in incoming), gradient, num_warps=1)
        return gradient, None, None


def pose(twist: Tensor, scale: Tensor, w2c: Tensor) -> tuple[Tensor, Tensor]:
    """Pose (4, 4) `(exp(scale twist) w2c)^-1` and quaternion (4,) of its inverse's rotation, differentiable in the twist; float32."""
    return _Pose.apply(twist, scale, w2c)
