"""Confidence filter and cloud on a device against those on the CPU; torch on the CPU stands in for the device."""

import numpy as np
import pytest
import torch

import utils.device.accelerator as backend
from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig, MatchingConfig, PointFilterConfig, SolverConfig
from tests.box_world import make_box_world
from utils.deformation.lattice.numba import zero_fields
from utils.points import confidence
from utils.registration import build_cloud, forward_points, sequential, usable_pixels
from utils.registration import cloud as cloud_module

CPU = torch.device("cpu")


@pytest.fixture
def device(monkeypatch):
    """The code for a GPU runs, on the CPU."""

    def use():
        for module in (confidence, cloud_module):
            monkeypatch.setattr(module, "accelerator", lambda: CPU)

    return use


def box():
    scene = make_box_world(5, (48, 80)).scene
    rng = np.random.default_rng(0)
    scene.confidence[:] = rng.normal(0, 2, scene.confidence.shape).round(2)  # with ties, and negative ones
    scene.depth[1, :4] = 0
    scene.depth[3, 5, 5] = np.nan
    return scene, rng


@pytest.mark.parametrize("mode", ["voxel", "voxel_guided", "voxel_or"])
def test_voxel_rules_agree(mode, device):
    scene, _ = box()
    config = AlignmentDataConfig(conf_mode=mode)
    expected = confidence.confident_pixels(scene, config)
    device()
    found = confidence.confident_pixels(scene, config)
    assert 0.05 < expected.mean() < 0.99
    assert np.mean(found != expected) < 1e-3


def test_clouds_agree(device):
    scene, rng = box()
    fields = zero_fields(scene.depth, scene.valid, (5, 4, 3))
    fields.nodes[:] = 0.05 * rng.standard_normal(fields.nodes.shape)
    scene.depth[2, 20:24, 30:34] *= 0.6  # the others see through it
    usable = usable_pixels(scene, scene.valid, PointFilterConfig(edge_ratio=10.0))
    aligned = np.array([True, True, True, False, True])
    arguments = (scene, scene.cameras, fields, aligned, usable, PointFilterConfig())
    expected = build_cloud(*arguments)
    device()
    found = build_cloud(*arguments)
    place = lambda c: c.frame.astype(np.int64) * 48 * 80 + c.pixel
    a, b = place(expected), place(found)
    assert len(np.setxor1d(a, b)) < 1e-3 * len(a)
    assert 0 < len(a) < usable[aligned].sum()
    _, i, j = np.intersect1d(a, b, return_indices=True)
    np.testing.assert_allclose(found.points[j], expected.points[i], atol=2e-5)
    np.testing.assert_array_equal(found.colors[j], expected.colors[i])
    assert (np.diff(b) > 0).all()


def test_the_cpu_is_asked_for_when_the_device_is_full(device, monkeypatch, caplog):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    scene, _ = box()
    expected = confidence.confident_pixels(scene, AlignmentDataConfig())
    device()
    monkeypatch.setattr("utils.points.confidence.batched.voxel_confident", full)
    np.testing.assert_array_equal(confidence.confident_pixels(scene, AlignmentDataConfig()), expected)
    assert caplog.text.count("out of GPU memory") == 1


def test_everything_can_be_kept_off_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert backend.accelerator() == torch.device("cuda", 0)
    with backend.without_accelerator():
        assert backend.accelerator() is None
    assert backend.accelerator() is not None


def test_frames_registered_together_end_where_single_ones_do(monkeypatch):
    world = make_box_world(6, (48, 80))
    matching = MatchingConfig(matches_per_frame=1500)
    config = FrameToModelICPConfig(matching=matching, solver=SolverConfig(lattice=(10, 6, 3), cg_iterations=25))
    usable = usable_pixels(world.scene, world.scene.valid, config.filter)
    error = lambda r: world.consistency(forward_points(world.scene, r.cameras, r.fields))
    alone = sequential.align_sequential(world.scene, usable, config)
    monkeypatch.setattr(sequential, "_blocks", lambda frames: [[1, 2], [3, 4, 5]])
    together = sequential.align_sequential(world.scene, usable, config)
    assert together.aligned.all()
    before = error(sequential.unaligned(world.scene))
    assert error(together) < max(1.2 * error(alone), 0.1 * before)
    assert len(together.diagnostics.pairs) == len(alone.diagnostics.pairs)
    np.testing.assert_allclose(together.diagnostics.matches, alone.diagnostics.matches)
