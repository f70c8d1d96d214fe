"""Mask folders, their effect on a scene, and the two detectors."""

import json

import cv2
import numpy as np
import pytest

from configs.preprocess import PreprocessConfig
from preprocess_video import run
from tests.box_world import make_box_world
from utils.errors import InputError
from utils.scene.artifacts import load_scene, save_results
from utils.scene.layout import SceneLayout
from utils.scene.masks import apply_masks, detect_sky, detect_static_overlay, load_masks, mark_sky
from utils.scene.media import write_image
from utils.types import NULL_REPORTER, CameraSet, Scene


def small_scene(frames=3, size=(20, 30)):
    h, w = size
    rng = np.random.default_rng(0)
    cameras = CameraSet(
        c2w=np.tile(np.eye(4), (frames, 1, 1)),
        K=np.tile(np.array([[30.0, 0, w / 2], [0, 30, h / 2], [0, 0, 1]]), (frames, 1, 1)),
        size=size,
        frame_ids=np.arange(frames),
    )
    depth = rng.uniform(1, 5, (frames, h, w)).astype(np.float32)
    return Scene(cameras=cameras, images=rng.integers(0, 255, (frames, h, w, 3), dtype=np.uint8), depth=depth, confidence=depth * 0 + 3)


def write_mask(path, size, black):
    image = np.full((*size, 3), 255, np.uint8)
    image[black] = 0
    cv2.imwrite(str(path), image)


def test_white_is_use_and_names_pair_up(tmp_path):
    write_mask(tmp_path / "000001.png", (40, 60), np.s_[:20])
    write_mask(tmp_path / "000000.jpg.png", (40, 60), np.s_[:, 30:])
    keep = load_masks(tmp_path, ["000000.jpg", "000001.jpg"], (20, 30))
    assert keep.shape == (2, 20, 30) and keep.dtype == bool
    assert keep[0, :, :15].all() and not keep[0, :, 15:].any()
    assert not keep[1, :10].any() and keep[1, 10:].all()


def test_a_pixel_that_is_partly_ignored_is_ignored(tmp_path):
    write_mask(tmp_path / "only.png", (40, 60), np.s_[5, 7])
    keep = load_masks(tmp_path, ["a", "b"], (20, 30))
    assert not keep[:, 2, 3].any() and keep.sum() == 2 * (600 - 1)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_masks(tmp_path / "no", ["a"], (4, 4))
    with pytest.raises(InputError, match="no images"):
        load_masks(tmp_path, ["a"], (4, 4))
    for name in ("a", "b"):
        write_mask(tmp_path / f"{name}.png", (4, 4), np.s_[:1])
    with pytest.raises(InputError, match=r"1 of 3 frames, the first is c\.png"):
        load_masks(tmp_path, ["a.png", "b.png", "c.png"], (4, 4))
    with pytest.raises(InputError, match="no pixel"):
        apply_masks(small_scene(), np.zeros((3, 20, 30), bool))


def test_masks_survive_results_npz(tmp_path):
    """The whole point: a later stage that loads results.npz sees masked pixels as unknown, at the lowest confidence."""
    keep = np.ones((3, 20, 30), bool)
    keep[1, 4:9, 10:20] = False
    scene = apply_masks(small_scene(), keep)
    folder = SceneLayout(tmp_path).npz_dir
    folder.mkdir(parents=True)
    save_results(folder, scene)
    loaded = load_scene(tmp_path)
    assert np.array_equal(loaded.valid, keep)
    assert (loaded.confidence[~keep] <= loaded.confidence.min()).all()


def test_sky_is_far_and_least_confident():
    scene, sky = small_scene(), np.zeros((3, 20, 30), bool)
    sky[:, :5] = True
    marked = mark_sky(scene, sky)
    assert (marked.confidence[sky] == 1).all() and (marked.confidence[~sky] == 3).all()
    assert np.allclose(marked.depth[sky], np.percentile(scene.depth[~sky], 99))


def test_a_logo_is_found_in_a_moving_clip_and_nothing_in_a_still_one():
    rng = np.random.default_rng(1)
    pattern = cv2.GaussianBlur(rng.integers(0, 255, (120, 400, 3), dtype=np.uint8), (0, 0), 1.5)
    pattern = cv2.normalize(pattern, None, 0, 255, cv2.NORM_MINMAX)
    clip = np.stack([pattern[10:100, 7 * i : 7 * i + 160] for i in range(16)]).copy()
    assert not detect_static_overlay(clip).any()
    clip[:, 70:82, 120:150] = 230
    clip = np.clip(clip + rng.normal(0, 0.8, clip.shape), 0, 255).astype(np.uint8)
    found = detect_static_overlay(clip)
    assert found[70:82, 120:150].all()
    assert found.sum() < 2.5 * 12 * 30
    assert not detect_static_overlay(np.repeat(clip[:1], 16, axis=0)).any()
    assert not detect_static_overlay(clip[:4]).any()


def test_sky_reaches_down_to_the_roofs():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 255, (80, 120, 3), dtype=np.uint8)
    rows = np.arange(40)[:, None]
    image[:40] = np.stack([120 + rows + np.zeros(120), 160 + rows / 2 + np.zeros(120), np.full((40, 120), 230)], -1)
    image[20:40, 30:50] = (90, 40, 30)
    sky = detect_sky(image[None])[0]
    assert sky[:16].all() and not sky[44:].any() and not sky[24:38, 33:47].any()


def test_stage_0_takes_cameras_and_masks_from_files(tmp_path):
    """Frames, a transforms.json and a mask folder in; results.npz with those poses and without the masked pixels out."""
    world = make_box_world(frames=5, size=(84, 140), warp=0.0)
    frames, masks = tmp_path / "frames", tmp_path / "masks"
    frames.mkdir()
    masks.mkdir()
    entries = []
    for i, image in enumerate(world.scene.images):
        write_image(frames / f"{i:03d}.png", image)
        write_mask(masks / f"{i:03d}.png", (84, 140), np.s_[:20, :30])
        K, matrix = world.true.K[i], world.true.c2w[i] @ np.diag([1.0, -1, -1, 1])
        entries.append({"file_path": f"images/{i:03d}.png", "transform_matrix": matrix.tolist(), "fl_x": K[0, 0], "fl_y": K[1, 1]})
    source = tmp_path / "transforms.json"
    source.write_text(json.dumps({"w": 140, "h": 84, "frames": entries}))
    config = PreprocessConfig(frames_dir=frames, scene_root=tmp_path / "scene", process_res=140, cameras=source, masks=masks)
    root = run(config, NULL_REPORTER)
    scene = load_scene(root)
    assert np.allclose(scene.cameras.c2w, world.true.c2w, atol=1e-5)
    assert not scene.valid[:, :20, :30].any() and scene.valid[:, 20:].all()
    assert np.median(np.abs(scene.depth[:, 20:] / world.true_depth[:, 20:] - 1)) < 0.02
    made = SceneLayout(root).results_npz.stat().st_mtime_ns
    run(config, NULL_REPORTER)
    assert SceneLayout(root).results_npz.stat().st_mtime_ns == made
    write_mask(masks / "000.png", (84, 140), np.s_[:40, :60])
    run(config, NULL_REPORTER)
    assert not load_scene(root).valid[0, :40, :60].any()
