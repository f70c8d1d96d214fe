"""Canonical cloud -> initial splats: merge the copies of each surface, scale from neighbours, orientation from normals."""

import numpy as np
import torch
from scipy.spatial import cKDTree

from configs.stage3_gs import GSConfig
from train_gs.start.cells import MakeCells, with_cells
from train_gs.start.normals import smallest_axes
from utils.cameras.rotations import normal_to_quat
from utils.device.accelerator import accelerator, or_on_cpu
from utils.errors import DegenerateCloudError
from utils.splatting.sh import C0
from utils.types import Array, CameraSet, CanonicalCloud, Splats

_LEVELS_PER_OCTAVE = 2
_COARSEST = 1.0
"""Largest edge of a cube that is tried, at distance 1."""
_PLACE, _PATCH = 24.0, 3.0
"""Edges, in pixels, of the cubes in which views are counted and of those they are counted by."""


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

    return normal_to_quat(smallest_axes(points, neighbors).float())


def merge_copies(cloud: CanonicalCloud, cameras: CameraSet, budget: int) -> tuple[Array, Array]:
    """Voxel averages (M, 3) of points and (M, 3) of colours 0..255, M close to and, for budgets of more than a few dozen, not above it.

    One surface seen by many frames becomes one layer of splats, of the size that `splat_sizes` gives each place. A cloud below the
    budget is returned as it is.

    Args:
        cloud: points of frames that `cameras` has.
        cameras: in ascending order of their frames.
        budget: most splats.
    """
    points, colors = cloud.points.astype(np.float64), cloud.colors.astype(np.float64)
    if len(points) <= budget:
        return points, colors
    nearest, own = _distances(points, cameras.centers, np.searchsorted(cameras.frame_ids, cloud.frame))
    nearest, own = (np.maximum(distance, 1e-3 * np.median(own)) for distance in (nearest, own))
    pixel = 1.0 / float(np.median(cameras.K[:, 0, 0]))
    return with_cells(points, colors, lambda make: _merged(make, nearest, own, pixel, budget), "initial splats")


def _distances(points: Array, centers: Array, made_by: Array) -> tuple[Array, Array]:
    """(N,) distance of each point (N, 3) to the nearest camera and to that at position `made_by` (N,), whose frame it is of."""

    def on_cpu() -> tuple[Array, Array]:
        nearest, _ = cKDTree(centers).query(points, workers=-1)
        return nearest, np.linalg.norm(points - centers[made_by], axis=1)

    device = accelerator()
    if device is None:
        return on_cpu()
    return or_on_cpu(lambda: distances_on(device, points, centers, made_by), on_cpu, "initial splats")


def distances_on(device: torch.device, points: Array, centers: Array, made_by: Array) -> tuple[Array, Array]:
    """`_distances` in torch on a device: a few dozen cameras are looked at one after the other."""
    places, cameras, maker = (torch.from_numpy(a).to(device) for a in (points, centers, made_by))
    squared = places.new_full((len(places),), float("inf"))
    for camera in cameras:
        squared = torch.minimum(squared, (places - camera).square_().sum(1))
    own = (places - cameras[maker]).square_().sum(1)
    return squared.sqrt_().cpu().numpy(), own.sqrt_().cpu().numpy()


def splat_sizes(make: MakeCells, nearest: Array, own: Array, pixel: float) -> Array:
    """(N,) relative size of the splats at each point, such that a budget of them renders all frames best.

    Splats of density r per area show a surface of p pixels per area to n views with a squared error of about n p (p / r). For a given
    number of splats that is least for r ~ p sqrt(n), so sizes go with d n^(-1/4), d being the distance of the nearest frame that *sees*
    the place. Cameras that stand beside a wall and look along it do not count; as many points a place as there are views of it do.

    Args:
        make: of cubes that hold the points.
        nearest: (N,) distance to the nearest camera, whatever it sees: only how large the places are that are looked at.
        own: (N,) distance to the camera of the point's own frame.
        pixel: edge of a pixel at distance 1.
    """
    octave = np.floor(np.log2(nearest))
    place = make(_PLACE * pixel * 2.0**octave, octave).groups()
    seen_from = np.full(place.max() + 1, np.inf)
    np.minimum.at(seen_from, place, own)
    # Cubes of a few pixels of the nearest view, each within one place: points of one cube count as one observation.
    patch = make((_PATCH * pixel * _level(seen_from)[1])[place], place.astype(np.float64)).groups()
    place_of = np.empty(patch.max() + 1, np.int64)
    place_of[patch] = place
    views = np.bincount(place) / np.bincount(place_of)
    return (seen_from * views**-0.25)[place]


def _level(size: Array) -> tuple[Array, Array]:
    """Number of the step on a logarithmic ladder below each size, and the size of that step."""
    level = np.floor(np.log2(size) * _LEVELS_PER_OCTAVE)
    return level, 2.0 ** (level / _LEVELS_PER_OCTAVE)


def random_points(cloud: CanonicalCloud, budget: int, seed: int) -> tuple[Array, Array]:
    """(M, 3) points and (M, 3) colours 0..255 of at most `budget` points of the cloud."""
    rows = np.random.default_rng(seed).permutation(len(cloud))[:budget]
    return cloud.points[rows].astype(np.float64), cloud.colors[rows].astype(np.float64)


def _merged(make: MakeCells, nearest: Array, own: Array, pixel: float, budget: int) -> tuple[Array, Array]:
    """The means at the scale with as many cubes as the budget allows."""
    level, edge = _level(splat_sizes(make, nearest, own, pixel))
    cells = make(edge, level)
    low, high, middle = 1e-5, _COARSEST, 2 * pixel
    for _ in range(14):
        count = cells.count(middle)
        low, high = (middle, high) if count > budget else (low, middle)
        if 0.97 * budget <= count <= budget:
            break
        # On a surface the number of occupied cubes falls with the square of their edge, more slowly for cubes below the points' spacing:
        # longer steps until there are few enough. Bisection where a step leaves the bracket.
        middle *= (count / (0.985 * budget)) ** (1.0 if high == _COARSEST else 0.5)
        middle = middle if low < middle < high else float(np.sqrt(low * high))
    return cells.means(high)
