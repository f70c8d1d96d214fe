"""The voxel rules of `utils.points.confidence.reference` on a device: one sort by (voxel, confidence) serves every percentile."""

import numpy as np
import torch
from torch import Tensor

from utils.types import Array, Scene

_BITS = 21  # per axis in one int64 key
_SAMPLED = 10_000  # points that the median is taken of

VoxelRule = tuple[float, float | None, float | None]
"""Percentile within the voxel; percentile over all points that raises it; percentile of the counts below which a voxel fails."""


def voxel_confident(scene: Scene, size: float, rules: list[VoxelRule], device: torch.device) -> Array:
    """(F, H, W) bool: valid pixels that pass one of the rules for voxels of this edge."""
    depth = torch.from_numpy(np.ascontiguousarray(scene.depth)).to(device)
    valid = torch.isfinite(depth) & (depth > 0)
    values = torch.from_numpy(np.ascontiguousarray(scene.confidence)).to(device)[valid]
    voxels = _Grouped(_voxel_keys(scene, depth, valid, size), values)
    keep = torch.zeros(len(values), dtype=torch.bool, device=device)
    for local, overall, min_count in rules:
        threshold = voxels.percentile(local)
        if overall is not None:
            threshold = threshold.clamp(min=_percentile(values.sort().values, overall))
        if min_count is not None:
            few = voxels.count < _percentile(voxels.count.sort().values, min_count)
            threshold = torch.where(few, torch.inf, threshold)
        keep |= values >= threshold[voxels.group]
    out = torch.zeros_like(valid)
    out[valid] = keep
    return out.cpu().numpy()


def _voxel_keys(scene: Scene, depth: Tensor, valid: Tensor, size: float) -> Tensor:
    """Voxel key of every valid pixel, in frame and pixel order; see `voxels.voxel_keys`."""
    poses, intrinsics = (torch.from_numpy(a).to(depth.device) for a in (scene.cameras.c2w, scene.cameras.K))

    def cells(frame: int, step: int = 1) -> Tensor:
        i, j = valid[frame].nonzero()[::step].unbind(1)
        z, K = depth[frame, i, j].double(), intrinsics[frame]
        camera = torch.stack([(j + 0.5 - K[0, 2]) / K[0, 0] * z, (i + 0.5 - K[1, 2]) / K[1, 1] * z, z], -1).float().double()
        return ((camera @ poses[frame, :3, :3].T + poses[frame, :3, 3]) / size).floor()

    step = max(1, valid.numel() // _SAMPLED)
    middle = torch.cat([cells(frame, step) for frame in range(len(valid))]).median(0).values
    half = 1 << (_BITS - 1)
    keys = []
    for frame in range(len(valid)):
        x, y, z = ((cells(frame) - middle).clamp(-half, half - 1).long() + half).unbind(1)
        keys.append((x << 2 * _BITS) | (y << _BITS) | z)
    return torch.cat(keys)


class _Grouped:
    """`voxels.GroupedValues` on a device: values (N,) float32 sorted within groups of equal keys (N,).

    Attributes:
        group: (N,) number of each row's group.
        count: (G,) rows of each group.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        _, self.group, self.count = torch.unique(keys, return_inverse=True, return_counts=True)
        bits = values.contiguous().view(torch.int32)
        ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() + 2**31  # order of the floats
        bits = ((ordered | (self.group << 32)).sort().values & 0xFFFFFFFF) - 2**31
        bits = bits.int()
        self._sorted = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
        self._start = self.count.cumsum(0) - self.count

    def percentile(self, percentile: float) -> Tensor:
        """(G,) float64 percentile of each group, linear interpolation as numpy's."""
        position = (self.count - 1) * (percentile / 100)
        low = position.double().floor().long()
        high = torch.minimum(low + 1, self.count - 1)
        a, b = (self._sorted[self._start + rank].double() for rank in (low, high))
        return a + (b - a) * (position - low)


def _percentile(ordered: Tensor, percentile: float) -> float:
    """Percentile of ascending values, linear interpolation as numpy's."""
    position = (len(ordered) - 1) * (percentile / 100)
    low = int(position)
    a, b = (float(ordered[min(rank, len(ordered) - 1)]) for rank in (low, low + 1))
    return a + (b - a) * (position - low)
