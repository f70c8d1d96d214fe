"""The classic way to align depth frames: coloured ICP between pairs of frames, then a pose graph over all of them, by Open3D.

Park, Zhou and Koltun, "Colored Point Cloud Registration Revisited", ICCV 2017; Choi, Zhou and Koltun, "Robust Reconstruction of Indoor
Scenes", CVPR 2015. It moves frames rigidly. Open3D is no dependency of this project: `pip install open3d`.
"""

import importlib
from dataclasses import replace
from typing import Any

import numpy as np

from utils.cameras.projection import unproject_depth
from utils.errors import MissingDependencyError
from utils.types import Array, CameraSet, Scene

VOXELS = (0.02, 0.01, 0.005)  # of the median depth, coarse to fine
ITERATIONS = (50, 30, 14)
NORMAL_RADIUS = 2.0  # voxels
MIN_FITNESS = 0.3  # pairs over a gap that overlap less give no edge


def align_open3d(scene: Scene, usable: Array, gaps: tuple[int, ...]) -> CameraSet:
    """Cameras after coloured ICP of every pair of these gaps, and the pose graph that weighs the pairs.

    Args:
        scene: the frames.
        usable: (F, H, W) bool, pixels that take part.
        gaps: frame distances of the pairs; neighbours are trusted, longer ones may be dropped as outliers.

    Raises:
        MissingDependencyError: Open3D is not installed, or misses a library.
    """
    o3d = load_open3d()
    o3d.utility.set_verbosity_level(o3d.utility.VerbosityLevel.Error)
    registration = o3d.pipelines.registration
    unit, count = scene.median_depth, len(scene)
    clouds = [_levels(o3d, scene, usable[frame], frame, unit) for frame in range(count)]
    graph = registration.PoseGraph()
    for frame in range(count):
        graph.nodes.append(registration.PoseGraphNode(scene.cameras.c2w[frame]))
    distance = 2 * VOXELS[-1] * unit
    for gap in sorted({1, *gaps}):
        for source in range(count - gap):
            target = source + gap
            start = scene.cameras.w2c[target] @ scene.cameras.c2w[source]
            transform, fitness = _coloured_icp(registration, clouds[source], clouds[target], start, unit)
            if gap > 1 and fitness < MIN_FITNESS:
                continue
            information = registration.get_information_matrix_from_point_clouds(clouds[source][-1], clouds[target][-1], distance, transform)
            graph.edges.append(registration.PoseGraphEdge(source, target, transform, information, uncertain=gap > 1))
    option = registration.GlobalOptimizationOption(max_correspondence_distance=distance, edge_prune_threshold=0.25, reference_node=0)
    registration.global_optimization(
        graph, registration.GlobalOptimizationLevenbergMarquardt(), registration.GlobalOptimizationConvergenceCriteria(), option
    )
    return replace(scene.cameras, c2w=np.stack([np.asarray(node.pose) for node in graph.nodes]))


def load_open3d() -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed, or misses a library.
    """
    try:
        return importlib.import_module("open3d")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("Open3D is not installed", "pip install open3d") from error
    except ImportError as error:
        raise MissingDependencyError(f"Open3D cannot be loaded: {error}", "install the library that it names") from error


def _levels(o3d: Any, scene: Scene, usable: Array, frame: int, unit: float) -> list[Any]:
    """The frame's cloud in camera space at every voxel size, with colours and normals towards the camera."""
    cloud = o3d.geometry.PointCloud()
    depth = np.where(usable, scene.depth[frame], 0)
    cloud.points = o3d.utility.Vector3dVector(unproject_depth(depth, scene.cameras.K[frame])[usable].astype(np.float64))
    cloud.colors = o3d.utility.Vector3dVector(scene.images[frame][usable] / 255.0)
    levels = []
    for voxel in VOXELS:
        level = cloud.voxel_down_sample(voxel * unit)
        level.estimate_normals(o3d.geometry.KDTreeSearchParamHybrid(radius=NORMAL_RADIUS * voxel * unit, max_nn=30))
        level.orient_normals_towards_camera_location(np.zeros(3))
        levels.append(level)
    return levels


def _coloured_icp(registration: Any, source: list[Any], target: list[Any], start: Array, unit: float) -> tuple[Array, float]:
    """Transform (4, 4) from one camera's space to another's, coarse to fine, and the share of the source that found a partner."""
    transform, fitness = start, 0.0
    for level, (voxel, iterations) in enumerate(zip(VOXELS, ITERATIONS, strict=True)):
        criteria = registration.ICPConvergenceCriteria(1e-6, 1e-6, iterations)
        estimation = registration.TransformationEstimationForColoredICP()
        try:
            result = registration.registration_colored_icp(source[level], target[level], 2 * voxel * unit, transform, estimation, criteria)
        except RuntimeError:  # no partner within reach
            return transform, 0.0
        transform, fitness = result.transformation, result.fitness
    return transform, fitness
