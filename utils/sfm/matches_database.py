"""A COLMAP database of keypoints and matches: made from SIFT's, and others added beside them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

from utils.matching.sift import SiftFeatures
from utils.runtime import cpu_count
from utils.types import Array

Pair = tuple[int, int]

# Farthest from its epipolar line that a match may lie: contradictory frames bend, but 4 px, COLMAP's own limit, let in chance.
_MAX_ERROR_PX = 2.0
# Pairs with fewer matches are not verified, nor kept with fewer verified ones; COLMAP's.
LEAST_VERIFIED = 15
# Samples that RANSAC draws at least and at most; COLMAP's 100 and 10000 take up to four times as long, nearly all of it for pairs of frames
# that share little, and find the same matches (0.05 % of them apart).
_LEAST_TRIALS, _MOST_TRIALS = 30, 1000


def image_name(frame: int) -> str:
    """Name of the image of a frame."""
    return f"{frame:06d}.png"


def new_database(path: Path, size: tuple[int, int], focal: float, features: Sequence[SiftFeatures]) -> list[int]:
    """Writes a database of images named `<position>.png` with one camera and their keypoints; returns their ids.

    Args:
        path: of the database.
        size: (h, w) of the images.
        focal: what is expected of the focal length, in pixels.
        features: of each image.
    """
    with pycolmap.Database.open(path) as stored:
        camera = pycolmap.Camera(
            model="SIMPLE_PINHOLE", width=size[1], height=size[0], params=[focal, size[1] / 2, size[0] / 2], has_prior_focal_length=True
        )
        camera.camera_id = stored.write_camera(camera)
        rig = _rig_of(stored, camera)
        ids = []
        for position, own in enumerate(features):
            ids.append(_write_image(stored, image_name(position), camera, rig))
            stored.write_keypoints(ids[-1], np.hstack([own.px, own.shape]))
    return ids


def _rig_of(stored: "pycolmap.Database", camera: "pycolmap.Camera") -> int:
    """Writes the rig, and returns its id, that a camera by itself is to COLMAP."""
    rig = pycolmap.Rig()
    rig.add_ref_sensor(camera.sensor_id)
    return stored.write_rig(rig)


def _write_image(stored: "pycolmap.Database", name: str, camera: "pycolmap.Camera", rig: int) -> int:
    """Writes an image of a camera and the frame that it is of its rig; returns the image's id."""
    image = pycolmap.Image(name=name, camera_id=camera.camera_id)
    image.image_id = stored.write_image(image)
    frame = pycolmap.Frame()
    frame.rig_id = rig
    frame.add_data_id(image.data_id)
    stored.write_frame(frame)
    return image.image_id


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


def with_own_cameras(database: Path, copy: Path) -> None:
    """Writes a copy of a database, as far as global mapping reads it, in which each image has a camera of its own, of unknown focal length.

    Args:
        database: whose images share a camera with a principal point in their middle.
        copy: the database to write.
    """
    with pycolmap.Database.open(database) as stored, pycolmap.Database.open(copy) as own:
        camera = stored.read_all_cameras()[0]
        camera.has_prior_focal_length = False  # else pairs of cameras are not asked for theirs
        ids = {}
        for image in sorted(stored.read_all_images(), key=lambda image: image.name):
            camera.camera_id = own.write_camera(camera)
            ids[image.image_id] = _write_image(own, image.name, camera, _rig_of(own, camera))
            own.write_keypoints(ids[image.image_id], stored.read_keypoints(image.image_id))
        for pair, geometry in zip(*stored.read_two_view_geometries(), strict=True):
            first, second = (ids[image] for image in pycolmap.pair_id_to_image_pair(pair))
            own.write_two_view_geometry(first, second, geometry)


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


def verify_all(database: Path, seed: int) -> None:
    """Keeps of the matches of each pair in a database what agrees with one camera motion, by COLMAP's own limits."""
    threads = pycolmap.GeometricVerifierOptions()
    threads.num_threads = cpu_count()
    pycolmap.geometric_verification(database, threads, two_view_geometry_options=_verification(seed))


def verify_strictly(database: Path, seed: int) -> None:
    """Verifies all matches in a database anew: with one half of the distance from epipolar lines that `verify_all` allows."""
    with pycolmap.Database.open(database) as stored:
        stored.clear_two_view_geometries()
    options = _verification(seed)
    options.ransac.min_num_trials, options.ransac.max_error = 100, _MAX_ERROR_PX
    threads = pycolmap.GeometricVerifierOptions()
    threads.num_threads = cpu_count()
    pycolmap.geometric_verification(database, threads, two_view_geometry_options=options)


def _verification(seed: int) -> "pycolmap.TwoViewGeometryOptions":
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed, options.ransac.min_num_trials, options.ransac.max_num_trials = seed, _LEAST_TRIALS, _MOST_TRIALS
    return options


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
    options = _verification(seed)
    options.ransac.max_error = _MAX_ERROR_PX
    options.min_num_inliers, options.min_inlier_ratio = least, share
    pycolmap.verify_matches(database, listed, options)
