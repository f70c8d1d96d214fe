"""Focal lengths that change during a clip: dolly zooms are reconstructed, zooms from one place refused."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.sfm.test_geometry_sfm import alike, scattered_matches
from utils.cameras import se3
from utils.cameras.projection import project, transform, unproject_depth
from utils.errors import GeometryError
from utils.geometry_backend import ClipFrames, SparseModel
from utils.sfm import flow_depth, zoom_mapping
from utils.sfm.backend import SfmGeometry
from utils.sfm.clip_cameras import intrinsics_between
from utils.sfm.flow_depth_batched import project_inverse as project_batched
from utils.sfm.solvers.dense_bundle_adjustment import FocalPrior, Zoom, adjust
from utils.sfm.zoom_mapping import steady_zoom
from utils.synthetic.world import SyntheticWorld, WorldConfig, make_world
from utils.types import NULL_REPORTER, Array, Scene

FRAMES = 16


def world_of(dolly: float, path_scale: float) -> SyntheticWorld:
    """The view of a room widens from one frame to the next, to 0.6 of the focal length."""
    return make_world(
        WorldConfig(frames=FRAMES, size=(180, 320), severity="none", seed=1, path_scale=path_scale, texture="calm", zoom=0.6, dolly=dolly)
    )


def frames_of(world: SyntheticWorld) -> ClipFrames:
    return ClipFrames(images=world.images, chosen=np.arange(FRAMES), size=(140, 252), names=("",) * FRAMES)


def moved(frames: int, spread: float) -> Array:
    twists = np.zeros((frames, 6))
    twists[:, 3] = np.linspace(-spread, spread, frames)
    twists[:, 4] = 0.2 * np.sin(np.arange(frames))
    return se3.exp(torch.from_numpy(twists)).numpy()


def test_focal_lengths_are_found_frame_by_frame_and_stay_together_without_a_zoom() -> None:
    w2c, prior = moved(7, 1.0), FocalPrior(center_px=210.0, sigma=0.25, independent=700, zoom=Zoom(1.0))
    for zoom in (np.linspace(1.2, 0.8, 7), np.ones(7)):
        matches, inverse = scattered_matches(w2c, 0.1, alike(7, *zoom))
        bundle = adjust(w2c, alike(7), matches, inverse * 1.05, focal=prior, steps=40)
        found = bundle.K[:, 0, 0] / 200
        np.testing.assert_allclose(found / found[3], zoom / zoom[3], rtol=5e-3)
        shared = adjust(w2c, alike(7), matches, inverse * 1.05, focal=replace(prior, zoom=None), steps=40)
        gain = shared.objective - bundle.objective
        assert gain > 100 if zoom[0] > 1 else gain < 5


def test_penalty_of_a_zoom_ends_at_the_border_of_a_clip() -> None:
    frames, clips = np.array([0, 1, 3, 4, 6]), np.array([0, 0, 0, 0, 1, 1, 1])
    Q = Zoom(0.5, clips).penalties(frames, 0.25)
    step, level = np.array([0, 0, 0, 1, 1.0]), np.array([1, -1, 1, 0, 0.0])
    assert step @ Q @ step == pytest.approx(1 / 0.25**2)
    # a walk over 3 frames by -2 in one of them and by 2 in two, of a mean of a third
    assert level @ Q @ level == pytest.approx((4 / (1 / 3) + 4 / (2 / 3)) / 0.25 + (1 / 3 / 0.25) ** 2)


def test_a_camera_of_another_focal_length_is_one_of_the_references_with_scaled_axes() -> None:
    rng = np.random.default_rng(0)
    w2c, K, inverse = moved(2, 0.2), alike(2, 1.0, 0.7), rng.uniform(0.2, 0.5, (140, 252)).astype(np.float32)
    pose = flow_depth.zoomed_relative(w2c[1], K[1], w2c[0], K[0])
    pixel, _ = flow_depth.project_inverse(inverse, *pose, K[0])
    there = project(transform(w2c[1] @ np.linalg.inv(w2c[0]), unproject_depth(1 / inverse, K[0]).astype(np.float64)), K[1])
    np.testing.assert_allclose(pixel, np.stack(there[:2], -1), atol=2e-3)
    arrays = [torch.from_numpy(np.asarray(part)[None].astype(np.float32)) for part in (inverse, *pose)]
    batched, _ = project_batched(arrays[0].repeat(2, 1, 1), arrays[1].repeat(2, 1, 1), arrays[2].repeat(2, 1), torch.from_numpy(K).float())
    np.testing.assert_allclose(batched[0], pixel, atol=2e-3)
    assert np.abs(batched[1].numpy() - pixel).max() > 1  # that of the other K


def test_a_zoom_is_undone_for_mapping_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapping gets features as one camera of focal length 200 sees them, and its model those of the zooming cameras."""
    ratios, w2c = steady_zoom(0.5, 4), moved(4, 0.3)
    point, frames = np.array([0.4, -0.2, 5.0]), np.arange(1, 4)
    assert ratios[-1] / ratios[0] == pytest.approx(0.5) and np.log(ratios).mean() == pytest.approx(0)
    zooming, one, given = alike(4, *ratios), alike(4), []
    pixels = lambda K: np.array([(K[i] @ (w2c[i, :3] @ [*point, 1]))[:2] / (w2c[i, 2] @ [*point, 1]) for i in frames])

    def mapped(*_: object, **__: object) -> SparseModel:
        return SparseModel(
            frames=frames, w2c=w2c[1:], K=one[1:], points=point[None], seen_by=np.arange(3), seen_point=np.zeros(3, int),
            seen_at=pixels(one), error_px=0.0,
        )  # fmt: skip

    monkeypatch.setattr(zoom_mapping, "with_scaled_features", lambda database, scales, copy, seed: given.append(scales))
    monkeypatch.setattr(zoom_mapping, "map_globally", mapped)
    model = zoom_mapping.map_zooming(tmp_path / "database.db", ratios, 0)
    assert model is not None
    np.testing.assert_allclose(given[0] * ratios, 1)
    np.testing.assert_allclose(model.K, zooming[1:])
    np.testing.assert_allclose(model.seen_at, pixels(zooming), atol=1e-9)


def test_focal_lengths_between_frames_do_not_cross_clips() -> None:
    K = intrinsics_between(np.array([0, 2, 4]), alike(3, 1.0, 2.0, 4.0), 6, np.array([0, 0, 0, 0, 1, 1]))
    np.testing.assert_allclose(K[:, 0, 0] / 200, [1, 1.5, 2, 2, 4, 4])
    np.testing.assert_allclose(K[:, 1, 1] / 190, [1, 1.5, 2, 2, 4, 4])


def depth_scales(world: SyntheticWorld, scene: Scene) -> Array:
    """(N,) median of true over found depth of every frame."""
    rows = np.linspace(0, 179, 140).astype(int)[:, None], np.linspace(0, 319, 252).astype(int)[None]
    truth = [world.depth[frame][rows] for frame in scene.cameras.frame_ids]
    return np.array([np.median(true[true > 0] / found[true > 0]) for true, found in zip(truth, scene.depth, strict=True)])


@pytest.mark.slow
def test_a_dolly_zoom_is_reconstructed() -> None:
    world = world_of(dolly=1.0, path_scale=0.3)
    scene = SfmGeometry(seed=0).estimate(frames_of(world), NULL_REPORTER)
    assert len(scene.cameras) == FRAMES
    focal, truth = scene.cameras.K[:, 0, 0], world.cameras.resized((140, 252)).K[:, 0, 0]
    # with one focal length the ratio is off by 1.67 and depth of the first frame against that of the last by 1.75
    assert focal[-1] / focal[0] == pytest.approx(truth[-1] / truth[0], rel=0.12)
    scales = depth_scales(world, scene)
    assert scales.max() / scales.min() < 1.2


@pytest.mark.slow
def test_clips_of_one_place_have_a_focal_length_each() -> None:
    """Every other frame of a clip makes a second one, cut to the middle and enlarged 1.4 times."""
    world = make_world(WorldConfig(frames=2 * FRAMES, size=(180, 320), severity="none", seed=1, texture="calm"))
    closer = [cv2.resize(image[26:154, 46:274], (320, 180), interpolation=cv2.INTER_CUBIC) for image in world.images[1::2]]
    clips = np.repeat([0, 1], FRAMES)
    frames = replace(
        frames_of(world),
        images=np.concatenate([world.images[::2], closer]),
        chosen=np.arange(2 * FRAMES),
        names=("",) * len(clips),
        clips=clips,
    )
    scene = SfmGeometry(seed=0).estimate(frames, NULL_REPORTER)
    assert len(scene.cameras) == 2 * FRAMES
    focal = scene.cameras.K[:, 0, 0]
    assert np.median(focal[clips == 1]) / np.median(focal[clips == 0]) == pytest.approx(1.4, rel=0.02)
    assert all(np.ptp(focal[clips == clip]) < 0.02 * focal.mean() for clip in (0, 1))


@pytest.mark.slow
def test_a_zoom_from_one_place_is_refused() -> None:
    with pytest.raises(GeometryError, match=r"zooms.* hardly changes its place"):
        SfmGeometry(seed=0).estimate(frames_of(world_of(dolly=0.0, path_scale=0.0)), NULL_REPORTER)
