"""The system of `track_bundle_adjustment` in torch, for a GPU; points are eliminated by matrix products, as in the dense one."""

import torch
from torch import Tensor

from utils.sfm.solvers.dense_bundle_adjustment_batched import CHUNK_NUMBERS, grouped, segment_sum
from utils.sfm.solvers.tracks import Placed, Tracks
from utils.types import Array

LOSS_PX = 1.0
# What an observation of a point behind its camera costs, in pixels; it pulls nowhere.
BEHIND_PX = 30.0
NEAREST = 1e-6
_POSE, _OWN = 6, 7
"""Unknowns of an observation's pose, and with the log focal length."""


class BatchedTrackSystem:
    """Tracks on a device.

    Args:
        tracks: the observations.
        frames: number of cameras.
        turning: otherwise rotations stay.
        device: where.
    """

    def __init__(self, tracks: Tracks, frames: int, turning: bool, device: torch.device):
        self._device, self._turning, self._unknowns = device, turning, _POSE * frames + 1
        self._frame, self._at, first = (torch.from_numpy(a).to(device) for a in (tracks.frame, tracks.at, tracks.first))
        self._lengths = first.diff()
        self._point = torch.repeat_interleave(torch.arange(len(self._lengths), device=device), self._lengths)
        self._starts = first
        frames_seen, self._order, self._of_frame = grouped(self._frame)
        self._frame_columns, self._columns = self._unknowns_of(frames_seen), self._unknowns_of(self._frame)

    def _unknowns_of(self, frame: Tensor) -> Tensor:
        """(..., 7) unknowns that observations of frames (...) depend on: pose and log focal length."""
        own = _POSE * frame[..., None] + torch.arange(_POSE, device=self._device)
        return torch.cat([own, torch.full_like(frame[..., None], self._unknowns - 1)], -1)

    def _projected(self, placed: Placed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Poses (M, 4, 4), K, points in the cameras (M, 3) and residuals (M, 2)."""
        w2c, K, points = (torch.from_numpy(values).to(self._device) for values in (placed.w2c, placed.K, placed.points))
        pose = w2c[self._frame]
        Y = (pose[:, :3, :3] @ points[self._point][..., None])[..., 0] + pose[:, :3, 3]
        z = torch.where(Y[:, 2] < NEAREST, 1, Y[:, 2])
        return pose, K, Y, K.diagonal()[:2] * Y[:, :2] / z[:, None] + K[:2, 2] - self._at

    def cost(self, placed: Placed) -> float:
        """Half of Huber's cost in squared pixels."""
        _, _, Y, error = self._projected(placed)
        norm = error.norm(dim=1)
        each = torch.where(norm <= LOSS_PX, 0.5 * norm * norm, LOSS_PX * (norm - 0.5 * LOSS_PX))
        return float(torch.where(Y[:, 2] < NEAREST, LOSS_PX * (BEHIND_PX - 0.5 * LOSS_PX), each).sum())

    def _derivatives(self, placed: Placed) -> tuple[Tensor, Tensor, Tensor]:
        """J (M, 2, 10) by pose, log focal length and point, residuals (M, 2) and weights (M,)."""
        pose, K, Y, error = self._projected(placed)
        front = Y[:, 2] >= NEAREST
        z = torch.where(front, Y[:, 2], 1)
        focal, plane = K.diagonal()[:2], Y[:, :2] / z[:, None]
        a = focal / z[:, None]
        J = Y.new_zeros(len(Y), 2, _OWN + 3)
        if self._turning:
            u, v = plane.unbind(1)
            J[:, 0, :3] = focal[0] * torch.stack([-u * v, 1 + u * u, -v], 1)
            J[:, 1, :3] = focal[1] * torch.stack([-1 - v * v, u * v, u], 1)
        J[:, 0, 3], J[:, 1, 4], J[:, :, 5], J[:, :, 6] = a[:, 0], a[:, 1], -a * plane, focal * plane
        J[:, :, _OWN:] = a[:, :, None] * (pose[:, :2, :3] - plane[:, :, None] * pose[:, 2:3, :3])
        norm = error.norm(dim=1)
        return J, error, torch.where(front, torch.where(norm <= LOSS_PX, 1, LOSS_PX / norm), 0)

    def _points_inverse(self, weighted: Tensor, J: Tensor, damping: float) -> Tensor:
        """(P, 3, 3) inverse of the points' damped second derivatives."""
        H = segment_sum((weighted[..., _OWN:].mT @ J[..., _OWN:]).flatten(1), self._lengths).reshape(-1, 3, 3)
        H.diagonal(dim1=1, dim2=2).mul_(1 + damping)
        H.diagonal(dim1=1, dim2=2).add_(1e-12 * H.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) + 1e-30)
        return torch.linalg.inv_ex(H)[0]

    def reduced(self, placed: Placed, damping: float) -> tuple[Tensor, Tensor, Tensor]:
        """H (n, n) and g (n,) over (6 per frame, log focal), points eliminated, and H's diagonal before that."""
        J, error, weight = self._derivatives(placed)
        weighted = weight[:, None, None] * J
        H, g = J.new_zeros(self._unknowns, self._unknowns), J.new_zeros(self._unknowns)
        own = (weighted[..., :_OWN].mT @ J[..., :_OWN]).flatten(1)
        right = (weighted * error[..., None]).sum(1)
        columns = self._frame_columns
        rows_of, columns_of = columns[:, :, None].expand(-1, -1, _OWN), columns[:, None].expand(-1, _OWN, -1)
        H.index_put_((rows_of.flatten(), columns_of.flatten()), segment_sum(own[self._order], self._of_frame).flatten(), accumulate=True)
        g.index_put_((columns.flatten(),), segment_sum(right[self._order, :_OWN], self._of_frame).flatten(), accumulate=True)
        diagonal = H.diagonal().clone()
        inverse, point_g = self._points_inverse(weighted, J, damping), segment_sum(right[:, _OWN:], self._lengths)
        cross = weighted[..., :_OWN].mT @ J[..., _OWN:]
        self._eliminate(H, g, inverse, point_g, cross)
        return H, g, diagonal

    def _eliminate(self, H: Tensor, g: Tensor, inverse: Tensor, point_g: Tensor, cross: Tensor) -> None:
        """Subtracts the Schur complements of the points from the system in place; cross (M, 7, 3)."""
        most = max(1, CHUNK_NUMBERS // (3 * self._unknowns))
        for start in range(0, len(point_g), most):
            end = min(start + most, len(point_g))
            done, stop = int(self._starts[start]), int(self._starts[end])
            E = H.new_zeros(end - start, self._unknowns, 3)
            at = (self._point[done:stop, None] - start).expand(-1, _OWN).flatten(), self._columns[done:stop].flatten()
            E.index_put_(at, cross[done:stop].reshape(-1, 3), accumulate=True)
            scaled = (E @ inverse[start:end]).transpose(0, 1).flatten(1)
            H -= scaled @ E.transpose(0, 1).flatten(1).mT
            g -= scaled @ point_g[start:end].flatten()

    def back_substituted(self, placed: Placed, damping: float, step: Tensor) -> tuple[Array, float]:
        """Points (P, 3) after a step (n,) of the rest, and by how much the cost falls if residuals are linear and weights stay."""
        J, error, weight = self._derivatives(placed)
        weighted = weight[:, None, None] * J
        change = (J[..., :_OWN] @ step[self._columns][..., None])[..., 0]
        right = -segment_sum((weighted[..., _OWN:] * (error + change)[..., None]).sum(1), self._lengths)
        moved = (self._points_inverse(weighted, J, damping) @ right[..., None])[..., 0]
        change = change + (J[..., _OWN:] @ moved[self._point][..., None])[..., 0]
        expected = -(weight[:, None] * change * (error + 0.5 * change)).sum()
        return placed.points + moved.cpu().numpy(), float(expected)
