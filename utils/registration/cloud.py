"""The canonical cloud: which aligned pixels other frames confirm, merged into one set of points."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from configs.stage1_align import PointFilterConfig
from utils.points.edges import depth_edges
from utils.registration.geometry import AlignedGeometry
from utils.runtime import cpu_count
from utils.types import Array, CameraSet, CanonicalCloud, LatticeFields, Scene

_VOTE_STEPS = 2
"""Steps of the inversion: a vote looks at one pixel and allows 2 % of its depth; against 4 steps 0.14 % of the points change."""


def usable_pixels(scene: Scene, confident: Array, config: PointFilterConfig) -> Array:
    """(F, H, W) bool: confident and not on a depth edge; what may be matched and merged."""
    edges = np.stack([depth_edges(depth, config.edge_ratio) for depth in scene.depth])
    return confident & ~edges


def build_cloud(
    scene: Scene,
    cameras: CameraSet,
    fields: LatticeFields,
    aligned: Array,
    usable: Array,
    config: PointFilterConfig,
) -> CanonicalCloud:
    """The usable pixels of the aligned frames in canonical space, without those that other frames see through.

    Args:
        scene: images and depth.
        cameras: refined poses.
        fields: displacement per frame.
        aligned: (F,) bool.
        usable: (F, H, W) bool.
        config: the vote.
    """
    geometry = AlignedGeometry(scene, cameras, fields)
    frames = np.flatnonzero(aligned)
    voters = _voters(frames, config.neighbors)

    def keep(frame: int) -> tuple[Array, Array]:
        points = geometry.canonical(frame).reshape(-1, 3)
        pixel = np.flatnonzero(usable[frame].ravel())
        points = points[pixel]
        if config.enabled:
            good = confirmed(geometry, points, voters[frame], usable, config.tolerance)
            points, pixel = points[good], pixel[good]
        return points, pixel

    with ThreadPoolExecutor(cpu_count()) as pool:
        parts = list(pool.map(keep, frames.tolist()))
    colors = [scene.images[frame].reshape(-1, 3)[pixel] for frame, (_, pixel) in zip(frames, parts, strict=True)]
    ids = [np.full(len(pixel), cameras.frame_ids[f], np.int32) for f, (_, pixel) in zip(frames, parts, strict=True)]
    return CanonicalCloud(
        points=np.concatenate([points for points, _ in parts]),
        colors=np.concatenate(colors),
        frame=np.concatenate(ids),
        pixel=np.concatenate([pixel for _, pixel in parts]).astype(np.int32),
    )


def _voters(frames: Array, count: int) -> dict[int, list[int]]:
    """Per frame, `count` others at growing distance on both sides: near ones see the same surface, far ones see past its edges."""
    steps = [s for k in range(len(frames).bit_length()) for s in (-(2**k), 2**k)]
    voters = {}
    for position, frame in enumerate(frames):
        others = [position + s for s in steps if 0 <= position + s < len(frames)]
        voters[int(frame)] = [int(frames[p]) for p in others[:count]]
    return voters


def confirmed(geometry: AlignedGeometry, points: Array, voters: list[int], usable: Array, tolerance: float) -> Array:
    """(N,) bool: not more voters see through a canonical point (N, 3) than see it where it is.

    A voter supports a point whose depth agrees with its own within `tolerance`; it sees through a point that lies in front of what it
    sees by more than twice that. A point behind what it sees is hidden and gets no vote.
    """
    support, against = np.zeros(len(points), np.int16), np.zeros(len(points), np.int16)
    for voter in voters:
        _vote(geometry.project(voter, points, _VOTE_STEPS), geometry.scene.depth[voter], usable[voter], tolerance, support, against)
    return against <= support


@njit(nogil=True, cache=True)
def _vote(projected, depth, usable, tolerance, support, against):  # type: ignore[no-untyped-def]
    h, w = depth.shape
    for m in range(len(projected)):
        x, y, z = projected[m, 0], projected[m, 1], projected[m, 2]
        if not (x >= 0 and y >= 0 and x < w and y < h):  # also rejects NaN
            continue
        i, j = int(y), int(x)
        if not usable[i, j]:
            continue
        seen = depth[i, j]
        if abs(z - seen) < tolerance * seen:
            support[m] += 1
        elif z < seen * (1 - 2 * tolerance):
            against[m] += 1
