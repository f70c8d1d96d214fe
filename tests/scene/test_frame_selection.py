"""Which frames are chosen."""

import numpy as np
import pytest

from utils.scene import frame_selection as fs


@pytest.mark.parametrize("total", [2, 7, 99, 100, 101, 121, 199, 299, 900, 1200])
def test_whole_clip_is_covered(total: int) -> None:
    chosen = fs.choose_uniform(total, 100, 8)
    assert len(chosen.indices) == min(total, 100)
    assert (chosen.indices[0], chosen.indices[-1]) == (0, total - 1)
    steps = np.diff(chosen.indices)
    assert steps.min() >= 1 and steps.max() - steps.min() <= 1
    assert chosen.sparse == (total > 793)


def test_single_frame_stays_single() -> None:
    assert fs.choose_uniform(1, 100, 8).indices.tolist() == [0]


def test_clips_share_fairly() -> None:
    assert fs.share_fairly([500, 500], 101) == [51, 50]
    assert fs.share_fairly([10, 500, 500], 100) == [10, 45, 45]
    assert fs.share_fairly([3, 4], 100) == [3, 4]


def test_sharp_frames_win_inside_their_window() -> None:
    scores = np.zeros(41)
    scores[[11, 17, 40]] = 1.0
    moved = fs.prefer_sharp(np.array([0, 10, 20, 30, 40]), scores)
    assert moved.tolist()[1:3] == [11, 17] and moved[-1] == 40
    assert (np.diff(fs.prefer_sharp(np.arange(0, 41, 2), np.random.default_rng(0).random(41))) > 0).all()


def test_blur_lowers_the_score() -> None:
    import cv2

    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    assert fs.sharpness(image) > 4 * fs.sharpness(cv2.GaussianBlur(image, (0, 0), 2))


def test_frames_in_between_keep_the_chosen_ones() -> None:
    chosen = np.array([0, 8, 9, 20])
    more = fs.between(chosen, 3)
    assert np.isin(chosen, more).all() and more.tolist() == [0, 2, 4, 6, 8, 9, 12, 14, 17, 20]
    assert fs.between(chosen, 0).tolist() == chosen.tolist()
