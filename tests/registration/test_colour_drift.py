"""Colour drift: the maps against truth, their gauge, outliers, and their way through artifacts into cloud and splats."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from frame_to_model_icp import stage as stage1
from global_optimization import stage as stage2
from tests.box_world import make_box_world
from tests.registration.test_registration import ExactMatcher
from tests.registration.test_stage1 import FAST
from tests.train_gs.test_train_gs import correction_sources
from train_gs.appearance import Appearance
from utils.registration.colour import corrected, estimate_color_maps
from utils.scene import artifacts
from utils.scene.layout import SceneLayout
from utils.scene.transaction import publish

FRAMES = 5


def drift(strength=1.0):
    """True maps (F, 3, 4) with a mean of the identity: exposure, tint and a little mixing."""
    rng = np.random.default_rng(3)
    maps = np.tile(np.eye(4), (FRAMES, 1, 1))
    maps[:, :3, :3] += strength * (0.1 * rng.standard_normal((FRAMES, 1, 1)) * np.eye(3) + 0.02 * rng.standard_normal((FRAMES, 3, 3)))
    maps[:, :3, 3] = strength * 0.03 * rng.standard_normal((FRAMES, 3))
    return (maps @ np.linalg.inv(maps.mean(0)))[:, :3]


def tinted(world, maps):
    images = world.scene.images / 255
    shown = np.einsum("fab,fhwb->fhwa", maps[:, :, :3], images) + maps[:, None, None, :, 3]
    return replace(world.scene, images=(np.clip(shown, 0, 1) * 255 + 0.5).astype(np.uint8))


def exact(world):
    matcher = ExactMatcher(world)
    matches = [matcher.match(i, j, None) for i in range(FRAMES) for j in range(i + 1, FRAMES)]
    return matches, [np.zeros(len(m)) for m in matches]


def error_of(maps, truth):
    """Root mean square over colours, in levels of 255."""
    colors = np.random.default_rng(0).uniform(0.15, 0.85, (300, 3))
    shown = [np.einsum("fab,nb->fna", m[:, :, :3], colors) + m[:, None, :, 3] for m in (maps, truth)]
    return 255 * np.sqrt(np.mean((shown[0] - shown[1]) ** 2))


@pytest.mark.parametrize("wrong", [0.0, 0.25])
def test_maps_are_the_true_ones(wrong):
    world, truth = make_box_world(FRAMES, (72, 128)), drift()
    matches, errors = exact(world)
    rng = np.random.default_rng(0)
    spoiled = [replace(m, target_px=np.where((rng.random(len(m)) < wrong)[:, None], m.target_px[::-1], m.target_px)) for m in matches]
    maps = estimate_color_maps(tinted(world, truth).images, spoiled, errors, 0.01)
    assert error_of(maps, truth) < 0.15 * error_of(np.tile(np.eye(3, 4), (FRAMES, 1, 1)), truth)
    np.testing.assert_allclose(maps.mean(0), np.eye(3, 4), atol=1e-9)


def test_without_drift_nothing_is_found():
    world = make_box_world(FRAMES, (72, 128))
    maps = estimate_color_maps(world.scene.images, *exact(world), 0.01)
    assert error_of(maps, np.tile(np.eye(3, 4), (FRAMES, 1, 1))) < 0.8


def test_matches_that_disagree_in_space_do_not_count_and_unmatched_frames_keep_their_colours():
    world, truth = make_box_world(FRAMES, (72, 128)), drift()
    matches, errors = exact(world)
    far = [e + (2 in (m.source, m.target)) for m, e in zip(matches, errors, strict=True)]
    maps = estimate_color_maps(tinted(world, truth).images, matches, far, 0.01)
    np.testing.assert_array_equal(maps[2], np.eye(3, 4))
    np.testing.assert_allclose(maps[[0, 1, 3, 4]].mean(0), np.eye(3, 4), atol=1e-9)
    assert not np.allclose(maps[1], np.eye(3, 4), atol=1e-3)


def test_correction_undoes_a_map():
    colors = np.random.default_rng(0).integers(60, 190, (100, 3)).astype(np.uint8)
    color_map = drift()[1]
    shown = ((colors / 255) @ color_map[:, :3].T + color_map[:, 3]) * 255
    np.testing.assert_allclose(corrected((shown + 0.5).astype(np.uint8), color_map).astype(int), colors, atol=2)


def test_cloud_and_artifact_get_the_maps_and_old_artifacts_load(tmp_path):
    truth = drift()
    world = make_box_world(FRAMES, (60, 100))
    scene = tinted(world, truth)
    with publish(SceneLayout(tmp_path).npz_dir, "geometry/1") as folder:
        artifacts.save_results(folder, scene)
    first = stage1.run(FrameToModelICPConfig(root_path=tmp_path, alignment=AlignmentDataConfig(num_frames=FRAMES, stride=1), **FAST))
    solvers = {"matching": FAST["matching"], "coarse": FAST["solver"], "fine": FAST["solver"]}
    config = GlobalOptimizationConfig(root_path=tmp_path, run=first.parent.name, heldout_pairs=0, **solvers)
    alignment = artifacts.load_alignment(stage2.run(config))
    assert alignment.color_maps is not None
    identity = np.tile(np.eye(3, 4), (FRAMES, 1, 1))
    assert error_of(alignment.color_maps, truth) < 0.3 * error_of(identity, truth)
    true_colors = world.scene.images.reshape(FRAMES, -1, 3)[alignment.cloud.frame, alignment.cloud.pixel].astype(float)
    shown = scene.images.reshape(FRAMES, -1, 3)[alignment.cloud.frame, alignment.cloud.pixel].astype(float)
    assert np.abs(alignment.cloud.colors - true_colors).mean() < 0.4 * np.abs(shown - true_colors).mean()
    assert artifacts.load_alignment(first).color_maps is None  # as in artifacts written before there were maps
    plain = artifacts.load_alignment(stage2.run(replace(config, color_drift=False)))
    assert plain.color_maps is None
    np.testing.assert_array_equal(plain.cloud.colors, shown)
    np.testing.assert_array_equal(plain.cameras.c2w, alignment.cameras.c2w)


def test_splatting_starts_from_the_maps_and_is_held_at_them():
    truth = drift()
    appearance = Appearance(FRAMES, torch.device("cpu"), truth)
    trained = np.array([True, True, False, True, True])
    torch.testing.assert_close(appearance.matrices(correction_sources(trained)), torch.from_numpy(truth).float())
    assert appearance.penalty(1).item() == 0
    color = torch.rand(4, 5, 3)
    shown = appearance(color, torch.ones(4, 5), 1)
    torch.testing.assert_close(shown, color @ torch.from_numpy(truth[1, :, :3]).float().T + torch.from_numpy(truth[1, :, 3]).float())
    with torch.no_grad():
        appearance.deviations[1] += 0.1
        appearance.deviations[3] += 0.1
    assert appearance.penalty(1).item() == pytest.approx(0.12)
    # a frame that was not trained learns what its neighbours learnt
    torch.testing.assert_close(appearance.matrices(correction_sources(trained))[2], torch.from_numpy(truth[2]).float() + 0.1)
