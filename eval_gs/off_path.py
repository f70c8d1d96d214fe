"""The world from beside the path: renders a given angle off the clip's cameras, where no frame says what should be seen."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from eval_gs.behind import Behind
from eval_gs.known import known_shares
from eval_gs.metrics import pair_consistency, sharpness
from eval_gs.paths import look_at
from utils.splatting.render import SplatView, depth_image, rgb_image
from utils.types import Array, CameraSet

_CAMERAS = 6
_STEP_DEG = 1.5
"""Angle between the two renders that are compared."""


def off_path(view: SplatView, degrees: float) -> dict[str, float]:
    """How a world holds beside its path: medians over six cameras of the clip, turned this far to both sides about what they look at.

    Returns:
        degrees; known and opaque: share of the picture made of splats that two frames know, and of anything at all; reprojection_px and
        flow_photometric: of two renders 1.5 degrees apart, see `PairConsistency`; sharpness: over that of the camera's own render.
    """
    trained = view.trained
    cameras = trained.cameras.select(np.flatnonzero(trained.trained))
    chosen = np.unique(np.linspace(0, len(cameras) - 1, min(_CAMERAS, len(cameras))).round().astype(int))
    with Behind[dict[str, float]]() as comparing:
        for i in chosen:
            for side in (-1.0, 1.0):
                comparing.do(_beside(view, cameras, i, side * degrees))
    rows = comparing.results
    metrics = {"degrees": float(degrees)}
    for key in rows[0]:
        values = np.array([row[key] for row in rows])
        if np.isfinite(values).any():
            metrics[key] = float(np.nanmedian(values))
    return metrics


def _beside(view: SplatView, cameras: CameraSet, i: int, degrees: float) -> Callable[[], dict[str, float]]:
    """One camera, turned to one side: rendered now, compared when called."""
    own = view.render(cameras.c2w[i], cameras.K[i], cameras.size)
    depth = depth_image(own)
    distance = float(np.median(depth[depth > 0])) if (depth > 0).any() else view.median_depth
    angles = (degrees, degrees + np.sign(degrees) * _STEP_DEG)
    poses = [turned_about(cameras.c2w[i], distance, angle) for angle in angles]
    outputs = [view.render(pose, cameras.K[i], cameras.size) for pose in poses]
    images, depths = [rgb_image(o) for o in outputs], [depth_image(o) for o in outputs]
    between = np.linalg.inv(poses[1]) @ poses[0]
    there = replace(cameras.select([i]), c2w=poses[0][None])
    known, opaque = float(known_shares(view, there)[0]), float((outputs[0].alpha > 0.5).float().mean())
    straight = rgb_image(own)

    def compare() -> dict[str, float]:
        pair = pair_consistency((images[0], images[1]), (depths[0], depths[1]), between, (cameras.K[i], cameras.K[i]))
        return {
            "known": known,
            "opaque": opaque,
            "reprojection_px": pair.reprojection_px,
            "flow_photometric": pair.flow_photometric,
            "sharpness": sharpness(images[0]) / max(sharpness(straight), 1e-9),
        }

    return compare


def turned_about(pose: Array, distance: float, degrees: float) -> Array:
    """The camera (4, 4) moved on a circle about the point that it looks at, to its right for positive angles, still looking there."""
    target, angle = pose[:3, 3] + distance * pose[:3, 2], np.radians(degrees)
    offset = distance * (np.sin(angle) * pose[:3, 0] - np.cos(angle) * pose[:3, 2])
    return look_at(target + offset, target, pose[:3, 1])
