"""The voxel rules of the confidence filter in NumPy."""

import numpy as np

from utils.cameras.projection import transform, unproject_depth
from utils.points.voxels import GroupedValues, voxel_keys
from utils.runtime import in_threads
from utils.types import Array, Scene


def voxel_confident(scene: Scene, size: float, rules: list[tuple[float, float | None, float | None]]) -> Array:
    """(F, H, W) bool: valid pixels that pass one of the rules (see `_voxel_rule`) for voxels of this edge."""
    valid = scene.valid
    values = scene.confidence[valid]
    voxels = GroupedValues(_world_voxels(scene, size), values)
    keep = np.zeros(len(values), bool)
    for rule in rules:
        keep |= _voxel_rule(voxels, values, *rule)
    out = np.zeros(valid.shape, bool)
    out[valid] = keep
    return out


def _world_voxels(scene: Scene, size: float) -> Array:
    """Voxel key of every valid pixel, in frame and pixel order."""

    def world(depth: Array, K: Array, c2w: Array, valid: Array) -> Array:
        return transform(c2w, unproject_depth(depth, K)[valid])

    points = in_threads(world, scene.depth, scene.cameras.K, scene.cameras.c2w, scene.valid)
    return voxel_keys(np.concatenate(points), size)


def _voxel_rule(voxels: GroupedValues, values: Array, local: float, overall: float | None, min_count: float | None) -> Array:
    """Confidence at least the voxel's percentile (raised to the overall one), in voxels that hold enough points."""
    threshold = voxels.percentile(local)
    if overall is not None:
        threshold = np.maximum(threshold, np.percentile(values, overall))
    if min_count is not None:
        threshold[voxels.count < np.percentile(voxels.count, min_count)] = np.inf
    return values >= threshold[voxels.group]
