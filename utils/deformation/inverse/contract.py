"""What every inverse deformation gives: camera-space points of canonical ones, with a first-order model around them."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LocalWarp:
    """First-order inverse warp of N points around the positions it was computed at.

    Attributes:
        y0: (N, 3) rigidly transformed points, camera space.
        q0: (N, 3) solution of q + delta(q) = y0.
        jacobian: (N, 3, 3) dq / dy, or None for the identity.
        residual: (N,) |q0 + delta(q0) - y0|, relative to |y0|.
    """

    y0: Tensor
    q0: Tensor
    jacobian: Tensor | None
    residual: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        """(N, 3) camera-space positions of rigidly transformed points y (N, 3)."""
        if self.jacobian is None:
            return y
        return self.q0 + (self.jacobian @ (y - self.y0)[:, :, None])[:, :, 0]

    @cached_property
    def rotation_quaternions(self) -> Tensor | None:
        """(N, 4) wxyz rotation of the warp at each point: the antisymmetric part of dq/dy (the fields turn by a few degrees at most)."""
        if self.jacobian is None:
            return None
        skew = 0.25 * (self.jacobian - self.jacobian.transpose(1, 2))
        half_axis = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1)
        real = (1.0 - half_axis.square().sum(-1, keepdim=True)).clamp(min=0.0).sqrt()
        return torch.nn.functional.normalize(torch.cat([real, half_axis], -1), dim=-1)

    def select(self, index: Tensor) -> "LocalWarp":
        """The warp of these rows."""
        jacobian = None if self.jacobian is None else self.jacobian[index]
        return LocalWarp(self.y0[index], self.q0[index], jacobian, self.residual[index])


def camera_from_world(points: Tensor, c2w: Tensor) -> Tensor:
    """(N, 3) camera-space positions of world points (N, 3); c2w (4, 4) rigid. Differentiable in both."""
    return (points - c2w[:3, 3]) @ c2w[:3, :3]


class InverseWarp(nn.Module):
    """Inverse deformation of all views."""

    def to_camera(self, points_canonical: Tensor, frame_index: int, c2w: Tensor) -> Tensor:
        """(N, 3) camera-space points q with forward_i(q) = X, differentiable in the canonical points (N, 3) and in c2w (4, 4)."""
        y = camera_from_world(points_canonical, c2w)
        return self.linearize(y, frame_index)(y)

    @abstractmethod
    def linearize(self, y: Tensor, frame_index: int) -> LocalWarp:
        """The local warp at rigidly transformed points y (N, 3), without autograd history."""

    @abstractmethod
    def select(self, views: list[int]) -> "InverseWarp":
        """The inverse of these views alone, in this order."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values that, with the state dict, rebuild this warp."""


class IdentityInverseWarp(InverseWarp):
    """No deformation: rigid rendering."""

    @torch.no_grad()
    def linearize(self, y: Tensor, frame_index: int) -> LocalWarp:
        """The identity."""
        del frame_index
        y = y.detach()
        return LocalWarp(y0=y, q0=y, jacobian=None, residual=y.new_zeros(len(y)))

    def select(self, views: list[int]) -> "IdentityInverseWarp":
        """Itself."""
        del views
        return self

    def config(self) -> dict[str, Any]:
        """Only the method's name."""
        return {"method": "identity"}
