"""How far an alignment moves what the frames show."""

import numpy as np

from utils.geometry.projection import transform, unproject_depth
from utils.registration.geometry import AlignedGeometry
from utils.types import Array, CameraSet, LatticeFields, Scene

_STEP = 3  # every third pixel in both axes is enough for two percentiles


def displacements(scene: Scene, cameras: CameraSet, fields: LatticeFields) -> Array:
    """(F, 2) median and 95th percentile, per frame, of the distance between a pixel's place before and after, in its depths."""
    geometry = AlignedGeometry(scene, cameras, fields)
    found = np.full((len(scene), 2), np.nan)
    for frame in range(len(scene)):
        keep = np.zeros(scene.cameras.size, bool)
        keep[::_STEP, ::_STEP] = True
        keep &= scene.valid[frame]
        if not keep.any():
            continue
        depth = scene.depth[frame]
        before = transform(scene.cameras.c2w[frame], unproject_depth(np.where(scene.valid[frame], depth, 0), scene.cameras.K[frame])[keep])
        moved = np.linalg.norm(geometry.canonical(frame)[keep] - before, axis=1) / depth[keep]
        found[frame] = np.percentile(moved[np.isfinite(moved)], [50, 95])
    return found
