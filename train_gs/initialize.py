"""Canonical cloud -> initial splats: merge the copies of each surface, scale from neighbours, orientation from normals."""

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from scipy.spatial import cKDTree

from configs.stage3_gs import GSConfig
from utils.backends.accelerator import accelerator, or_on_cpu
from utils.errors import DegenerateCloudError
from utils.geometry.rotations import normal_to_quat
from utils.points.voxels import mean_by_key, voxel_keys
from utils.runtime import cpu_count
from utils.splats.sh import C0
from utils.types import Array, CanonicalCloud, Splats

_LEVELS_PER_OCTAVE = 2
_ROWS_AT_ONCE = 20_000


def initial_splats(cloud: CanonicalCloud, camera_centers: Array, config: GSConfig, median_depth: float) -> Splats:
    """Splats for a cloud, on the CPU.

    Args:
        cloud: canonical points of the frames to train on.
        camera_centers: (F, 3) of those frames; surfaces far from all of them get coarser splats.
        config: stage settings.
        median_depth: scene units.

    Raises:
        DegenerateCloudError: fewer points than neighbours are needed.
    """
    budget = max(1, round(config.initial_fill * config.target_num_points))
    points, colors = merge_copies(cloud, camera_centers, budget) if config.merge_copies else random_points(cloud, budget, config.seed)
    if len(points) <= config.knn_neighbors:
        raise DegenerateCloudError(
            f"the canonical cloud has only {len(points)} points to start from",
            "lower the confidence percentile of stage 1, or hold out fewer frames",
        )
    points = points.astype(np.float64)
    k = min(max(config.knn_neighbors, config.normal_k), len(points))
    distance, index = cKDTree(points).query(points, k=k, workers=-1)
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

    def normals(rows: Array) -> Array:
        offsets = points[rows] - points[rows].mean(1, keepdims=True)
        return np.linalg.eigh(np.einsum("nki,nkj->nij", offsets, offsets))[1][:, :, 0]

    def on_cpu() -> torch.Tensor:
        parts = np.array_split(neighbors, max(1, len(points) // _ROWS_AT_ONCE))
        with ThreadPoolExecutor(cpu_count()) as pool:
            return torch.from_numpy(np.concatenate(list(pool.map(normals, parts))))

    device = accelerator()
    if device is None:
        return normal_to_quat(on_cpu().float())
    from train_gs.normals_torch import smallest_axes

    found = or_on_cpu(lambda: smallest_axes(torch.from_numpy(points), torch.from_numpy(neighbors), device), on_cpu, "initial normals")
    return normal_to_quat(found.float())


def merge_copies(cloud: CanonicalCloud, camera_centers: Array, budget: int) -> tuple[Array, Array]:
    """Voxel averages (M, 3) of points and (M, 3) of colours 0..255, M close to and not above the budget.

    The cubes grow with the distance to the nearest camera, since that is how pixels spread; one surface seen by many frames then
    becomes one layer of splats of about equal size in the image. A cloud below the budget is returned as it is.
    """
    points, colors = cloud.points.astype(np.float64), cloud.colors.astype(np.float64)
    if len(points) <= budget:
        return points, colors
    distance, _ = cKDTree(camera_centers).query(points, workers=-1)
    distance = np.maximum(distance, 1e-3 * np.median(distance))
    level = np.floor(np.log2(distance) * _LEVELS_PER_OCTAVE)
    footprint = 2.0 ** (level / _LEVELS_PER_OCTAVE)
    on_cpu = lambda: _merged(HostCells(points, colors, footprint, level), budget)  # noqa: E731
    device = accelerator()
    if device is None:
        return on_cpu()
    from train_gs.merge_torch import DeviceCells

    return or_on_cpu(lambda: _merged(DeviceCells(points, colors, footprint, level, device), budget), on_cpu, "initial splats")


def random_points(cloud: CanonicalCloud, budget: int, seed: int) -> tuple[Array, Array]:
    """(M, 3) points and (M, 3) colours 0..255 of at most `budget` points of the cloud."""
    rows = np.random.default_rng(seed).permutation(len(cloud))[:budget]
    return cloud.points[rows].astype(np.float64), cloud.colors[rows].astype(np.float64)


class Cells(Protocol):
    """Points in cubes of a chosen scale."""

    def count(self, scale: float) -> int:
        """Occupied cubes."""
        ...

    def means(self, scale: float) -> tuple[Array, Array]:
        """Mean point (M, 3) and colour (M, 3) of every occupied cube."""
        ...


def _merged(cells: Cells, budget: int) -> tuple[Array, Array]:
    """The means at the scale with as many cubes as the budget allows."""
    low, high, middle = 1e-5, 1.0, 3e-3
    for _ in range(14):
        count = cells.count(middle)
        low, high = (middle, high) if count > budget else (low, middle)
        if 0.97 * budget <= count <= budget:
            break
        # Surfaces: the number of occupied cubes falls with the square of their edge. Bisection where that leaves the bracket.
        middle *= float(np.sqrt(count / (0.985 * budget)))
        middle = middle if low < middle < high else float(np.sqrt(low * high))
    return cells.means(high)


class HostCells:
    """Cubes whose edge (N,) grows with the level (N,) of their points (N, 3)."""

    def __init__(self, points: Array, colors: Array, footprint: Array, level: Array):
        self._points, self._colors, self._footprint, self._level = points, colors, footprint, level

    def count(self, scale: float) -> int:
        """Occupied cubes."""
        return _distinct(_cells(self._points, self._footprint * scale, self._level))

    def means(self, scale: float) -> tuple[Array, Array]:
        """Mean point (M, 3) and colour (M, 3) of every occupied cube."""
        return mean_by_key(_cells(self._points, self._footprint * scale, self._level), self._points, self._colors)


def _distinct(values: Array) -> int:
    """How many different values there are."""
    values = np.sort(values)
    return 1 + int(np.count_nonzero(values[1:] != values[:-1]))


def _cells(points: Array, edge: Array, level: Array) -> Array:
    """(N,) int64 cell of each point, for cubes whose edge (N,) depends on the level (N,)."""
    keys = voxel_keys(points / edge[:, None], 1.0)
    with np.errstate(over="ignore"):
        return keys ^ (level.astype(np.int64) * np.int64(0x1E3779B97F4A7C15))
