"""Far shell: background splats on a distant sphere, where pixels see none of the cloud (sky, and what is too far for reliable depth).

Without it such pixels stay black, or near splats grow across them. The shell is so far away that moving between the cameras does not
shift it in the image.
"""

import numpy as np
import torch

from configs.stage3_gs import GSConfig
from train_gs.start.initialize import flat_splats
from utils.cameras.rotations import normal_to_quat
from utils.points.voxels import voxel_mean
from utils.types import Array, CameraSet, Splats

_CELLS_ALONG = 64
_DISTANCE, _BEYOND = 20.0, 3.0
"""Radius: so many median depths, and so many times the distance of the farthest hundredth of the cloud."""
_LEAST_EMPTY = 0.005
"""Share of all cells that must be empty; fewer are holes between points, not sky."""


def shell_splats(
    points: Array, cameras: CameraSet, images: Array, config: GSConfig, median_depth: float, used: Array | None = None
) -> Splats | None:
    """Splats on the shell; None where the cloud covers the frames.

    Args:
        points: (N, 3) the cloud that the world starts from.
        cameras: of the training frames.
        images: (F, H, W, 3) uint8, theirs.
        config: stage settings; at most `shell_share` of the budget is used.
        median_depth: scene units.
        used: (F, H, W) bool, pixels that no mask takes out; None for all.
    """
    edge = max(1, round(max(cameras.size) / _CELLS_ALONG))
    seen = [_empty_cells(points, cameras, view, image, edge, None if used is None else used[view]) for view, image in enumerate(images)]
    directions, colors = np.concatenate([s[0] for s in seen]), np.concatenate([s[1] for s in seen])
    cells = len(images) * (cameras.size[0] // edge) * (cameras.size[1] // edge)
    if len(directions) < _LEAST_EMPTY * cells:
        return None
    spacing = edge / float(np.median(cameras.K[:, 0, 0]))
    most = max(1, round(config.shell_share * config.target_num_points))
    merged, color = _merged(directions, colors, spacing)
    while len(merged) > most:
        spacing *= 1.2
        merged, color = _merged(directions, colors, spacing)
    middle = cameras.centers.mean(0)
    reach = np.linalg.norm(points - middle, axis=1)
    radius = max(_DISTANCE * median_depth, _BEYOND * float(np.percentile(reach, 99)))
    size = np.full(len(merged), 0.7 * spacing * radius)
    return flat_splats(middle + radius * merged, normal_to_quat(torch.from_numpy(-merged).float()), size, color, config)


def _empty_cells(points: Array, cameras: CameraSet, view: int, image: Array, edge: int, used: Array | None) -> tuple[Array, Array]:
    """(M, 3) world directions and (M, 3) mean colours of the frame's cells of edge x edge pixels into which no point falls, nor beside.

    Cells that a mask touches are left out: what it hides is not what stands far behind.
    """
    h, w = cameras.size
    rows, columns = h // edge, w // edge
    K, w2c = cameras.K[view], cameras.w2c[view]
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    local = local[local[:, 2] > 0]
    x, y = K[0, 0] * local[:, 0] / local[:, 2] + K[0, 2], K[1, 1] * local[:, 1] / local[:, 2] + K[1, 2]
    column, row = np.floor(x / edge), np.floor(y / edge)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    covered = np.zeros((rows + 2, columns + 2), bool)
    covered[row[inside].astype(int) + 1, column[inside].astype(int) + 1] = True
    around = [covered[1 + i : rows + 1 + i, 1 + j : columns + 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    empty = ~np.any(around, axis=0)
    if used is not None:
        empty &= used[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge).all((1, 3))
    empty_row, empty_column = np.nonzero(empty)
    blocks = image[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge, 3).mean((1, 3))
    u, v = (empty_column + 0.5) * edge, (empty_row + 0.5) * edge
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1) @ cameras.c2w[view][:3, :3].T
    return rays / np.linalg.norm(rays, axis=1, keepdims=True), blocks[empty_row, empty_column]


def _merged(directions: Array, colors: Array, spacing: float) -> tuple[Array, Array]:
    """Unit directions and colours averaged over cubes of this edge."""
    mean, color = voxel_mean(directions, colors, spacing)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True), color


def joined(a: Splats, b: Splats) -> Splats:
    """Both."""
    return Splats(*(torch.cat([x, y]) for x, y in zip(vars(a).values(), vars(b).values(), strict=True)))
