"""The fixed-point inverse in batched torch, for any device and float type: the definition and the constants of the search."""

import torch
from torch import Tensor

from utils.deformation.inverse.contract import LocalWarp
from utils.deformation.lattice.reference import LatticeField

FIXED_POINT_STEPS = 4
NEWTON_STEPS = 8
TOLERANCE = 1e-5
"""A point is solved when |q + delta(q) - y| is below this fraction of its distance: 0.01 px at f = 1000 px."""
LEAST_DETERMINANT = 0.1
"""Where a field folds, I + d delta/dq is singular; its determinant is kept this far from zero, so that steps stay bounded."""


def settings() -> tuple[int, int, float, float]:
    """(fixed-point steps, Newton steps, tolerance relative to |y|, least determinant), as the kernels take them."""
    return FIXED_POINT_STEPS, NEWTON_STEPS, TOLERANCE, LEAST_DETERMINANT


@torch.no_grad()
def solve(lattice: LatticeField, frame_index: int, y: Tensor) -> LocalWarp:
    """The local warp at rigidly transformed points y (N, 3), in their float type and on their device."""
    scale = y.norm(dim=-1).clamp(min=torch.finfo(y.dtype).tiny)
    q = y
    for _ in range(FIXED_POINT_STEPS):
        q = y - lattice.displacement(q, frame_index)
    delta, slope = lattice.displacement_and_jacobian(q, frame_index)
    residual = (q + delta - y).norm(dim=-1) / scale
    open_rows = torch.nonzero(residual > TOLERANCE)[:, 0]
    if len(open_rows):
        q, slope, residual = q.clone(), slope.clone(), residual.clone()
        q[open_rows], slope[open_rows], residual[open_rows] = _newton(lattice, frame_index, q[open_rows], y[open_rows])
    return LocalWarp(y0=y, q0=q, jacobian=_inverse_3x3(_plus_identity(slope)), residual=residual)


def _newton(lattice: LatticeField, frame_index: int, q: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's method with halving steps: best point (N, 3), Jacobian of delta there (N, 3, 3), relative residual (N,)."""
    scale = y.norm(dim=-1).clamp(min=torch.finfo(y.dtype).tiny)
    delta, slope = lattice.displacement_and_jacobian(q, frame_index)
    error = q + delta - y
    step_size = torch.ones_like(scale)
    for _ in range(NEWTON_STEPS):
        step = (_inverse_3x3(_plus_identity(slope)) @ error[:, :, None])[:, :, 0]
        # A step longer than the distance that is left several times over comes from a nearly singular Jacobian.
        length = step.norm(dim=-1, keepdim=True)
        step = step * (4.0 * error.norm(dim=-1, keepdim=True) / length.clamp(min=1e-30)).clamp(max=1.0)
        trial = q - step_size[:, None] * step
        trial_delta, trial_slope = lattice.displacement_and_jacobian(trial, frame_index)
        trial_error = trial + trial_delta - y
        better = trial_error.norm(dim=-1) < error.norm(dim=-1)
        q = torch.where(better[:, None], trial, q)
        error = torch.where(better[:, None], trial_error, error)
        slope = torch.where(better[:, None, None], trial_slope, slope)
        step_size = torch.where(better, torch.ones_like(step_size), 0.5 * step_size)
    return q, slope, error.norm(dim=-1) / scale


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
