"""Removes initial floaters in front of cameras: points much nearer than the depth that the camera's own frame has there.

On an orbit the background of one side lies where the cameras of the other side travel; wherever its depth is taken too short, it hides
their views. Training fades the splats made of such points for the frames it sees, not for the places between them. A frame's own depth
says that the space before it is empty.
"""

import functools

import cv2
import numpy as np
import torch

from utils.device.accelerator import accelerator, or_on_cpu
from utils.types import Array, CameraSet

# Window in pixels of the minimum filter on the depth: points at depth edges, which are imprecise, are not removed.
_AROUND = 5


def in_the_way(points: Array, cameras: CameraSet, depth: Array, share: float) -> Array:
    """(N,) bool, points that some frame sees through: nearer than a share of the depth it has there and around.

    Args:
        points: (N, 3).
        cameras: of F frames, at any size.
        depth: (F, h, w) camera z of these frames, 0 where unknown: such pixels say nothing.
        share: of the depth, 0..1.
    """
    host, device = torch.device("cpu"), accelerator()
    work = functools.partial(_in_the_way, points, cameras.resized((depth.shape[1], depth.shape[2])), depth, share)
    return work(host) if device is None else or_on_cpu(lambda: work(device), lambda: work(host), "clear views")


def _in_the_way(places: Array, cameras: CameraSet, depth: Array, share: float, device: torch.device) -> Array:
    points = torch.from_numpy(places.astype(np.float32, copy=False)).to(device)
    blocking = torch.zeros(len(points), dtype=torch.bool, device=device)
    for w2c, K, z_shown in zip(cameras.w2c, cameras.K, depth, strict=True):
        limit = share * cv2.erode(z_shown.astype(np.float32), np.ones((_AROUND, _AROUND), np.uint8))
        projection = torch.from_numpy(K @ w2c[:3]).to(points)
        z = points @ projection[2, :3] + projection[2, 3]
        # Few points are so near: only they are projected.
        near = torch.nonzero((z > 0) & (z < float(limit.max())))[:, 0]
        column, row = ((points[near] @ projection[:2, :3].T + projection[:2, 3]) / z[near, None]).floor().unbind(1)
        inside = (column >= 0) & (column < depth.shape[2]) & (row >= 0) & (row < depth.shape[1])
        near, pixel = near[inside], (row[inside] * depth.shape[2] + column[inside]).long()
        blocking[near[z[near] < torch.from_numpy(limit).to(device).view(-1)[pixel]]] = True
    return blocking.cpu().numpy()
