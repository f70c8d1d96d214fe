"""How far an alignment moves the points of each frame."""

import numpy as np

from utils.cameras.projection import pixel_centers, transform, unproject
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.runtime import in_threads
from utils.types import Array, CameraSet, LatticeFields, Scene

_STEP = 3  # every third pixel in both axes is enough for two percentiles


def displacements(scene: Scene, cameras: CameraSet, fields: LatticeFields) -> Array:
    """(F, 2) median and 95th percentile, per frame, of the distance between a pixel's place before and after, in its depths."""
    geometry = AlignedGeometry(scene, cameras, fields)
    x, y = (c[::_STEP, ::_STEP].ravel() for c in pixel_centers(scene.cameras.size))

    def percentiles(frame: int) -> Array:
        depth = scene.depth[frame, ::_STEP, ::_STEP].ravel()
        keep = np.isfinite(depth) & (depth > 0)
        if not keep.any():
            return np.full(2, np.nan)
        points = unproject(x[keep], y[keep], depth[keep], scene.cameras.K[frame])
        moved = np.linalg.norm(geometry.forward(frame, points) - transform(scene.cameras.c2w[frame], points), axis=1) / depth[keep]
        return np.percentile(moved[np.isfinite(moved)], [50, 95])

    return np.stack(in_threads(percentiles, range(len(scene))))
