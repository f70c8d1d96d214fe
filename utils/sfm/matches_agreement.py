"""How well the verified matches of pairs of frames agree with the cameras of a model: a figure that compares models of one clip.

The points that mapping keeps always fit its cameras, since it drops those that do not. The matches it started from tell more: of one
clip of a very wide view, 91 % agreed with a free focal length of 0.23 of the longest side, 77 % with 0.55 and 68 % with 0.9.
"""

from pathlib import Path

import numpy as np
import pycolmap
import torch

from utils.cameras.se3 import skew
from utils.geometry_backend import SparseModel
from utils.sfm.matches_database import frame_ids
from utils.types import Array

# A match agrees that lies so near to its epipolar lines, as a share of the longest side (2 px of 768).
_MOST_ERROR = 0.0026
# Pairs with fewer matches say little, and are many.
_LEAST_MATCHES = 15


def agreement(model: SparseModel, database: Path) -> float:
    """Share (0..1) of the verified matches between registered frames that the model's cameras agree with; 0 if there are none.

    Args:
        model: of images in the database.
        database: of COLMAP, with keypoints in pixels of the model's K.
    """
    agreeing = total = 0
    limit = _MOST_ERROR * 2 * float(model.K[0, :2, 2].max())
    K_inverse = np.linalg.inv(model.K)
    with pycolmap.Database.open(database) as stored:
        ids = frame_ids(stored, int(model.frames[-1]) + 1)
        row_of = {ids[frame]: row for row, frame in enumerate(model.frames.tolist())}
        places = {image: stored.read_keypoints(image)[:, :2].astype(np.float64) for image in row_of}
        for pair, count in zip(*stored.read_two_view_geometry_num_inliers(), strict=True):
            first, second = pycolmap.pair_id_to_image_pair(pair)
            if count < _LEAST_MATCHES or first not in row_of or second not in row_of:
                continue
            rows = stored.read_two_view_geometry(first, second).inlier_matches.reshape(-1, 2)
            a, b = row_of[first], row_of[second]
            relative = model.w2c[b] @ np.linalg.inv(model.w2c[a])
            fundamental = K_inverse[b].T @ skew(torch.from_numpy(relative[:3, 3])).numpy() @ relative[:3, :3] @ K_inverse[a]
            error = sampson(fundamental, places[first][rows[:, 0]], places[second][rows[:, 1]])
            agreeing += int((error < limit).sum())
            total += len(rows)
    return agreeing / total if total else 0.0


def sampson(fundamental: Array, first: Array, second: Array) -> Array:
    """(N,) Sampson distances in pixels of matches (N, 2), (N, 2) under a fundamental matrix (Hartley and Zisserman, eq. 11.9)."""
    a, b = (np.column_stack([places, np.ones(len(places))]) for places in (first, second))
    lines_b, lines_a = a @ fundamental.T, b @ fundamental
    slope = np.square(lines_b[:, :2]).sum(1) + np.square(lines_a[:, :2]).sum(1)
    return np.abs((b * lines_b).sum(1)) / np.sqrt(np.maximum(slope, 1e-20))
