"""Half-transparent marks: found where one is blended in, and nothing where edges of the scene itself hardly move."""

import cv2
import numpy as np
import pytest

from benchmarks.inputs_world import make_cube
from utils.scene.clip.marks import find_mark
from utils.synthetic.world import WorldConfig, make_world


def zoomed(frames: int = 40) -> np.ndarray:
    """A picture that grows about its middle, where edges hardly move: (F, h, w) grey."""
    gray = cv2.cvtColor(make_cube(1, (240, 320), seed=3).images[0], cv2.COLOR_RGB2GRAY)
    turns = [cv2.getRotationMatrix2D((160, 120), 0, 1 + 0.25 * i / (frames - 1)) for i in range(frames)]
    return np.stack([cv2.warpAffine(gray, turn, (320, 240), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT) for turn in turns])


def travelled() -> np.ndarray:
    return np.stack([cv2.cvtColor(i, cv2.COLOR_RGB2GRAY) for i in make_cube(40, (240, 320), seed=5, start=-1.0, span=2.0).images])


def logo(grays: np.ndarray, share: float, level: int) -> np.ndarray:
    cover = np.zeros(grays.shape[1:], np.uint8)
    cv2.putText(cover, "SAMPLE", (170, 215), cv2.FONT_HERSHEY_SIMPLEX, 1.1, 255, 3, cv2.LINE_AA)
    weight = share * cover / 255.0
    return (grays * (1 - weight) + level * weight + 0.5).astype(np.uint8)


@pytest.mark.parametrize("make", [zoomed, travelled])
def test_edges_of_the_scene_are_no_mark(make) -> None:
    assert find_mark(make()) is None


def test_a_still_horizon_under_a_passing_ground_is_no_mark() -> None:
    grays = travelled()
    grays[:, :100] = np.where(np.arange(100)[:, None] < 60, 200, 90)
    assert find_mark(grays) is None


@pytest.mark.parametrize(("make", "share", "level"), [(travelled, 0.3, 255), (travelled, 0.5, 0), (zoomed, 0.5, 255)])
def test_a_blended_logo_is_found_where_it_is(make, share, level) -> None:
    mark = find_mark(logo(make(), share, level))
    assert mark is not None
    top, left, bottom, right = mark.box
    assert 0.7 < top < bottom < 0.95 and 0.45 < left < right, mark.box
    assert "bottom right" in mark.words


def test_a_mark_on_the_demo_s_few_frames_is_found_and_nothing_without_it() -> None:
    """24 frames before a busy picture blur where each edge of the mark lies; all of them together stand still."""
    images = make_world(WorldConfig(layout="room", frames=24, size=(162, 288), texture="calm")).images
    grays = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])
    assert find_mark(grays) is None
    cover = np.zeros(grays.shape[1:], np.uint8)
    cv2.putText(cover, "SAMPLE", (168, 152), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 255, 2, cv2.LINE_AA)
    mark = find_mark((grays * (1 - 0.4 * cover / 255.0) + 0.5).astype(np.uint8))
    assert mark is not None and "bottom right" in mark.words
