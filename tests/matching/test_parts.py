"""Two places in one spot are told apart, and clips that are merely inconsistent stay whole."""

import numpy as np
import pytest

from utils.matching.contradictions import Evidence, find_evidence
from utils.matching.parts import divide
from utils.synthetic import WorldConfig, make_world
from utils.types import Array, CameraSet, Scene


def evidence(agree: Array, contradict: Array) -> Evidence:
    return Evidence(agree=agree | agree.T, contradict=contradict | contradict.T, partly=np.zeros_like(agree))


def between(count: int, first: slice, second: slice) -> Array:
    pairs = np.zeros((count, count), bool)
    pairs[first, second] = True
    return pairs


def close(count: int, gap: int = 2) -> Array:
    index = np.arange(count)
    return (np.abs(index - index[:, None]) <= gap) & (index != index[:, None])


def found(parts: list[Array]) -> list[list[int]]:
    return [part.tolist() for part in parts]


def test_frames_are_divided_where_most_contradictions_and_least_agreement_part_them() -> None:
    parts = divide(evidence(close(30), between(30, slice(0, 8), slice(20, 30))))
    assert len(parts) == 2 and set(range(8)) <= set(parts[0].tolist()) and set(range(20, 30)) <= set(parts[1].tolist())
    assert all((np.diff(part) == 1).all() for part in parts)  # one cut in time, whose place between 8 and 20 is open


def test_a_place_that_comes_back_is_one_part() -> None:
    agree = close(36) | between(36, slice(0, 12), slice(24, 36))
    parts = divide(evidence(agree, between(36, slice(0, 12), slice(13, 23)) | between(36, slice(13, 23), slice(24, 36))))
    assert found(parts) == [
        [*range(12 + (12 in parts[0])), *range(24 - (23 in parts[0]), 36)],
        np.setdiff1d(np.arange(36), parts[0]).tolist(),
    ]


@pytest.mark.parametrize("few", [between(30, slice(0, 3), slice(26, 29)), between(30, slice(9, 15), slice(15, 19))])
def test_few_contradictions_or_outweighed_ones_divide_nothing(few: Array) -> None:
    assert found(divide(evidence(close(30, 12), few))) == [list(range(30))]


def test_the_cut_in_time_goes_where_parts_contradict_themselves_least_even_in_a_third_of_a_picture() -> None:
    told = evidence(close(40), between(40, slice(0, 12), slice(24, 40)))
    told.partly[:8, 20:24] = told.partly[20:24, :8] = True
    assert found(divide(told)) == [list(range(20)), list(range(20, 40))]
    alike = Evidence(agree=told.agree, contradict=np.zeros_like(told.agree), partly=told.partly)
    assert found(divide(alike)) == [list(range(40))]


def test_clips_are_neighbours_of_none() -> None:
    """The last frame of one clip and the first of the next hold nothing together."""
    apart = between(16, slice(0, 8), slice(8, 16))
    agree = close(16, 1)
    agree[7, 8] = agree[8, 7] = False
    assert found(divide(evidence(agree, apart), np.repeat([0, 1], 8))) == [list(range(8)), list(range(8, 16))]


def test_a_place_that_changes_behind_the_cameras_back_is_two_parts_by_the_truth() -> None:
    config = WorldConfig(layout="forgetful", frames=46, size=(112, 196), severity="low", path_scale=2.0)
    world = make_world(config)
    told = find_evidence(world.predicted_scene(), world.images)
    second = np.arange(46) >= 32  # one round is 32 frames
    assert told.contradict.sum() / 2 > 30
    assert not told.contradict[:30, :30].any() and not told.contradict[34:, 34:].any()
    first, other = divide(told)
    assert np.abs(len(first) - 32) <= 1 and not second[first[first < 30]].any() and second[other[other > 33]].all()


@pytest.mark.parametrize("layout", ["room", "orbit"])
def test_inconsistent_clips_of_one_place_stay_whole(layout: str) -> None:
    world = make_world(WorldConfig(layout=layout, frames=32, size=(84, 140), severity="high", path_scale=2.0, turning=0.5, vanishing=0.3))
    told = find_evidence(world.predicted_scene(), world.images)
    assert told.agree.sum() > 60 and not told.contradict.any()
    assert len(divide(told)) == 1


def test_what_masks_take_out_contradicts_nobody() -> None:
    """Two frames of one wall under different pictures, without a mask and with one over that of the second."""
    rng = np.random.default_rng(0)
    wall, signs = rng.integers(0, 255, (42, 70, 3), np.uint8), rng.integers(0, 255, (2, 42, 66, 3), np.uint8)
    images = np.stack([wall, wall])
    images[:, :, 2:68] = signs
    images = np.repeat(np.repeat(images, 3, 1), 3, 2)
    depth = np.full((2, 126, 210), 3, np.float32)
    masked = depth.copy()
    masked[1, :, 6:204] = 0
    K = np.array([[190.0, 0, 105], [0, 190, 63], [0, 0, 1]])
    cameras = CameraSet(c2w=np.tile(np.eye(4), (2, 1, 1)), K=np.stack([K, K]), size=(126, 210), frame_ids=np.arange(2))
    bare, behind = (
        find_evidence(Scene(cameras=cameras, images=images, depth=values, confidence=np.ones_like(depth)), images)
        for values in (depth, masked)
    )
    assert bare.contradict[0, 1] and not behind.contradict.any()
