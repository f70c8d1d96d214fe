"""Global mapping by solvers of our own: positions, bundle adjustment of tracks, filters, and the whole on a database of known points."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from benchmarks.geometry import trajectory_error
from utils.sfm.global_mapping import map_globally
from utils.sfm.matches_database import image_name, verify
from utils.sfm.solvers import parts as solver_parts
from utils.sfm.solvers.global_positions import global_positions
from utils.sfm.solvers.parts import TrustRegion, part_bounds
from utils.sfm.solvers.track_bundle_adjustment import adjust_tracks
from utils.sfm.solvers.tracks import Placed, Tracks, angle_errors, chosen, plane_errors, without, without_narrow
from utils.types import Array

K = np.array([[300.0, 0, 200], [0, 300, 150], [0, 0, 1]])
FRAMES, POINTS = 10, 300


def arc() -> tuple[Tracks, Placed]:
    """Ten cameras on an arc around three hundred points, which five to ten of them see, and the pixels."""
    random = np.random.default_rng(1)
    points = random.uniform([-2, -1.5, -1.5], [2, 1.5, 1.5], (POINTS, 3))
    w2c = np.tile(np.eye(4), (FRAMES, 1, 1))
    for i, angle in enumerate(np.linspace(-0.5, 0.5, FRAMES)):
        w2c[i, :3, :3] = cv2.Rodrigues(np.array([0.05 * np.sin(i), angle, 0.03 * i]))[0]
        w2c[i, :3, 3] = [0.1 * np.cos(2 * i), 0.05 * i, 6]
    views = [np.sort(random.permutation(FRAMES)[: random.integers(5, FRAMES + 1)]) for _ in range(POINTS)]
    first = np.r_[0, np.cumsum([len(seen) for seen in views])]
    placed = Placed(w2c=w2c, K=K, points=points)
    tracks = Tracks(first=first, frame=np.concatenate(views), at=np.zeros((first[-1], 2)))
    return replace(tracks, at=pixels(tracks, placed)), placed


def pixels(tracks: Tracks, placed: Placed) -> Array:
    seen = placed.seen(tracks)
    return seen[:, :2] / seen[:, 2:] * np.diag(placed.K)[:2] + placed.K[:2, 2]


def centers(placed: Placed) -> Array:
    return np.linalg.inv(placed.w2c)[:, :3, 3]


def wrong_share(tracks: Tracks, share: float) -> tuple[Tracks, Array]:
    """The tracks with a share of their pixels moved far away, and which."""
    random = np.random.default_rng(2)
    wrong = random.random(len(tracks.at)) < share
    return replace(tracks, at=np.where(wrong[:, None], random.uniform([0, 0], [400, 300], tracks.at.shape), tracks.at)), wrong


def directions(tracks: Tracks, placed: Placed) -> Array:
    rays = np.column_stack([(tracks.at - K[:2, 2]) / 300, np.ones(len(tracks.at))])
    rays = np.einsum("mji,mj->mi", placed.w2c[tracks.frame, :3, :3], rays)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


@pytest.mark.parametrize(("share", "most"), [(0.0, 1e-4), (0.15, 0.03)])
def test_positions_are_found_from_a_random_start_among_wrong_directions(share: float, most: float) -> None:
    tracks, truth = arc()
    seen, _ = wrong_share(tracks, share)
    found, points = global_positions(directions(seen, truth), tracks, FRAMES, 0)
    assert trajectory_error(found, centers(truth)) < most
    distances = [np.linalg.norm(p[tracks.point] - c[tracks.frame], axis=1) for p, c in ((points, found), (truth.points, centers(truth)))]
    ratio = distances[0] / distances[1]
    assert np.median(np.abs(ratio / np.median(ratio) - 1)) < most


def disturbed(truth: Placed) -> Placed:
    random = np.random.default_rng(3)
    w2c = truth.w2c.copy()
    for pose in w2c[1:]:
        pose[:3, :3] = cv2.Rodrigues(random.normal(0, 0.02, 3))[0] @ pose[:3, :3]
        pose[:3, 3] += random.normal(0, 0.05, 3)
    bent = K.copy()
    bent[[0, 1], [0, 1]] *= 1.15
    return Placed(w2c=w2c, K=bent, points=truth.points + random.normal(0, 0.05, truth.points.shape))


def test_adjustment_returns_to_the_truth_in_spite_of_wrong_pixels() -> None:
    tracks, truth = arc()
    seen, wrong = wrong_share(tracks, 0.05)
    found = adjust_tracks(seen, disturbed(truth), free_focal=True)
    errors = np.linalg.norm(pixels(seen, found) - seen.at, axis=1)
    assert np.median(errors[~wrong]) < 0.05
    assert abs(found.K[0, 0] / 300 - 1) < 0.01 and found.K[1, 1] == found.K[0, 0]
    assert trajectory_error(centers(found), centers(truth)) < 5e-3
    exact = adjust_tracks(tracks, found, free_focal=True)
    assert np.percentile(np.abs(pixels(tracks, exact) - tracks.at), 98) < 1e-3  # a point may have gone behind a camera


def test_what_is_held_stays() -> None:
    tracks, truth = arc()
    start = disturbed(truth)
    found = adjust_tracks(tracks, start, free_focal=False, turning=False)
    np.testing.assert_allclose(found.K, start.K, atol=1e-6)
    np.testing.assert_allclose(found.w2c[:, :3, :3], start.w2c[:, :3, :3], atol=1e-9)
    np.testing.assert_allclose(found.w2c[0], start.w2c[0], atol=1e-3)
    errors = [np.linalg.norm(pixels(tracks, placed) - tracks.at, axis=1).mean() for placed in (start, found)]
    assert errors[1] < 0.5 * errors[0]
    nothing = Tracks(first=np.zeros(1, np.int64), frame=np.zeros(0, np.int64), at=np.zeros((0, 2)))
    assert adjust_tracks(nothing, start, free_focal=True) is start


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    tracks, truth = arc()
    seen, _ = wrong_share(tracks, 0.05)
    results = []
    for cores in (1, 3):
        monkeypatch.setattr(solver_parts, "cpu_count", lambda cores=cores: cores)
        found = adjust_tracks(seen, disturbed(truth), free_focal=True)
        results.append((*global_positions(directions(seen, truth), tracks, FRAMES, 0), found.w2c, found.points, found.K))
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


def test_filters_drop_what_does_not_fit_and_what_is_seen_from_one_side() -> None:
    tracks, truth = arc()
    seen, wrong = wrong_share(tracks, 0.1)
    off = np.linalg.norm(seen.at - tracks.at, axis=1) > 40
    assert off.sum() > 0.7 * wrong.sum()
    assert (plane_errors(seen, truth)[off] > 0.1).all() and (plane_errors(seen, truth)[~wrong] < 1e-9).all()
    assert (angle_errors(seen, truth)[off] > 1).all() and (angle_errors(seen, truth)[~wrong] < 1e-4).all()
    kept, placed = without(seen, truth, wrong)
    assert len(kept.frame) == (~wrong).sum() and len(placed.points) == POINTS
    np.testing.assert_allclose(pixels(kept, placed), kept.at)
    ends = np.isin(tracks.frame, [0, 1])  # many points lose all views, some keep one or two
    left, seen_twice = without(tracks, truth, ~ends)
    assert (np.diff(left.first) == 2).all() and 0 < len(seen_twice.points) < POINTS
    assert len(without_narrow(left, seen_twice, 30.0)[1].points) == 0
    assert len(without_narrow(left, seen_twice, 1.0)[1].points) == len(seen_twice.points)
    behind = replace(truth, points=-50 * np.ones((POINTS, 3)))
    assert np.isinf(plane_errors(tracks, behind)).all()
    some, few = chosen(tracks, truth, np.arange(POINTS) < 7)
    assert len(few.points) == 7 and len(some.frame) == tracks.first[7]


def test_parts_are_whole_points_and_hold_about_as_much_each() -> None:
    first = np.r_[0, np.cumsum(np.random.default_rng(0).integers(2, 30, 500))]
    bounds = part_bounds(first, 60)
    assert bounds[0] == 0 and bounds[-1] == 500 and len(bounds) == 17
    assert np.ptp(np.diff(first[bounds])) < 60
    assert part_bounds(np.zeros(1, np.int64), 60) == [0]
    assert len(part_bounds(first, 1 << 14)) == 2  # one part where a matrix fills the memory


def test_a_step_is_taken_where_the_cost_falls_about_as_expected() -> None:
    region = TrustRegion()
    assert region.accepts(1.0, 1.0) and region.damping < 1e-4
    before = region.damping
    assert not region.accepts(-1.0, 1.0) and not region.accepts(np.nan, 1.0) and not region.accepts(1.0, -1.0)
    assert region.damping == pytest.approx(before * 2 * 4 * 8) and not region.is_spent


def database_of(folder: Path, tracks: Tracks, images: int) -> Path:
    """A database in which each pair of images is matched by the points that both see; images after the cameras' see nothing."""
    (folder / "images").mkdir()
    for i in range(images):
        cv2.imwrite(str(folder / "images" / image_name(i)), np.zeros((300, 400, 3), np.uint8))
    path, reader = folder / "database.db", pycolmap.ImageReaderOptions()
    pycolmap.Database.open(path).close()
    reader.camera_model, reader.camera_params = "SIMPLE_PINHOLE", "330,200,150"
    pycolmap.import_images(path, folder / "images", camera_mode=pycolmap.CameraMode.SINGLE, options=reader)
    point, pairs = tracks.point, []
    with pycolmap.Database.open(path) as stored:
        ids = {image.name: image.image_id for image in stored.read_all_images()}
        for i in range(images):
            stored.write_keypoints(ids[image_name(i)], tracks.at[tracks.frame == i].astype(np.float32))
        for a in range(FRAMES):
            for b in range(a + 1, FRAMES):
                rows = np.intersect1d(point[tracks.frame == a], point[tracks.frame == b], return_indices=True)[1:]
                stored.write_matches(ids[image_name(a)], ids[image_name(b)], np.column_stack(rows).astype(np.uint32))
                pairs.append((a, b))
    verify(path, pairs, 0, least=15, share=0.3)
    return path


@pytest.mark.parametrize("fixed", [False, True])
def test_a_database_is_mapped_and_a_given_focal_length_stays(tmp_path: Path, fixed: bool) -> None:
    tracks, truth = arc()
    random = np.random.default_rng(4)
    noisy = replace(tracks, at=tracks.at + random.normal(0, 0.2, tracks.at.shape))
    model = map_globally(database_of(tmp_path, noisy, FRAMES + 1), tmp_path / "images", 0, fixed_focal=fixed)
    assert model is not None
    assert model.frames.tolist() == list(range(FRAMES))  # the image that shows nothing is left out
    assert len(model.points) > 0.9 * POINTS and model.seen_by.max() < FRAMES and model.seen_point.max() < len(model.points)
    found = Placed(w2c=model.w2c, K=model.K[0], points=model.points)
    assert trajectory_error(centers(found), centers(truth)) < (0.1 if fixed else 0.02)
    assert model.focal == pytest.approx(330 if fixed else 300, rel=1e-6 if fixed else 0.03)
    assert model.error_px < (2 if fixed else 0.4)


def test_a_database_without_matches_gives_no_model(tmp_path: Path) -> None:
    tracks, truth = arc()
    none, _ = chosen(tracks, truth, np.arange(POINTS) < 5)
    assert map_globally(database_of(tmp_path, none, FRAMES), tmp_path / "images", 0, fixed_focal=False) is None
