"""What structure from motion does with clips that do not determine geometry, or only part of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
import torch

from tests.box_world import box_images
from tests.notes import Notes
from utils.cameras import se3
from utils.cameras.lens import Lens
from utils.errors import GeometryError
from utils.geometry_backend import ClipFrames, SparseModel
from utils.scene.captured import ClipMotion
from utils.sfm import backend as geometry_sfm
from utils.sfm import mapping as sfm_poses
from utils.sfm.backend import SfmGeometry
from utils.sfm.captured_camera import estimate_camera
from utils.sfm.flow_tracks import add_flow_tracks
from utils.sfm.matches_agreement import agreement
from utils.sfm.matches_database import frame_ids, verified_counts
from utils.sfm.path_breaks import path_breaks
from utils.synthetic.captured import bent
from utils.synthetic.world import WorldConfig, make_world
from utils.types import NULL_REPORTER, Reporter, Scene

pytestmark = pytest.mark.slow

SIZE = (112, 196)
STEPS = np.linspace(-1, 1, 10)


def clip(turn: float = 0.0, right: float = 0.0, forward: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Ten images of a textured box and their c2w, turning about y and moving."""
    twists = np.zeros((len(STEPS), 6))
    twists[:, 1], twists[:, 3], twists[:, 5] = turn * STEPS, right * STEPS, forward * STEPS
    c2w = se3.exp(torch.from_numpy(twists)).numpy()
    return box_images(c2w, SIZE), c2w


def estimate(images: np.ndarray) -> Scene:
    frames = ClipFrames(images=images, chosen=np.arange(len(images)), size=SIZE, names=tuple(str(i) for i in range(len(images))))
    return SfmGeometry(seed=0).estimate(frames, NULL_REPORTER)


def test_forward_motion_gives_poses_and_depth() -> None:
    images, c2w = clip(forward=0.8)
    scene = estimate(images)
    assert len(scene) == 10 and (scene.confidence > 1.1).mean() > 0.8
    # In the first camera's axes the path runs straight ahead; a flipped axis or w2c for c2w would turn it around.
    path = (scene.cameras.centers - scene.cameras.centers[0]) @ scene.cameras.c2w[0, :3, :3]
    # Straight to 2.5 % with seeds 0 to 2; with COLMAP's own global mapping to 1.0, 2.5 and 2.5 %.
    assert path[-1, 2] > 0 and np.abs(path[:, :2]).max() < 0.03 * path[-1, 2]
    steps = np.diff(path[:, 2]) / path[-1, 2]
    np.testing.assert_allclose(steps, 1 / 9, atol=0.01)
    assert c2w[-1, 2, 3] > c2w[0, 2, 3]


@pytest.mark.parametrize(
    ("motion", "message"),
    [({"turn": 0.25}, "turns or zooms"), ({"turn": 0.25, "right": 0.01}, "turns or zooms"), ({"right": 0.004}, "does not move")],
    ids=["pure rotation", "tiny parallax", "hardly any motion"],
)
def test_motion_without_parallax_is_explained(motion: dict[str, float], message: str) -> None:
    with pytest.raises(GeometryError, match=message) as caught:
        estimate(clip(**motion)[0])
    assert "moves" in caught.value.hint


def test_low_texture_is_explained() -> None:
    images = clip(right=0.5)[0]
    faint = (128 + 0.02 * (images.astype(float) - 128)).astype(np.uint8)
    with pytest.raises(GeometryError, match="texture"):
        estimate(faint)


def model_of(frames: int, focal: float) -> SparseModel:
    """A model of the first `frames` frames of 100x60 pixels."""
    return SparseModel(
        frames=np.arange(frames),
        w2c=np.tile(np.eye(4), (frames, 1, 1)),
        K=np.tile(np.diag([focal, focal, 1.0]), (frames, 1, 1)),
        points=np.zeros((0, 3)),
        seen_by=np.zeros(0, np.int64),
        seen_point=np.zeros(0, np.int64),
        seen_at=np.zeros((0, 2)),
        error_px=0.1,
    )


def stub_mapping(monkeypatch: pytest.MonkeyPatch, free: SparseModel, given: Callable[[float], SparseModel]) -> None:
    monkeypatch.setattr(sfm_poses, "_match", lambda images, folder, *rest: folder)
    monkeypatch.setattr(sfm_poses, "_map", lambda database, seed, focal=None: free if focal is None else given(focal))
    monkeypatch.setattr(sfm_poses, "_map_zoom", lambda shared, *_: shared)


@pytest.mark.parametrize(("focal", "best"), [(25.0, 40.0), (25.0, 55.0), (400.0, 150.0), (400.0, 90.0)])
def test_implausible_focal_length_is_replaced_by_the_one_that_matches_agree_with(
    monkeypatch: pytest.MonkeyPatch, focal: float, best: float
) -> None:
    stub_mapping(monkeypatch, model_of(12, focal), lambda given: model_of(12, given))
    monkeypatch.setattr(sfm_poses, "agreement", lambda model, database: 1 - abs(model.focal - best) / 1000)
    notes = Notes()
    assert sfm_poses.map_frames(np.zeros((12, 60, 100, 3), np.uint8), seed=0, report=notes).focal == pytest.approx(best)
    assert "fixed" in notes.lines[0]


def test_frames_missing_with_a_free_focal_length_are_mapped_with_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_mapping(monkeypatch, model_of(3, 25.0), lambda given: model_of(12, given))
    assert sfm_poses.map_frames(np.zeros((12, 60, 100, 3), np.uint8), seed=0, report=Notes()).focal == 90


def test_matches_agree_with_the_cameras_that_saw_them(tmp_path: Path) -> None:
    """With the cameras found nearly all matches agree, with half the focal length fewer, with shuffled cameras few."""
    images = clip(right=0.8, turn=-0.2)[0]
    database = sfm_poses._match(images, tmp_path, 0)
    model = sfm_poses._map(database, 0)
    assert model is not None
    found = agreement(model, database)
    assert found > 0.9
    half = replace(model, K=np.diag([0.4, 0.4, 1.0]) @ model.K + np.array([[0, 0, 0.6], [0, 0, 0.6], [0, 0, 0]]) * model.K)
    assert agreement(half, database) < found - 0.02
    assert agreement(replace(model, w2c=model.w2c[::-1].copy()), database) < 0.6 * found


def test_part_of_the_frames_is_used_and_named_and_too_few_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 60, 100, 3)).astype(np.uint8)
    stub_mapping(monkeypatch, model_of(9, 90.0), lambda given: model_of(9, given))
    notes = Notes()
    assert len(sfm_poses.map_frames(images, seed=0, report=notes).frames) == 9
    assert notes.lines == ["poses: 3 of 12 frames could not be registered: 9-11"]
    stub_mapping(monkeypatch, model_of(7, 90.0), lambda given: model_of(7, given))
    with pytest.raises(GeometryError, match="only 7 of 12"):
        sfm_poses.map_frames(images, seed=0, report=notes)


def test_frames_placed_by_next_to_no_points_do_not_count() -> None:
    model = model_of(4, 90.0)
    seen_by = np.repeat([0, 1, 3, 2], [20, 3, 30, 10])
    rng = np.random.default_rng(0)
    model = replace(model, points=rng.random((30, 3)), seen_by=seen_by, seen_point=rng.integers(0, 30, 63), seen_at=rng.random((63, 2)))
    kept = sfm_poses.supported(model)
    assert kept.frames.tolist() == [0, 2, 3] and len(kept.w2c) == 3
    assert np.bincount(kept.seen_by).tolist() == [20, 10, 30]
    np.testing.assert_array_equal(kept.seen_at[kept.seen_by == 2], model.seen_at[seen_by == 3])


def test_frames_added_one_after_another_lie_where_they_should(tmp_path: Path) -> None:
    """Incremental mapping with points followed by flow; with a focal length given, that one is held."""
    images = clip(right=0.8, turn=-0.2)[0]
    database = sfm_poses._match(images, tmp_path, 0)
    assert add_flow_tracks(database, images, seed=0) > 0
    for focal in (None, 200.0):
        model = sfm_poses._map_incrementally(database, 0, focal)
        assert model is not None and model.frames.tolist() == list(range(10))
        assert focal is None or model.focal == focal
        centers = np.linalg.inv(model.w2c)[:, :3, 3]
        steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
        np.testing.assert_allclose(steps, steps.mean(), rtol=0.1)
        assert not path_breaks(model).any()
        with pycolmap.Database.open(database) as stored:
            ids = frame_ids(stored, 10)
            assert all(sfm_poses._confirmed(stored, ids[step : step + 2], model, step) for step in range(9))
            # 2.5 degrees the other way round are not what the matches say.
            assert not any(sfm_poses._confirmed(stored, ids[step : step + 2][::-1], model, step) for step in range(9))


def test_frames_that_do_not_match_are_mapped_with_those_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third of ten frames is chosen; alone they are said not to match."""
    images, c2w = clip(forward=0.8)
    real, asked = sfm_poses.map_frames, []

    def mapped(images: np.ndarray, *, seed: int, report: Reporter, features: str, **rest: np.ndarray | None) -> SparseModel:
        asked.append(len(images))
        if len(images) < 10:
            raise sfm_poses.UnmatchedError("poses were found for only 3 of 4 frames", "")
        return real(images, seed=seed, report=report, features=features)

    monkeypatch.setattr(geometry_sfm, "map_frames", mapped)
    chosen, notes = np.arange(0, 10, 3), Notes()
    frames = ClipFrames(images=images, chosen=chosen, size=SIZE, names=tuple(map(str, range(10))))
    scene = SfmGeometry(seed=0).estimate(frames, notes)
    assert asked == [4, 10] and any("mapping all 10 frames" in line for line in notes.lines)
    assert scene.cameras.frame_ids.tolist() == [0, 1, 2, 3]
    path, truth = scene.cameras.centers - scene.cameras.centers[0], (c2w[chosen] - c2w[0])[:, :3, 3]
    found = (path @ scene.cameras.c2w[0, :3, :3]) / np.linalg.norm(path[-1])
    wanted = truth @ c2w[0, :3, :3] / np.linalg.norm(truth[-1])
    np.testing.assert_allclose(found[:, 2], wanted[:, 2], atol=0.01)
    # Sideways, motion straight ahead is known less well: .0305 on one processor, below .03 on another.
    np.testing.assert_allclose(found[:, :2], wanted[:, :2], atol=0.035)
    with pytest.raises(sfm_poses.UnmatchedError):
        SfmGeometry(seed=0).estimate(replace(frames, images=images[chosen], chosen=np.arange(4), names=tuple("0123")), NULL_REPORTER)


def test_a_model_restricted_to_some_frames_keeps_their_points() -> None:
    rng = np.random.default_rng(0)
    model = replace(model_of(12, 90.0), points=rng.random((30, 3)), seen_by=np.repeat(np.arange(12), 5))
    model = replace(model, seen_point=rng.integers(0, 30, 60), seen_at=rng.random((60, 2)))
    images = rng.integers(0, 255, (12, 60, 100, 3)).astype(np.uint8)
    kept = sfm_poses.restricted(model, images, np.array([1, 4, 7, 11]))
    assert kept.frames.tolist() == [0, 1, 2, 3] and len(kept.points) == 30
    np.testing.assert_array_equal(kept.seen_at[kept.seen_by == 2], model.seen_at[model.seen_by == 7])
    few = SparseModel(**{**vars(model), "frames": np.arange(12) + 3})
    with pytest.raises(GeometryError, match="only 1 of 2"):
        sfm_poses.restricted(few, images, np.array([0, 8]))


@pytest.mark.parametrize("k", [-0.15, 0.15])
def test_undistortion_undoes_the_lens(k: float) -> None:
    lens = Lens(0.9, k)
    plain = clip()[0][:1]
    straight = lens.undistorted(bent(plain, lens)[0])
    # At the same focal length as the plain image, or a little longer where the corners would be empty.
    zoom = lens.enlarged(SIZE)
    assert (zoom > 1) == (k > 0)
    matrix = np.array([[zoom, 0, (1 - zoom) * (SIZE[1] - 1) / 2], [0, zoom, (1 - zoom) * (SIZE[0] - 1) / 2]])
    expected = cv2.warpAffine(plain[0], matrix, (SIZE[1], SIZE[0]))
    inner = (slice(16, -16), slice(16, -16))
    assert np.abs(straight[inner].astype(int) - expected[inner]).mean() < 1
    assert np.abs(bent(plain, lens)[0][inner].astype(int) - expected[inner]).mean() > 3


@pytest.mark.parametrize("k", [-0.12, 0.12])
def test_lens_is_estimated_from_the_clip_and_no_shutter_where_there_is_none(k: float) -> None:
    world = make_world(WorldConfig(layout="object", frames=10, size=(144, 256), severity="none", seed=1, path_scale=2))
    images = bent(world.images, Lens(0.85, k))
    motion = ClipMotion(lambda position: images[position], [len(images)])
    camera, model = estimate_camera(images, motion.of, seed=0, report=NULL_REPORTER)
    assert wander(model, world.cameras.c2w) < 0.02
    assert camera.lens.k == pytest.approx(k, abs=0.03) and camera.lens.focal == pytest.approx(0.85, rel=0.03)
    assert abs(camera.readout) < 0.08


def wander(model: SparseModel, c2w: np.ndarray) -> float:
    """RMS error of the camera centres as a share of the path, in the first camera's axes after the best scale."""
    pose, truth = np.linalg.inv(model.w2c), c2w[model.frames]
    centers, wanted = ((p[:, :3, 3] - p[0, :3, 3]) @ p[0, :3, :3] for p in (pose, truth))
    centers *= (centers * wanted).sum() / (centers**2).sum()
    return float(np.sqrt(((centers - wanted) ** 2).sum(1).mean()) / np.linalg.norm(wanted[-1]))


def test_a_masked_watermark_does_not_disturb_the_poses() -> None:
    """A picture full of texture stands still before a quarter of a moving view."""
    world = make_world(WorldConfig(layout="room", severity="none", seed=0, size=(168, 294), frames=10))
    hidden = np.s_[:, 60:, :130]
    images, keep = world.images.copy(), np.ones(world.images.shape[:3], bool)
    coarse = np.random.default_rng(0).integers(0, 255, (27, 33, 3), dtype=np.uint8)
    images[hidden], keep[hidden] = cv2.resize(coarse, (130, 108), interpolation=cv2.INTER_CUBIC), False
    masked, spoiled = (
        sfm_poses.settle_focal(sfm_poses.map_frames(images, seed=0, report=NULL_REPORTER, keep=where), images.shape[1:3], NULL_REPORTER)
        for where in (keep, None)
    )
    assert len(masked.frames) == len(images) and wander(masked, world.cameras.c2w) < 0.02
    column, row = masked.seen_at.T
    assert not ((column < 133) & (row > 57)).any()
    assert wander(spoiled, world.cameras.c2w) > 0.1


@pytest.mark.parametrize("learned", [False, True])
def test_many_frames_of_several_clips_are_matched_by_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: bool) -> None:
    """Three clips of which the first and the last look at one wall, the second at another: SIFT's own features tell, or given vectors."""
    monkeypatch.setattr(sfm_poses, "MAX_EXHAUSTIVE_FRAMES", 4)
    here, there = clip(right=0.3)[0], clip(right=0.3, turn=0.1)[0]
    turned = box_images(
        se3.exp(torch.tensor([[0.0, 2.0 + 0.01 * k, 0, 0.05 * k, 0, 0] for k in range(6)], dtype=torch.float64)).numpy(), SIZE
    )
    images, clips = np.concatenate([here[:6], turned, there[2:8]]), np.repeat([0, 1, 2], 6)
    vectors = np.eye(3)[[0] * 6 + [1] * 6 + [0] * 6] if learned else None
    database = sfm_poses._match(images, tmp_path, 0, None, clips, vectors)
    with pycolmap.Database.open(database) as stored:
        ids = frame_ids(stored, 18)
        tried = [(a, b) for a in range(18) for b in range(a + 1, 18) if stored.exists_matches(ids[a], ids[b])]
        counts = verified_counts(stored, ids)
    assert {(a, a + 1) for a in range(17) if clips[a] == clips[a + 1]} <= set(tried)
    assert len(tried) < 18 * 17 // 2
    between = {pair: count for pair, count in counts.items() if clips[pair[0]] != clips[pair[1]]}
    assert len(between) >= 10 and min(between.values()) > 25
    assert all((clips[a], clips[b]) == (0, 2) for a, b in between)


def test_a_clip_of_another_place_is_named_and_left_out() -> None:
    """Of three clips of four frames the second has one frame placed, by chance, and the third two: it is kept."""
    model = model_of(12, 90.0)
    placed = np.array([0, 1, 2, 3, 5, 8, 9])
    seen_by = np.repeat(np.arange(7), 12)
    rng = np.random.default_rng(0)
    seen = {"seen_by": seen_by, "seen_point": rng.integers(0, 30, 84), "seen_at": rng.random((84, 2))}
    model = replace(model, frames=placed, w2c=model.w2c[placed], K=model.K[placed], points=rng.random((30, 3)), **seen)
    notes = Notes()
    kept = sfm_poses.of_one_place(model, np.repeat([0, 1, 2], 4), [f"clip_{k // 4}/{k % 4}" for k in range(12)], notes)
    assert kept.frames.tolist() == [0, 1, 2, 3, 8, 9] and len(kept.w2c) == 6 and kept.seen_by.max() == 5
    assert len(notes.lines) == 1 and "clip 2" in notes.lines[0] and "clip_1/0" in notes.lines[0]
    assert sfm_poses.of_one_place(model, None, [], notes) is model
    assert sfm_poses.of_one_place(model, np.zeros(12, int), [], notes) is model
