"""Solver, cloud, confidence and colour sums: what a device runs against what the CPU runs; torch on the CPU stands in for the device."""

import numpy as np
import pytest
import torch

from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig, MatchingConfig, PointFilterConfig, SolverConfig
from tests.box_world import make_box_world
from tests.twins import CPU, CUDA, GPU, needs_triton
from utils.cameras import se3
from utils.deformation.lattice.numba import zero_fields
from utils.matching.contract import MatchSet
from utils.points import confidence
from utils.registration import build_cloud, forward_points, sequential, solver, usable_pixels
from utils.registration import cloud as cloud_module
from utils.registration.colour.batched import DeviceSums
from utils.registration.colour.reference import pair_sums
from utils.registration.solver import problem as solver_problem
from utils.types import CameraSet


def alignment_problem(fixed):
    rng = np.random.default_rng(0)
    frames, (h, w) = 3, (30, 50)
    c2w = se3.exp(torch.from_numpy(rng.normal(size=(frames, 6)) * 0.05)).numpy()
    K = np.tile(np.array([[45.0, 0, 25], [0, 45, 15], [0, 0, 1]]), (frames, 1, 1))
    cameras = CameraSet(c2w=c2w, K=K, size=(h, w), frame_ids=np.arange(frames))
    shape = solver_problem.LatticeShape((3, 3, 2), np.tile(np.array([[0.2, 0.6]]), (frames, 1)), 3.0)
    matches, targets = [], []
    for i, j in ((0, 1), (1, 2)):
        pixels, depth = rng.uniform([0, 0], [w, h], (40, 2)).astype(np.float32), rng.uniform(2, 4, 40).astype(np.float32)
        points = np.stack([(pixels[:, 0] - 25) / 45 * depth, (pixels[:, 1] - 15) / 45 * depth, depth], 1)
        seen = (points @ c2w[i, :3, :3].T + c2w[i, :3, 3] + rng.normal(size=(40, 3)) * 0.01 - c2w[j, :3, 3]) @ c2w[j, :3, :3]
        moved = np.stack([seen[:, 0] / seen[:, 2] * 45 + 25, seen[:, 1] / seen[:, 2] * 45 + 15], 1).astype(np.float32)
        matches.append(MatchSet(i, j, pixels, moved, depth, seen[:, 2].astype(np.float32)))
        targets.append(rng.normal(size=(40, 3)))
    config = SolverConfig(lattice=(3, 3, 2), cg_iterations=3, robust_scales=(6.0, 3.0))
    problem = solver_problem.build_problem(matches, cameras, shape, config.match_sigma, targets if fixed else None)
    return problem, solver_problem.initial_state(cameras, shape), shape, config


@needs_triton
@pytest.mark.skipif(CUDA, reason="solver.solve already runs on the GPU")
@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_solver_agrees_with_the_compiled_one(fixed, errors, monkeypatch):
    from utils.registration.solver import triton

    monkeypatch.setattr(triton, "BLOCK", 32)
    problem, state, shape, config = alignment_problem(fixed)
    first = np.random.default_rng(1).uniform(0, 0.01, len(problem.depth)) if errors else None
    origin = 0.001 * np.random.default_rng(2).normal(size=state.nodes.shape)
    expected = solver.solve(problem, state, shape, config, 400.0, first, origin=origin)
    got = triton.solve(problem, state, shape, config, 400.0, first, origin, GPU)
    for name in ("c2w", "nodes", "update"):
        a, b = getattr(got, name), getattr(expected, name)
        assert np.abs(a - b).max() < 1e-9 * np.abs(b).max()


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


def test_sums_of_all_pairs_at_once_are_those_of_each():
    rng = np.random.default_rng(0)
    none = np.zeros((0, 2), np.float32)
    matches = [MatchSet(i, j, none, none, none[:, 0], none[:, 0]) for i, j in ((0, 1), (2, 0), (1, 2))]
    pairs = []
    for count in (5, 0, 9):
        s, t = (np.concatenate([rng.normal(size=(count, 3)), np.ones((count, 1))], 1) for _ in range(2))
        pairs.append((s, t))
    current = 0.1 * rng.normal(size=(3, 4, 3))
    together = DeviceSums(np.array([(m.source, m.target) for m in matches]), pairs, torch.device("cpu"))(current, 0.2)
    for got, expected in zip(together, pair_sums(matches, pairs, current, 0.2), strict=True):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
