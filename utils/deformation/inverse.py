"""Inverse deformation, from canonical space into one frame's camera: q with `c2w_i @ (q + delta_i(q)) = X`, by fixed point and Newton.

With y = c2w^-1 X the equation is q + delta(q) = y. Its solution as a function of y has the derivative A = (I + d delta/dq)^-1 (implicit
function theorem), so the search for q needs no autograd: `LocalWarp` holds q0, y0 and A of every point, and `q0 + A (y - y0)` has the exact
value and the exact gradient with respect to the points and the pose at y0, and is a first-order prediction nearby. Splatting keeps one
`LocalWarp` per view and renews it only now and then.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.deformation.lattice.numba_inverse import invert_lattice
from utils.deformation.lattice.reference import LatticeField
from utils.device.threads import ranges, run_chunks
from utils.device.triton_support import triton_ready
from utils.types import Alignment

FIXED_POINT_STEPS = 4
NEWTON_STEPS = 8
TOLERANCE = 1e-5
"""A point is solved when |q + delta(q) - y| is below this fraction of its distance: 0.01 px at f = 1000 px."""
LEAST_DETERMINANT = 0.1
"""Where a field folds, I + d delta/dq is singular; its determinant is kept this far from zero, so that steps stay bounded."""


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

    def config(self) -> dict[str, Any]:
        """Only the method's name."""
        return {"method": "identity"}


class FixedPointInverseWarp(InverseWarp):
    """Direct inversion of the forward lattice: q_{k+1} = y - delta(q_k), Newton steps for the points where that does not contract."""

    def __init__(self, field: LatticeField):
        super().__init__()
        self.field = field
        self._cameras: Tensor | None = None

    @torch.no_grad()
    def linearize(self, y: Tensor, frame_index: int) -> LocalWarp:
        """Solves q + delta(q) = y for each point; residuals that stay large are reported, not hidden."""
        y = y.detach()
        if y.device.type == "cpu":
            return self._linearize_cpu(y, frame_index)
        if y.device.type == "cuda" and y.dtype == torch.float32 and triton_ready():
            return self._linearize_cuda(y, frame_index)
        return self.linearize_torch(y, frame_index)

    def _linearize_cuda(self, y: Tensor, frame_index: int) -> LocalWarp:
        """The Triton kernel."""
        from utils.deformation.lattice import triton as lattice_triton

        settings = (FIXED_POINT_STEPS, NEWTON_STEPS, TOLERANCE, LEAST_DETERMINANT)
        solution = lattice_triton.invert_lattice(self.field.nodes[frame_index], self.coordinates(y.device)[frame_index], y, settings)
        return LocalWarp(y, *solution)

    def coordinates(self, device: torch.device) -> Tensor:
        """(F, 8) float32 coordinate maps of the frames, see `LatticeField.affine_coordinates`, kept on the device."""
        if self._cameras is None or self._cameras.device != device:
            # One more column: rows of 32 bytes are aligned alike, so that one compiled kernel serves all frames.
            cameras = np.stack([np.append(self.field.affine_coordinates(frame), 0.0) for frame in range(len(self.field))])
            self._cameras = torch.from_numpy(cameras).to(device, torch.float32)
        return self._cameras

    def _linearize_cpu(self, y: Tensor, frame_index: int) -> LocalWarp:
        """The Numba kernel."""
        points = y.contiguous().numpy()
        solved, residual = np.empty_like(points), np.empty_like(points[:, 0])
        jacobian = np.empty((len(points), 3, 3), points.dtype)
        settings = (FIXED_POINT_STEPS, NEWTON_STEPS, TOLERANCE, LEAST_DETERMINANT)
        nodes = self.field.nodes[frame_index].numpy()
        camera = self.field.affine_coordinates(frame_index)
        run_chunks(invert_lattice, ranges(len(points)), nodes, camera, points, settings, solved, jacobian, residual)
        return LocalWarp(y, torch.from_numpy(solved), torch.from_numpy(jacobian), torch.from_numpy(residual))

    @torch.no_grad()
    def linearize_torch(self, y: Tensor, frame_index: int) -> LocalWarp:
        """The same in batched torch, for any device; the kernel's oracle."""
        scale = y.norm(dim=-1).clamp(min=torch.finfo(y.dtype).tiny)
        q = y
        for _ in range(FIXED_POINT_STEPS):
            q = y - self.field.displacement(q, frame_index)
        delta, slope = self.field.displacement_and_jacobian(q, frame_index)
        residual = (q + delta - y).norm(dim=-1) / scale
        open_rows = torch.nonzero(residual > TOLERANCE)[:, 0]
        if len(open_rows):
            q, slope, residual = q.clone(), slope.clone(), residual.clone()
            q[open_rows], slope[open_rows], residual[open_rows] = self._newton(q[open_rows], y[open_rows], frame_index)
        return LocalWarp(y0=y, q0=q, jacobian=_inverse_3x3(_plus_identity(slope)), residual=residual)

    def _newton(self, q: Tensor, y: Tensor, frame_index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Newton's method with halving steps: best point (N, 3), Jacobian of delta there (N, 3, 3), relative residual (N,)."""
        scale = y.norm(dim=-1).clamp(min=torch.finfo(y.dtype).tiny)
        delta, slope = self.field.displacement_and_jacobian(q, frame_index)
        error = q + delta - y
        step_size = torch.ones_like(scale)
        for _ in range(NEWTON_STEPS):
            step = (_inverse_3x3(_plus_identity(slope)) @ error[:, :, None])[:, :, 0]
            # A step longer than the distance that is left several times over comes from a nearly singular Jacobian.
            length = step.norm(dim=-1, keepdim=True)
            step = step * (4.0 * error.norm(dim=-1, keepdim=True) / length.clamp(min=1e-30)).clamp(max=1.0)
            trial = q - step_size[:, None] * step
            trial_delta, trial_slope = self.field.displacement_and_jacobian(trial, frame_index)
            trial_error = trial + trial_delta - y
            better = trial_error.norm(dim=-1) < error.norm(dim=-1)
            q = torch.where(better[:, None], trial, q)
            error = torch.where(better[:, None], trial_error, error)
            slope = torch.where(better[:, None, None], trial_slope, slope)
            step_size = torch.where(better, torch.ones_like(step_size), 0.5 * step_size)
        return q, slope, error.norm(dim=-1) / scale

    def config(self) -> dict[str, Any]:
        """The method's name and the lattice's shape."""
        return {"method": "fixed_point", "nodes": list(self.field.nodes.shape)}


def inverse_of_alignment(alignment: Alignment, dtype: torch.dtype = torch.float32) -> FixedPointInverseWarp:
    """The direct inverse of an alignment's forward fields; frame_index is the camera's position in the alignment."""
    return FixedPointInverseWarp(LatticeField.from_fields(alignment.fields, alignment.cameras, dtype))


def _plus_identity(matrices: Tensor) -> Tensor:
    return matrices + torch.eye(3, dtype=matrices.dtype, device=matrices.device)


def _inverse_3x3(m: Tensor) -> Tensor:
    """(N, 3, 3) inverses by cofactors: torch.linalg.inv on a CPU costs ten times as much for batches of tiny matrices.

    Nearly singular matrices (a folding field) are inverted with their determinant kept away from zero.
    """
    c0 = torch.linalg.cross(m[:, 1], m[:, 2])
    c1 = torch.linalg.cross(m[:, 2], m[:, 0])
    c2 = torch.linalg.cross(m[:, 0], m[:, 1])
    determinant = (m[:, 0] * c0).sum(-1)
    sign = torch.where(determinant < 0, -1.0, 1.0).to(m.dtype)
    determinant = sign * determinant.abs().clamp(min=LEAST_DETERMINANT)
    return torch.stack([c0, c1, c2], -1) / determinant[:, None, None]
