"""Registers all frames of a clip to the frames that became the scene (resection by PnP), whichever backend made the scene.

A frame in between is matched to the scene's frames before and after it, the search starting where their depth and an interpolated
pose expect each pixel; its pose is the one under which the scene's points fall onto their matches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from utils.cameras import se3
from utils.cameras.projection import invert_rigid, transform, unproject_depth
from utils.cameras.resection import resect
from utils.points.edges import depth_edges
from utils.scene.media import resize_area
from utils.sfm.flow_depth import frame_threads, match_through_depth, zoomed_relative
from utils.types import Array, Reporter, Scene, StepReport

# Points of each of the two scene frames that a pose is solved from, and how many must agree with it within so many pixels.
_POINTS, _LEAST, _LEAST_SHARE, _AGREE_PX = 1000, 60, 0.3, 1.5
# Poses are solved at up to this many pixels along the longest side: more cost time in proportion to their number, and gain little.
_LONGEST = 300
# Depths that differ by less than this share lie on one surface.
_ONE_SURFACE = 0.05
# Standard deviation (8-bit levels) within 9x9 pixels that makes a place recognisable.
_TEXTURE = 3.0


@dataclass(frozen=True, kw_only=True)
class ClipCameras:
    """Cameras of the T frames of a clip, or of several clips one after another.

    Attributes:
        c2w: (T, 4, 4), NaN where a frame could not be placed.
        K: (T, 3, 3) pixels of the scene's images.
        rows: (T,) int64 row of the scene that a frame became, -1 for none.
    """

    c2w: Array
    K: Array
    rows: Array

    @property
    def placed(self) -> Array:
        """(T,) bool, the frame has a pose."""
        return np.isfinite(self.c2w[:, 0, 0])


def place_clip(scene: Scene, positions: Array, totals: list[int], gray: Callable[[int], Array], report: Reporter) -> ClipCameras:
    """Cameras of every frame; those of the scene's own frames are theirs.

    Args:
        scene: as stage 0 made it.
        positions: (N,) increasing positions of its frames in the clip.
        totals: frames of each clip; frames of different clips are no neighbours.
        gray: gives the (H, W) uint8 grey image of a position, at the scene's size.
        report: progress.
    """
    count = sum(totals)
    clip_of = np.repeat(np.arange(len(totals)), totals)
    c2w, rows = np.full((count, 4, 4), np.nan), np.full(count, -1)
    rows[positions] = np.arange(len(positions))
    K = intrinsics_between(positions, scene.cameras.K, count, clip_of)
    c2w[positions] = scene.cameras.c2w
    missing = [int(t) for t in np.flatnonzero(rows < 0)]
    small = _reduced(scene)
    world = _WorldPoints(small)
    to_small = np.array([small.cameras.size[1] / scene.cameras.size[1], small.cameras.size[0] / scene.cameras.size[0], 1.0])

    def one(frame: int) -> Array | None:
        after = int(np.searchsorted(positions, frame))
        around = [row for row in (after - 1, after) if 0 <= row < len(positions) and clip_of[positions[row]] == clip_of[frame]]
        if not around:
            return None
        return _place(world, around, positions, frame, resize_area(gray(frame), small.cameras.size), to_small[:, None] * K[frame])

    with frame_threads() as pool:
        for done, (frame, pose) in enumerate(zip(missing, pool.map(one, missing), strict=True)):
            if pose is not None:
                c2w[frame] = pose
            report.step(StepReport("cameras in between", done, len(missing)))
    return ClipCameras(c2w=c2w, K=K, rows=rows)


def intrinsics_between(positions: Array, K: Array, count: int, clips: Array | None = None) -> Array:
    """(count, 3, 3) intrinsics of all frames from those (R, 3, 3) at some positions: linear in between, constant beyond.

    Args:
        positions: (R,) increasing.
        K: of the frames there.
        count: of all frames.
        clips: (count,) clip of each: frames of a clip take after its own, if it has any. None: all are of one.
    """
    found, clip_of = np.repeat(K[:1], count, 0), np.zeros(count, np.int64) if clips is None else clips
    for clip in np.unique(clip_of):
        own, known = np.flatnonzero(clip_of == clip), np.flatnonzero(clip_of[positions] == clip)
        for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)):
            if len(known):
                found[own, i, j] = np.interp(own, positions[known], K[known, i, j])
    return found


def _reduced(scene: Scene) -> Scene:
    """The scene at a whole fraction of its size, no larger than `_LONGEST`."""
    step = -(-max(scene.cameras.size) // _LONGEST)
    if step == 1:
        return scene
    height, width = (side // step for side in scene.cameras.size)
    return Scene(
        cameras=scene.cameras.resized((height, width)),
        images=np.stack([resize_area(image, (height, width)) for image in scene.images]),
        depth=np.stack([_depth_at_centers(depth, (height, width)) for depth in scene.depth]),
        confidence=np.stack([_corners(confidence, (height, width))[0].min(axis=0) for confidence in scene.confidence]),
    )


def _depth_at_centers(depth: Array, size: tuple[int, int]) -> Array:
    """(h, w) depth at the centres of smaller pixels, which for even factors lie between the pixels of `depth` (H, W).

    1/z, linear in the image on a plane, is interpolated between pixels of one surface; at a depth edge one of them is picked.
    """
    corners, share = _corners(depth, size)
    one_surface = (corners > 0).all(0) & (corners.max(0) < (1 + _ONE_SURFACE) * corners.min(0))
    inverse = (share / np.where(corners > 0, corners, 1)).sum(axis=0)
    return np.where(one_surface, 1 / inverse, corners[-1]).astype(np.float32)


def _corners(image: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Values (4, h, w) of an image (H, W) around the centres of smaller pixels, and their bilinear shares."""
    y, x = ((np.arange(small) + 0.5) * full / small - 0.5 for small, full in zip(size, image.shape, strict=True))
    rows, columns = (np.stack([np.floor(at), np.ceil(at)]).astype(int) for at in (y, x))
    row_share, column_share = (np.stack([1 - at % 1, at % 1]) for at in (y, x))
    values = image[rows[:, None, :, None], columns[None, :, None, :]]
    shares = row_share[:, None, :, None] * column_share[None, :, None, :]
    return values.reshape(4, *size), shares.reshape(4, *size)


class _WorldPoints:
    """What the frames of a scene know of the world: grey images, 1/z and the pixels to be trusted."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.grays = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in scene.images]
        # Flow finds nothing to hold on to in flat places and would confirm the pose that it started from.
        self.textured = [_spread(gray) > _TEXTURE for gray in self.grays]

    def seen(self, row: int, gray: Array, c2w: Array, K: Array) -> tuple[Array, Array]:
        """World points (M, 3) of a row's surest pixels, and where (M, 2) they are found in another image near the pose given."""
        scene = self.scene
        depth, valid = scene.depth[row], scene.valid[row]
        inverse = np.where(valid, 1 / np.where(valid, depth, 1), 0).astype(np.float32)
        own = scene.cameras.K[row]
        relative = zoomed_relative(invert_rigid(c2w), K, invert_rigid(scene.cameras.c2w[row]), own)
        match, consistent = match_through_depth(self.grays[row], gray, inverse, relative, own)
        sure = scene.confidence[row] >= np.median(scene.confidence[row][valid])
        y, x = np.nonzero(consistent & valid & sure & self.textured[row] & ~depth_edges(depth, 0.05))
        some = np.linspace(0, len(x) - 1, min(_POINTS, len(x))).astype(int)
        y, x = y[some], x[some]
        points = transform(scene.cameras.c2w[row], unproject_depth(depth, scene.cameras.K[row])[y, x].astype(np.float64))
        return points, match[y, x].astype(np.float64)


def _place(world: _WorldPoints, around: list[int], positions: Array, frame: int, gray: Array, K: Array) -> Array | None:
    """The pose c2w (4, 4) of a frame from the scene's rows around it; None if too little agrees with any."""
    start = _between(world.scene.cameras.c2w[around], positions[around], frame)
    observed = [world.seen(row, gray, start, K) for row in around]
    points, pixels = (np.concatenate(parts) for parts in zip(*observed, strict=True))
    pose = resect(points, pixels, K, invert_rigid(start), _AGREE_PX, _LEAST, _LEAST_SHARE)
    return None if pose is None else invert_rigid(pose)


def _spread(gray: Array) -> Array:
    """(H, W) standard deviation of the grey levels around each pixel."""
    level = gray.astype(np.float32)
    return np.sqrt(np.maximum(cv2.blur(level * level, (9, 9)) - cv2.blur(level, (9, 9)) ** 2, 0))


def _between(c2w: Array, at: Array, frame: int) -> Array:
    """Pose (4, 4) at a position, along the constant motion from one pose to the next (R, 4, 4) at positions (R,)."""
    if len(c2w) == 1:
        return c2w[0]
    share = (frame - at[0]) / (at[1] - at[0])
    motion = se3.log(torch.from_numpy(invert_rigid(c2w[0]) @ c2w[1]))
    return c2w[0] @ se3.exp(share * motion).numpy()
