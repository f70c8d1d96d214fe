"""Joining overlapping pieces of a clip: exact transforms, outliers, ranges, order of frames."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from utils.cameras.projection import unproject_depth
from utils.da3.chunks import Chunk, Similarity, chunk_ranges, fit_overlap, join_chunks, umeyama
from utils.errors import GeometryError

SIZE = (28, 42)


def true_clip(frames, seed=0):
    """A turning, walking camera in front of a wavy surface; depth is arbitrary but smooth."""
    rng = np.random.default_rng(seed)
    h, w = SIZE
    c2w = np.tile(np.eye(4), (frames, 1, 1))
    for i in range(frames):
        c2w[i, :3, :3] = Rotation.from_euler("yxz", [0.05 * i, 0.02 * np.sin(i), 0.01 * i]).as_matrix()
        c2w[i, :3, 3] = [0.15 * i, 0.05 * np.cos(i), 0.02 * i]
    K = np.tile(np.array([[40.0, 0, w / 2], [0, 38.0, h / 2], [0, 0, 1]]), (frames, 1, 1))
    y, x = np.mgrid[:h, :w]
    depth = np.stack([3 + np.sin(x / 9 + i / 3) + 0.5 * np.cos(y / 7) + 0.01 * rng.standard_normal(SIZE) for i in range(frames)])
    return Chunk(start=0, c2w=c2w, K=K, depth=depth.astype(np.float32), confidence=rng.uniform(1.5, 6, depth.shape).astype(np.float32))


def piece(clip, start, stop, scale=1.0, rotvec=(0, 0, 0), translation=(0, 0, 0)):
    """Frames of the clip in another world: p_other = scale R p + t."""
    part = Chunk(
        start=start,
        c2w=clip.c2w[start:stop],
        K=clip.K[start:stop],
        depth=clip.depth[start:stop].copy(),
        confidence=clip.confidence[start:stop].copy(),
    )
    return Similarity(scale, Rotation.from_rotvec(rotvec).as_matrix(), np.array(translation, float)).moved(part)


def test_ranges_cover_and_overlap():
    for count, longest, overlap in ((100, 40, 10), (101, 40, 10), (41, 40, 10), (7, 3, 2), (50, 50, 10), (3, 40, 10), (999, 64, 16)):
        ranges = chunk_ranges(count, longest, overlap)
        assert ranges[0][0] == 0 and ranges[-1][1] == count
        assert all(b - a <= longest for a, b in ranges)
        assert all(before[1] - after[0] >= overlap for before, after in pairwise(ranges))


def test_moved_keeps_the_pixels():
    """A moved chunk's points are the moved points: catches c2w mistaken for w2c and a depth that is not scaled."""
    clip = true_clip(2)
    fit = Similarity(2.5, Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix(), np.array([1.0, -2, 3]))
    moved = fit.moved(clip)
    for i in range(2):
        before, after = unproject_depth(clip.depth[i], clip.K[i]), unproject_depth(moved.depth[i], clip.K[i])
        world = before @ clip.c2w[i, :3, :3].T + clip.c2w[i, :3, 3]
        expected = 2.5 * world @ fit.rotation.T + fit.translation
        assert np.allclose(after @ moved.c2w[i, :3, :3].T + moved.c2w[i, :3, 3], expected, atol=1e-4)


def test_umeyama_recovers_a_weighted_similarity():
    rng = np.random.default_rng(1)
    source, rotation = rng.standard_normal((50, 3)), Rotation.from_rotvec([0.4, 1.0, -2.0]).as_matrix()
    target = 0.3 * source @ rotation.T + [1, 2, 3]
    target[:5] += 100  # without weight
    fit = umeyama(target, source, np.r_[np.zeros(5), rng.uniform(0.1, 1, 45)])
    assert np.isclose(fit.scale, 0.3) and np.allclose(fit.rotation, rotation) and np.allclose(fit.translation, [1, 2, 3])


def test_three_worlds_become_one():
    clip = true_clip(20)
    worlds = [
        piece(clip, 0, 9),
        piece(clip, 5, 15, 0.4, (0.1, 1.2, -0.3), (5, 1, -2)),
        piece(clip, 11, 20, 3.0, (-2.0, 0.4, 0.3), (0, -7, 1)),
    ]
    joined, fits = join_chunks(worlds)
    assert len(joined) == 20 and len(fits) == 2
    assert np.allclose(joined.c2w, clip.c2w, atol=1e-5)
    assert np.allclose(joined.depth, clip.depth, rtol=1e-4)
    assert np.array_equal(joined.confidence, clip.confidence)
    assert fits[0].agreeing == 1.0 and fits[0].residual < 1e-4


def test_outliers_of_every_kind_are_outvoted():
    """30 % wrong depth, one frame with a wrong pose, noise on all: scale within 1 %, rotation within half a degree."""
    clip, rng = true_clip(16), np.random.default_rng(3)
    a, b = piece(clip, 0, 11), piece(clip, 5, 16, 0.5, (0.3, -0.7, 0.2), (2, 0, 1))
    b.depth[:] *= rng.uniform(0.98, 1.02, b.depth.shape).astype(np.float32)
    wrong = rng.random(b.depth.shape) < 0.3
    b.depth[wrong] *= rng.uniform(1.3, 4, wrong.sum()).astype(np.float32)
    b.c2w[2, :3, :3] = b.c2w[2, :3, :3] @ Rotation.from_rotvec([0, 0.8, 0]).as_matrix()
    fit = fit_overlap(a, b)
    true_rotation = Rotation.from_rotvec([0.3, -0.7, 0.2]).as_matrix().T
    angle = np.degrees(np.linalg.norm(Rotation.from_matrix(fit.rotation @ true_rotation.T).as_rotvec()))
    assert abs(fit.scale / 2 - 1) < 0.01
    assert angle < 0.5
    assert np.linalg.norm(fit.translation - (-2 * true_rotation @ [2, 0, 1])) < 0.05
    assert 0.5 < fit.agreeing < 0.8


def test_sky_takes_no_part():
    clip = true_clip(12)
    a, b = piece(clip, 0, 8), piece(clip, 4, 12, 2.0)
    for part in (a, b):
        part.confidence[:, :14] = 1.0
    a.depth[:, :14], b.depth[:, :14] = 50.0, 3.0  # as each piece's own 99th percentile would have it
    fit = fit_overlap(a, b)
    assert abs(fit.scale - 0.5) < 1e-4 and fit.agreeing == 1.0


def test_pieces_that_contradict_each_other_are_refused():
    clip, rng = true_clip(12), np.random.default_rng(0)
    other = piece(clip, 4, 12)
    other.depth[:] = rng.uniform(0.2, 30, other.depth.shape)
    with pytest.raises(GeometryError, match="frames 4 to 7"):
        join_chunks([piece(clip, 0, 8), other])
    with pytest.raises(GeometryError, match="no frame"):
        fit_overlap(piece(clip, 0, 4), piece(clip, 4, 12))
