"""Which frames of several clips show the same place: a vector for each frame from its local features, and its nearest ones.

A frame's features are assigned to a few words, learned from the frames themselves, and what they differ by from their word is summed
(VLAD; Jegou et al., "Aggregating local descriptors into a compact image representation", CVPR 2010). Comparing vectors is a product of
matrices, taken in blocks of frames; only the nearest are kept and matched, so that matching grows with the number of frames and not
with its square.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from utils.types import Array

Pair = tuple[int, int]

_WORDS, _LEARNT_FROM = 32, 8192
OTHER_CLIPS, OWN_CLIP = 8, 3
"""Nearest frames of other clips, and of the own clip beyond `NEAR`, that a frame is paired with."""
PER_CLIP = 2
"""Of one other clip at most: neighbours in time are alike, and four frames of one clip say less than two of two."""
NEAR = 6
"""Frames of a clip up to so many apart are neighbours in time and paired anyway."""
_BLOCK = 256


def frame_vectors(descriptors: Sequence[Array]) -> Array:
    """(F, W * D) float32 vectors of unit length, alike for frames that show the same things; zero for a frame without features.

    Args:
        descriptors: (N, D) local descriptors of each frame, of unit length.
    """
    dimension = max((own.shape[1] for own in descriptors if own.ndim == 2), default=1)
    words = _words(descriptors, dimension)
    return np.stack([_summed(own.astype(np.float32), words) for own in descriptors])


def _words(descriptors: Sequence[Array], dimension: int) -> Array:
    """(W, D) words: centres of the same number of descriptors from every frame."""
    each = max(1, _LEARNT_FROM // max(len(descriptors), 1))
    some = [own[np.linspace(0, len(own) - 1, min(each, len(own))).astype(int)] for own in descriptors if len(own)]
    sample = np.concatenate(some).astype(np.float32) if some else np.zeros((0, dimension), np.float32)
    count = min(_WORDS, len(sample))
    if count < 2:
        return np.zeros((1, dimension), np.float32)
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1e-4)
    centres: Array = cv2.kmeans(sample, count, None, criteria, 1, cv2.KMEANS_PP_CENTERS)[2]  # type: ignore[call-overload]
    return centres


def _summed(own: Array, words: Array) -> Array:
    """(W * D,) normalised sums of the differences of a frame's descriptors (N, D) from their words (W, D)."""
    total = np.zeros_like(words)
    if len(own):
        word = (own @ words.T - 0.5 * np.square(words).sum(1)).argmax(1)
        np.add.at(total, word, own - words[word])
    total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)  # a pattern that repeats counts as one
    flat = total.ravel()
    return flat / max(float(np.linalg.norm(flat)), 1e-9)


def alike_pairs(vectors: Array, clips: Array, others: int = OTHER_CLIPS, own: int = OWN_CLIP) -> list[Pair]:
    """Pairs (a, b), a < b, of each frame with those most like it.

    Args:
        vectors: (F, C) as `frame_vectors` gives them.
        clips: (F,) clip of each frame; frames of a clip follow each other.
        others: most frames of other clips, `PER_CLIP` of one.
        own: most frames of the own clip farther than `NEAR` away.
    """
    pairs: set[Pair] = set()
    for start in range(0, len(vectors), _BLOCK):
        likeness = vectors[start : start + _BLOCK] @ vectors.T
        for frame, row in enumerate(likeness, start):
            chosen = nearest(row, frame, clips, others, own)
            pairs |= {(min(frame, other), max(frame, other)) for other in chosen}
    return sorted(pairs)


def nearest(likeness: Array, frame: int, clips: Array, others: int, own: int) -> list[int]:
    """The partners of one frame, by its likeness (F,) to all."""
    mine = clips == clips[frame]
    far = np.flatnonzero(mine & (np.abs(np.arange(len(clips)) - frame) > NEAR))
    chosen: list[int] = far[np.argsort(-likeness[far], kind="stable")[:own]].tolist()
    taken: dict[int, int] = {}
    for other in np.argsort(-np.where(mine, -np.inf, likeness), kind="stable")[: np.count_nonzero(~mine)].tolist():
        clip = int(clips[other])
        if taken.get(clip, 0) < PER_CLIP:
            taken[clip] = taken.get(clip, 0) + 1
            chosen.append(other)
        if sum(taken.values()) >= others:
            break
    return chosen


def pairs_of_clips(vectors: Array, clips: Array) -> list[Pair]:
    """Pairs of frames of several clips that are worth matching: neighbours in time within each clip, and frames that are alike."""
    near = {(a, a + gap) for gap in range(1, NEAR + 1) for a in range(len(clips) - gap) if clips[a] == clips[a + gap]}
    return sorted(near | set(alike_pairs(vectors, clips)))
