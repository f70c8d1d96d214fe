"""Learned matches (XFeat) for mapping: of the pairs of frames that SIFT has left apart, those that show the same thing.

SIFT's keypoints lie more exactly (0.1 px against 0.6 between shifted copies), XFeat's are recognised from further away. So neighbours
keep SIFT's matches, and pairs that these could not verify get XFeat's: wide steps, revisits, the closing of a loop.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

from utils.matching.xfeat.features import Keypoints, XFeat, find_keypoints
from utils.matching.xfeat.match import MIN_SHARE, SAME_PLACE, hopeful, match_keypoints
from utils.sfm.matches_database import Pair, append_keypoints, frame_ids, replace_matches, verified_counts, verify
from utils.types import Array

# Verified SIFT matches with which a pair is left as it is.
_ENOUGH = 30
# Keypoints of a frame that are matched: all of what is found adds time, not frames.
_KEYPOINTS = 1024
# Pairs of a frame that are looked at closely, the most hopeful first.
_CLOSER = 8
# Of long clips every frame is tried with its neighbours within so many, and so many frames with all others.
_NEAR, _ANCHORS = 8, 64


def learned_features(images: Array, keep: Array | None = None) -> list[Keypoints]:
    """XFeat's keypoints of images (F, h, w, 3) uint8, only where `keep` (F, h, w) bool holds; None: everywhere.

    Raises:
        MissingDependencyError: the weights are not installed.
    """
    maps = XFeat.load().maps(images)
    return [find_keypoints(own, _KEYPOINTS, None if keep is None else keep[frame]) for frame, own in enumerate(maps)]


def add_learned_matches(database: Path, features: Sequence[Keypoints], *, seed: int, pairs: Sequence[Pair] | None = None) -> int:
    """Adds XFeat's keypoints and verified matches to a database of SIFT's; returns how many pairs they hold together.

    Args:
        database: with images named `<position>.png`, their SIFT features matched and verified.
        features: of each image.
        seed: of RANSAC.
        pairs: that are tried; None: `candidate_pairs`.
    """
    count = len(features)
    with pycolmap.Database.open(database) as stored:
        ids = frame_ids(stored, count)
        held = verified_counts(stored, ids)
        tried = candidate_pairs(count) if pairs is None else pairs
        pairs = hopeful_pairs(features, [p for p in tried if held.get(p, 0) < _ENOUGH])
        rows = match_keypoints(features, pairs)
        matched = {pair: own for pair, own in zip(pairs, rows, strict=True) if len(own) >= SAME_PLACE}
        first_row = [append_keypoints(stored, image, own.px.cpu().numpy()) for image, own in zip(ids, features, strict=True)]
        for (a, b), own in matched.items():
            replace_matches(stored, ids[a], ids[b], own + np.array([first_row[a], first_row[b]]))
    verify(database, list(matched), seed, least=SAME_PLACE, share=MIN_SHARE)
    with pycolmap.Database.open(database) as stored:
        now = verified_counts(stored, ids)
    return sum(now.get(pair, 0) >= SAME_PLACE for pair in matched)


def candidate_pairs(count: int) -> list[Pair]:
    """Pairs (a, b), a < b, that are tried: all of them in short clips; in long ones neighbours, and loops by every k-th frame."""
    anchors = range(0, count, max(1, -(-count // _ANCHORS)))
    near = {(a, b) for a in range(count) for b in range(a + 1, min(a + _NEAR + 1, count))}
    return sorted(near | {(a, b) for a in anchors for b in anchors if a < b})


def hopeful_pairs(features: Sequence[Keypoints], pairs: Sequence[Pair]) -> list[Pair]:
    """Of the pairs those in which enough of the best keypoints match, for each frame the `_CLOSER` with most."""
    counts = hopeful(features, pairs)
    chosen: set[Pair] = set()
    for frame in range(len(features)):
        mine = sorted((pair for pair in counts if frame in pair), key=lambda pair: (-counts[pair], pair))
        chosen |= set(mine[:_CLOSER])
    return sorted(chosen)
