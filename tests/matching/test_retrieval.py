"""Frames of several clips that show the same place are found by their features, and there are no more pairs than frames ask for."""

import numpy as np
import pytest

from configs.stage1_align import MatchingConfig
from utils.matching.pairs import OTHER_CLIPS as SHARED
from utils.matching.pairs import choose_pairs
from utils.matching.retrieval import NEAR, OTHER_CLIPS, OWN_CLIP, PER_CLIP, alike_pairs, frame_vectors, nearest, pairs_of_clips


def walk(clips: int, frames: int, places: int = 60, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Descriptors of frames that look at a window of places each, clip of each frame, and where it looks."""
    rng = np.random.default_rng(seed)
    landmarks = rng.normal(size=(places, 20, 64))
    found, where = [], []
    for _ in range(clips):
        begin = rng.integers(0, places)
        for step in range(frames):
            at = (begin + step) % places
            seen = landmarks[np.arange(at, at + 5) % places].reshape(-1, 64)
            seen = seen[rng.random(len(seen)) < 0.7] + 0.4 * rng.normal(size=(1, 64))
            seen = np.concatenate([seen, rng.normal(size=(20, 64))])  # and what only this frame has
            found.append(seen / np.linalg.norm(seen, axis=1, keepdims=True))
            where.append(at)
    return found, np.repeat(np.arange(clips), frames), np.array(where)


def test_frames_find_those_that_look_at_the_same_place() -> None:
    found, clips, where = walk(12, 8)
    pairs = np.array(alike_pairs(frame_vectors(found), clips, others=2, own=0))
    assert (clips[pairs[:, 0]] != clips[pairs[:, 1]]).all()
    apart = np.abs(where[:, None] - where)
    apart = np.minimum(apart, 60 - apart)
    shared = apart[pairs[:, 0], pairs[:, 1]] < 5
    anywhere = (apart < 5)[clips[:, None] != clips].mean()
    assert anywhere < 0.2 and shared.mean() > 0.8


@pytest.mark.parametrize("clips", [4, 8, 16, 32])
def test_pairs_grow_with_the_number_of_frames(clips: int) -> None:
    found, own, _ = walk(clips, 8)
    pairs = pairs_of_clips(frame_vectors(found), own)
    assert pairs == sorted(set(pairs)) and all(a < b for a, b in pairs)
    assert len(pairs) <= len(found) * (NEAR + OTHER_CLIPS + OWN_CLIP)
    assert {(a, a + 1) for a in range(len(own) - 1) if own[a] == own[a + 1]} <= set(pairs)
    assert np.mean([own[a] != own[b] for a, b in pairs]) > 0.3


def test_no_clip_takes_all_partners_of_a_frame() -> None:
    clips = np.repeat(np.arange(5), 8)
    likeness = np.linspace(1, 0, 40)  # the frames of the second clip are most like the first one's
    partners = nearest(likeness, 0, clips, 4, 1)
    assert partners == [NEAR + 1, 8, 9, 16, 17]
    assert np.bincount(clips[partners[1:]]).max() <= PER_CLIP


def test_frames_without_features_are_like_no_other() -> None:
    vectors = frame_vectors([np.zeros((0, 64)), np.zeros((0, 64))])
    assert not vectors.any()
    own = np.random.default_rng(0).normal(size=(200, 64))
    mixed = frame_vectors([own / 8, np.zeros((0, 64)), own / 8])
    assert mixed[0] @ mixed[2] > 0.99 and not mixed[1].any()


def test_clips_are_sequences_of_their_own_joined_where_they_see_the_same() -> None:
    clips = np.repeat(np.arange(6), 4)
    overlap = np.full((24, 24), 0.05)
    for clip in range(6):
        overlap[4 * clip : 4 * clip + 4, 4 * clip : 4 * clip + 4] = 0.8
    overlap[1, 9] = overlap[9, 1] = overlap[1, 14] = overlap[14, 1] = 0.6
    pairs = choose_pairs(overlap, np.arange(24), MatchingConfig(gaps=(1, 2, 8), revisits_per_frame=1), clips)
    across = {(a, b) for a, b in pairs if clips[a] != clips[b]}
    assert across == {(1, 9), (1, 14)}  # not (3, 4), the last of one clip and the first of the next
    everywhere = choose_pairs(np.full((24, 24), 0.5), np.arange(24), MatchingConfig(gaps=(1,), revisits_per_frame=0), clips)
    assert sum(clips[a] != clips[b] for a, b in everywhere) <= SHARED * 24
