"""What is too far to be measured: it lands on the far shell, and what only looks like sky is left where it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.preprocess import PreprocessConfig
from preprocess import geometry, stage
from preprocess import scene as reconstruction
from tests.box_world import make_box_world
from utils.geometry_backend import ClipFrames, SparseModel
from utils.scene.artifacts import load_scene
from utils.scene.masks import SKY_CONFIDENCE, is_sky, mark_sky
from utils.scene.media import write_image
from utils.sfm.backend import MEDIAN_DEPTH, _to_scene, _with_shell
from utils.sfm.depth_completion import PosedClip
from utils.sfm.flow_depth import RayDepth
from utils.sfm.posed_depth import _finished
from utils.types import NULL_REPORTER, Reporter, Scene

FRAMES, SIZE = 4, (42, 70)
SKY = np.s_[:, :14]


def triangulated() -> tuple[list[RayDepth], np.ndarray, np.ndarray]:
    """Rays of a box whose upper third shows no parallax, their filled 1/z with a near blob in the sky, and the true depth."""
    world = make_box_world(FRAMES, SIZE, warp=0.0)
    inverse = (1 / world.true_depth).astype(np.float32)
    inverse[SKY] = 0.001
    inverse[:, 2:6, 30:40] = 0.8  # a fill gone wrong
    far = np.zeros(inverse.shape, bool)
    far[SKY] = True
    far[:, 2:6, 30:40] = False
    weight = np.where(far, 0.0, 3.0).astype(np.float32)
    weight[:, 2:6, 30:40] = 0.0
    views = np.full(inverse.shape, 4)
    rays = [RayDepth(inverse=i, weight=w, views=v, far=f) for i, w, v, f in zip(inverse, weight, views, far, strict=True)]
    return rays, inverse, world.true_depth


def test_what_shows_no_parallax_lands_on_the_far_shell() -> None:
    rays, inverse, truth = triangulated()
    world = make_box_world(FRAMES, SIZE, warp=0.0)
    clip = PosedClip(
        grays=np.zeros((FRAMES, *SIZE), np.uint8),
        w2c=world.true.w2c,
        K=world.true.K,
        refs=np.arange(FRAMES),
        sparse=[np.zeros((0, 3))] * FRAMES,
    )
    frames = ClipFrames(images=world.scene.images, chosen=np.arange(FRAMES), size=SIZE, names=("",) * FRAMES)
    empty = np.zeros(0, np.int64)
    model = SparseModel(
        frames=np.arange(FRAMES), w2c=world.true.w2c, K=world.true.K, points=np.zeros((0, 3)), seen_by=empty, seen_point=empty,
        seen_at=np.zeros((0, 2)), error_px=0.0,
    )  # fmt: skip
    scene = _to_scene(frames, model, clip, *_with_shell(clip, list(inverse), rays))
    scale = MEDIAN_DEPTH / np.median(np.where(inverse > 0.002, truth, truth.max() * 1.5))
    sky = np.stack([ray.far for ray in rays])
    assert np.ptp(scene.depth[sky]) == 0 and (scene.confidence[sky] == SKY_CONFIDENCE).all()
    ground = scene.depth[:, 14:]
    assert 1.2 * ground.max() < scene.depth[sky][0] < 2 * ground.max()
    assert (scene.confidence[:, 14:] > SKY_CONFIDENCE).mean() > 0.9
    assert np.median(ground / (truth[:, 14:] * scale)) == pytest.approx(1, rel=0.2)
    depth, confidence = _finished(inverse, rays, world.true.w2c, world.true.K[0])
    assert np.ptp(depth[sky]) == 0 and depth[sky][0] > 1.2 * depth[:, 14:].max() and (confidence[sky] == SKY_CONFIDENCE).all()


def sky_scene() -> tuple[Scene, np.ndarray]:
    """A scene as structure from motion leaves it, with a near blob in its sky, and what looks like sky in it."""
    rays, inverse, _ = triangulated()
    confidence = np.where(np.stack([ray.weight for ray in rays]) > 0, 2.0, 1.0).astype(np.float32)
    looks = np.zeros(inverse.shape, bool)
    looks[SKY] = True
    world = make_box_world(FRAMES, SIZE, warp=0.0)
    depth = (1 / np.maximum(inverse, 1 / 9)).astype(np.float32)
    return replace(world.scene, depth=depth, confidence=confidence), looks


def test_sky_is_told_from_ceilings() -> None:
    scene, looks = sky_scene()
    assert is_sky(scene, looks)
    measured = replace(scene, confidence=np.full_like(scene.confidence, 2))
    assert not is_sky(measured, looks), "a ceiling that could be triangulated"
    depth = scene.depth.copy()
    depth[SKY] = np.median(depth[:, 14:])
    assert not is_sky(replace(scene, depth=depth), looks), "a ceiling filled from the walls"
    assert not is_sky(scene, np.zeros_like(looks)) and not is_sky(scene, np.ones_like(looks))


def test_marked_sky_has_no_near_blobs_left() -> None:
    scene, looks = sky_scene()
    assert scene.depth[SKY].min() < 2
    marked = mark_sky(scene, looks)
    assert marked.depth[SKY].min() == marked.depth[SKY].max() >= np.percentile(scene.depth[:, 14:], 98)
    np.testing.assert_array_equal(marked.depth[:, 14:], scene.depth[:, 14:])


@pytest.mark.parametrize(
    ("mode", "backend", "moved"), [("auto", "sfm", True), ("auto", "da3", False), ("off", "sfm", False), ("on", "da3", True)]
)
def test_sky_is_marked_where_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, backend: str, moved: bool) -> None:
    """`auto` is for depth without a sky of its own."""
    scene, _ = sky_scene()
    images = scene.images // 2
    images[SKY] = (150, 190, 240)
    scene = replace(scene, images=images)

    class Made:
        def estimate(self, frames: ClipFrames, report: Reporter) -> Scene:
            return scene

    monkeypatch.setattr(geometry, "resolve_backend", lambda config: backend)
    monkeypatch.setattr(reconstruction, "make_backend", lambda name, config: Made())
    (tmp_path / "shots").mkdir()
    for i, image in enumerate(images):
        write_image(tmp_path / "shots" / f"{i}.png", image)
    settings = {"frames_dir": tmp_path / "shots", "scene_root": tmp_path / "scene", "process_res": 70, "every_frame": False}
    stage.run(PreprocessConfig(**settings, mask_sky=mode), NULL_REPORTER)  # type: ignore[arg-type]
    stored = load_scene(tmp_path / "scene")
    assert (stored.depth[:, 2:6, 30:40].min() > np.percentile(scene.depth[:, 14:], 97)) == moved
    np.testing.assert_array_equal(stored.depth[:, 17:], scene.depth[:, 17:])
