"""Removes initial floaters in front of cameras: points much nearer than the depth that the camera's own frame has there.

On an orbit the background of one side lies where the cameras of the other side travel; wherever its depth is taken too short, it hides
their views. Training fades the splats made of such points for the frames it sees, not for the places between them. A frame's own depth
says that the space before it is empty. What stands right beside a camera's path is outside the pictures of the cameras on either side of
it, and hides the view from between them: so views between consecutive frames are asked as well.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from train_gs.start.see_through import seen_through
from utils.cameras import se3
from utils.device.accelerator import accelerator, or_on_cpu
from utils.types import Array, CameraSet

# Shares of the way from one frame to the next at which the view is asked, and how far apart (degrees, depths) such frames may be.
_BETWEEN, _MOST_TURN, _MOST_MOVE = (0.25, 0.5, 0.75), 25.0, 0.6
# What lies between two frames may have moved by this share of the picture in either: its depth is the least within.
_MOVED = 0.15
# What is nearer than this share of that depth hides the view. Higher than for the frames themselves, since what they show is spared.
_FREE = 0.7
# A point this near to a frame's depth, as a share of it, lies on what the frame shows.
_SAME_SURFACE = 0.15
# Frames whose views differ by so much see the same place as background and as foreground: a point that one has put on its background, where
# depth is least certain, is in the other's way if it is nearer than this share of the depth there.
_OTHER_SIDE_DEG, _OTHER_SIDE_SHARE = 60.0, 0.6


def in_the_way(points: Array, cameras: CameraSet, depth: Array, share: float, made_by: Array | None = None) -> Array:
    """(N,) bool, points that some frame sees through: nearer than a share of the depth it has there and around.

    Args:
        points: (N, 3).
        cameras: of F frames, at any size.
        depth: (F, h, w) camera z of these frames, 0 where unknown: such pixels say nothing.
        share: of the depth, 0..1; at least `_OTHER_SIDE_SHARE` for frames that look the other way than the one that made the point.
        made_by: (N,) position of the frame that made each point; None: nothing is known of it.
    """
    cameras = cameras.resized((depth.shape[1], depth.shape[2]))
    shares: Array = np.full((len(cameras), len(cameras)), share)
    if made_by is None:
        made_by = np.zeros(len(points), np.int64)
    else:
        forward = cameras.c2w[:, :3, 2]
        shares[forward @ forward.T < np.cos(np.radians(_OTHER_SIDE_DEG))] = max(share, _OTHER_SIDE_SHARE)
    return _on_the_device(points, lambda there: seen_through(there, cameras, depth, shares, made_by).cpu().numpy())


def in_the_way_between(points: Array, cameras: CameraSet, depth: Array, clips: Array | None = None) -> Array:
    """(N,) bool, points that hide the view from between two consecutive frames, and that neither of the two has on a surface.

    Args:
        points: (N, 3).
        cameras: of F frames in the order of the clip, at any size.
        depth: (F, h, w) camera z of these frames, 0 where unknown.
        clips: (F,) clip of each camera: there is nothing between clips. None: all are of one.
    """
    cameras = cameras.resized((depth.shape[1], depth.shape[2]))
    kernel = np.ones((max(3, round(_MOVED * max(depth.shape[1:]))),) * 2, np.uint8)
    least = [cv2.erode(own.astype(np.float32), kernel) for own in depth]
    steps = steps_between(cameras, depth, clips)

    def work(there: Tensor) -> Array:
        blocking, nobody = np.zeros(len(points), bool), np.zeros(len(points), np.int64)
        for first in steps:
            pair = [first, first + 1]
            w2c = np.stack(poses_between(cameras, first, _BETWEEN))
            views = replace(cameras.select([first] * len(_BETWEEN)), c2w=np.linalg.inv(w2c))
            shown = np.repeat(np.minimum(least[first], least[first + 1])[None], len(_BETWEEN), axis=0)
            rows = torch.nonzero(seen_through(there, views, shown, np.full((len(views), 1), _FREE), nobody))[:, 0].cpu().numpy()
            blocking[rows[~_on_a_surface(points[rows], cameras.select(pair), depth[pair])]] = True
        return blocking

    return _on_the_device(points, work)


def _on_the_device(points: Array, work: Callable[[Tensor], Array]) -> Array:
    """What `work` makes of points (N, 3), which are sent once to the accelerator if there is one, and to the CPU if that is too small."""
    places, device = torch.from_numpy(points.astype(np.float32, copy=False)), accelerator()
    return work(places) if device is None else or_on_cpu(lambda: work(places.to(device)), lambda: work(places), "clear views")


def poses_between(cameras: CameraSet, first: int, shares: Iterable[float]) -> list[Array]:
    """(4, 4) w2c at shares (0..1) of the way from a frame to the next: exp(share * log(next from first)) after the first frame's w2c."""
    twist = se3.log(torch.from_numpy(cameras.w2c[first + 1] @ cameras.c2w[first]))
    return [se3.exp(share * twist).numpy() @ cameras.w2c[first] for share in shares]


def steps_between(cameras: CameraSet, depth: Array, clips: Array | None) -> Array:
    """First of each two consecutive frames that are near each other."""
    motion = cameras.w2c[1:] @ cameras.c2w[:-1]
    cosine = (np.trace(motion[:, :3, :3], axis1=1, axis2=2) - 1) / 2
    middle = np.array([np.median(own[own > 0]) if (own > 0).any() else 0.0 for own in depth])
    near = np.linalg.norm(np.diff(cameras.centers, axis=0), axis=1) < _MOST_MOVE * np.minimum(middle[1:], middle[:-1])
    near &= np.degrees(np.arccos(np.clip(cosine, -1, 1))) < _MOST_TURN
    return np.flatnonzero(near if clips is None else near & (np.diff(clips) == 0))


def _on_a_surface(points: Array, cameras: CameraSet, depth: Array) -> Array:
    """(N,) bool, points about where one of the frames has a surface."""
    found = np.zeros(len(points), bool)
    for w2c, K, own in zip(cameras.w2c, cameras.K, depth, strict=True):
        camera = points @ w2c[:3, :3].T + w2c[:3, 3]
        z = np.where(camera[:, 2] > 0, camera[:, 2], np.nan)
        with np.errstate(invalid="ignore"):
            column, row = np.nan_to_num(np.floor((camera[:, :2] @ K[:2, :2].T) / z[:, None] + K[:2, 2]), nan=-1, posinf=-1, neginf=-1).T
        inside = (column >= 0) & (column < own.shape[1]) & (row >= 0) & (row < own.shape[0])
        there = own[row[inside].astype(int), column[inside].astype(int)]
        found[inside] |= np.abs(z[inside] - there) < _SAME_SURFACE * there
    return found
