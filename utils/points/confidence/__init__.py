"""Confidence filter: pixels with valid depth whose confidence passes one of six percentile rules.

All percentiles interpolate linearly, comparisons are >=. `P_p` over a voxel runs over the points of all frames whose world position
falls into it. Source: the published method's data filter (arXiv 2603.16736), modes as named there.

May import: what `utils.points` may.
Start: `confident_pixels` here; `reference` defines the voxel rules.
"""

import functools

import numpy as np

from configs.stage1_align import AlignmentDataConfig
from utils.device.accelerator import accelerator, or_on_cpu
from utils.points.confidence.reference import voxel_confident
from utils.types import Array, Scene


def confident_pixels(scene: Scene, config: AlignmentDataConfig) -> Array:
    """(F, H, W) bool, pixels that pass `config.conf_mode`; percentiles run over all frames of `scene`."""
    valid, confidence = scene.valid, scene.confidence
    strong = config.conf_thresh_percentile
    local = strong if config.conf_local_percentile is None else config.conf_local_percentile
    overall = strong if config.conf_global_percentile is None else config.conf_global_percentile
    match config.conf_mode:
        case "global":
            return valid & (confidence >= np.percentile(confidence, strong))
        case "per_frame":
            return valid & (confidence >= _frame_percentile(confidence, strong))
        case "per_frame_guided":
            threshold = np.maximum(_frame_percentile(confidence, local), np.percentile(confidence, overall))
            return valid & (confidence >= threshold)
    rules: list[tuple[float, float | None, float | None]] = []
    if config.conf_mode in ("voxel", "voxel_or"):
        rules.append((strong, None, config.conf_voxel_min_count_percentile))
    if config.conf_mode in ("voxel_guided", "voxel_or"):
        rules.append((local, overall, None))
    size, device = config.conf_voxel_size * scene.median_depth, accelerator()
    if device is None:
        return voxel_confident(scene, size, rules)
    from utils.points.confidence import batched

    work = functools.partial(batched.voxel_confident, scene, size, rules, device)
    return or_on_cpu(work, lambda: voxel_confident(scene, size, rules), "confidence filter")


_FAR = 90.0
"""Percentile of all other depths beyond which the least certain pixels are sky."""


_MOSTLY_FAR = 0.5
"""Share of the least certain pixels that must lie there: where near ones are as uncertain, to be uncertain says nothing of sky."""


def sky_pixels(scene: Scene) -> Array:
    """(F, H, W) bool, sky and what nothing is known of but that it is far: the lowest confidence there is, on a far depth.

    Such depth is made up. From frame to frame it stays at the same distance of a camera that moves, so sky that is brought together as
    if it were a surface ends up where no frame shows it.
    """
    none = np.zeros(scene.valid.shape, bool)
    if not scene.valid.any():
        return none
    least = scene.valid & (scene.confidence <= scene.confidence[scene.valid].min())
    rest = scene.valid & ~least
    if not rest.any():
        return none
    sky: Array = least & (scene.depth >= np.percentile(scene.depth[rest], _FAR))
    return sky if sky.sum() >= _MOSTLY_FAR * least.sum() else none


def _frame_percentile(confidence: Array, percentile: float) -> Array:
    return np.percentile(confidence, percentile, axis=(1, 2))[:, None, None]
