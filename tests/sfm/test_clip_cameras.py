"""Cameras of the frames between those of the scene."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval_gs.paths import clip_path
from tests.box_world import BoxWorld, make_box_world
from utils.cameras import se3
from utils.cameras.lens import Lens
from utils.exports.cameras.clip import write_clip
from utils.imports.cameras import read_cameras
from utils.sfm.clip_cameras import ClipCameras, _reduced, place_clip
from utils.types import NULL_REPORTER, CameraSet, Scene

FRAMES, SIZE = 9, (84, 140)
CHOSEN = np.array([0, 4, 8])


@pytest.fixture(scope="module")
def world() -> BoxWorld:
    return make_box_world(FRAMES, SIZE, warp=0.0)


def scene_of(world: BoxWorld, rows: np.ndarray) -> Scene:
    return replace(world.scene, cameras=world.true).select(rows)


def grays(world: BoxWorld) -> list[np.ndarray]:
    return [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in world.scene.images]


def test_frames_in_between_are_placed_where_they_were_taken(world: BoxWorld) -> None:
    found = place_clip(scene_of(world, CHOSEN), CHOSEN, [FRAMES], grays(world).__getitem__, NULL_REPORTER)
    assert found.placed.all() and found.rows.tolist() == [0, -1, -1, -1, 1, -1, -1, -1, 2]
    np.testing.assert_array_equal(found.c2w[CHOSEN], world.true.c2w[CHOSEN])
    step = np.linalg.norm(np.diff(world.true.centers, axis=0), axis=1).mean()
    offset = np.linalg.norm(found.c2w[:, :3, 3] - world.true.centers, axis=1)
    assert offset.max() < 0.05 * step
    turn = np.einsum("fji,fjk->fik", found.c2w[:, :3, :3], world.true.c2w[:, :3, :3])
    assert np.degrees(np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1))).max() < 0.1
    np.testing.assert_allclose(found.K, world.true.K)


def test_large_frames_are_placed_at_a_smaller_size_as_well() -> None:
    world = make_box_world(3, (224, 392), warp=0.0)
    chosen = np.array([0, 2])
    found = place_clip(scene_of(world, chosen), chosen, [3], grays(world).__getitem__, NULL_REPORTER)
    step = np.linalg.norm(np.diff(world.true.centers, axis=0), axis=1).mean()
    assert np.linalg.norm(found.c2w[1, :3, 3] - world.true.centers[1]) < 0.02 * step
    np.testing.assert_allclose(found.K, world.true.K)


def test_frames_beyond_the_last_registered_one_are_placed_too(world: BoxWorld) -> None:
    found = place_clip(scene_of(world, CHOSEN[1:]), CHOSEN[1:], [FRAMES], grays(world).__getitem__, NULL_REPORTER)
    assert found.placed[3:].all()
    step = np.linalg.norm(np.diff(world.true.centers, axis=0), axis=1).mean()
    assert np.linalg.norm(found.c2w[3:, :3, 3] - world.true.centers[3:], axis=1).max() < 0.05 * step


def test_masked_and_unknown_pixels_do_not_place_a_frame(world: BoxWorld) -> None:
    """Half of every frame is masked and shows something that moves with the camera."""
    scene, seen = scene_of(world, CHOSEN), grays(world)
    moving = np.random.default_rng(0).integers(0, 255, (SIZE[0], 70), dtype=np.uint8)
    moving = cv2.GaussianBlur(moving, (0, 0), 2)
    seen = [np.concatenate([image[:, :70], moving], axis=1) for image in seen]
    images, depth = scene.images.copy(), scene.depth.copy()
    images[:, :, 70:], depth[:, :, 70:] = moving[..., None], 0
    found = place_clip(replace(scene, images=images, depth=depth), CHOSEN, [FRAMES], seen.__getitem__, NULL_REPORTER)
    step = np.linalg.norm(np.diff(world.true.centers, axis=0), axis=1).mean()
    assert np.linalg.norm(found.c2w[:, :3, 3] - world.true.centers, axis=1).max() < 0.3 * step


def test_what_shows_another_place_is_not_placed(world: BoxWorld) -> None:
    other = np.random.default_rng(1).integers(0, 255, SIZE, dtype=np.uint8)
    seen = [*grays(world)[:5], other, *grays(world)[6:]]
    found = place_clip(scene_of(world, CHOSEN), CHOSEN, [FRAMES], seen.__getitem__, NULL_REPORTER)
    assert found.placed.tolist() == [i != 5 for i in range(FRAMES)]


def test_frames_of_another_clip_are_no_neighbours(world: BoxWorld) -> None:
    chosen = np.array([0, 2, 6, 8])
    asked: list[int] = []

    def gray(position: int) -> np.ndarray:
        asked.append(position)
        return grays(world)[position]

    found = place_clip(scene_of(world, chosen), chosen, [3, 2, 4], gray, NULL_REPORTER)
    assert not found.placed[3:5].any() and found.placed[[1, 5, 7]].all()


@pytest.mark.parametrize("lens", [None, Lens(0.95, -0.1), Lens(0.8, 0.1)])
def test_files_describe_the_frames_as_they_lie_on_disk(world: BoxWorld, tmp_path: Path, lens: Lens | None) -> None:
    """Twice the scene's size, one frame missing; a distorted image's camera sees a point where the undistorted one's, bent, does."""
    scene = scene_of(world, CHOSEN)
    found = ClipCameras(c2w=world.true.c2w.copy(), K=world.true.K, rows=np.array([0, -1, -1, -1, 1, -1, -1, -1, 2]))
    found.c2w[5] = np.nan
    frames = [tmp_path / "frames" / f"{i + 1:06d}.png" for i in range(FRAMES)]
    folder = tmp_path / "exports" / "cameras"
    folder.mkdir(parents=True)
    write_clip(folder, found, [f"../../frames/{frame.name}" for frame in frames], (168, 280), scene, lens)
    kept = np.array([0, 1, 2, 3, 4, 6, 7, 8])
    for cameras in (read_cameras(folder / "transforms.json"), read_cameras(folder / "sparse" / "0")):
        assert [Path(name).name for name in cameras.names] == [frames[i].name for i in kept]
        np.testing.assert_allclose(cameras.c2w, world.true.c2w[kept], atol=1e-9)
        assert cameras.sizes.tolist() == [[168, 280]] * len(kept)
        if lens is None:
            np.testing.assert_allclose(cameras.K, world.true.resized((168, 280)).K[kept])
            continue
        straight = np.array([[70.0, 40.0]])
        K = world.true.resized((168, 280)).K[0]
        ray = np.array([(straight[0, 0] - K[0, 2]) / K[0, 0], (straight[0, 1] - K[1, 2]) / K[1, 1]])
        k1 = cameras.lenses[0].params[-1 if "SIMPLE" in cameras.lenses[0].model else 4]
        bent = cameras.K[0][[0, 1], [0, 1]] * ray * (1 + k1 * (ray @ ray)) + cameras.K[0][:2, 2]
        source = lens.sources((168, 280))
        expected = cv2.remap(source, *(straight.astype(np.float32) - 0.5).T[:, :, None], cv2.INTER_LINEAR)
        np.testing.assert_allclose(bent, expected.reshape(2), atol=0.01)
    entries = json.loads((folder / "transforms.json").read_text())["frames"]
    assert entries[0]["file_path"] == "../../frames/000001.png"
    assert [entry.get("scene_frame") for entry in entries] == [0, None, None, None, 1, None, None, 2]


def test_the_clip_follows_what_alignment_did_to_its_frames(world: BoxWorld, tmp_path: Path) -> None:
    """The chosen cameras turn and move to a new world together: so must those in between, exactly."""
    found = ClipCameras(c2w=world.true.c2w, K=world.true.K, rows=np.array([0, -1, -1, -1, 1, -1, -1, -1, 2]))
    write_clip(tmp_path, found, [f"{i}.png" for i in range(FRAMES)], SIZE, scene_of(world, CHOSEN), None)
    before = world.true.select(CHOSEN)
    before = replace(before, frame_ids=np.arange(3))
    nudge = se3.exp(torch.tensor([0.02, -0.01, 0.03, 0.1, 0.2, -0.1]).double()).numpy()
    path = clip_path(tmp_path / "transforms.json", before, replace(before, c2w=before.c2w @ nudge))
    np.testing.assert_allclose(path.c2w, world.true.c2w @ nudge, atol=1e-9)
    assert len(path) == FRAMES and path.size == SIZE


@pytest.mark.parametrize("size", [(308, 504), (310, 602), (308, 902)], ids=["even", "not a whole factor", "by four"])
def test_smaller_frames_have_the_depth_of_their_own_pixel_centers(size: tuple[int, int]) -> None:
    """1/z is linear across a slanted plane; picking a pixel beside the centre would be off by half a pixel's slope."""

    def plane(h: int, w: int) -> np.ndarray:
        y, x = (np.arange(h)[:, None] + 0.5) / h, (np.arange(w)[None] + 0.5) / w
        return (1 / (0.3 + 0.5 * x + 0.3 * y)).astype(np.float32)

    depth = plane(*size)
    depth[:, -20:] = 20.0
    depth[:30, :30] = 0
    cameras = CameraSet(c2w=np.eye(4)[None], K=np.diag([400.0, 400, 1])[None], size=size, frame_ids=np.arange(1))
    scene = Scene(cameras=cameras, images=np.zeros((1, *size, 3), np.uint8), depth=depth[None], confidence=np.ones((1, *size), np.float32))
    small = _reduced(scene)
    h, w = small.cameras.size
    assert max(h, w) <= 300
    np.testing.assert_allclose(small.cameras.K[0, 0, 0], 400 * w / size[1])
    np.testing.assert_allclose(small.depth[0, 16:, :-11], plane(h, w)[16:, :-11], rtol=1e-4)
    # No depth is made up at the edge of a surface or of what is known.
    assert np.isin(small.depth[0, 20:, -8:][small.depth[0, 20:, -8:] > 4], 20.0).all()
    assert (small.depth[0, :7, :7] == 0).all()
