"""The system of `dense_bundle_adjustment` in torch, for a GPU; cameras without lens and shutter faults.

The compiled code adds each point's few blocks to the system. A GPU is faster with the points' derivatives as a dense matrix E
(P, unknowns), in chunks of points: elimination takes `E^T diag(1 / H_pp) E` from the system.
"""

import numpy as np
import torch
from torch import Tensor

from utils.types import Array

CHUNK_NUMBERS = 1 << 24
"""Numbers of 8 bytes in the largest array of a chunk."""
_BEHIND, _NEAREST = 1e-3, 1e-6


class BatchedSystem:
    """The matches of a bundle adjustment on a device.

    Args:
        packed: host slot, target slot, point, host pixel and target pixel of the M matches, whose points are consecutive.
        frames: number of slots.
        zooms: whether every frame has a focal length of its own.
        scale_px: of the Cauchy loss.
        device: where.
    """

    def __init__(self, packed: tuple[Array, ...], frames: int, zooms: bool, scale_px: float, device: torch.device):
        self.block, self.device = 7 if zooms else 6, device
        self._scale_px, self._frames, self._shared = scale_px, frames, 0 if zooms else 1
        self._host, self._target, self._point, self._host_px, self._target_px = (torch.from_numpy(a).to(device) for a in packed[:5])
        # Matches of one pair of frames are summed first: the order of the sums is then that of the pairs.
        _, self._order, self._pairs = grouped(self._host * frames + self._target)
        self._points, _, self._of_point = grouped(self._point)
        first = self._order[torch.cumsum(self._pairs, 0) - 1]
        self._columns = self._unknowns_of(self._host, self._target)
        self._pair_columns = self._columns[first]
        self._chunk = max(1, CHUNK_NUMBERS // (2 * self.block + self._shared) ** 2)

    @property
    def _unknowns(self) -> int:
        return self.block * self._frames + self._shared

    def _unknowns_of(self, host: Tensor, target: Tensor) -> Tensor:
        """(..., 2 block + shared) unknowns that a match between two slots (...) depends on."""
        own = torch.arange(self.block, device=self.device)
        shared = torch.full((*host.shape, self._shared), self._unknowns - 1, device=self.device)
        return torch.cat([self.block * host[..., None] + own, self.block * target[..., None] + own, shared], -1)

    def squared(self, poses: Array, K: Array, w: Array, distortion: Array) -> Array:
        """(M,) squared residuals in pixels; `distortion` is none."""
        error, _, _ = self._projected(*self._uploaded(poses, K, w))
        return (error * error).sum(-1).cpu().numpy()

    def _uploaded(self, poses: Array, K: Array, w: Array) -> tuple[Tensor, Tensor, Tensor]:
        poses_, K_, w_ = (torch.from_numpy(values).to(self.device) for values in (poses, K, w))
        return poses_, K_, w_[self._point]

    def _projected(self, poses: Tensor, K: Tensor, w: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Residuals (M, 2), points in the target over their depth in the host (M, 3), and the host's rays, R and t of target from host."""
        from_host, to_target = poses[self._host], poses[self._target]
        R = to_target[:, :3, :3] @ from_host[:, :3, :3].mT
        t = to_target[:, :3, 3] - (R @ from_host[:, :3, 3:])[..., 0]
        focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)
        ray = torch.cat([(self._host_px - K[0, :2, 2]) / focal[self._host], torch.ones_like(w)[:, None]], -1)
        Y = (R @ ray[..., None])[..., 0] + w[:, None] * t
        error = focal[self._target] * Y[:, :2] / Y[:, 2:].clamp_min(_NEAREST) + K[0, :2, 2] - self._target_px
        return error, Y, (ray, R, t)

    def _derivatives(self, poses: Tensor, K: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """J (M, 2, 2 block + shared + 1), its last column by w, residuals (M, 2) and weights (M,), all of the projection."""
        error, Y, (ray, R, t) = self._projected(poses, K, w)
        zooms = self._shared == 0
        width = 2 * self.block + self._shared
        at_host_focal, at_target_focal = (6, 2 * self.block - 1) if zooms else (12, 12)
        front = Y[:, 2] >= _BEHIND
        z = torch.where(front, Y[:, 2], 1)
        u, v = Y[:, 0] / z, Y[:, 1] / z
        D = Y.new_zeros(len(Y), 3, width + 1)
        D[:, :, 0:3] = torch.stack(
            [
                R[:, :, 1] - R[:, :, 2] * ray[:, 1:2],
                R[:, :, 2] * ray[:, :1] - R[:, :, 0],
                R[:, :, 0] * ray[:, 1:2] - R[:, :, 1] * ray[:, :1],
            ],
            -1,
        )
        D[:, :, 3:6] = -w[:, None, None] * R
        at = self.block
        D[:, 0, at + 1], D[:, 0, at + 2] = Y[:, 2], -Y[:, 1]
        D[:, 1, at], D[:, 1, at + 2] = -Y[:, 2], Y[:, 0]
        D[:, 2, at], D[:, 2, at + 1] = Y[:, 1], -Y[:, 0]
        for axis in range(3):
            D[:, axis, at + 3 + axis] = w
        D[:, :, at_host_focal] = -(R[:, :, 0] * ray[:, :1] + R[:, :, 1] * ray[:, 1:2])
        D[:, :, width] = t
        fx, fy = K[self._target, 0, 0, None], K[self._target, 1, 1, None]
        J = torch.stack([fx * (D[:, 0] - u[:, None] * D[:, 2]) / z[:, None], fy * (D[:, 1] - v[:, None] * D[:, 2]) / z[:, None]], 1)
        J[:, 0, at_target_focal] += fx[:, 0] * u
        J[:, 1, at_target_focal] += fy[:, 0] * v
        weight = torch.where(front, 1 / (1 + (error * error).sum(-1) / self._scale_px**2), 0)
        return J, error, weight

    def normal_equations(self, poses: Array, K: Array, w: Array, distortion: Array) -> tuple[Tensor, Tensor]:
        """Reduced system H (n, n), g (n,); `distortion` is none."""
        J, error, weight = self._derivatives(*self._uploaded(poses, K, w))
        J, along = J[..., :-1], J[..., -1]
        weighted = weight[:, None, None] * J
        cross = (weighted * along[..., None]).sum(1)
        H, g = J.new_zeros(self._unknowns, self._unknowns), J.new_zeros(self._unknowns)
        own_g = (weighted * error[..., None]).sum(1)
        done, pair = 0, 0
        totals = torch.cumsum(self._pairs, 0)
        g.index_put_((self._pair_columns.flatten(),), segment_sum(own_g[self._order], self._pairs).flatten(), accumulate=True)
        while pair < len(self._pairs):
            end = max(pair + 1, int(torch.searchsorted(totals, done + self._chunk, right=True)))
            rows = self._order[done : int(totals[end - 1])]
            products = (weighted[rows].mT @ J[rows]).flatten(1)
            columns = self._pair_columns[pair:end]
            rows_of, columns_of = columns[:, :, None].expand(-1, -1, columns.shape[1]), columns[:, None].expand(-1, columns.shape[1], -1)
            sums = segment_sum(products, self._pairs[pair:end])
            H.index_put_((rows_of.flatten(), columns_of.flatten()), sums.flatten(), accumulate=True)
            done, pair = int(totals[end - 1]), end
        concerning = torch.stack([(weight[:, None] * along * along).sum(1), (weight[:, None] * along * error).sum(1)], 1)
        point_H, point_g = segment_sum(concerning, self._of_point).unbind(1)
        self._eliminate(H, g, point_H, point_g, cross)
        self._eliminated = point_H, point_g, cross, len(w)
        return H, g

    def _eliminate(self, H: Tensor, g: Tensor, point_H: Tensor, point_g: Tensor, cross: Tensor) -> None:
        """Subtracts the Schur complements of the points from the system in place."""
        inverse = 1 / (point_H * 1.001 + 1e-9)
        points = max(1, CHUNK_NUMBERS // self._unknowns)
        stops = torch.cumsum(self._of_point, 0)
        columns = self._columns
        row_of = torch.repeat_interleave(torch.arange(len(self._points), device=self.device), self._of_point)
        done = 0
        for start in range(0, len(self._points), points):
            end = min(start + points, len(self._points))
            stop = int(stops[end - 1])
            E = H.new_zeros(end - start, len(H))
            rows = (row_of[done:stop, None] - start).expand(-1, columns.shape[1])
            E.index_put_((rows.flatten(), columns[done:stop].flatten()), cross[done:stop].flatten(), accumulate=True)
            scaled = E * inverse[start:end, None]
            H -= E.mT @ scaled
            g -= scaled.mT @ point_g[start:end]
            done = stop

    def back_substitute(self, step: Tensor) -> Array:
        """(P,) change of the inverse depths for a change (n,) of the other unknowns of the last normal equations."""
        point_H, point_g, cross, count = self._eliminated
        moved = (cross * step[self._columns]).sum(-1)
        change = np.zeros(count)
        own = -(point_g + segment_sum(moved[:, None], self._of_point)[:, 0]) / (point_H * 1.001 + 1e-9)
        change[self._points.cpu().numpy()] = own.cpu().numpy()
        return change


def grouped(key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values of a key (M,) in order, the rows in order of their values, and how many have each."""
    ordered, order = torch.sort(key, stable=True)
    values, counts = torch.unique_consecutive(ordered, return_counts=True)
    return values, order, counts


def segment_sum(values: Tensor, lengths: Tensor) -> Tensor:
    """(S, C) sums of so many (S,) consecutive rows (M, C), one after another."""
    return torch.segment_reduce(values, "sum", lengths=lengths, axis=0, unsafe=True)
