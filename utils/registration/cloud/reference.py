"""The canonical cloud: which aligned pixels other frames confirm, merged into one set of points."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit

from configs.stage1_align import PointFilterConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.device.accelerator import accelerator, or_on_cpu
from utils.points.edges import depth_edges
from utils.registration.colour.reference import corrected
from utils.runtime import cpu_count
from utils.types import Array, CameraSet, CanonicalCloud, LatticeFields, Scene

VOTE_STEPS = 2
"""Steps of the inversion: a vote looks at one pixel and allows 2 % of its depth; against 4 steps 0.14 % of the points change."""


def usable_pixels(scene: Scene, confident: Array, config: PointFilterConfig) -> Array:
    """(F, H, W) bool: confident and not on a depth edge; what may be merged."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        edges = np.stack(list(pool.map(lambda depth: depth_edges(depth, config.edge_ratio), scene.depth)))
    return confident & ~edges


def build_cloud(
    scene: Scene,
    cameras: CameraSet,
    fields: LatticeFields,
    aligned: Array,
    usable: Array,
    config: PointFilterConfig,
    color_maps: Array | None = None,
) -> CanonicalCloud:
    """The usable pixels of the aligned frames in canonical space, without those that other frames see through.

    Args:
        scene: images and depth.
        cameras: refined poses.
        fields: displacement per frame.
        aligned: (F,) bool.
        usable: (F, H, W) bool.
        config: the vote.
        color_maps: (F, 3, 4) colour drift that is taken out of the colours, see `colour`.
    """
    geometry = AlignedGeometry(scene, cameras, fields)
    frames = np.flatnonzero(aligned)
    voters = _voters(frames, config.neighbors if config.enabled else 0)
    device = accelerator()
    parts = _on_cpu(geometry, voters, usable, config) if device is None else _on_device(geometry, voters, usable, config, device)

    def colors(frame: int, pixel: Array) -> Array:
        shown: Array = scene.images[frame].reshape(-1, 3)[pixel]
        return shown if color_maps is None else corrected(shown, color_maps[frame])

    pixels = [pixel for _, pixel in parts]
    with ThreadPoolExecutor(cpu_count()) as pool:
        painted = list(pool.map(colors, frames.tolist(), pixels))
    return CanonicalCloud(
        points=np.concatenate([points for points, _ in parts]),
        colors=np.concatenate(painted),
        frame=np.repeat(cameras.frame_ids[frames].astype(np.int32), [len(pixel) for pixel in pixels]),
        pixel=np.concatenate(pixels).astype(np.int32),
    )


def _on_cpu(geometry: AlignedGeometry, voters: dict[int, list[int]], usable: Array, config: PointFilterConfig) -> list[tuple[Array, Array]]:
    """Canonical points (N, 3) and pixels (N,) that stay, per frame of `voters`."""

    def keep(frame: int) -> tuple[Array, Array]:
        points = geometry.canonical(frame).reshape(-1, 3)
        pixel = np.flatnonzero(usable[frame].ravel())
        points = points[pixel]
        good = confirmed(geometry, points, voters[frame], usable, config.tolerance)
        return points[good], pixel[good]

    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(keep, voters))


def _on_device(
    geometry: AlignedGeometry, voters: dict[int, list[int]], usable: Array, config: PointFilterConfig, device: torch.device
) -> list[tuple[Array, Array]]:
    """`_on_cpu` on a device, as long as its memory suffices."""
    from utils.registration.cloud.torch import kept_points

    work = functools.partial(kept_points, geometry, voters, usable, config.tolerance, device)
    return or_on_cpu(work, lambda: _on_cpu(geometry, voters, usable, config), "cloud")


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
        _vote(geometry.project(voter, points, VOTE_STEPS), geometry.scene.depth[voter], usable[voter], tolerance, support, against)
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
