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
from utils.types import Array

# Verified SIFT matches with which a pair is left as it is.
_ENOUGH = 30
# Keypoints of a frame that are matched: all of what is found adds time, not frames.
_KEYPOINTS = 1024
# Pairs of a frame that are looked at closely, the most hopeful first.
_CLOSER = 8
# Farthest from its epipolar line that a match may lie: contradictory frames bend, but 4 px, COLMAP's own limit, let in chance.
_MAX_ERROR_PX = 2.0
# Of long clips every frame is tried with its neighbours within so many, and so many frames with all others.
_NEAR, _ANCHORS = 8, 64

Pair = tuple[int, int]


def add_learned_matches(database: Path, images: Array, *, seed: int, keep: Array | None = None) -> int:
    """Adds XFeat's keypoints and verified matches to a database of SIFT's; returns how many pairs they hold together.

    Args:
        database: with images named `<position>.png`, their SIFT features matched and verified.
        images: (F, h, w, 3) uint8.
        seed: of RANSAC.
        keep: (F, h, w) bool, where features may lie; None: everywhere.
    """
    maps = XFeat.load().maps(images)
    features = [find_keypoints(own, _KEYPOINTS, None if keep is None else keep[frame]) for frame, own in enumerate(maps)]
    with pycolmap.Database.open(database) as stored:
        named = {image.name: image.image_id for image in stored.read_all_images()}
        ids = [named[_name(frame)] for frame in range(len(images))]
        held = _inliers(stored, ids)
        pairs = hopeful_pairs(features, [p for p in candidate_pairs(len(images)) if held.get(p, 0) < _ENOUGH])
        rows = match_keypoints(features, pairs)
        matched = {pair: own for pair, own in zip(pairs, rows, strict=True) if len(own) >= SAME_PLACE}
        first_row = [_append_keypoints(stored, image, own) for image, own in zip(ids, features, strict=True)]
        for (a, b), own in matched.items():
            _replace_matches(stored, ids[a], ids[b], own + np.array([first_row[a], first_row[b]]))
    _verify(database, list(matched), seed)
    with pycolmap.Database.open(database) as stored:
        now = _inliers(stored, ids)
    return sum(now.get(pair, 0) >= SAME_PLACE for pair in matched)


def _name(frame: int) -> str:
    return f"{frame:06d}.png"


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


def _inliers(stored: "pycolmap.Database", ids: Sequence[int]) -> dict[Pair, int]:
    """Verified matches of each pair of frames that has any."""
    frame_of = {image: frame for frame, image in enumerate(ids)}
    counts = {}
    for pair, count in zip(*stored.read_two_view_geometry_num_inliers(), strict=True):
        a, b = sorted(frame_of[image] for image in pycolmap.pair_id_to_image_pair(pair))
        counts[a, b] = int(count)
    return counts


def _append_keypoints(stored: "pycolmap.Database", image: int, features: Keypoints) -> int:
    """Puts keypoints after those that an image has; returns the row of the first one."""
    before = stored.read_keypoints(image)
    added = np.zeros((len(features), before.shape[1]), np.float32)
    added[:, :2] = features.px.cpu().numpy()
    if before.shape[1] == 6:  # x, y and the affine shape, of which mapping uses nothing: the identity
        added[:, [2, 5]] = 1
    stored.update_keypoints(image, np.concatenate([before, added]))
    return len(before)


def _replace_matches(stored: "pycolmap.Database", first: int, second: int, rows: Array) -> None:
    """Gives a pair of images these matches (N, 2) and those of its own that were verified; all are to be verified again."""
    if stored.exists_two_view_geometry(first, second):
        verified = stored.read_two_view_geometry(first, second).inlier_matches.reshape(-1, 2)
        rows = np.concatenate([verified, rows])
        stored.delete_two_view_geometry(first, second)
    if stored.exists_matches(first, second):
        stored.delete_matches(first, second)
    stored.write_matches(first, second, rows.astype(np.uint32))


def _verify(database: Path, pairs: Sequence[Pair], seed: int) -> None:
    """Keeps what agrees with one camera motion; pairs in which too little does are dropped."""
    listed = database.with_name("learned_pairs.txt")
    listed.write_text("".join(f"{_name(a)} {_name(b)}\n" for a, b in pairs))
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed, options.ransac.max_error = seed, _MAX_ERROR_PX
    options.min_num_inliers, options.min_inlier_ratio = SAME_PLACE, MIN_SHARE
    pycolmap.verify_matches(database, listed, options)
