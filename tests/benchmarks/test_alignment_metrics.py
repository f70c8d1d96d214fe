"""The alignment metrics: zero on the truth, right on known errors, blind to a similarity."""

import numpy as np
import pytest

from benchmarks.alignment.metrics import (
    evaluate,
    find_correspondences,
    fit_similarity,
    input_points,
    removed,
    trajectory_error,
)
from utils.errors import GeometryError
from utils.synthetic import WorldConfig, make_world
from utils.synthetic.inconsistency import rotation_matrices
from utils.types import CameraSet


@pytest.fixture(scope="module")
def world():
    return make_world(WorldConfig(layout="object", frames=6, size=(72, 128)))


@pytest.fixture(scope="module")
def pairs(world):
    return find_correspondences(world)


def test_pairs_show_the_same_point(world, pairs):
    assert len(pairs) > 3000
    first, second = pairs.frame.T
    here = world.canonical[first, pairs.pixel[:, 0], pairs.pixel[:, 1]]
    column, row = np.floor(pairs.place).astype(int).T
    there = world.canonical[second, row, column]
    distance = np.linalg.norm(here - there, axis=1) / world.depth[second, row, column]
    assert np.median(distance) < 0.01  # half a pixel
    assert np.quantile(distance, 0.999) < 0.06


def test_truth_scores_perfectly(world, pairs):
    scores = evaluate(world, world.canonical, world.valid, world.cameras, pairs)
    for name in ("consistency_median", "consistency_mean", "thickness", "error_to_truth", "trajectory_error"):
        assert scores[name] < 1e-5 * world.scale
    assert scores["fit_scale"] == pytest.approx(1.0, abs=1e-6)
    assert scores["f_score"] > 0.97
    assert scores["rotation_error_deg"] < 1e-5
    assert scores["coverage"] == 1.0


def test_severity_zero_input_is_consistent():
    calm = make_world(WorldConfig(frames=3, size=(48, 80), severity=0))
    scores = evaluate(calm, *input_points(calm))
    assert scores["consistency_median"] < 1e-5 * calm.scale
    assert scores["trajectory_error"] < 1e-9


def test_similarity_does_not_matter_and_its_scale_is_reported(world, pairs):
    points, mask, cameras = input_points(world)
    plain = evaluate(world, points, mask, cameras, pairs)
    rotation = rotation_matrices(np.array([[0.3, -0.5, 0.2]]))[0]
    moved = (2.0 * points.astype(float) @ rotation.T + np.array([3.0, -1.0, 2.0])).astype(np.float64)
    c2w = cameras.c2w.copy()
    c2w[:, :3, :3] = rotation @ c2w[:, :3, :3]
    c2w[:, :3, 3] = 2.0 * cameras.centers @ rotation.T + np.array([3.0, -1.0, 2.0])
    turned = CameraSet(c2w=c2w, K=cameras.K, size=cameras.size, frame_ids=cameras.frame_ids)
    scores = evaluate(world, moved, mask, turned, pairs)
    assert scores["fit_scale"] == pytest.approx(0.5 * plain["fit_scale"], rel=1e-4)
    for name in ("consistency_median", "thickness", "error_to_truth", "trajectory_error", "rotation_error_deg"):
        assert scores[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-7)


def test_known_offset_of_one_frame_is_measured(world, pairs):
    frames = np.arange(len(world))[:, None, None, None]
    offset = np.array([0.0, 0.02 * world.scale, 0.0]) * (frames % 2)
    scores = evaluate(world, world.canonical + offset, world.valid, None, pairs)
    assert scores["consistency_gap_1_percent"] == pytest.approx(2.0 * world.scale / world.median_depth, rel=0.03)
    assert scores["consistency_gap_2"] < 0.02 * scores["consistency_gap_1"]
    assert scores["error_to_truth_percent"] == pytest.approx(1.0 * world.scale / world.median_depth, rel=0.1)
    assert "trajectory_error" not in scores


def test_thickness_sees_the_normal_only(world, pairs):
    noise = 0.01 * world.scale * np.random.default_rng(0).normal(size=(*world.valid.shape, 1))
    along = evaluate(world, world.canonical + noise * world.normal, world.valid, None, pairs)
    assert along["thickness"] == pytest.approx(0.01 * world.scale, rel=0.1)
    side = np.cross(world.normal, np.array([0.3, 0.5, 0.81]))
    tangential = evaluate(world, world.canonical + noise * side, world.valid, None, pairs)
    assert tangential["thickness"] < 0.2 * along["thickness"]
    assert tangential["consistency_median"] > 0.3 * along["consistency_median"]


def test_input_is_worse_than_oracle(world, pairs):
    points, mask, cameras = input_points(world)
    before = evaluate(world, points, mask, cameras, pairs)
    oracle = evaluate(world, world.oracle_points(), mask, None, pairs)
    for name in ("consistency_median", "thickness", "error_to_truth"):
        assert oracle[name] < 0.8 * before[name]
    assert oracle["f_score"] > before["f_score"]
    assert 0 < before["trajectory_error_percent"] < 1


def test_trajectory_error_sees_one_displaced_camera(world):
    c2w = world.cameras.c2w.copy()
    c2w[2, :3, 3] += world.scale * np.array([0.0, 0.05, 0.0])
    bent = CameraSet(c2w=c2w, K=world.cameras.K, size=world.cameras.size, frame_ids=world.cameras.frame_ids)
    distance, angle = trajectory_error(world, bent)
    assert distance > 0.005 * world.scale
    assert angle == pytest.approx(0.0, abs=1e-5)


def test_similarity_fit_recovers_a_known_one():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(50, 3))
    rotation = rotation_matrices(np.array([[0.4, 1.1, -0.7]]))[0]
    fit = fit_similarity(source, 1.7 * source @ rotation.T + 2.0, np.ones(50))
    assert fit.scale == pytest.approx(1.7)
    np.testing.assert_allclose(fit.rotation, rotation, atol=1e-12)


def test_removed_share():
    assert removed(10.0, 5.0, 5.0) == pytest.approx(100.0)
    assert removed(10.0, 10.0, 5.0) == pytest.approx(0.0)
    with pytest.raises(GeometryError):
        removed(1.0, 1.0, 1.0)


def test_empty_mask_is_named(world):
    with pytest.raises(GeometryError):
        evaluate(world, world.canonical, np.zeros_like(world.valid))
