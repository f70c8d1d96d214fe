"""SIFT features and their matches: where they lie, which match, and that a batch gives what its pairs give one by one."""

import cv2
import numpy as np
import pytest
import torch

from utils.device.accelerator import without_accelerator
from utils.matching import sift
from utils.matching.sift import SiftFeatures, match_sift, sift_features
from utils.types import Array


def textured(size: tuple[int, int] = (200, 260)) -> Array:
    """A picture of blobs of all sizes."""
    random = np.random.default_rng(0)
    noise = sum(cv2.GaussianBlur(random.standard_normal(size), (0, 0), blur) * blur for blur in (1.5, 3, 6))
    return np.repeat(np.clip(128 + 60 * noise, 0, 255).astype(np.uint8)[..., None], 3, 2)


def test_features_of_a_moved_picture_match_where_it_moved_to() -> None:
    image, move = textured(), np.array([[1.02, -0.05, 3.3], [0.05, 1.02, -6.2]])
    centred = move.copy()  # of pixels, whose centres are whole numbers to OpenCV
    centred[:, 2] += move[:, :2] @ [0.5, 0.5] - 0.5
    moved = cv2.warpAffine(image, centred, image.shape[1::-1], flags=cv2.INTER_LANCZOS4)
    first, second = sift_features([image, moved])
    (rows,) = match_sift([first, second], [(0, 1)])
    error = np.linalg.norm(first.px[rows[:, 0]] @ move[:, :2].T + move[:, 2] - second.px[rows[:, 1]], axis=1)
    assert len(rows) > 100 and np.median(error) < 0.1 and (error < 2).mean() > 0.95
    assert np.abs(np.median(first.px[rows[:, 0]] @ move[:, :2].T + move[:, 2] - second.px[rows[:, 1]], axis=0)).max() < 0.03


def test_features_lie_where_they_may_and_a_blank_picture_has_none() -> None:
    image, keep = textured(), np.zeros((200, 260), bool)
    keep[:, :100] = True
    (everywhere,) = sift_features([image])
    assert ((everywhere.px > 0) & (everywhere.px < [260, 200])).all()
    assert (np.minimum(everywhere.px, [260, 200] - everywhere.px) < 5).any(1).sum() > 5  # to the very edge
    half, blank = sift_features([image, np.zeros_like(image)], [keep, keep])
    assert len(half) > 20 and half.px[:, 0].max() <= 101
    assert blank.px.shape == (0, 2) and blank.descriptors.shape == (0, 128)
    assert [len(rows) for rows in match_sift([half, blank], [(0, 1), (1, 0), (0, 0)])][:2] == [0, 0]
    np.testing.assert_allclose(np.linalg.norm(half.unit_descriptors, axis=1), 1, atol=0.05)


def sets() -> list[SiftFeatures]:
    """Five sets of different sizes: disturbed copies of the same descriptors, and some of their own."""
    random = np.random.default_rng(1)
    shared = random.gamma(0.5, 1, (60, 128))
    found = []
    for own in (0, 30, 7, 1, 40):
        values = np.concatenate([shared[: 60 - own], random.gamma(0.5, 1, (own, 128))]) * random.uniform(0.6, 1.6, (60, 128))
        share = np.sqrt(values / values.sum(1, keepdims=True))
        found.append(SiftFeatures(np.zeros((60, 2)), np.zeros((60, 2)), np.minimum(share * 256, 127).astype(np.int8)[: 60 - own // 7]))
    return found


def by_hand(first: Array, second: Array) -> Array:
    """Mutual nearest neighbours by angle, those nearer than 0.8 of the second nearest and than 0.7."""
    angle = np.arccos(np.minimum(first.astype(float) @ second.T.astype(float) / 256**2, 1))
    near = np.sort(angle, 1)
    rows = [i for i in range(len(first)) if angle[:, angle[i].argmin()].argmin() == i and near[i, 0] <= min(0.7, 0.8 * near[i, 1])]
    return np.array([(i, angle[i].argmin()) for i in rows]).reshape(-1, 2)


PAIRS = [(a, b) for a in range(5) for b in range(5) if a != b]


@pytest.mark.parametrize("bytes_", [False, True])
def test_matches_are_clear_mutual_neighbours(bytes_: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    features = sets()
    monkeypatch.setattr(sift, "_has_byte_products", lambda: bytes_)
    with without_accelerator():
        found = match_sift(features, PAIRS)
    assert sum(map(len, found)) > 300
    for (a, b), rows in zip(PAIRS, found, strict=True):
        np.testing.assert_array_equal(rows, by_hand(features[a].descriptors, features[b].descriptors))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
def test_a_batch_matches_as_its_pairs_do(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = sets()
    with without_accelerator():
        single = match_sift(features, PAIRS)
    stacked = [torch.nn.utils.rnn.pad_sequence([torch.from_numpy(f.descriptors).float() for f in features], batch_first=True)] * 2
    first, second = (both[[pair[side] for pair in PAIRS]].to(device) for side, both in enumerate(stacked))
    for rows, partners in zip(single, sift._partners(first, second).cpu().numpy(), strict=True):
        np.testing.assert_array_equal(rows, np.column_stack([np.flatnonzero(partners >= 0), partners[partners >= 0]]))
    if device == "cuda":
        monkeypatch.setattr(sift, "_PRODUCTS", 3 * 60**2)
        for one, many in zip(single, match_sift(features, PAIRS), strict=True):
            np.testing.assert_array_equal(one, many)
