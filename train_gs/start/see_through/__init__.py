"""Which points frames see through: `reference` in torch, on any device; `numba` on the CPU.

May import: what `train_gs` may.
Start: `seen_through`, which chooses.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from train_gs.start.see_through import numba, reference
from utils.types import Array, CameraSet

_AROUND = 5
"""Window in pixels of the minimum filter on the depth: points at depth edges, which are imprecise, are not seen through."""


def seen_through(points: Tensor, cameras: CameraSet, depth: Array, shares: Array, made_by: Array) -> Tensor:
    """(N,) bool on the points' device, points that some camera sees through: nearer than a share of the depth it has there and around.

    Args:
        points: (N, 3) float32, world.
        cameras: of F frames of the depth's size.
        depth: (F, h, w) camera z, 0 where unknown: such pixels say nothing.
        shares: (F, G) of the depth before which a point made by each of G is seen through by each camera.
        made_by: (N,) which of the G made each point.
    """
    window = np.ones((_AROUND, _AROUND), np.uint8)
    least = torch.from_numpy(np.stack([cv2.erode(own.astype(np.float32), window) for own in depth]))
    projections = torch.from_numpy(cameras.K @ cameras.w2c[:, :3])
    rest = [value.to(points) for value in (projections, least, torch.from_numpy(shares))]
    maker = torch.from_numpy(made_by).to(points.device)
    return (numba if points.device.type == "cpu" else reference).seen_through(points, *rest, maker)
