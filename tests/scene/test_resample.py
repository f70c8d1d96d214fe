"""Resizing keeps place, level and detail, and does not alias."""

import cv2
import numpy as np
import pytest

from utils.scene.media import resize_area
from utils.scene.resample import resized


def detail(image):
    return cv2.Laplacian(image[..., 1], cv2.CV_32F).var()


def photo(size=(304, 528), seed=0):
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.standard_normal((size[0] // k + 1, size[1] // k + 1, 3)), size[::-1]) * k for k in (2, 4, 8, 32)]
    return np.clip(128 + 6 * sum(layers), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(294, 504), (154, 252), (608, 1056), (97, 311)])
def test_flat_stays_flat_and_a_ramp_stays_a_ramp(size):
    flat = np.full((304, 528, 3), (7, 128, 250), np.uint8)
    assert (resized(flat, size) == flat[0, 0]).all()
    x = (np.arange(528) + 0.5) / 528
    ramp = np.repeat(np.repeat((20 + 200 * x)[None, :, None], 304, 0), 3, 2).astype(np.uint8)
    want = 20 + 200 * (np.arange(size[1]) + 0.5) / size[1]
    assert np.abs(resized(ramp, size)[:, 8:-8, 0] - want[8:-8]).max() < 1.6


def test_detail_is_kept_that_two_steps_of_a_box_filter_lose():
    image = photo()
    twice = cv2.resize(resize_area(image, (295, 512)), (504, 294), interpolation=cv2.INTER_AREA)
    once = resized(image, (294, 504))
    assert detail(twice) < 0.65 * detail(once)
    back = [np.mean((resized(small, (304, 528)).astype(float) - image) ** 2) for small in (twice, once)]
    assert back[1] < 0.25 * back[0]


def test_what_is_too_fine_becomes_grey():
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resized(stripes, (70, 70))[8:-8, 8:-8].astype(int) - 127).max() <= 6
