"""Global structure from motion: rotations, tracks and triangulation by COLMAP, positions and bundle adjustment by solvers of our own.

The course is that of COLMAP's global mapper (GLOMAP), with its thresholds. Its solver, Ceres, takes nearly all of the time there and gives
the same result twice only on one thread; ours sum in a fixed order on all cores.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap

from utils.geometry_backend import SparseModel
from utils.sfm.solvers.global_positions import global_positions
from utils.sfm.solvers.track_bundle_adjustment import adjust_tracks
from utils.sfm.solvers.tracks import Placed, Tracks, angle_errors, chosen, plane_errors, without, without_narrow
from utils.types import Array

# Pairs of frames with fewer verified matches do not count.
_LEAST_MATCHES = 15
# What is kept after positioning: observations off by at most this many degrees, and this far in the plane at depth 1.
_POSITIONED_DEG, _POSITIONED_ERROR = 1.0, 0.1
# Rounds of adjustment after it, the largest error kept after each, in the plane at depth 1, and the least angle of a point at the end.
_ROUND_ERRORS, _LEAST_DEG = (0.03, 0.02, 0.01), 1.0
# Rounds that drop a smaller share of the points than this are not followed by another.
_DROPPED_SHARE = 1e-3
# Rounds after triangulation, until a smaller share of the observations changes than this, and what each of them keeps.
_REFINEMENTS, _CHANGED_SHARE = 5, 5e-4
_REFINED_PX, _REFINED_DEG = 4.0, 1.5
_REFINING_STEPS, _LAST_STEPS = 50, 200
# Points that fewer frames see hold no camera: they are not adjusted, and go if they no longer fit.
_LEAST_VIEWS = 3
# Focal lengths in longest sides beyond which nothing is triangulated, and a model is none.
_FOCAL_RATIOS = (0.1, 10.0)


@dataclass(frozen=True)
class _Ids:
    """Of a reconstruction: its images in the order of their rows, and its only camera."""

    images: list[int]
    camera: int


def map_globally(database: Path, pictures: Path, seed: int, *, fixed_focal: bool) -> SparseModel | None:
    """The largest model of a database of matched images named `<position>.png`, `None` if there is none.

    Args:
        database: with one camera; a folder for COLMAP's own output is made beside it.
        pictures: folder of the images.
        seed: of what starts at random.
        fixed_focal: holds the focal length of the database.
    """
    started = _rotations_and_tracks(database, pictures, seed)
    if started is None:
        return None
    images = sorted((started.images[i] for i in started.reg_image_ids()), key=lambda image: image.name)
    ids = _Ids([image.image_id for image in images], images[0].camera_id)
    with pycolmap.Database.open(database) as stored:
        keypoints = [stored.read_keypoints(image)[:, :2].astype(np.float64) for image in ids.images]
        options = pycolmap.DatabaseCacheOptions()
        options.min_num_matches = _LEAST_MATCHES
        cache = pycolmap.DatabaseCache.create(stored, options)
    rotations = np.stack([image.cam_from_world().rotation.matrix() for image in images])
    tracks, _ = _tracks(started, ids, keypoints)
    tracks, placed = _positioned(tracks, rotations, started.cameras[ids.camera].calibration_matrix(), seed)
    placed = _adjusted(tracks, placed, free_focal=not fixed_focal)
    tracks, placed = _triangulated(cache, ids, keypoints, placed, seed, free_focal=not fixed_focal)
    low, high = (ratio * 2 * placed.K[:2, 2].max() for ratio in _FOCAL_RATIOS)
    if not len(placed.points) or not low < placed.K[0, 0] < high:
        return None
    errors = np.linalg.norm(_project(tracks, placed) - tracks.at, axis=1)
    return SparseModel(
        frames=np.array([int(Path(image.name).stem) for image in images], np.int64),
        w2c=placed.w2c,
        K=np.repeat(placed.K[None], len(images), 0),
        points=placed.points,
        seen_by=tracks.frame,
        seen_point=tracks.point,
        seen_at=tracks.at,
        error_px=float(errors.mean()),
    )


def _project(tracks: Tracks, placed: Placed) -> Array:
    """(M, 2) pixels at which points fall."""
    seen = placed.seen(tracks)
    return seen[:, :2] / seen[:, 2:] * np.diag(placed.K)[:2] + placed.K[:2, 2]


def _rotations_and_tracks(database: Path, pictures: Path, seed: int) -> "pycolmap.Reconstruction | None":
    """The largest reconstruction with rotations and tracks, positions still unknown."""
    options = pycolmap.GlobalPipelineOptions()
    options.random_seed = seed
    options.min_num_matches = _LEAST_MATCHES
    options.num_threads = options.mapper.num_threads = 1  # repeatable, and little to do
    options.mapper.random_seed = options.mapper.rotation_averaging.random_seed = seed
    options.mapper.skip_global_positioning = options.mapper.skip_bundle_adjustment = options.mapper.skip_retriangulation = True
    models = pycolmap.global_mapping(database, pictures, database.parent, options)
    return max(models.values(), key=lambda model: model.num_reg_images()) if models else None


def _tracks(reconstruction: "pycolmap.Reconstruction", ids: _Ids, keypoints: list[Array]) -> tuple[Tracks, list[int]]:
    """Tracks of a reconstruction and the ids of its points."""
    points, first, elements = _written_points(reconstruction)
    row_of = np.zeros(max(ids.images) + 1, np.int64)
    row_of[ids.images] = np.arange(len(ids.images))
    frame, feature = row_of[elements[:, 0]], elements[:, 1]
    offsets = np.r_[0, np.cumsum([len(places) for places in keypoints])]
    return Tracks(first=first, frame=frame, at=np.concatenate(keypoints)[offsets[frame] + feature]), points.tolist()


# A point in COLMAP's `points3D.bin`: id, x, y, z, red, green, blue, error, length of its track; then image and feature of each element.
_POINT_BYTES, _LENGTH_AT, _ELEMENT = 51, 43, np.dtype("<u4")


def _written_points(reconstruction: "pycolmap.Reconstruction") -> tuple[Array, Array, Array]:
    """Ids (P,) of the points, ascending, their first elements (P + 1,), and the image and feature of every element (M, 2) int64.

    By COLMAP's file of them, five times as fast as one Python object after another.
    """
    with tempfile.TemporaryDirectory(prefix="v2w_points_") as folder:
        reconstruction.write_binary(folder)
        data = (Path(folder) / "points3D.bin").read_bytes()
    starts, lengths, at = [], [], 8
    for _ in range(int.from_bytes(data[:8], "little")):
        starts.append(at)
        lengths.append(int.from_bytes(data[at + _LENGTH_AT : at + _POINT_BYTES], "little"))
        at += _POINT_BYTES + 2 * _ELEMENT.itemsize * lengths[-1]
    points = np.array([int.from_bytes(data[start : start + 8], "little") for start in starts], np.int64)
    order = np.argsort(points)
    counts, begins = np.array(lengths, np.int64)[order], np.array(starts, np.int64)[order] + _POINT_BYTES
    first = np.r_[0, np.cumsum(counts)]
    within = np.arange(first[-1]) - np.repeat(first[:-1], counts)
    places = np.repeat(begins, counts) + 2 * _ELEMENT.itemsize * within
    raw = np.frombuffer(data, np.uint8)[places[:, None] + np.arange(2 * _ELEMENT.itemsize)]
    return points[order], first, np.ascontiguousarray(raw).view(_ELEMENT).astype(np.int64)


def _positioned(tracks: Tracks, rotations: Array, K: Array, seed: int) -> tuple[Tracks, Placed]:
    """Cameras and points from rotations (F, 3, 3) alone, with the observations that fit."""
    rays = np.column_stack([(tracks.at - K[:2, 2]) / np.array([K[0, 0], K[1, 1]]), np.ones(len(tracks.at))])
    directions = np.einsum("mji,mj->mi", rotations[tracks.frame], rays / np.linalg.norm(rays, axis=1, keepdims=True))
    centers, points = global_positions(directions, tracks, len(rotations), seed)
    w2c = np.tile(np.eye(4), (len(rotations), 1, 1))
    w2c[:, :3, :3] = rotations
    w2c[:, :3, 3] = -np.einsum("fij,fj->fi", rotations, centers)
    placed = Placed(w2c=w2c, K=K, points=points)
    tracks, placed = without(tracks, placed, angle_errors(tracks, placed) > _POSITIONED_DEG)
    tracks, placed = without_narrow(tracks, placed, _LEAST_DEG)
    return without(tracks, placed, plane_errors(tracks, placed) > _POSITIONED_ERROR)


def _adjusted(tracks: Tracks, placed: Placed, *, free_focal: bool) -> Placed:
    """Cameras after rounds of adjustment, each of which drops what does not fit."""
    number = 0
    while number < len(_ROUND_ERRORS):
        placed = adjust_tracks(tracks, placed, free_focal=free_focal, turning=False)
        placed = adjust_tracks(tracks, placed, free_focal=free_focal)
        before = len(tracks.frame)
        while number < len(_ROUND_ERRORS):
            tracks, placed = without(tracks, placed, plane_errors(tracks, placed) > _ROUND_ERRORS[number])
            number += 1
            if before - len(tracks.frame) > _DROPPED_SHARE * len(placed.points):
                break
    return placed


def _triangulated(
    cache: "pycolmap.DatabaseCache", ids: _Ids, keypoints: list[Array], placed: Placed, seed: int, *, free_focal: bool
) -> tuple[Tracks, Placed]:
    """Points triangulated anew from all matches, adjusted with the cameras while they are completed and merged."""
    reconstruction = pycolmap.Reconstruction()
    reconstruction.load(cache)
    _write(reconstruction, ids, placed)
    for image in ids.images:
        reconstruction.register_frame(reconstruction.image(image).frame_id)
    manager = pycolmap.ObservationManager(reconstruction, cache.correspondence_graph)
    triangulator = pycolmap.IncrementalTriangulator(cache.correspondence_graph, reconstruction, manager)
    options = pycolmap.IncrementalTriangulatorOptions()
    options.random_seed = seed
    for image in ids.images:
        triangulator.triangulate_image(options, image)
    triangulator.complete_all_tracks(options)
    triangulator.merge_all_tracks(options)
    triangulator.retriangulate(options)
    for _ in range(_REFINEMENTS):
        tracks, points = _tracks(reconstruction, ids, keypoints)
        placed = _adjusted_long(tracks, _with_points(placed, reconstruction, points), free_focal=free_focal, steps=_REFINING_STEPS)
        _write(reconstruction, ids, placed, points)
        changed = triangulator.complete_all_tracks(options) + triangulator.merge_all_tracks(options)
        changed += manager.filter_all_points3D(_REFINED_PX, _REFINED_DEG)
        if changed < _CHANGED_SHARE * len(tracks.frame):
            break
    tracks, points = _tracks(reconstruction, ids, keypoints)
    placed = _with_points(placed, reconstruction, points)
    tracks, placed = without(tracks, placed, plane_errors(tracks, placed) > _ROUND_ERRORS[-1])
    placed = _adjusted_long(tracks, placed, free_focal=free_focal, steps=_LAST_STEPS)
    tracks, placed = without(tracks, placed, plane_errors(tracks, placed) > _ROUND_ERRORS[-1])
    return without_narrow(tracks, placed, _LEAST_DEG)


def _adjusted_long(tracks: Tracks, placed: Placed, *, free_focal: bool, steps: int) -> Placed:
    """Cameras and points after adjustment to the points that at least `_LEAST_VIEWS` frames see; the others stay."""
    long = np.diff(tracks.first) >= _LEAST_VIEWS
    refined = adjust_tracks(*chosen(tracks, placed, long), free_focal=free_focal, steps=steps)
    points = placed.points.copy()
    points[long] = refined.points
    return replace(refined, points=points)


def _with_points(placed: Placed, reconstruction: "pycolmap.Reconstruction", points: list[int]) -> Placed:
    """The cameras with these points of a reconstruction."""
    return replace(placed, points=np.array([reconstruction.point3D(point).xyz for point in points]).reshape(-1, 3))


def _write(reconstruction: "pycolmap.Reconstruction", ids: _Ids, placed: Placed, points: list[int] | None = None) -> None:
    """Gives a reconstruction these cameras, and these places to the points of these ids."""
    camera = reconstruction.camera(ids.camera)
    camera.params = np.r_[placed.K[0, 0], camera.params[1:]]
    for image, pose in zip(ids.images, placed.w2c, strict=True):
        reconstruction.frame(reconstruction.image(image).frame_id).set_cam_from_world(ids.camera, pycolmap.Rigid3d(pose[:3]))
    for point, place in zip(points or [], placed.points, strict=points is not None):
        reconstruction.point3D(point).xyz = place
