"""Metrics against hand-computed values and a scene whose flow is known."""

import numpy as np
import pytest

from eval_gs import metrics
from utils.errors import MissingDependencyError

H, W, FOCAL = 96, 128, 100.0
K = np.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1]])


def texture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth pattern without repetition over the plane, uint8 (h, w, 3)."""
    rng = np.random.default_rng(1)
    value = np.zeros((*x.shape, 3))
    for _ in range(24):
        fx, fy, phase = [*rng.normal(0, 6, 2).tolist(), rng.uniform(0, 6.3)]
        value += rng.uniform(0.3, 1, 3) * np.sin(fx * x + fy * y + phase)[..., None]
    return (np.clip(0.5 + 0.1 * value, 0, 1) * 255 + 0.5).astype(np.uint8)


def plane_view(camera_x: float, depth: float = 2.0) -> np.ndarray:
    """The textured plane z = depth seen by a camera at (camera_x, 0, 0) that looks along z."""
    u, v = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    return texture((u - W / 2) / FOCAL * depth + camera_x, (v - H / 2) / FOCAL * depth)


def moved(x: float) -> np.ndarray:
    """b from a, for camera b at +x of camera a."""
    pose = np.eye(4)
    pose[0, 3] = -x
    return pose


def test_psnr_of_a_known_error() -> None:
    a = np.full((8, 8, 3), 0.5)
    assert metrics.psnr(a, a + 0.1) == pytest.approx(20.0)
    assert metrics.psnr(a, a) == 100.0
    mask = np.zeros((8, 8), bool)
    mask[:2] = True
    b = a.copy()
    b[2:] += 0.3
    assert metrics.psnr(a, b, mask) == 100.0 > metrics.psnr(a, b)
    assert metrics.psnr(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)) == pytest.approx(0.0)


def test_ssim_of_a_constant_shift_is_its_luminance_term() -> None:
    a, b = np.full((32, 32, 3), 0.4), np.full((32, 32, 3), 0.6)
    assert metrics.ssim(a, b) == pytest.approx((2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4))
    image = plane_view(0)
    assert metrics.ssim(image, image) == pytest.approx(1.0)
    assert metrics.ssim(image, 255 - image) < 0.2


def test_sharpness_falls_with_blur_and_is_zero_for_grey() -> None:
    import cv2

    image = plane_view(0)
    assert metrics.sharpness(image) > 2 * metrics.sharpness(cv2.GaussianBlur(image, (9, 9), 2))
    assert metrics.sharpness(np.full((16, 16, 3), 77, np.uint8)) == 0.0


def test_flow_of_a_plane_has_the_known_disparity_and_sign() -> None:
    flow = metrics.dense_flow(plane_view(0), plane_view(0.1))
    assert np.median(flow[20:-20, 30:-30, 0]) == pytest.approx(-0.1 * FOCAL / 2.0, abs=0.3)
    depth = np.full((H, W), 2.0)
    expected, valid = metrics.reprojected_flow(depth, depth, moved(0.1), K, K)
    np.testing.assert_allclose(expected[valid], np.broadcast_to([-5.0, 0.0], expected[valid].shape), atol=1e-9)
    assert valid[:, 6:].all() and not valid[:, :5].any()  # the left edge leaves the picture


def test_hidden_pixels_do_not_count() -> None:
    depth, nearer = np.full((H, W), 2.0), np.full((H, W), 1.0)
    assert not metrics.reprojected_flow(depth, nearer, moved(0.1), K, K)[1].any()
    assert not metrics.reprojected_flow(np.zeros((H, W)), depth, moved(0.1), K, K)[1].any()


def test_consistency_sees_a_wrong_camera_and_a_wrong_depth() -> None:
    images = (plane_view(0), plane_view(0.1))
    depth = np.full((H, W), 2.0, np.float32)
    good = metrics.pair_consistency(images, (depth, depth), moved(0.1), (K, K))
    flipped = metrics.pair_consistency(images, (depth, depth), moved(-0.1), (K, K))
    wrong_depth = metrics.pair_consistency(images, (depth * 2, depth * 2), moved(0.1), (K, K))
    assert good.reprojection_px < 0.3 and good.coverage > 0.8
    assert flipped.reprojection_px == pytest.approx(10.0, abs=0.5)
    assert wrong_depth.reprojection_px == pytest.approx(2.5, abs=0.4)
    assert good.flow_photometric < 0.03 and good.flow_round_trip_px < 1.0


def test_lpips_says_what_is_missing() -> None:
    try:
        distance = metrics.Lpips()
    except MissingDependencyError as error:
        assert "LPIPS needs" in error.message and error.hint
        return
    assert distance(plane_view(0), plane_view(0)) < 1e-6 < distance(plane_view(0), plane_view(0.5))
