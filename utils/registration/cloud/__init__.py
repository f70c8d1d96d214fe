"""The canonical cloud: which aligned pixels other frames confirm, merged into one set of points.

May import: what `utils.registration` may.
Start: `build_cloud` here; `numba` defines the vote.
"""

import functools

import numpy as np
import torch

from configs.stage1_align import PointFilterConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.device.accelerator import accelerator, or_on_cpu
from utils.points.edges import depth_edges
from utils.registration.cloud.numba import kept_points
from utils.registration.colour import corrected
from utils.runtime import in_threads
from utils.types import Array, CameraSet, CanonicalCloud, LatticeFields, Scene


def usable_pixels(scene: Scene, confident: Array, config: PointFilterConfig) -> Array:
    """(F, H, W) bool: confident and not on a depth edge; what may be merged."""
    edges = np.stack(in_threads(lambda depth: depth_edges(depth, config.edge_ratio), scene.depth))
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
    parts = kept_points(geometry, voters, usable, config) if device is None else _on_device(geometry, voters, usable, config, device)

    def colors(frame: int, pixel: Array) -> Array:
        shown: Array = scene.images[frame].reshape(-1, 3)[pixel]
        return shown if color_maps is None else corrected(shown, color_maps[frame])

    pixels = [pixel for _, pixel in parts]
    painted = in_threads(colors, frames.tolist(), pixels)
    return CanonicalCloud(
        points=np.concatenate([points for points, _ in parts]),
        colors=np.concatenate(painted),
        frame=np.repeat(cameras.frame_ids[frames].astype(np.int32), [len(pixel) for pixel in pixels]),
        pixel=np.concatenate(pixels).astype(np.int32),
    )


def _on_device(
    geometry: AlignedGeometry, voters: dict[int, list[int]], usable: Array, config: PointFilterConfig, device: torch.device
) -> list[tuple[Array, Array]]:
    """`kept_points` on a device, as long as its memory suffices."""
    from utils.registration.cloud import batched

    work = functools.partial(batched.kept_points, geometry, voters, usable, config.tolerance, device)
    return or_on_cpu(work, lambda: kept_points(geometry, voters, usable, config), "cloud")


def _voters(frames: Array, count: int) -> dict[int, list[int]]:
    """Per frame, `count` others at growing distance on both sides: near ones see the same surface, far ones see past its edges."""
    steps = [s for k in range(len(frames).bit_length()) for s in (-(2**k), 2**k)]
    voters = {}
    for position, frame in enumerate(frames):
        others = [position + s for s in steps if 0 <= position + s < len(frames)]
        voters[int(frame)] = [int(frames[p]) for p in others[:count]]
    return voters
