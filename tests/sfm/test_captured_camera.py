"""Lens and rolling shutter of captured footage: estimated from rendered clips whose rows have poses of their own, and taken out."""

import numpy as np
import pytest

from tests.notes import Notes
from utils.cameras.lens import Lens
from utils.errors import ConfigError
from utils.scene.captured import CapturedCamera, ClipMotion, Straightener, image_motion, parse_camera, read_share
from utils.sfm import captured_camera
from utils.sfm.captured_camera import estimate_camera
from utils.sfm.solvers import dense_bundle_adjustment as flow_bundle
from utils.synthetic.captured import CapturedConfig, capture, global_shutter
from utils.types import NULL_REPORTER, Array

pytestmark = pytest.mark.slow

NO_LENS = Lens(0.9, 0.0)


def test_lens_and_shutter_are_estimated_and_taken_out() -> None:
    config = CapturedConfig(layout="object", frames=10, readout=0.6, k=-0.1)
    images = capture(config).images
    motion = ClipMotion(lambda position: images[position], [len(images)])
    camera, model = estimate_camera(images, motion.of, seed=0, report=NULL_REPORTER)
    assert camera.readout == pytest.approx(0.6, abs=0.1) and camera.lens.k == pytest.approx(-0.1, abs=0.03)
    # The model that comes with it is that of the straightened images, so that they need not be mapped again.
    camera_points = np.einsum("mij,mj->mi", model.w2c[model.seen_by, :3, :3], model.points[model.seen_point])
    camera_points += model.w2c[model.seen_by, :3, 3]
    pixels = (camera_points / camera_points[:, 2:]) @ model.K[0].T
    assert np.median(np.linalg.norm(pixels[:, :2] - model.seen_at, axis=1)) < 0.4
    assert model.focal == pytest.approx(0.85 * 256, rel=0.04)
    inner = (slice(16, -16), slice(16, -16))
    truth = global_shutter(config, 5)[inner].astype(int)
    straight = Straightener(camera, motion)(images[5], 5)
    before, after = (np.abs(image[inner] - truth).mean() for image in (images[5], straight))
    assert after < 0.4 * before


def test_bundle_adjustment_tells_lens_and_shutter_from_poses() -> None:
    rng = np.random.default_rng(0)
    frames, points, k, readout = 6, 150, -0.08, 0.4
    K = np.array([[220.0, 0, 128], [0, 220.0, 72], [0, 0, 1]])
    world = np.column_stack([rng.uniform(-1.5, 1.5, points), rng.uniform(-0.8, 0.8, points), rng.uniform(2, 5, points)])
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, :2, 3] = rng.normal(0, 0.3, (frames, 2))
    seen = np.einsum("fij,pj->fpi", w2c[:, :3, :3], world) + w2c[:, None, :3, 3]
    flat = seen[..., :2] / seen[..., 2:]
    shift = rng.normal(0, 4, (frames, points, 2))
    pixels = 220.0 * flat * (1 + k * (flat**2).sum(-1, keepdims=True)) + K[:2, 2] + readout * shift
    point, target = (grid.ravel() for grid in np.meshgrid(np.arange(points), np.arange(1, frames), indexing="ij"))
    host = np.zeros_like(target)
    matches = flow_bundle.Matches(host=host, target=target, point=point, host_px=pixels[0, point], target_px=pixels[target, point])
    faults = flow_bundle.CameraFaults(
        host_shift=shift[0, point], target_shift=shift[target, point], k_sigma=0.1, readout_sigma=0.5, independent=1e4
    )
    start = 1 / seen[0, :, 2] * rng.normal(1, 0.05, points)
    focal = flow_bundle.FocalPrior(center_px=220.0, sigma=0.1, independent=1e4)
    bundle = flow_bundle.adjust(w2c, np.repeat(K[None], len(w2c), 0), matches, start, focal=focal, steps=60, faults=faults)
    assert bundle.k == pytest.approx(k, abs=2e-3) and bundle.readout == pytest.approx(readout, abs=2e-3)
    assert bundle.after_px < 0.02 < bundle.before_px
    plain = flow_bundle.adjust(w2c, np.repeat(K[None], len(w2c), 0), matches, start, focal=focal, steps=60)
    assert (plain.k, plain.readout) == (0, 0) and plain.after_px > 0.3


def test_rows_go_back_to_where_they_were_at_the_middle_row() -> None:
    """A vertical edge that moves to the right by 20 pixels a frame leans to the right in a picture read from the top."""
    size, speed, readout = (80, 120), 20.0, 0.5
    leaning = np.zeros(size, np.uint8)
    for row in range(size[0]):
        leaning[row, round(60 + speed * readout * ((row + 0.5) / size[0] - 0.5)) :] = 200
    motion = np.zeros((40, 60, 2), np.float32)
    motion[..., 0] = speed / 2
    upright = CapturedCamera(NO_LENS, readout).straightened(leaning, motion)
    edges = (upright > 100).argmax(1)
    assert np.ptp((leaning > 100).argmax(1)) >= 9 and np.abs(edges - 60).max() <= 1
    assert np.ptp((CapturedCamera(NO_LENS, -readout).straightened(leaning, motion) > 100).argmax(1)) > 15
    # A picture that is higher than wide was taken with the camera turned: its columns are the sensor's rows.
    turned = CapturedCamera(NO_LENS, readout).straightened(leaning.T.copy(), motion.transpose(1, 0, 2)[..., ::-1].copy())
    np.testing.assert_array_equal(turned, upright.T)
    assert read_share(np.array([10.0, 40.0]), size) == 0 and read_share(np.array([10.0, 80.0]), (120, 80)) == pytest.approx(-0.375)
    with pytest.raises(ValueError, match="motion"):
        CapturedCamera(NO_LENS, readout).straightened(leaning)


def moving(count: int, speed: float) -> Array:
    """Frames (F, 80, 120, 3) of a texture that moves to the right."""
    import cv2

    texture = cv2.GaussianBlur(np.random.default_rng(0).uniform(0, 255, (80, 240)).astype(np.float32), (0, 0), 2)
    texture = ((texture - texture.min()) / np.ptp(texture) * 255).astype(np.uint8)
    return np.stack([np.repeat(texture[:, 100 - round(i * speed) : 220 - round(i * speed), None], 3, -1) for i in range(count)])


def test_motion_is_measured_between_neighbours_of_one_clip() -> None:
    images = np.concatenate([moving(3, 3.0), moving(2, -2.0)])
    motion = ClipMotion(lambda position: images[position], [3, 2])
    for position, expected in enumerate((3, 3, 3, -2, -2)):
        middle = motion.of(position)[20:60, 30:90]
        assert np.median(middle[..., 0]) == pytest.approx(expected, abs=0.1) and abs(np.median(middle[..., 1])) < 0.1
    assert not image_motion(None, images[0, ..., 0], None).any()


def test_implausible_readout_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def adjusted(model: object, matches: object, start: object, shifts: object, size: tuple[int, int]) -> flow_bundle.Bundle:
        K = np.diag([90.0, 90.0, 1.0])[None]
        return flow_bundle.Bundle(
            w2c=np.eye(4)[None],
            K=K,
            inverse=np.ones(1),
            before_px=1,
            after_px=1,
            objective=0,
            k=0.01,
            readout=0.0 if shifts is None else 1.7,
        )

    monkeypatch.setattr(captured_camera, "_adjusted", adjusted)
    monkeypatch.setattr(captured_camera, "map_distorted", lambda images, seed, keep: None)
    monkeypatch.setattr(captured_camera, "by_point", lambda model: model)
    monkeypatch.setattr(captured_camera, "hosted", lambda model: (None, None))
    monkeypatch.setattr(captured_camera, "_shifts", lambda *_: np.zeros(1))
    monkeypatch.setattr(captured_camera, "_straightened", lambda *_: None)
    notes = Notes()
    camera, _ = estimate_camera(np.zeros((3, 60, 100, 3), np.uint8), lambda row: np.zeros(1), seed=0, report=notes)
    assert camera == CapturedCamera(Lens(0.9, 0.01)) and "+1.70 frame intervals is implausible" in notes.lines[0]


def test_cameras_are_read_from_text() -> None:
    assert parse_camera("0.8,-0.03") == CapturedCamera(Lens(0.8, -0.03))
    assert parse_camera("0.8,-0.03,0.9") == CapturedCamera(Lens(0.8, -0.03), 0.9)
    for wrong in ("0.8", "0.8,-0.03,slow", "0.8,-0.03,1.5", "1,2,3,4"):
        with pytest.raises(ConfigError):
            parse_camera(wrong)
