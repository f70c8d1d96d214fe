"""Canonical points and the vote of `utils.registration.cloud.reference` for many frames at once in torch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.lattice.batched import DeviceGeometry
from utils.deformation.lattice.numba import NEAREST
from utils.device.accelerator import in_chunks
from utils.registration.cloud.numba import VOTE_STEPS
from utils.types import Array

_BATCH_PIXELS = 8_000_000
"""Pixels of the frames of a batch; about 150 bytes are in use for each at the peak."""


def kept_points(
    geometry: AlignedGeometry, voters: dict[int, list[int]], usable: Array, tolerance: float, device: torch.device
) -> list[tuple[Array, Array]]:
    """Canonical points (N, 3) and pixels (N,) of the usable pixels that not more voters see through than see, per frame of `voters`."""
    depth = torch.from_numpy(np.ascontiguousarray(geometry.scene.depth)).to(device)
    placed = DeviceGeometry.of(geometry, torch.where(torch.isfinite(depth) & (depth > NEAREST), depth, 0.0))
    mask = torch.from_numpy(np.ascontiguousarray(usable)).to(device)
    poses = torch.from_numpy(geometry.cameras.c2w).float().to(device)

    def work(chunk: Sequence[int]) -> list[tuple[Array, Array]]:
        frames = np.array(chunk)
        index = torch.from_numpy(frames).to(device)
        points = placed.moved(index, placed.unprojected(index))
        keep = mask[index].flatten(1) & (_balance(placed, mask, frames, points, [voters[f] for f in chunk], tolerance) >= 0)
        canonical = poses[index, :3, :3] @ points + poses[index, :3, 3:]
        pixels = keep.nonzero()[:, 1].cpu().numpy()
        ends = keep.sum(1).cumsum(0).cpu().numpy()[:-1]
        chosen = canonical.transpose(1, 2)[keep].cpu().numpy()
        return list(zip(np.split(chosen, ends), np.split(pixels, ends), strict=True))

    size = max(1, _BATCH_PIXELS // depth[0].numel())
    return in_chunks(work, list(voters), size, "cloud")


def _balance(placed: DeviceGeometry, usable: Tensor, frames: Array, points: Tensor, voters: list[list[int]], tolerance: float) -> Tensor:
    """(B, N) votes for minus votes against aligned points (B, 3, N) of frames (B,); see `cloud.confirmed`."""
    h, w = placed.size
    balance = torch.zeros(len(frames), h * w, dtype=torch.int16, device=points.device)
    for rank in range(max(map(len, voters), default=0)):
        rows = np.array([row for row, others in enumerate(voters) if rank < len(others)])
        targets = np.array([voters[row][rank] for row in rows])
        some, target = (torch.from_numpy(a).to(points.device) for a in (rows, targets))
        seen, front = placed.undone(target, placed.seen_by(frames[rows], targets, points[some]), VOTE_STEPS)
        x, y = (c.floor() for c in placed.pixel(target, seen))
        inside = front & (x >= 0) & (y >= 0) & (x < w) & (y < h)
        i, j = torch.where(inside, y, 0.0).long(), torch.where(inside, x, 0.0).long()
        surface = placed.depth[target[:, None], i, j]
        inside &= usable[target[:, None], i, j]
        support = (seen[:, 2] - surface).abs() < tolerance * surface
        against = seen[:, 2] < surface * (1 - 2 * tolerance)
        balance[some] += (inside & support).short() - (inside & against & ~support).short()
    return balance
