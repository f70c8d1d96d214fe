"""Keypoints and matches added to a COLMAP database beside those of SIFT."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

from utils.runtime import cpu_count
from utils.types import Array

Pair = tuple[int, int]

# Farthest from its epipolar line that a match may lie: contradictory frames bend, but 4 px, COLMAP's own limit, let in chance.
_MAX_ERROR_PX = 2.0


def image_name(frame: int) -> str:
    """Name of the image of a frame."""
    return f"{frame:06d}.png"


def frame_ids(stored: "pycolmap.Database", count: int) -> list[int]:
    """The image id of each frame."""
    named = {image.name: image.image_id for image in stored.read_all_images()}
    return [named[image_name(frame)] for frame in range(count)]


def verified_counts(stored: "pycolmap.Database", ids: Sequence[int]) -> dict[Pair, int]:
    """Verified matches of each pair of frames that has any."""
    frame_of = {image: frame for frame, image in enumerate(ids)}
    counts = {}
    for pair, count in zip(*stored.read_two_view_geometry_num_inliers(), strict=True):
        a, b = sorted(frame_of[image] for image in pycolmap.pair_id_to_image_pair(pair))
        counts[a, b] = int(count)
    return counts


def with_own_cameras(database: Path, pictures: Path, copy: Path) -> None:
    """Writes a copy of a database, as far as global mapping reads it, in which each image has a camera of its own, of unknown focal length.

    Args:
        database: whose images share a camera with a principal point in their middle.
        pictures: folder of its images.
        copy: the database to write.
    """
    with pycolmap.Database.open(database) as stored, pycolmap.Database.open(copy) as own:
        shared = stored.read_all_cameras()[0]
        options = pycolmap.ImageReaderOptions()
        options.camera_model, options.camera_params = shared.model.name, ",".join(map(str, shared.params))
        pycolmap.import_images(copy, pictures, camera_mode=pycolmap.CameraMode.PER_IMAGE, options=options)
        for camera in own.read_all_cameras():
            camera.has_prior_focal_length = False  # else pairs of cameras are not asked for theirs
            own.update_camera(camera)
        copied_ids = {image.name: image.image_id for image in own.read_all_images()}
        ids = {image.image_id: copied_ids[image.name] for image in stored.read_all_images()}
        for image, copied in ids.items():
            own.write_keypoints(copied, stored.read_keypoints(image))
        for pair, geometry in zip(*stored.read_two_view_geometries(), strict=True):
            first, second = (ids[image] for image in pycolmap.pair_id_to_image_pair(pair))
            own.write_two_view_geometry(first, second, geometry)


def with_scaled_features(database: Path, scales: Array, copy: Path, seed: int) -> None:
    """Writes a copy of a database whose features lie at another distance from the principal point; pairs are verified anew.

    Args:
        database: whose images share a camera.
        scales: (F,) factor of each frame's distances.
        copy: the database to write.
        seed: of RANSAC.
    """
    shutil.copy(database, copy)
    with pycolmap.Database.open(copy) as stored:
        center = stored.read_all_cameras()[0].params[-2:]
        for image, scale in zip(frame_ids(stored, len(scales)), scales, strict=True):
            keypoints = stored.read_keypoints(image)
            keypoints[:, :2] = (keypoints[:, :2] - center) * scale + center
            stored.update_keypoints(image, keypoints)
        verified = list(zip(*stored.read_two_view_geometries(), strict=True))
        stored.clear_two_view_geometries()
        stored.clear_matches()
        for pair, geometry in verified:
            stored.write_matches(*pycolmap.pair_id_to_image_pair(pair), geometry.inlier_matches.reshape(-1, 2))
    threads, options = pycolmap.GeometricVerifierOptions(), pycolmap.TwoViewGeometryOptions()
    threads.num_threads, options.ransac.random_seed = cpu_count(), seed
    pycolmap.geometric_verification(copy, threads, two_view_geometry_options=options)


def append_keypoints(stored: "pycolmap.Database", image: int, places: Array) -> int:
    """Puts keypoints at places (M, 2) after those that an image has; returns the row of the first one."""
    before = stored.read_keypoints(image)
    added = np.zeros((len(places), before.shape[1]), np.float32)
    added[:, :2] = places
    if before.shape[1] == 6:  # x, y and the affine shape, of which mapping uses nothing: the identity
        added[:, [2, 5]] = 1
    stored.update_keypoints(image, np.concatenate([before, added]))
    return len(before)


def replace_matches(stored: "pycolmap.Database", first: int, second: int, rows: Array) -> None:
    """Gives a pair of images these matches (N, 2) and those of its own that were verified; all are to be verified again."""
    if stored.exists_two_view_geometry(first, second):
        verified = stored.read_two_view_geometry(first, second).inlier_matches.reshape(-1, 2)
        rows = np.concatenate([verified, rows])
        stored.delete_two_view_geometry(first, second)
    if stored.exists_matches(first, second):
        stored.delete_matches(first, second)
    stored.write_matches(first, second, rows.astype(np.uint32))


def verify(database: Path, pairs: Sequence[Pair], seed: int, *, least: int, share: float) -> None:
    """Keeps of each pair's matches what agrees with one camera motion; pairs in which too little does are dropped.

    Args:
        database: that holds the matches.
        pairs: of frames.
        seed: of RANSAC.
        least: inliers of a pair.
        share: of its matches that must be inliers.
    """
    listed = database.with_name("pairs_to_verify.txt")
    listed.write_text("".join(f"{image_name(a)} {image_name(b)}\n" for a, b in pairs))
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed, options.ransac.max_error = seed, _MAX_ERROR_PX
    options.min_num_inliers, options.min_inlier_ratio = least, share
    pycolmap.verify_matches(database, listed, options)
