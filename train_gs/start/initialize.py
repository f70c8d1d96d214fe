"""Canonical cloud -> initial splats: merge the copies of each surface, scale from neighbours, orientation from normals."""

import numpy as np
import torch

from configs.stage3_gs import GSConfig
from train_gs.start.cells import merged
from train_gs.start.neighbours import nearest
from train_gs.start.normals import smallest_axes
from utils.cameras.rotations import normal_to_quat
from utils.errors import DegenerateCloudError
from utils.splatting.sh import C0
from utils.types import Array, CameraSet, CanonicalCloud, Splats


def initial_splats(cloud: CanonicalCloud, cameras: CameraSet, config: GSConfig, median_depth: float) -> Splats:
    """Splats for a cloud, on the CPU.

    Args:
        cloud: canonical points of the frames to train on.
        cameras: of those frames; surfaces that only far ones see get coarser splats.
        config: stage settings.
        median_depth: scene units.

    Raises:
        DegenerateCloudError: fewer points than neighbours are needed.
    """
    budget = max(1, round(config.initial_fill * config.target_num_points))
    points, colors = merge_copies(cloud, cameras, budget) if config.merge_copies else random_points(cloud, budget, config.seed)
    if len(points) <= config.knn_neighbors:
        raise DegenerateCloudError(
            f"the canonical cloud has only {len(points)} points to start from",
            "lower the confidence percentile of stage 1, or hold out fewer frames",
        )
    points = points.astype(np.float64)
    k = min(max(config.knn_neighbors, config.normal_k), len(points))
    distance, index = nearest(points, k)
    if config.scale_init == "knn":
        scale = np.sqrt(np.square(distance[:, 1 : config.knn_neighbors]).mean(1))
    else:
        scale = np.full(len(points), config.initial_scale * median_depth)
    scale = np.maximum(scale, 1e-6 * median_depth)
    return flat_splats(points, _orientations(points, index[:, : config.normal_k]), scale, colors, config)


def flat_splats(points: Array, quats: torch.Tensor, scale: Array, colors: Array, config: GSConfig) -> Splats:
    """Discs of radius scale (N,) at points (N, 3), turned by quats (N, 4) with the normal along z, with colours (N, 3) 0..255."""
    log_scales = np.log(np.stack([scale, scale, config.initial_flat_ratio * scale], -1))
    sh = torch.zeros(len(points), (config.sh_degree + 1) ** 2, 3)
    sh[:, 0] = torch.from_numpy((colors / 255.0 - 0.5) / C0)
    return Splats(
        means=torch.from_numpy(points).float(),
        quats=quats,
        log_scales=torch.from_numpy(log_scales).float(),
        logit_opacities=torch.full((len(points),), float(np.log(config.initial_opacity / (1 - config.initial_opacity)))),
        sh=sh,
    )


def _orientations(points: Array, neighbors: Array) -> torch.Tensor:
    """(N, 4) rotations that take +z to the normal of each point's neighbourhood (N, k); the identity for k < 3."""
    if neighbors.shape[1] < 3:
        return torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(points), 1)

    return normal_to_quat(smallest_axes(points, neighbors).float())


def merge_copies(cloud: CanonicalCloud, cameras: CameraSet, budget: int) -> tuple[Array, Array]:
    """Voxel averages (M, 3) of points and (M, 3) of colours 0..255, M close to and, for budgets of more than a few dozen, not above it.

    One surface seen by many frames becomes one layer of splats, of the size that `splat_sizes` in `cells.reference` gives each place. A
    cloud below the budget is returned as it is.

    Args:
        cloud: points of frames that `cameras` has.
        cameras: in ascending order of their frames.
        budget: most splats.
    """
    if len(cloud) <= budget:
        return cloud.points.astype(np.float64), cloud.colors.astype(np.float64)
    pixel = 1.0 / float(np.median(cameras.K[:, 0, 0]))
    return merged(cloud.points, cloud.colors, cameras.centers, np.searchsorted(cameras.frame_ids, cloud.frame), pixel, budget)


def random_points(cloud: CanonicalCloud, budget: int, seed: int) -> tuple[Array, Array]:
    """(M, 3) points and (M, 3) colours 0..255 of at most `budget` points of the cloud."""
    rows = np.random.default_rng(seed).permutation(len(cloud))[:budget]
    return cloud.points[rows].astype(np.float64), cloud.colors[rows].astype(np.float64)
