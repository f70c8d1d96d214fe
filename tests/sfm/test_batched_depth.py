"""Matching and triangulation of the depth rounds in batched torch against the compiled code."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from tests.twins import GPU
from utils.sfm import backend, flow_depth_batched, plane_sweep_batched
from utils.sfm.depth_completion import relative_poses
from utils.sfm.flow_depth import RayDepth, project_inverse, reproject_depth, triangulate
from utils.sfm.flow_depth_batched import BatchedFlowDepth
from utils.sfm.flow_depth_batched import project_inverse as project_batched
from utils.sfm.flow_depth_batched import triangulate as triangulate_batched
from utils.sfm.plane_sweep import sweep
from utils.sfm.plane_sweep_batched import View, sweep_all
from utils.sfm.rehearsal import made_clip
from utils.sfm.reprojection_batched import reproject_all


@pytest.fixture
def noisy() -> Iterator[tuple[np.ndarray, ...]]:
    """Matches of true points seen by seven views, with noise, outliers and holes; points at and beyond infinity among them."""
    rng = np.random.default_rng(5)
    views, height, width = 7, 24, 40
    K = np.array([[50.0, 0, 20], [0, 52.0, 12], [0, 0, 1]])
    inverse = rng.uniform(-0.01, 0.6, (height, width)).astype(np.float32)
    translations = np.column_stack([np.linspace(-0.5, 0.5, views), rng.normal(0, 0.1, (views, 2))])
    rotations = np.tile(np.eye(3), (views, 1, 1))
    y, x = np.mgrid[:height, :width] + 0.5
    rays = np.stack([(x - 20) / 50, (y - 12) / 52, np.ones_like(x)], -1)
    q = rays[None] + inverse[None, ..., None] * translations[:, None, None]
    matches = (q[..., :2] / q[..., 2:] * [50, 52] + [20, 12] + rng.normal(0, 0.2, (views, height, width, 2))).astype(np.float32)
    matches[rng.random(matches.shape[:3]) < 0.1] += 9
    valid = rng.random((views, height, width)) > 0.3
    valid[:, 3, 4] = False
    yield matches, valid, rotations, translations, K


def test_triangulation_is_that_of_the_compiled_code(noisy: tuple[np.ndarray, ...]) -> None:
    matches, valid, rotations, translations, K = noisy
    expected = triangulate(*noisy)
    arrays = (torch.from_numpy(a[None]).to(GPU) for a in (matches, valid, *(a.astype(np.float32) for a in (rotations, translations, K))))
    found = RayDepth(*(part[0].cpu().numpy() for part in triangulate_batched(*arrays)))
    same = found.views == expected.views  # rounding may put a match on the other side of a gate
    assert same.mean() > 0.99 and found.views.max() > 5 and found.views[3, 4] == 0
    np.testing.assert_allclose(found.inverse[same], expected.inverse[same], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.weight[same], expected.weight[same], rtol=1e-2, atol=1e-4)
    assert (found.far == expected.far)[same].mean() > 0.99 and 0 < found.far.sum() < found.far.size


def test_projection_is_that_of_the_compiled_code() -> None:
    rng = np.random.default_rng(2)
    inverse = rng.uniform(0, 2, (20, 30)).astype(np.float32)
    K = np.array([[25.0, 0, 15], [0, 25.0, 10], [0, 0, 1]])
    rotation, translation = np.linalg.qr(np.eye(3) + rng.normal(0, 0.2, (3, 3)))[0], np.array([0.3, -0.2, -0.8])
    expected, seen = project_inverse(inverse, rotation, translation, K)
    arrays = (torch.from_numpy(a[None].astype(np.float32)).to(GPU) for a in (inverse, rotation, translation, K))
    pixel, visible = project_batched(*arrays)
    np.testing.assert_array_equal(visible[0].cpu().numpy(), seen)
    assert 0 < seen.sum() < seen.size
    np.testing.assert_allclose(pixel[0].cpu().numpy()[seen], expected[seen], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_a_clip_is_measured_as_by_the_compiled_code(masked: bool) -> None:
    clip, _ = made_clip()
    keep = None
    if masked:
        keep = np.ones(clip.grays.shape, bool)
        keep[:, :, 20:30] = False
    neighbours = [[k for k in range(5) if k != row] for row in range(5)]
    inverse = [np.full(clip.grays.shape[1:], 1 / 3.2, np.float32)] * 5
    at = backend._sampled_pixels(clip.grays.shape[1:])
    clip = replace(clip, keep=keep)
    found = list(BatchedFlowDepth(clip.grays, keep, GPU).measure_all(clip, neighbours, inverse, at))
    for row, measured in enumerate(found):
        expected = backend._measure(clip, row, neighbours[row], inverse[row])
        both = (measured.ray.views >= 3) & (expected.ray.views >= 3)
        assert both.mean() > 0.5 and measured.ray.inverse.dtype == np.float32
        assert abs(np.median(measured.ray.inverse[both]) * 3 - 1) < 0.01
        assert (measured.ray.views > 0).mean() > 0.95 * (expected.ray.views > 0).mean()
        held = measured.valid & expected.valid
        assert held.mean() > 0.4
        assert np.median(np.abs(measured.matches - expected.matches)[held]) < 0.1
        if keep is not None:
            assert not measured.ray.views[:, 20:30].any()


def test_batches_recorded_and_replayed_measure_what_one_large_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five batches of a ref each, on a GPU recorded at the second, in two rounds; refs of two to four neighbours."""
    clip, _ = made_clip()
    neighbours = [[k for k in range(5) if k != row][: 4 - row % 3] for row in range(5)]
    at = backend._sampled_pixels(clip.grays.shape[1:])
    small = BatchedFlowDepth(clip.grays, None, GPU)
    monkeypatch.setattr(flow_depth_batched, "_BATCH_PIXELS", 2 * 4 * clip.grays[0].size)
    batched = BatchedFlowDepth(clip.grays, None, GPU)
    for start in (1 / 3.2, 1 / 2.9):
        inverse = [np.full(clip.grays.shape[1:], start, np.float32)] * 5
        expected = list(small.measure_all(clip, neighbours, inverse, at))
        found = list(batched.measure_all(clip, neighbours, inverse, at))
        assert [len(m.matches) for m in found] == [len(m.valid) for m in found] == [len(own) for own in neighbours]
        for one, other in zip(found, expected, strict=True):
            known = other.ray.views == one.ray.views
            assert known.mean() > 0.98 and one.ray.views.max() > 1
            np.testing.assert_allclose(one.ray.inverse[known], other.ray.inverse[known], rtol=1e-2)
            both = one.valid & other.valid
            assert both.mean() > 0.5 and np.abs(one.matches - other.matches)[both].max() < 0.1
    assert (batched._recorded is not None) and (small._recorded is None)


def test_a_device_short_of_memory_is_given_less_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, _ = made_clip()
    neighbours = [[k for k in range(5) if k != row] for row in range(5)]
    inverse = [np.full(clip.grays.shape[1:], 1 / 3.2, np.float32)] * 5
    at = backend._sampled_pixels(clip.grays.shape[1:])
    expected = list(BatchedFlowDepth(clip.grays, None, GPU).measure_all(clip, neighbours, inverse, at))
    match, asked = flow_depth_batched.match_through_depth, []

    def scarce(reference: torch.Tensor, *others: object) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(reference))
        if len(reference) > 3:
            raise torch.OutOfMemoryError
        return match(reference, *others)

    monkeypatch.setattr(flow_depth_batched, "match_through_depth", scarce)
    found = list(BatchedFlowDepth(clip.grays, None, GPU).measure_all(clip, neighbours, inverse, at))
    assert len(found) == 5 and asked[0] == 20 and max(asked[-4:]) <= 3
    for one, other in zip(found, expected, strict=True):
        assert (one.ray.views == other.ray.views).mean() > 0.95


@pytest.mark.parametrize("masked", [False, True])
def test_planes_are_swept_as_by_the_compiled_code(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refs of two to four neighbours on a slanted range of depths, two at once and a part of the planes at a time; one ref is blank."""
    monkeypatch.setattr(plane_sweep_batched, "_REFS", 2)
    monkeypatch.setattr(plane_sweep_batched, "_COMPARED", 20 * 4 * 48 * 64)
    clip, frames = made_clip()
    grays = clip.grays.copy()
    grays[:, 20:30, 40:60] = 128
    keep = None
    if masked:
        keep = np.ones(grays.shape, bool)
        keep[1, :, 20:30] = False
        keep[3:, 10:20, 5:30] = False
    neighbours = [[k for k in range(5) if k != row][: 4 - row % 3] for row in range(5)]
    inverse = np.linspace(1 / 5, 1 / 2, grays[0].size, dtype=np.float32).reshape(grays[0].shape)
    poses = [relative_poses(clip, row, neighbours[row]) for row in range(5)]
    images = [*frames.images[:4], np.full_like(frames.images[4], 90)]
    views = [View(row, images[row], neighbours[row], poses[row], clip.K[row], inverse) for row in range(5)]
    with ThreadPoolExecutor(1) as pool:
        found = sweep_all(views, grays, keep, GPU, pool)
    for row, (swept, spacing) in enumerate(found):
        shown = [row, *neighbours[row]]
        expected, expected_spacing = sweep(
            images[row], grays[shown], poses[row], clip.K[row], inverse, None if keep is None else keep[shown]
        )
        assert spacing == pytest.approx(expected_spacing) and swept.dtype == np.float32
        assert (np.isnan(swept) == np.isnan(expected)).mean() > 0.99
        both = np.isfinite(swept) & np.isfinite(expected)
        assert both.mean() > 0.5 and np.median(np.abs(swept[both] * 3 - 1)) < 0.05
        assert (np.abs(swept - expected)[both] > 0.05 * spacing).mean() < 0.01


def test_depth_is_reprojected_as_by_the_compiled_code() -> None:
    """Eleven frames that turn and move towards what they see, of two focal lengths, with holes and values beyond infinity."""
    rng = np.random.default_rng(3)
    frames, height, width = 11, 30, 44
    inverse = (0.3 + 0.1 * rng.random((frames, height, width)) * (rng.random((frames, height, width)) < 0.3)).astype(np.float32)
    inverse[:, 5, 5:9] = -0.01
    valid = rng.random(inverse.shape) > 0.2
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, :3, 3] = np.linspace(-1, 1, frames)[:, None] * [0.3, 0.1, 0.8]
    turn = np.linspace(-0.1, 0.1, frames)
    w2c[:, 0, 0], w2c[:, 0, 2], w2c[:, 2, 0], w2c[:, 2, 2] = np.cos(turn), np.sin(turn), -np.sin(turn), np.cos(turn)
    K = np.tile(np.array([[40.0, 0, 22], [0, 42.0, 15], [0, 0, 1]]), (frames, 1, 1))
    K[6:, [0, 1], [0, 1]] *= 1.1
    for row, (value, count) in enumerate(reproject_all(inverse, valid, w2c, K, GPU)):
        expected, expected_count = reproject_depth(inverse, valid, w2c, K, row)
        assert value.dtype == count.dtype == np.float32 and expected_count.max() > 3 and (expected_count == 0).any()
        same = count == expected_count  # rounding may put a point on the next pixel
        assert same.mean() > 0.99
        assert (np.abs(value - expected)[same] < 1e-5).mean() > 0.99


def test_flow_of_large_images_is_found_at_half_resolution_in_their_own_pixels() -> None:
    """By 9 and -4.5 pixels, sides odd; on small images the same."""
    for height, width in ((301, 401), (76, 102)):
        rng = np.random.default_rng(4)
        texture = cv2.GaussianBlur(rng.uniform(0, 255, (height + 40, width + 40)).astype(np.float32), (0, 0), 2.5)
        texture = (texture - texture.mean()) * 8 + 128
        source = texture[20:-20, 20:-20]
        y, x = np.mgrid[:height, :width].astype(np.float32)
        target = cv2.remap(texture, x + 20 - 9, y + 20 + 4.5, cv2.INTER_CUBIC)
        images = [torch.from_numpy(np.ascontiguousarray(image))[None].to(GPU) for image in (source, target)]
        flow = flow_depth_batched._flow(*images, torch.ones(1, height, width, dtype=torch.bool, device=GPU))[0].cpu().numpy()
        assert flow.shape == (height, width, 2)
        off = np.linalg.norm(flow - [9, -4.5], axis=-1)[12:-12, 12:-12]
        assert np.median(off) < 0.1 and np.percentile(off, 90) < 0.4
