"""`flow_depth.reproject_depth` of all frames in torch, for a GPU."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.cameras.pixels import pixel_grid
from utils.device.accelerator import in_chunks
from utils.sfm.flow_depth import REPROJECTED_FROM, zoomed_relative
from utils.types import Array

_PIXELS = 12_000_000
"""Pixels of other frames' depth that are reprojected at once; about 100 bytes are in use for each."""


def reproject_all(inverse: Array, valid: Array, w2c: Array, K: Array, device: torch.device) -> list[tuple[Array, Array]]:
    """For every frame inverse depth from other frames' depth and how many reach each pixel, (H, W) float32 each.

    Args:
        inverse: (F, H, W) float32 1/z of all frames.
        valid: (F, H, W) bool, pixels that are reprojected.
        w2c: (F, 4, 4).
        K: (F, 3, 3).
        device: where.
    """
    frames, size = len(inverse), inverse.shape[1:]
    offsets = np.array([step for offset in REPROJECTED_FROM for step in (-offset, offset)])
    depth = torch.from_numpy(np.where(valid, inverse, np.float32(0))).to(device)

    def found(rows: Sequence[int]) -> list[tuple[Array, Array]]:
        row = np.array(rows)
        other = offsets[:, None] + row  # (8, B)
        there = (other >= 0) & (other < frames)
        other = np.where(there, other, row)
        pose = zoomed_relative(w2c[row], K[row], w2c[other], K[other])
        R, t, own, counts = (torch.from_numpy(np.ascontiguousarray(part, np.float32)).to(device) for part in (*pose, K[other], there))
        layers = _splat(depth[torch.from_numpy(other).to(device)] * counts[..., None, None], R, t, own)
        count = (layers > 0).sum(0)
        # of the values sorted downwards, zeros last, the lower one in the middle
        middle = sorted_down(layers).gather(0, (count // 2)[None])[0]
        return list(torch.stack([middle, count.float()], 1).cpu().numpy())

    with torch.no_grad():
        layers = in_chunks(found, range(frames), max(1, _PIXELS // (len(offsets) * size[0] * size[1])), "reprojected depth")
    return [(value, count) for value, count in layers]


def _splat(inverse: Tensor, R: Tensor, t: Tensor, K: Tensor) -> Tensor:
    """(N, B, H, W) 1/z of depth images seen from other cameras, nearest wins; 0 = nothing.

    Args:
        inverse: (N, B, H, W) 1/z, 0 = unknown.
        R: (N, B, 3, 3), with `t` the other cameras from the images' ones.
        t: (N, B, 3).
        K: (N, B, 3, 3) of both.
    """
    height, width = inverse.shape[2:]
    x, y = pixel_grid(height, width, inverse.device).unbind(-1)
    R, t, K = R[..., None, None], t[..., None, None], K[..., None, None]
    x, y = (x - K[:, :, 0, 2]) / K[:, :, 0, 0], (y - K[:, :, 1, 2]) / K[:, :, 1, 1]
    qx, qy, qz = (R[:, :, i, 0] * x + R[:, :, i, 1] * y + R[:, :, i, 2] + inverse * t[:, :, i] for i in range(3))
    near = (inverse > 0) & (qz > 1e-3)
    qz = torch.where(near, qz, 1.0)
    u, v = (K[:, :, 0, 0] * qx / qz + K[:, :, 0, 2]).floor(), (K[:, :, 1, 1] * qy / qz + K[:, :, 1, 2]).floor()
    shown = near & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    own = torch.arange(height * width, device=inverse.device).view(height, width)
    at = torch.where(shown, v * width + u, 0.0).long() + torch.where(shown, 0, own)  # what is not shown stays, as a 0
    value = torch.where(shown, inverse / qz, 0.0)
    seen = torch.zeros_like(value).flatten(2)
    return seen.scatter_reduce_(2, at.flatten(2), value.flatten(2), "amax").view(inverse.shape)


def sorted_down(values: Tensor) -> Tensor:
    """The few values (V, ...) at each place sorted in place, the largest first: neighbours change places until none does."""
    for turn in range(len(values)):
        first, second = values[turn % 2 : -1 : 2], values[turn % 2 + 1 :: 2]
        larger, smaller = torch.maximum(first, second), torch.minimum(first, second)
        first.copy_(larger)
        second.copy_(smaller)
    return values
