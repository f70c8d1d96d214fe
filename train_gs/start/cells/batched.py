"""The cubes of `reference` in batched torch on a device: counting them a dozen times sorts millions of keys."""

import numpy as np
import torch
from torch import Tensor

from train_gs.start.cells.reference import LEVEL_KEY
from utils.types import Array

_BITS = 21  # per axis in one int64 key
_SAMPLED = 10_000  # points that the middle is taken of


class DeviceCells:
    """Points in cubes, like `reference.HostCells`.

    Args:
        points: (N, 3) float64.
        colors: (N, 3) float64.
        device: where to count.
        edge: (N,) of each point's cube at scale 1.
        level: (N,) float64, points of different levels never share a cube.
    """

    def __init__(self, points: Array, colors: Array, device: torch.device, edge: Array, level: Array):
        self._points, self._colors, self._edge = (torch.from_numpy(a).to(device) for a in (points, colors, edge))
        self._level = torch.from_numpy(level).to(device).long() * LEVEL_KEY  # wraps around

    def _keys(self, scale: float) -> Tensor:
        """(N,) one number per cube."""
        cells = (self._points / (self._edge * scale)[:, None]).floor()
        middle = cells[:: max(1, len(cells) // _SAMPLED)].median(0).values
        half = 1 << (_BITS - 1)
        x, y, z = ((cells - middle).clamp(-half, half - 1).long() + half).unbind(1)
        return ((x << 2 * _BITS) | (y << _BITS) | z) ^ self._level

    def groups(self) -> Array:
        """(N,) number of each point's cube at scale 1, without gaps."""
        groups: Array = torch.unique(self._keys(1.0), return_inverse=True)[1].cpu().numpy()
        return groups

    def count(self, scale: float) -> int:
        """Occupied cubes."""
        keys = self._keys(scale).sort().values
        return 1 + int((keys[1:] != keys[:-1]).sum())

    def means(self, scale: float) -> tuple[Array, Array]:
        """Mean point (M, 3) and colour (M, 3) of every occupied cube."""
        _, group, members = torch.unique(self._keys(scale), return_inverse=True, return_counts=True)
        both = torch.cat([self._points, self._colors], 1)
        sums = both.new_zeros(len(members), 6).index_add_(0, group, both)
        mean: Array = (sums / members[:, None]).cpu().numpy()
        return np.ascontiguousarray(mean[:, :3]), np.ascontiguousarray(mean[:, 3:])
