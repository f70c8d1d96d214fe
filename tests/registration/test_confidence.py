"""Confidence modes against brute force, and the voxel statistics below them."""

from dataclasses import replace

import numpy as np
import pytest

from configs.stage1_align import AlignmentDataConfig
from tests.box_world import make_box_world
from utils.cameras.projection import transform, unproject_depth
from utils.errors import ConfigError
from utils.points.confidence import confident_pixels, sky_pixels
from utils.points.edges import depth_edges
from utils.points.voxels import GroupedValues, voxel_keys, voxel_mean
from utils.synthetic import WorldConfig, make_world

P, G, L, M, VOXEL = 80.0, 15.0, 25.0, 50.0, 0.4


def noisy_scene():
    """Confidences with two decimals (many ties), some depth missing."""
    scene = make_box_world(3, (12, 20)).scene
    rng = np.random.default_rng(5)
    depth = scene.depth.copy()
    depth[rng.random(depth.shape) < 0.1] = 0
    return replace(scene, depth=depth, confidence=np.round(rng.gamma(2.0, 1.0, depth.shape), 2).astype(np.float32))


def world_points(scene):
    return np.stack([transform(c, unproject_depth(d, k)) for c, d, k in zip(scene.cameras.c2w, scene.depth, scene.cameras.K, strict=True)])


def brute_voxel(scene, local, overall, min_count):
    valid, conf = scene.valid, scene.confidence
    cells = np.floor(world_points(scene) / (VOXEL * scene.median_depth)).astype(int)
    groups = {}
    for index in zip(*np.nonzero(valid), strict=True):
        groups.setdefault(tuple(cells[index]), []).append(index)
    least = np.percentile([len(g) for g in groups.values()], min_count) if min_count is not None else 0
    keep = np.zeros(valid.shape, bool)
    for members in groups.values():
        values = np.array([conf[m] for m in members])
        threshold = np.percentile(values.astype(np.float64), local)
        if overall is not None:
            threshold = max(threshold, np.percentile(conf[valid], overall))
        for m, value in zip(members, values, strict=True):
            keep[m] = value >= threshold and len(members) >= least
    return keep


def brute(scene, mode):
    valid, conf = scene.valid, scene.confidence
    frame = lambda p: np.array([np.percentile(c, p) for c in conf])[:, None, None]
    return {
        "global": lambda: valid & (conf >= np.percentile(conf, P)),
        "per_frame": lambda: valid & (conf >= frame(P)),
        "per_frame_guided": lambda: valid & (conf >= np.maximum(frame(L), np.percentile(conf, G))),
        "voxel": lambda: brute_voxel(scene, P, None, M),
        "voxel_guided": lambda: brute_voxel(scene, L, G, None),
        "voxel_or": lambda: brute_voxel(scene, L, G, None) | brute_voxel(scene, P, None, M),
    }[mode]()


@pytest.mark.parametrize("mode", ["global", "per_frame", "per_frame_guided", "voxel", "voxel_guided", "voxel_or"])
def test_mode_equals_brute_force(mode):
    scene = noisy_scene()
    config = AlignmentDataConfig(
        conf_mode=mode,
        conf_thresh_percentile=P,
        conf_global_percentile=G,
        conf_local_percentile=L,
        conf_voxel_min_count_percentile=M,
        conf_voxel_size=VOXEL,
    )
    keep = confident_pixels(scene, config)
    assert 0.02 < keep.mean() < 0.95
    assert np.mean(keep != brute(scene, mode)) == 0


def test_filter_does_not_depend_on_the_unit_of_length():
    scene = noisy_scene()
    c2w = scene.cameras.c2w.copy()
    c2w[:, :3, 3] *= 64
    bigger = replace(scene, depth=scene.depth * 64, cameras=replace(scene.cameras, c2w=c2w))
    config = AlignmentDataConfig(conf_voxel_size=VOXEL)
    np.testing.assert_array_equal(confident_pixels(scene, config), confident_pixels(bigger, config))


def test_grouped_percentile_by_hand():
    groups = GroupedValues(np.array([7, 3, 7, 7]), np.array([1.0, 9.0, 3.0, 2.0], np.float32))
    assert groups.percentile(75.0)[groups.group].tolist() == [2.5, 9.0, 2.5, 2.5]
    assert groups.count[groups.group].tolist() == [3, 1, 3, 3]


def test_grouped_percentile_agrees_with_numpy_for_values_of_both_signs():
    rng = np.random.default_rng(0)
    keys, values = rng.integers(-5, 5, 500) * 10**12, rng.normal(size=500).astype(np.float32)
    groups = GroupedValues(keys, values)
    for p in (0.0, 37.0, 80.0, 100.0):
        expected = [np.percentile(values[keys == key].astype(np.float64), p) for key in keys]
        assert np.allclose(groups.percentile(p)[groups.group], expected, rtol=1e-12, atol=1e-12)


def test_voxel_keys_and_means_by_hand():
    points = np.array([[0.1, 0.1, 0.1], [0.9, 0.2, 0.3], [-0.1, 0.1, 0.1]])
    keys = voxel_keys(points, 1.0)
    assert keys[0] == keys[1] != keys[2]
    mean, value = voxel_mean(points, np.array([2.0, 4.0, 7.0]), 1.0)
    np.testing.assert_allclose(sorted(value[:, 0]), [3.0, 7.0])
    np.testing.assert_allclose(mean[np.argmin(value[:, 0])], [0.5, 0.15, 0.2])


def test_edges_mark_both_sides_of_a_step_and_no_slope():
    depth = np.tile(np.linspace(1.0, 1.2, 20, dtype=np.float32), (8, 1))
    assert not depth_edges(depth, 0.05).any()
    depth[:, 10:] += 1
    np.testing.assert_array_equal(np.flatnonzero(depth_edges(depth, 0.05).all(0)), [9, 10])


def test_ground_at_a_grazing_angle_is_no_edge_though_it_spans_more_than_the_ratio():
    ground = np.tile(250.0 / np.arange(4.0, 64.0)[:, None], (1, 40))
    noisy = (ground * (1 + 0.002 * np.random.default_rng(0).normal(size=ground.shape))).astype(np.float32)
    span = (noisy[:-2] - noisy[2:]) / noisy[1:-1]
    assert (span > 0.05).mean() > 0.6
    assert depth_edges(noisy, 0.05)[2:-2, 2:-2].mean() < 0.02
    noisy[20:40, 15:25] *= 0.7  # a thing in front of it
    edges = depth_edges(noisy, 0.05)
    assert edges[22:38, [14, 15, 24, 25]].all() and edges[[19, 20], 17:23].all()


@pytest.mark.parametrize("step", [0.2, 1.0, 3.0])
def test_depths_mixed_from_both_sides_of_a_step_are_edges(step):
    depth = np.full((12, 20), 2.0, np.float32)
    depth[:, 10:] *= 1 + step
    depth[:, 10] = 2 * (1 + step / 2)
    np.testing.assert_array_equal(np.flatnonzero(depth_edges(depth, 0.05).any(0)), [9, 10, 11])


def test_percentiles_outside_0_to_100_are_refused():
    with pytest.raises(ConfigError, match="conf_thresh_percentile"):
        AlignmentDataConfig(conf_thresh_percentile=120)


def test_sky_is_far_and_least_certain():
    world = make_world(WorldConfig(layout="outdoor", frames=2, size=(48, 80)))
    scene = world.predicted_scene()
    np.testing.assert_array_equal(sky_pixels(scene), world.object_id < 0)
    near = replace(scene, depth=np.where(world.object_id < 0, scene.depth.min(), scene.depth))
    assert not sky_pixels(near).any()


def test_sky_is_told_whatever_invalid_pixels_hold_and_only_where_uncertain_means_far():
    world = make_world(WorldConfig(layout="outdoor", frames=2, size=(48, 80)))
    scene = world.predicted_scene()
    spoilt = replace(scene, depth=scene.depth.copy(), confidence=scene.confidence.copy())
    spoilt.depth[0, 0, 0], spoilt.confidence[0, 0, 0] = 0, -1
    found = sky_pixels(spoilt)
    assert found.sum() >= sky_pixels(scene).sum() - 1
    scattered = np.random.default_rng(0).random(scene.depth.shape) < 0.5  # near pixels are as uncertain as far ones
    assert not sky_pixels(replace(scene, confidence=np.where(scattered, 1, 2).astype(np.float32))).any()


def test_depth_without_confidence_has_no_sky():
    scene = make_box_world(2, (12, 20)).scene
    assert not sky_pixels(replace(scene, confidence=np.ones_like(scene.confidence))).any()
