"""Rigid motions: exponential and logarithm of SE(3), inverses and application (torch, any float dtype, any batch shape).

A twist is `xi = [omega, v]`, rotation first; `exp(xi) = [[R, V v], [0, 1]]`. Coefficients switch to their Taylor series at
theta^2 < 1e-2, where the closed forms lose digits in float32 and their gradients become NaN at 0.
Source: Sola, Deray, Atchuthan, "A micro Lie theory for state estimation in robotics", 2018, appendix D.
"""

import torch
from torch import Tensor

from utils.cameras.rotations import matrix_to_quat

_SERIES_BELOW = 1e-2  # theta^2; the truncated terms are below 3e-14 there


def skew(vector: Tensor) -> Tensor:
    """(..., 3) -> (..., 3, 3) with `skew(a) @ b = a x b`."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vector.shape[:-1], 3, 3)


def _coefficients(theta2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sin(t)/t, (1-cos t)/t^2 and (t-sin t)/t^3 of theta2 = t^2, finite with finite gradients at 0."""
    small = theta2 < _SERIES_BELOW
    safe = torch.where(small, torch.ones_like(theta2), theta2)
    theta = safe.sqrt()
    x = torch.where(small, theta2, torch.zeros_like(theta2))
    a = torch.where(small, 1 - x / 6 * (1 - x / 20 * (1 - x / 42)), theta.sin() / theta)
    b = torch.where(small, 0.5 - x / 24 * (1 - x / 30 * (1 - x / 56)), (1 - theta.cos()) / safe)
    c = torch.where(small, (1 - x / 20 * (1 - x / 42 * (1 - x / 72))) / 6, (theta - theta.sin()) / (safe * theta))
    return a, b, c


def exp(xi: Tensor) -> Tensor:
    """(..., 6) twists -> (..., 4, 4) rigid transforms."""
    omega, v = xi[..., :3], xi[..., 3:]
    a, b, c = (k[..., None, None] for k in _coefficients((omega * omega).sum(-1)))
    hat = skew(omega)
    hat2 = hat @ hat
    eye = torch.eye(3, dtype=xi.dtype, device=xi.device).expand_as(hat)
    rotation = eye + a * hat + b * hat2
    translation = ((eye + b * hat + c * hat2) @ v[..., None])[..., 0]
    return to_matrix(rotation, translation)


def log(transform: Tensor) -> Tensor:
    """(..., 4, 4) rigid transforms -> (..., 6) twists with |omega| <= pi; inverse of `exp`.

    The angle comes from the quaternion by atan2, which keeps full precision up to and at 180 degrees.
    """
    quat = matrix_to_quat(transform[..., :3, :3])
    quat = torch.where(quat[..., :1] < 0, -quat, quat)
    w, vec = quat[..., 0], quat[..., 1:]
    norm2 = (vec * vec).sum(-1)
    small = norm2 < 1e-6
    norm = torch.where(small, torch.ones_like(norm2), norm2).sqrt()
    ratio = torch.where(small, 2 / w.clamp(min=0.5) * (1 - norm2 / (3 * w.clamp(min=0.5) ** 2)), 2 * torch.atan2(norm, w) / norm)
    omega = vec * ratio[..., None]
    theta2 = (omega * omega).sum(-1)
    a, b, _ = _coefficients(theta2)
    tiny = theta2 < _SERIES_BELOW
    safe = torch.where(tiny, torch.ones_like(theta2), theta2)
    k = torch.where(tiny, (1 + theta2 / 60 * (1 + theta2 / 42)) / 12, (1 - a / (2 * b)) / safe)[..., None, None]
    hat = skew(omega)
    eye = torch.eye(3, dtype=omega.dtype, device=omega.device).expand_as(hat)
    v = ((eye - 0.5 * hat + k * hat @ hat) @ transform[..., :3, 3:])[..., 0]
    return torch.cat([omega, v], -1)


def to_matrix(rotation: Tensor, translation: Tensor) -> Tensor:
    """(..., 3, 3) and (..., 3) -> (..., 4, 4)."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], -2)


def inverse(transform: Tensor) -> Tensor:
    """Inverse of (..., 4, 4) rigid transforms, in closed form and differentiable."""
    rotation = transform[..., :3, :3].transpose(-1, -2)
    return to_matrix(rotation, -(rotation @ transform[..., :3, 3:])[..., 0])


def apply(transform: Tensor, points: Tensor) -> Tensor:
    """(4, 4) or (..., 1 or N, 4, 4) applied to (..., N, 3) points."""
    if transform.dim() == 2:
        return points @ transform[:3, :3].T + transform[:3, 3]
    return (transform[..., :3, :3] @ points[..., None])[..., 0] + transform[..., :3, 3]


def warp(xi: Tensor, points: Tensor) -> Tensor:
    """(..., 6) twists applied to (..., 3) points, one twist per point: `apply(exp(xi), points)` without building matrices."""
    omega, v = torch.broadcast_tensors(xi[..., :3], xi[..., 3:])
    a, b, c = (k[..., None] for k in _coefficients((omega * omega).sum(-1)))

    def cross(other: Tensor) -> Tensor:
        return torch.linalg.cross(*torch.broadcast_tensors(omega, other))

    turned, pushed = cross(points), cross(v)
    return points + a * turned + b * cross(turned) + v + b * pushed + c * cross(pushed)
