"""Hard cuts: where one frame shows another place than the frame before."""

import itertools

import cv2
import numpy as np

from utils.scene.clip.flow import moved_back
from utils.types import Array

# Flow there and back returns to this many pixels of a small picture where both show the same.
_RETURNS = 1.0
# Across a cut it returns for this share of the picture at most (seen: 3 to 15 %; in one shot 25 % and more, 85 % as a rule),
_MATCHED = 0.2
# and for this share of what is usual in the clip.
_OF_USUAL = 0.25
# Features that agree between two pictures of one place at least (seen: 80 and more; across a cut at most 6).
AGREEING = 15


def find_cuts(thumbs: Array, frames: Array) -> Array:
    """Positions k in `frames` such that a cut lies between frames[k - 1] and frames[k].

    Args:
        thumbs: (T, h, w) uint8 grey.
        frames: (N,) increasing positions of the frames that are looked at.
    """
    if len(frames) < 4:
        return np.zeros(0, np.int64)
    pairs = list(itertools.pairwise(frames))
    apart = np.array([np.abs(thumbs[a].astype(np.int16) - thumbs[b]).mean() for a, b in pairs])
    matched = np.ones(len(pairs))
    # Only pictures that differ more than most can be of two places.
    asked = np.flatnonzero(apart > np.median(apart))
    for i in asked:
        matched[i] = matched_share(thumbs[pairs[i][0]], thumbs[pairs[i][1]])
    usual = float(np.median(matched[asked])) if len(asked) else 1.0
    cuts = np.flatnonzero(matched < min(_MATCHED, _OF_USUAL * usual))
    # Flow loses a fast turn; features find it again.
    return np.array([i + 1 for i in cuts if agreeing_features(thumbs[pairs[i][0]], thumbs[pairs[i][1]]) < AGREEING], np.int64)


def matched_share(a: Array, b: Array) -> float:
    """Share of a picture that flow finds in another and, from there, where it was."""
    size = (a.shape[0], a.shape[1])
    there, inside = moved_back(a, b, size)
    back, _ = moved_back(b, a, size)
    returned = cv2.remap(back, there[..., 0], there[..., 1], cv2.INTER_LINEAR)
    y, x = np.mgrid[: size[0], : size[1]]
    return float((np.hypot(returned[..., 0] - x, returned[..., 1] - y) < _RETURNS)[inside].sum() / a.size)


def agreeing_features(a: Array, b: Array) -> int:
    """Number of SIFT features of one small picture that are found in another and agree on a homography."""
    found = [features(cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)) for image in (a, b)]
    return agreeing(*found)


def features(image: Array) -> tuple[Array, Array]:
    """SIFT features of a picture (h, w) uint8: pixels (N, 2) and descriptors (N, 128), float32."""
    points, descriptors = cv2.SIFT.create(nfeatures=500, contrastThreshold=0.01).detectAndCompute(image, None)
    if descriptors is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    return np.array([point.pt for point in points], np.float32), descriptors


def agreeing(a: tuple[Array, Array], b: tuple[Array, Array]) -> int:
    """Number of `features` of one picture that are found in another and agree on a homography."""
    if min(len(a[0]), len(b[0])) < 8:
        return 0
    matches = [m for m, second in cv2.BFMatcher().knnMatch(a[1], b[1], k=2) if m.distance < 0.8 * second.distance]
    if len(matches) < 8:
        return 0
    pixels = a[0][[m.queryIdx for m in matches]], b[0][[m.trainIdx for m in matches]]
    mask = cv2.findHomography(pixels[0], pixels[1], cv2.RANSAC, 6.0)[1]
    return 0 if mask is None else int(mask.sum())


def longest_shot(frames: Array, cuts: Array) -> tuple[Array, list[Array]]:
    """The frames of the longest shot, of equally long ones the first, and the frames of every shot."""
    shots = np.split(frames, cuts)
    return max(shots, key=len), shots
