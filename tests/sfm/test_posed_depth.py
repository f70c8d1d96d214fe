"""Depth along true cameras: what the frames settle together is better than each alone, and what they confirm counts."""

import numpy as np
import pytest
import torch

from tests.box_world import make_box_world
from tests.twins import CUDA, GPU
from utils.cameras.projection import transform, unproject_depth
from utils.errors import GeometryError
from utils.sfm import posed_depth
from utils.sfm.flow_depth import RayDepth
from utils.types import NULL_REPORTER


@pytest.mark.parametrize("device", [None, pytest.param(GPU, marks=pytest.mark.skipif(not CUDA, reason="takes long without a GPU"))])
def test_frames_settle_a_blank_patch_together(device: torch.device | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posed_depth, "accelerator", lambda: device)
    world = make_box_world(frames=9, size=(84, 140), warp=0.0)
    K, truth = world.true.K[0], world.true_depth
    points = np.stack([transform(c2w, unproject_depth(depth, K)) for c2w, depth in zip(world.true.c2w, truth, strict=True)])
    blank = (np.abs(points[..., 0] - 0.1) < 0.9) & (np.abs(points[..., 1]) < 0.7) & (points[..., 2] > 2.9)
    images = np.where(blank[..., None], 128.0, world.scene.images) + np.random.default_rng(0).normal(0, 1.5, world.scene.images.shape)
    images = np.clip(images, 0, 255).astype(np.uint8)

    def off() -> np.ndarray:
        return np.abs(posed_depth.depth_along_poses(images, world.true.w2c, K, np.arange(9), NULL_REPORTER)[0] / truth - 1)

    settled = off()
    monkeypatch.setattr(posed_depth, "complete_depth", lambda clip, images, neighbours, rays, inverse, *_: (inverse, rays))
    alone = off()
    assert np.median(settled[blank]) < 0.025 and (settled[blank] > 0.05).mean() < 0.1
    if device is None:
        assert np.median(alone[blank]) > 0.035 and (alone[blank] > 0.05).mean() > 0.3
    else:  # whose flow finds more in the blank patch alone
        assert np.median(alone[blank]) > 1.7 * np.median(settled[blank]) and (alone[blank] > 0.05).mean() > 0.15
    assert np.median(settled[~blank]) < 0.01 and np.median(settled) < np.median(alone)


def test_depth_on_a_gpu_is_that_of_the_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame has no pose, one gets no depth."""
    world = make_box_world(frames=6, size=(56, 96), warp=0.0)
    refs, w2c = np.array([0, 1, 3, 5]), world.true.w2c.copy()
    w2c[2] = np.nan
    found = []
    for device in (None, GPU):
        monkeypatch.setattr(posed_depth, "accelerator", lambda device=device: device)
        depth, confidence = posed_depth.depth_along_poses(world.scene.images, w2c, world.true.K[0], refs, NULL_REPORTER)
        assert np.median(np.abs(depth / world.true_depth[refs] - 1)) < 0.01
        found.append((depth, confidence))
    (depth, confidence), (other, other_confidence) = found
    assert (np.abs(other / depth - 1) < 0.02).mean() > 0.9
    assert abs(np.median(confidence) - np.median(other_confidence)) < 0.1


def test_what_other_frames_confirm_counts_as_measured_however_weak() -> None:
    world = make_box_world(frames=4, size=(42, 70), warp=0.0)
    inverse = (1 / world.true_depth).astype(np.float32)
    wrong = np.s_[:, 10:20, 20:40]
    inverse[wrong] *= 1.5
    weight = np.full(inverse.shape[1:], 0.01, np.float32)
    weight[:, :10] = 0
    rays = [RayDepth(inverse=i, weight=weight, views=4 * np.ones_like(i), far=weight < 0) for i in inverse]
    _, confidence = posed_depth._finished(inverse, rays, world.true.w2c, world.true.K[0])
    assert (confidence[:, :, 10:] > 1.1).mean() > 0.7
    assert confidence[:, :, :10].max() < 1.1 and (confidence[wrong] > 1.1).mean() < 0.1


def test_frames_to_match_with_are_chosen_by_measured_pixels_at_their_centres() -> None:
    measured = np.zeros((8, 10), np.float32)
    measured[2, 3], measured[5, 7] = 0.5, 0.25
    ray = RayDepth(measured, (measured > 0).astype(np.float32), np.full_like(measured, 3), np.zeros_like(measured, bool))
    np.testing.assert_allclose(posed_depth._probes(0, ray), [[3.5, 2.5, 0.5], [7.5, 5.5, 0.25]])
    nothing = RayDepth(measured, np.zeros_like(measured), ray.views, ray.far)
    with pytest.raises(GeometryError, match="frame 4 of the clip shows no parallax"):
        posed_depth._probes(4, nothing)
