"""Paths that mapping leaves in parts: how they are told from a camera's motion, and the points by which they are joined."""

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.notes import Notes
from utils.geometry_backend import SparseModel
from utils.sfm import mapping
from utils.sfm.backend import far_matches
from utils.sfm.depth_completion import PosedClip
from utils.sfm.flow_tracks import follow
from utils.sfm.mapping import by_point, hosted
from utils.sfm.path_breaks import path_breaks
from utils.types import Array

RADIUS = 3.0


def orbit(turns: Array, focal: float = 100.0) -> SparseModel:
    """Cameras that look at the origin from a circle, each `turns` (R - 1,) degrees after the one before; points around the origin."""
    angles = np.radians(np.r_[0, np.cumsum(turns)])
    w2c = np.tile(np.eye(4), (len(angles), 1, 1))
    w2c[:, 0, 0] = w2c[:, 2, 2] = np.cos(angles)
    w2c[:, 0, 2], w2c[:, 2, 0] = np.sin(angles), -np.sin(angles)
    w2c[:, 2, 3] = RADIUS
    points = np.random.default_rng(0).normal(scale=0.3, size=(40, 3))
    frame, point = (grid.ravel() for grid in np.mgrid[: len(angles), : len(points)])
    camera = np.einsum("nij,nj->ni", w2c[frame, :3, :3], points[point]) + w2c[frame, :3, 3]
    K = np.array([[focal, 0, 50], [0, focal, 30], [0, 0, 1]])
    return SparseModel(
        frames=np.arange(len(angles)),
        w2c=w2c,
        K=np.repeat(K[None], len(angles), 0),
        points=points,
        seen_by=frame,
        seen_point=point,
        seen_at=(camera @ K.T)[:, :2] / camera[:, 2:],
        error_px=0.1,
    )


def test_one_long_step_breaks_a_path_and_a_change_of_speed_does_not() -> None:
    turns = np.full(30, 6.0)
    assert not path_breaks(orbit(turns)).any()
    turns[12] = 30.0
    assert np.flatnonzero(path_breaks(orbit(turns))).tolist() == [12]
    faster = np.r_[np.full(10, 2.0), np.linspace(2, 12, 10), np.full(10, 12.0)]
    assert not path_breaks(orbit(faster)).any()
    shaking = np.random.default_rng(1).uniform(0.1, 3.0, 30)  # steps of a hand-held camera, few degrees each
    assert not path_breaks(orbit(shaking)).any()


def test_frames_that_are_missing_do_not_break_a_path() -> None:
    whole = orbit(np.full(30, 6.0))
    kept = np.r_[0:10, 14:31]
    rows = np.isin(whole.seen_by, kept)
    part = replace(
        whole,
        frames=whole.frames[kept],
        w2c=whole.w2c[kept],
        seen_by=np.searchsorted(kept, whole.seen_by[rows]),
        seen_point=whole.seen_point[rows],
        seen_at=whole.seen_at[rows],
    )
    assert not path_breaks(part).any()


def test_parts_of_different_scale_break_a_path() -> None:
    model = orbit(np.full(30, 6.0))
    w2c = model.w2c.copy()
    centers = np.linalg.inv(w2c)[:, :3, 3]
    centers[15:] += [2.0, 0, 0]
    w2c[:, :3, 3] = -np.einsum("nij,nj->ni", w2c[:, :3, :3], centers)
    parts = replace(model, w2c=w2c)
    assert np.argmax(path_breaks(parts)) == 14
    assert np.argmax(mapping._breaks(parts, None, Path("not asked"))) == 14  # matches know no scale, so they cannot confirm it
    assert not path_breaks(parts, np.repeat([0, 1], [15, 16])).any()  # of two clips it is nothing strange


@pytest.mark.parametrize("closing", [None, 1.4])
def test_broken_paths_are_mapped_again_until_they_are_whole(monkeypatch: pytest.MonkeyPatch, closing: float | None) -> None:
    """With the focal length that fits single steps best (100 px) a gap is left unless `closing` is None; 1.4 times that closes it."""
    whole, broken = orbit(np.full(30, 6.0)), orbit(np.r_[np.full(12, 6.0), 40.0, np.full(17, 6.0)])
    tried: list[float | None] = []

    def incremental(database: Path, seed: int, focal: float | None) -> SparseModel:
        tried.append(focal)
        return whole if closing is None or focal == pytest.approx(closing * 100) else broken

    monkeypatch.setattr(mapping, "_match", lambda images, folder, *rest: folder)
    monkeypatch.setattr(mapping, "_map", lambda database, seed, focal=None: broken)
    monkeypatch.setattr(mapping, "agreement", lambda model, database: 0.5)
    monkeypatch.setattr(mapping, "add_flow_tracks", lambda database, images, *, seed, keep: 3)
    monkeypatch.setattr(mapping, "_map_incrementally", incremental)
    monkeypatch.setattr(mapping, "_breaks", lambda model, clips, database: path_breaks(model, clips))  # no matches confirm a turn
    notes = Notes()
    model = mapping.map_frames(np.zeros((31, 60, 100, 3), np.uint8), seed=0, report=notes)
    assert model is whole and any("breaks between frames 12 and 13" in line for line in notes.lines)
    assert tried[0] is None and sorted(tried[1:]) == pytest.approx([] if closing is None else [85.0, 120.0, 140.0])  # type: ignore[type-var]


def test_points_are_followed_where_there_is_structure_and_nowhere_else() -> None:
    """A textured square on grey moves by 3.5 px a frame: every track moves with it, at most four frames long, outside there are none."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (140, 140)).astype(np.float32), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    images = []
    for frame in range(6):
        shift = np.array([[1, 0, 60 + 3.5 * frame], [0, 1, 40]])
        image = cv2.warpAffine(texture, shift, (320, 220), borderMode=cv2.BORDER_CONSTANT, borderValue=128)
        images.append(np.repeat(image[..., None], 3, 2).astype(np.uint8))
    tracks = follow(np.stack(images))
    moved = []
    for a, b in itertools.pairwise(tracks):
        _, rows_a, rows_b = np.intersect1d(a[:, 0], b[:, 0], return_indices=True)
        inside = (np.abs(a[rows_a, 1:] - [60 + 70, 40 + 70]) < 50).all(1)
        moved.append((b[rows_b, 1:] - a[rows_a, 1:])[inside])
    assert min(map(len, moved)) > 60, [len(m) for m in moved]
    np.testing.assert_allclose(np.median(np.concatenate(moved), 0), [3.5, 0], atol=0.05)
    assert np.mean(np.abs(np.concatenate(moved) - [3.5, 0]).max(1) < 0.5) > 0.95
    lengths = np.bincount(np.concatenate([own[:, 0] for own in tracks]).astype(int))
    assert lengths.max() == 4
    keep = np.zeros((6, 220, 320), bool)
    assert not any(len(own) for own in follow(np.stack(images), keep))
    assert all((own[:, 1] > 50).all() for own in tracks)


def test_far_matches_are_those_that_close_a_loop() -> None:
    """Of an orbit whose last frames see the first ones' points again, the points that only neighbours share are left out."""
    model = orbit(np.full(23, 15.0))
    near_only = model.seen_point < 20
    rows = ~near_only | (model.seen_by < 4)  # points 0..19 are seen by the first four frames, the others all around
    model = replace(model, seen_by=model.seen_by[rows], seen_point=model.seen_point[rows], seen_at=model.seen_at[rows])
    tracked, start = hosted(by_point(model))
    matches = replace(tracked, host_px=tracked.host_px / 2, target_px=tracked.target_px / 2)
    clip = PosedClip(
        grays=np.zeros((24, 30, 50), np.uint8),
        w2c=model.w2c,
        K=np.diag([0.5, 0.5, 1]) @ model.K,
        refs=np.arange(24),
        sparse=[np.zeros((0, 3))] * 24,
        tracks=(matches, start),
    )
    neighbours = [[max(0, i - 3), min(23, i + 3)] for i in range(24)]
    matches, inverse = far_matches(clip, neighbours)
    assert len(inverse) == 20 and matches.point.max() == 19 and (np.diff(matches.point) >= 0).all()
    assert (np.abs(matches.host - matches.target) > 3).any()
    # A host pixel, lifted by its 1/z and seen by the target, falls on the target's pixel.
    ray = np.linalg.inv(clip.K[0]) @ np.c_[matches.host_px, np.ones(len(matches.host))].T
    camera = ray.T / inverse[matches.point][:, None]
    world = np.einsum("nij,nj->ni", np.linalg.inv(model.w2c)[matches.host], np.c_[camera, np.ones(len(camera))])
    there = np.einsum("nij,nj->ni", model.w2c[matches.target], world)[:, :3] @ clip.K[0].T
    np.testing.assert_allclose(there[:, :2] / there[:, 2:], matches.target_px, atol=1e-6)
