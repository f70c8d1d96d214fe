"""Bundle adjustment in torch, as a GPU runs it, against the compiled code."""

import numpy as np
import pytest
import torch

from utils.cameras import se3
from utils.sfm.solvers import dense_bundle_adjustment as dense
from utils.sfm.solvers import track_bundle_adjustment as track
from utils.sfm.solvers.dense_bundle_adjustment import Bundle, FocalPrior, Matches, Zoom, adjust
from utils.sfm.solvers.tracks import Placed, Tracks

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]
FRAMES, POINTS = 7, 60


def disturbed() -> tuple[np.ndarray, np.ndarray, Matches, np.ndarray]:
    """Poses, K, matches of points seen by several frames, some of them wrong, and the points' 1/z, all a little off."""
    random = np.random.default_rng(3)
    twists = np.zeros((FRAMES, 6))
    twists[:, 3], twists[:, 1] = np.linspace(-0.6, 0.6, FRAMES), np.linspace(0.2, -0.2, FRAMES)
    w2c = se3.exp(torch.from_numpy(twists)).numpy()
    K = np.tile(np.array([[90.0, 0, 50], [0, 95, 40], [0, 0, 1]]), (FRAMES, 1, 1))
    world = np.column_stack([random.uniform(-1, 1, (POINTS, 2)), random.uniform(2, 5, POINTS)])
    local = np.einsum("fij,pj->fpi", w2c[:, :3, :3], world) + w2c[:, None, :3, 3]
    pixels = local[..., :2] / local[..., 2:] * [90.0, 95.0] + [50.0, 40.0] + random.normal(0, 0.1, (FRAMES, POINTS, 2))
    rows = [(int(host), target, point) for point, host in enumerate(random.integers(0, FRAMES, POINTS)) for target in range(FRAMES)]
    host, target, point = np.array([row for row in rows if row[0] != row[1] and (row[1] + row[2]) % 3]).T
    _, point = np.unique(point, return_inverse=True)
    target_px = pixels[target, point]
    target_px[::17] += 9
    matches = Matches(host=host, target=target, point=point, host_px=pixels[host, point], target_px=target_px)
    first = np.unique(point, return_index=True)[1]
    moved = se3.exp(torch.from_numpy(random.normal(0, 0.01, (FRAMES, 6)))).numpy() @ w2c
    return moved, K * np.array([1.1, 1.1, 1])[:, None], matches, 1.1 / local[host[first], point[first], 2]


def fitted(focal: FocalPrior | None) -> Bundle:
    return adjust(*disturbed(), focal=focal, steps=20)


PRIOR = FocalPrior(center_px=95.0, sigma=0.1, independent=7.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "focal", [None, PRIOR, FocalPrior(center_px=95.0, sigma=0.1, independent=7.0, zoom=Zoom(0.3))], ids=["held", "shared", "zoom"]
)
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_batched_adjustment_equals_the_compiled_one(
    monkeypatch: pytest.MonkeyPatch, device: str, focal: FocalPrior | None, chunk: int
) -> None:
    expected = fitted(focal)
    monkeypatch.setattr(dense, "accelerator", lambda: torch.device(device))
    monkeypatch.setattr(dense, "_LEAST_ON_DEVICE", 0)
    monkeypatch.setattr("utils.sfm.solvers.dense_bundle_adjustment_batched.CHUNK_NUMBERS", chunk)
    found = fitted(focal)
    assert expected.after_px < 0.5 * expected.before_px
    assert found.objective == pytest.approx(expected.objective, rel=1e-7)
    np.testing.assert_allclose(found.w2c, expected.w2c, atol=1e-7)
    np.testing.assert_allclose(found.K, expected.K, rtol=1e-7)
    np.testing.assert_allclose(found.inverse, expected.inverse, rtol=1e-6, atol=1e-7)


def disturbed_tracks() -> tuple[Tracks, Placed]:
    """The same as tracks; one point behind a camera."""
    w2c, K, matches, inverse = disturbed()
    first = np.unique(matches.point, return_index=True)[1]
    counts = np.diff(np.r_[first, len(matches.point)]) + 1
    frame = np.concatenate([np.r_[matches.host[a], matches.target[a : a + n - 1]] for a, n in zip(first, counts, strict=True)])
    at = np.concatenate([np.r_[matches.host_px[a : a + 1], matches.target_px[a : a + n - 1]] for a, n in zip(first, counts, strict=True)])
    host, ray = matches.host[first], np.column_stack([(matches.host_px[first] - [50, 40]) / [90, 95], np.ones(len(first))])
    c2w = np.linalg.inv(w2c[host])
    points = np.einsum("pij,pj->pi", c2w[:, :3, :3], ray / inverse[:, None]) + c2w[:, :3, 3]
    points[5] *= -1
    return Tracks(first=np.r_[0, np.cumsum(counts)], frame=frame, at=at), Placed(w2c=w2c, K=K[0], points=points)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("free_focal", "turning"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_batched_adjustment_of_tracks_equals_the_compiled_one(
    monkeypatch: pytest.MonkeyPatch, device: str, free_focal: bool, turning: bool, chunk: int
) -> None:
    tracks, placed = disturbed_tracks()
    expected = track.adjust_tracks(tracks, placed, free_focal=free_focal, turning=turning, steps=25)
    monkeypatch.setattr(track, "accelerator", lambda: torch.device(device))
    monkeypatch.setattr(track, "_LEAST_ON_DEVICE", 0)
    monkeypatch.setattr("utils.sfm.solvers.track_bundle_adjustment_batched.CHUNK_NUMBERS", chunk)
    found = track.adjust_tracks(tracks, placed, free_focal=free_focal, turning=turning, steps=25)
    assert np.abs(expected.w2c - placed.w2c).max() > 1e-3
    np.testing.assert_allclose(found.w2c, expected.w2c, atol=1e-6)
    np.testing.assert_allclose(found.K, expected.K, rtol=1e-6)
    np.testing.assert_allclose(found.points, expected.points, atol=1e-5)
