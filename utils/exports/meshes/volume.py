"""Signed distances to the seen surface on a grid, averaged over views (Curless and Levoy 1996).

Signed distance: positive in free space in front of a surface, negative behind it, in units of the truncation length.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from scipy.ndimage import distance_transform_edt

from utils.errors import DegenerateCloudError
from utils.types import Array

_TRUNCATION_VOXELS = 4.0
_OUTERMOST = 0.3
"""Per cent of the points at each end of each axis that the volume may leave out."""
# A pixel whose inverse depth bends by more than this share between its neighbours mixes two surfaces.
_BEND = 0.3


@dataclass
class Volume:
    """Distances on a grid of points `origin + voxel * (i, j, k)`.

    Attributes:
        origin: (3,).
        voxel: edge length.
        truncation: distance from the surface at which distances end, in the units of the grid.
        distance: (X, Y, Z) float32 mean truncated distance, -1..1.
        weight: (X, Y, Z) float32 number of views that saw the point.
        color: (X, Y, Z, 3) float32 mean colour, 0..255.
    """

    origin: Array
    voxel: float
    truncation: float
    distance: Array
    weight: Array
    color: Array


def empty_volume(points: Array, resolution: int, uncertainty: float = 0.0, include: Array | None = None) -> Volume:
    """A volume around most of the points, `resolution` voxels along its longest side.

    Args:
        points: (N, 3) on the surface.
        resolution: voxels.
        uncertainty: how far views disagree about where the surface is; distances reach three times as far.
        include: (M, 3) points that must lie inside, too.

    Raises:
        DegenerateCloudError: too few points.
    """
    if len(points) < 10:
        raise DegenerateCloudError("the renders show no surface to fuse", "check the world in the viewer")
    low, high = np.percentile(points, [_OUTERMOST, 100 - _OUTERMOST], axis=0)
    if include is not None:
        low, high = np.minimum(low, include.min(axis=0)), np.maximum(high, include.max(axis=0))
    voxel = float((high - low).max() / resolution)
    truncation = max(_TRUNCATION_VOXELS * voxel, 3 * uncertainty)
    margin = truncation + 2 * voxel
    shape = tuple(int(n) for n in np.ceil((high - low + 2 * margin) / voxel).astype(int) + 1)
    return Volume(
        origin=low - margin,
        voxel=voxel,
        truncation=truncation,
        distance=np.zeros(shape, np.float32),
        weight=np.zeros(shape, np.float32),
        color=np.zeros((*shape, 3), np.float32),
    )


def integrate(volume: Volume, depth: Array, image: Array, w2c: Array, K: Array) -> None:
    """Adds one view to the running means.

    Args:
        volume: changed in place.
        depth: (h, w) camera z, 0 where unknown.
        image: (h, w, 3) uint8.
        w2c: (4, 4).
        K: (3, 3) in pixels.
    """
    arrays = (volume.distance, volume.weight, volume.color)
    # Camera coordinates of the grid's first point and of one step along each of its axes.
    start = w2c[:3, :3] @ volume.origin + w2c[:3, 3]
    steps = np.ascontiguousarray(volume.voxel * w2c[:3, :3].T)
    _integrate(*arrays, start, steps, np.ascontiguousarray(depth), np.ascontiguousarray(image), np.ascontiguousarray(K), volume.truncation)


@njit(parallel=True, cache=True)
def _integrate(distance, weight, color, start, steps, depth, image, K, truncation):
    nx, ny, nz = distance.shape
    h, w = depth.shape
    for i in prange(nx):
        for j in range(ny):
            for k in range(nz):
                z = start[2] + i * steps[0, 2] + j * steps[1, 2] + k * steps[2, 2]
                if z <= 1e-6:
                    continue
                u = np.floor(K[0, 0] * (start[0] + i * steps[0, 0] + j * steps[1, 0] + k * steps[2, 0]) / z + K[0, 2])
                v = np.floor(K[1, 1] * (start[1] + i * steps[0, 1] + j * steps[1, 1] + k * steps[2, 1]) / z + K[1, 2])
                if u < 0 or v < 0 or u >= w or v >= h:
                    continue
                column, row = int(u), int(v)
                seen = depth[row, column]
                signed = (seen - z) / truncation
                if seen <= 0 or signed <= -1:
                    continue
                weight[i, j, k] += 1
                share = 1 / weight[i, j, k]
                distance[i, j, k] += share * (min(signed, 1.0) - distance[i, j, k])
                for channel in range(3):
                    color[i, j, k, channel] += share * (image[row, column, channel] - color[i, j, k, channel])


def without_edges(depth: Array) -> Array:
    """The depth image (h, w) with 0 where a pixel lies on the edge between two surfaces and shows neither.

    Inverse depth is linear over the image of a plane, however slanted; a bend of it is an edge.
    """
    inverse = np.where(depth > 0, 1 / np.maximum(depth, 1e-12), 0)
    padded = np.pad(inverse, 1, mode="edge")
    bend = np.maximum(
        np.abs(padded[:-2, 1:-1] - 2 * inverse + padded[2:, 1:-1]),
        np.abs(padded[1:-1, :-2] - 2 * inverse + padded[1:-1, 2:]),
    )
    return np.where(bend > _BEND * inverse, 0, depth).astype(depth.dtype)


def free_around(volume: Volume, centers: Array, radius: float) -> None:
    """Marks what is nearer than `radius` to a camera (M, 3) as free space: a camera was there. Changed in place."""
    reach = int(np.ceil(radius / volume.voxel))
    for center in (centers - volume.origin) / volume.voxel:
        low = np.maximum(np.floor(center).astype(int) - reach, 0)
        part = tuple(slice(a, b) for a, b in zip(low, np.ceil(center).astype(int) + reach + 1, strict=True))
        grid = np.meshgrid(*(np.arange(n)[p] for n, p in zip(volume.distance.shape, part, strict=True)), indexing="ij", sparse=True)
        near = sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) < reach**2
        blank = near & (volume.weight[part] <= 0)
        volume.distance[part][blank] = 1
        volume.weight[part][blank] = 1


def closed(volume: Volume, *, from_inside: bool) -> Volume:
    """The volume with all that no view saw taken for solid, so that its surface has no holes.

    Args:
        volume: as fused.
        from_inside: whether the border of the grid counts as solid, which leaves the inner surface of a room; otherwise it counts as
            free and the block of unseen matter is closed from outside, as for an object.
    """
    unseen = volume.weight <= 0
    distance = np.pad(np.where(unseen, np.float32(-1), volume.distance), 1, constant_values=-1 if from_inside else 1)
    nearest = distance_transform_edt(unseen, return_distances=False, return_indices=True)
    color = np.pad(volume.color[tuple(nearest)], ((1, 1), (1, 1), (1, 1), (0, 0)), mode="edge")
    return Volume(volume.origin - volume.voxel, volume.voxel, volume.truncation, distance, np.ones_like(distance), color)
