"""Flow and its matches: batched torch against known shifts, the truth and the compiled kernels; Triton against torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.stage1_align import MatchingConfig, PointFilterConfig
from tests.box_world import make_box_world
from tests.twins import GPU, difference, needs_triton, uniform
from utils.cameras.pixels import pixel_grid
from utils.cameras.projection import project, transform, unproject_depth
from utils.deformation.lattice.batched import DeviceGeometry
from utils.deformation.lattice.numba import zero_fields
from utils.matching.checks import patches_agree
from utils.matching.contract import match_pairs
from utils.matching.flow.batched import TorchFlowMatcher, devices
from utils.matching.flow.batched import patches_agree as patches_agree_torch
from utils.matching.flow.dis import FlowMatcher
from utils.matching.optical_flow import reference
from utils.matching.optical_flow.reference import dense_flow, relax, sample
from utils.registration import AlignedGeometry, usable_pixels

CPU = torch.device("cpu")
MATCHING = MatchingConfig(matches_per_frame=2000)


def random_geometry(frames=3, size=(40, 64)):
    scene = make_box_world(frames, size).scene
    fields = zero_fields(scene.depth, scene.valid, (5, 4, 3))
    fields.nodes[:] = 0.02 * np.random.default_rng(1).standard_normal(fields.nodes.shape)
    scene.depth[0, 3, 5] = 0
    return AlignedGeometry(scene, scene.cameras, fields)


def textures(count, h, w):
    rough = torch.rand(count, 1, h // 3, w // 3, generator=torch.Generator().manual_seed(3))
    return 255 * torch.nn.functional.interpolate(rough, (h, w), mode="bicubic", align_corners=False)


def test_flow_finds_smooth_shifts_of_several_pixels_and_other_brightness():
    h, w = 72, 96
    source = textures(2, h, w)
    grid = pixel_grid(h, w, CPU)
    shift = torch.stack([3 * torch.sin(grid[..., 1] / 20) + 2, 2 * torch.cos(grid[..., 0] / 25) - 1], -1)
    shift = torch.stack([shift, -shift])
    # target(x + shift(x)) = source(x) holds for target(y) = source(y - shift) up to the change of the shift over itself
    inverse = shift.clone()
    for _ in range(20):
        inverse = sample(shift.permute(0, 3, 1, 2), grid - inverse).permute(0, 2, 3, 1)
    target = 0.97 * sample(source, grid - inverse) + 12
    flow = dense_flow(source[:, 0], target[:, 0], torch.ones(2, h, w, dtype=torch.bool))
    error = (flow - shift).norm(dim=-1)[:, 8:-8, 8:-8]
    assert error.median() < 0.1
    assert error.quantile(0.95) < 0.4


def test_unknown_pixels_do_not_pull_the_flow():
    h, w = 48, 64
    image = textures(1, h, w)[:, 0]
    target = image.clone()
    known = torch.ones(1, h, w, dtype=torch.bool)
    known[:, 10:20, 10:30] = False
    target[~known] = 255.0
    assert dense_flow(image, target, known).norm(dim=-1).max() < 0.05


def test_prediction_agrees_with_the_compiled_kernel():
    geometry = random_geometry()
    h, w = geometry.cameras.size
    sources, targets = np.array([0, 2, 1]), np.array([1, 0, 2])
    found = DeviceGeometry.of(geometry, torch.from_numpy(geometry.scene.depth)).predict(sources, targets).numpy()
    for k in range(3):
        expected = np.empty((h, w, 2), np.float32)
        geometry.predict(int(sources[k]), int(targets[k]), expected)
        np.testing.assert_array_equal(np.isnan(found[k]), np.isnan(expected))
        np.testing.assert_allclose(found[k], expected, atol=2e-3)
    assert np.isnan(found[0, 3, 5]).all()


def test_patches_are_compared_as_on_the_cpu():
    rng = np.random.default_rng(0)
    image = textures(1, 40, 60)[0, 0].numpy().clip(0, 255).astype(np.uint8)
    other = (0.8 * image + 20).astype(np.uint8)
    other[:, 30:] = rng.integers(0, 255, (40, 30))
    flow = rng.normal(0, 0.2, (40, 60, 2)).astype(np.float32)
    expected = patches_agree(image, other, flow, 0.4)
    found = patches_agree_torch(*(torch.from_numpy(a)[None].float() for a in (image, other, flow)), 0.4)[0].numpy()
    assert np.mean(found[6:-6, 6:-6] == expected[6:-6, 6:-6]) > 0.98
    assert found[:, :24].mean() > 0.95 > 0.3 > found[:, 38:].mean()


@pytest.fixture(scope="module")
def matched():
    world = make_box_world(4, (72, 128))
    scene = world.scene
    geometry = AlignedGeometry(scene, scene.cameras, zero_fields(scene.depth, scene.valid, (4, 3, 2)))
    usable = usable_pixels(scene, scene.valid, PointFilterConfig())
    heard: list[int] = []
    pairs = [(2, 0), (1, 3)]
    matches = match_pairs(TorchFlowMatcher(scene, usable, 2, MATCHING), pairs, geometry, heard.append)
    return world, geometry, usable, pairs, matches, heard


def test_batched_matches_see_the_same_true_point(matched):
    world, _, _, pairs, matches, heard = matched
    assert heard == [2]
    for (source, target), match in zip(pairs, matches, strict=True):
        assert (match.source, match.target) == (source, target)
        assert len(match) > 800
        i, j = (np.floor(match.source_px[:, k]).astype(int) for k in (1, 0))
        points = transform(world.true.c2w[source], unproject_depth(world.true_depth[source], world.true.K[source]))[i, j]
        x, y, _ = project(transform(world.true.w2c[target], points), world.true.K[target])
        error = np.hypot(x - match.target_px[:, 0], y - match.target_px[:, 1])
        assert np.median(error) < 0.1
        assert np.mean(error > 1) < 0.02
        np.testing.assert_allclose(match.source_depth, world.scene.depth[source][i, j])


def test_batched_matches_are_those_of_the_cpu(matched):
    world, geometry, usable, pairs, matches, _ = matched
    other = FlowMatcher(world.scene, usable, 2, MATCHING).match(*pairs[0], geometry)
    key = lambda m: m.source_px[:, 1].astype(int) * 128 + m.source_px[:, 0].astype(int)
    _, a, b = np.intersect1d(key(other), key(matches[0]), return_indices=True)
    assert len(a) > 0.95 * len(other)
    apart = np.linalg.norm(other.target_px[a] - matches[0].target_px[b], axis=1)
    assert np.median(apart) < 0.1
    np.testing.assert_allclose(other.target_depth[a], matches[0].target_depth[b], rtol=0.02)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_flow_that_diverged_matches_nothing(matched, monkeypatch, value):
    world, geometry, usable, pairs, matches, _ = matched

    def diverging(source, target, known):
        flow = dense_flow(source, target, known)
        flow[:, :, : flow.shape[2] // 2] = value
        return flow

    monkeypatch.setattr("utils.matching.flow.batched.dense_flow", diverging)
    found = TorchFlowMatcher(world.scene, usable, 2, MATCHING).match(*pairs[0], geometry)
    right = matches[0].source_px[:, 0] > 64 + 4
    assert 0.8 * right.sum() < len(found) <= right.sum() + 200
    assert (found.source_px[:, 0] > 64).all()
    assert np.isfinite(found.target_px).all()


def test_two_devices_find_what_one_finds(matched):
    world, geometry, usable, pairs, matches, _ = matched
    both = TorchFlowMatcher(world.scene, usable, 2, replace(MATCHING, gpus=2))
    heard: list[int] = []
    for one, other in zip(matches, both.match_all(pairs, geometry, heard.append), strict=True):
        assert (one.source, one.target) == (other.source, other.target)
        np.testing.assert_allclose(one.target_px, other.target_px, atol=1e-3)
    assert heard == ([1, 2] if len(devices(2)) == 2 else [2])


def test_relaxation_solves_the_equations():
    draw = lambda *shape: torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    h, w = 5, 7
    xx, yy, xy = 2 + draw(1, 1, h, w), 3 + draw(1, 1, h, w), draw(1, 1, h, w) - 0.5
    across, down = torch.zeros(1, 1, h, w + 1), torch.zeros(1, 1, h + 1, w)
    across[..., 1:-1], down[..., 1:-1, :] = draw(1, 1, h, w - 1), draw(1, 1, h - 1, w)
    expected = draw(1, 2, h, w)
    padded = torch.nn.functional.pad(expected, (1, 1, 1, 1))
    right = torch.cat([xx * expected[:, :1] + xy * expected[:, 1:], xy * expected[:, :1] + yy * expected[:, 1:]], 1)
    right += across[..., :-1] * (expected - padded[..., 1:-1, :-2]) + across[..., 1:] * (expected - padded[..., 1:-1, 2:])
    right += down[..., :-1, :] * (expected - padded[..., :-2, 1:-1]) + down[..., 1:, :] * (expected - padded[..., 2:, 1:-1])
    torch.testing.assert_close(relax(xx, xy, yy, right, across, down, torch.zeros_like(expected)), expected, atol=2e-3, rtol=0)


@needs_triton
def test_flow_relaxation_agrees_with_torch():
    from utils.matching.optical_flow import triton

    draw = lambda *shape: torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    batch, h, w = 2, 11, 17
    xx, yy, xy = 1 + draw(batch, 1, h, w), 1 + draw(batch, 1, h, w + 0), draw(batch, 1, h, w) - 0.5
    across, down = torch.zeros(batch, 1, h, w + 1), torch.zeros(batch, 1, h + 1, w)
    across[..., 1:-1], down[..., 1:-1, :] = draw(batch, 1, h, w - 1), draw(batch, 1, h - 1, w)
    right, flow = draw(batch, 2, h, w), draw(batch, 2, h, w + 0)
    arguments = (xx, xy, yy, right, across, down, flow)
    expected = reference.relax(*arguments)
    got = triton.relax(*(a.to(GPU) for a in arguments), reference.RELAXATIONS)
    assert difference(got, expected.double()) < 1e-5


@needs_triton
def test_equations_of_the_flow_agree_with_torch():
    from utils.matching.optical_flow import triton

    draw = lambda channels, seed: uniform(seed, 2, channels, 11, 17)
    source, warped, known, flow = 200 * draw(1, 0), 200 * draw(1, 1), (draw(1, 2) > 0.2).double(), draw(2, 3) - 0.5
    expected = reference.linearised(source, warped, known, flow)
    arrays = (t.float().to(GPU) for t in (source, warped, known, flow))
    got = triton.linearised(*arrays, reference.ROBUST_TERMS)
    assert max(difference(g, e) for g, e in zip(got, expected, strict=True)) < 1e-4
