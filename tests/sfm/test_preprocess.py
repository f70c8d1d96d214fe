"""Stage 0 from the command line to the files."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import preprocess_video
from configs.preprocess import PreprocessConfig
from tests.notes import Notes
from utils.cameras.lens import Lens
from utils.errors import ArtifactError, ConfigError, GeometryError, InputError, UnknownBackendError
from utils.geometry_backend import GEOMETRY, ClipFrames
from utils.imports.cameras import read_cameras, read_transforms
from utils.scene import media
from utils.scene.artifacts import load_scene
from utils.scene.layout import SceneLayout
from utils.scene.trajectories import load_trajectory
from utils.types import CameraSet, Reporter, Scene


class FlatGeometry:
    """A backend that places every chosen frame but the second in front of a wall."""

    def __init__(self, seed: int):
        self.seed = seed

    def estimate(self, frames: ClipFrames, report: Reporter) -> Scene:
        rows = np.delete(np.arange(len(frames.chosen)), 1)
        count, (h, w) = len(rows), frames.size
        c2w = np.tile(np.eye(4), (count, 1, 1))
        c2w[:, 0, 3] = np.linspace(0, 1, count)
        K = np.array([[0.9 * w, 0, w / 2], [0, 0.9 * w, h / 2], [0, 0, 1]])
        return Scene(
            cameras=CameraSet(c2w=c2w, K=np.repeat(K[None], count, 0), size=frames.size, frame_ids=rows),
            images=np.stack([media.resize_area(frames.images[frames.chosen[r]], frames.size) for r in rows]),
            depth=np.full((count, h, w), 3, np.float32),
            confidence=np.full((count, h, w), 2, np.float32),
        )


@pytest.fixture(autouse=True)
def flat_backend() -> None:
    GEOMETRY.register("flat", f"{__name__}:FlatGeometry")
    sys.modules.setdefault(__name__, sys.modules[__name__])


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    levels = np.arange(40) * 5
    frames = np.repeat(levels, 48 * 64 * 3).reshape(40, 48, 64, 3).astype(np.uint8)
    media.write_mp4(tmp_path / "clip.mp4", frames, 10)
    return tmp_path / "clip.mp4"


def config(clip: Path, **changes: object) -> PreprocessConfig:
    return PreprocessConfig(**{"input_video": (clip,), "max_frames": 6, "process_res": 64, "backend": "flat", **changes})  # type: ignore[arg-type]


def test_clip_becomes_a_scene(clip: Path) -> None:
    notes = Notes()
    root = preprocess_video.run(config(clip), notes)
    assert root == clip.with_suffix("")
    layout = SceneLayout(root)
    assert len(list(layout.frames.glob("*.png"))) == 40 and (layout.frames / "000001.png").is_file()
    kept = sorted(layout.frames_subsampled.glob("*.png"))
    assert [p.name for p in kept] == [f"{i:06d}.png" for i in range(5)]
    # frames 0, 8, 16, 23, 31, 39 are chosen, the backend drops the second: rows and files must still match
    levels = [media.read_image(p).mean() / 5 for p in kept]
    np.testing.assert_allclose(levels, [0, 16, 23, 31, 39], atol=0.8)
    scene = load_scene(root)
    assert len(scene) == 5 and scene.cameras.size == (42, 70)
    np.testing.assert_allclose([image.mean() / 5 for image in scene.images], [0, 16, 23, 31, 39], atol=0.8)
    book = json.loads(layout.preprocess_json.read_text())
    assert book["frames_dir"] == "frames_subsampled" and book["num_frames_used"] == 5 and book["source"] == "input_video"
    assert book["positions"] == [0, 16, 23, 31, 39]  # counted from 0
    assert load_trajectory(layout.path_json).size == (42, 70)
    cameras = read_cameras(layout.clip_cameras)  # plain frames tell no pose: only the scene's own are there
    assert [Path(name).name for name in cameras.names] == [f"{i + 1:06d}.png" for i in (0, 16, 23, 31, 39)]
    assert all((layout.clip_cameras / name).is_file() for name in read_transforms(layout.clip_cameras / "transforms.json").names)
    np.testing.assert_allclose(cameras.c2w, scene.cameras.c2w, atol=1e-6)
    np.testing.assert_allclose(cameras.K[0], [[0.9 * 64, 0, 32], [0, 0.9 * 70 * 48 / 42, 24], [0, 0, 1]], atol=1e-4)
    assert any("could not be placed: 000002.png" in line for line in notes.lines)
    preprocess_video.run(config(clip, every_frame=False), notes := Notes())
    assert len(read_cameras(layout.clip_cameras).names) == 5 and not any("placed" in line for line in notes.lines)


def test_second_run_skips_and_other_settings_do_not(clip: Path) -> None:
    preprocess_video.run(config(clip), Notes())
    stamp = SceneLayout(clip.with_suffix("")).results_npz.stat().st_mtime_ns
    notes = Notes()
    preprocess_video.run(config(clip), notes)
    assert len(notes.lines) == 1 and "current" in notes.lines[0]
    assert SceneLayout(clip.with_suffix("")).results_npz.stat().st_mtime_ns == stamp
    for changed in (config(clip, max_frames=5), config(clip, max_frames=5, overwrite=True)):
        notes = Notes()
        preprocess_video.run(changed, notes)
        assert "current" not in " ".join(notes.lines)


def test_another_programs_result_is_kept_whatever_is_told(clip: Path) -> None:
    layout = SceneLayout(clip.with_suffix(""))
    layout.npz_dir.mkdir(parents=True)
    np.savez(layout.results_npz, image=np.zeros(3))
    foreign = layout.results_npz.read_bytes()
    notes = Notes()
    assert preprocess_video.run(config(clip), notes) == layout.root
    assert layout.results_npz.read_bytes() == foreign and "another program" in notes.lines[0]
    with pytest.raises(ArtifactError, match="not made by this program"):
        preprocess_video.run(config(clip, overwrite=True), Notes())
    assert layout.results_npz.read_bytes() == foreign and not layout.frames.exists()


def test_clip_longer_than_the_stride_is_still_covered_and_said(clip: Path) -> None:
    notes = Notes()
    preprocess_video.run(config(clip, max_frames=4, max_stride=2), notes)
    assert any("cover the whole clip" in line for line in notes.lines)


def brightness_clip(path: Path, first: int, count: int) -> None:
    """Frames whose level is five times their number."""
    levels = (np.arange(first, first + count) * 5).astype(np.uint8)
    media.write_mp4(path, np.repeat(levels, 48 * 64 * 3).reshape(count, 48, 64, 3), 10)


@pytest.mark.parametrize("as_folder", [False, True], ids=["named", "folder"])
def test_clips_of_one_place_share_the_frames_fairly(tmp_path: Path, as_folder: bool) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    brightness_clip(folder / "a.mp4", 0, 30)
    brightness_clip(folder / "b.mp4", 30, 10)
    (folder / "notes.txt").write_text("not a clip")
    given = (folder,) if as_folder else (folder / "a.mp4", folder / "b.mp4")
    root = preprocess_video.run(PreprocessConfig(input_video=given, max_frames=6, process_res=64, backend="flat"), Notes())
    assert root == (tmp_path / "place_preprocessed" if as_folder else folder / "a")
    assert len(list(SceneLayout(root).frames.glob("*.png"))) == 40
    # three frames of each clip, ends included: 0, 14, 29 and 30, 34, 39; the backend drops the second
    levels = [image.mean() / 5 for image in load_scene(root).images]
    np.testing.assert_allclose(levels, [0, 29, 30, 34, 39], atol=0.8)


def test_a_folder_without_clips_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no clips") as caught:
        preprocess_video.run(config(tmp_path), Notes())
    assert "frames_dir" in caught.value.hint


def test_sharp_frames_are_preferred_and_keep_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "shots"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(21):
        detail = 60 if i in (0, 6, 12, 17, 20) else 4
        media.write_image(folder / f"{i:02d}.png", np.clip(128 + detail * rng.standard_normal((48, 64, 3)), 0, 255).astype(np.uint8))
    for sharp, expected in ((False, [0, 10, 15, 20]), (True, [0, 12, 17, 20])):
        scene_root = tmp_path / str(sharp)
        settings = PreprocessConfig(
            frames_dir=folder, backend="flat", process_res=64, max_frames=5, scene_root=scene_root, prefer_sharp=sharp
        )
        kept = sorted(SceneLayout(preprocess_video.run(settings, Notes())).frames_subsampled.glob("*.png"))
        for path, number in zip(kept, expected, strict=True):
            assert np.array_equal(media.read_image(path), media.read_image(folder / f"{number:02d}.png"))


def test_lens_distortion_is_taken_out_of_frames_and_masks(tmp_path: Path) -> None:
    folder, masks = tmp_path / "shots", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    lens = Lens(0.9, 0.3)
    pattern = np.zeros((98, 140, 3), np.uint8)
    pattern[:, 100:] = 200
    for i in range(4):
        media.write_image(folder / f"{i}.png", pattern)
    media.write_image(masks / "all.png", np.where(pattern > 0, 0, 255).astype(np.uint8))
    settings = {"backend": "flat", "process_res": 140, "scene_root": tmp_path / "scene", "masks": masks}
    root = preprocess_video.run(PreprocessConfig(frames_dir=folder, lens="0.9,0.3", **settings), Notes())
    scene = load_scene(root)
    straight = lens.undistorted(pattern)
    assert not np.array_equal(straight, pattern)
    np.testing.assert_array_equal(scene.images[0], straight)
    np.testing.assert_array_equal(media.read_image(SceneLayout(root).frames_subsampled / "000000.png"), straight)
    # what was masked in the original stays the bright part of the straightened picture
    assert (scene.valid[0] == (straight[..., 0] < 100)).mean() > 0.99
    with pytest.raises(ConfigError, match="lens"):
        preprocess_video.run(PreprocessConfig(frames_dir=folder, lens="wide", **settings), Notes())


def test_rolling_shutter_is_taken_out_of_everything_that_is_written(tmp_path: Path) -> None:
    """A texture moves to the right by 4 pixels a frame; with a readout of half a frame the picture leans by 2."""
    shots, masks = tmp_path / "shots", tmp_path / "masks"
    shots.mkdir()
    masks.mkdir()
    texture = cv2.GaussianBlur(np.random.default_rng(0).uniform(0, 255, (98, 240)).astype(np.float32), (0, 0), 2)
    texture = np.repeat(((texture - texture.min()) / np.ptp(texture) * 255).astype(np.uint8)[..., None], 3, -1)
    for i in range(5):
        media.write_image(shots / f"{i}.jpg", texture[:, 40 - 4 * i : 180 - 4 * i])
    media.write_image(masks / "all.png", np.where(np.arange(140) < 70, 255, 0).astype(np.uint8)[None].repeat(98, 0))
    settings = {"backend": "flat", "process_res": 140, "scene_root": tmp_path / "scene", "masks": masks, "image_ext": "png"}
    root = preprocess_video.run(PreprocessConfig(frames_dir=shots, lens="0.9,0,0.5", **settings), Notes())
    scene, layout = load_scene(root), SceneLayout(root)
    shown = media.read_image(layout.frames_subsampled / "000001.png")
    np.testing.assert_array_equal(scene.images[1], shown)
    captured = media.read_image(shots / "2.jpg").astype(int)
    inner = slice(20, 120)
    for row, shift in ((2, -1), (49, 0), (95, 1)):
        moved = np.abs(shown[row, inner].astype(int) - captured[row, 20 + shift : 120 + shift]).mean()
        assert moved < 6 and (shift == 0 or moved < 0.5 * np.abs(shown[row, inner].astype(int) - captured[row, inner]).mean())
    # the mask's edge leans as the picture was moved
    edges = scene.valid[1].sum(1)
    assert edges[:5].mean() == pytest.approx(71, abs=0.6) and edges[-5:].mean() == pytest.approx(69, abs=0.6)
    cameras = read_transforms(layout.clip_cameras / "transforms.json")
    frames = json.loads((layout.clip_cameras / "transforms.json").read_text())["frames"]
    frame = next(frame for frame in frames if frame.get("scene_frame") == 1)
    np.testing.assert_array_equal(media.read_image(layout.clip_cameras / frame["file_path"]), shown)
    np.testing.assert_allclose(cameras.K[0], scene.cameras.K[0])
    assert json.loads(layout.preprocess_json.read_text())["camera"] == {"focal": 0.9, "k": 0, "readout_share": 0.5, "readout_ms": None}
    assert json.loads((layout.npz_dir / "manifest.json").read_text())["backends"]["shutter"].startswith("+0.500 frame intervals")


def test_frame_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "shots"
    folder.mkdir()
    for i in range(4):
        media.write_image(folder / f"{i}.jpg", np.full((48, 64, 3), 40 * i, np.uint8))
    root = preprocess_video.run(PreprocessConfig(frames_dir=folder, backend="flat", process_res=64, scene_root=tmp_path / "scene"), Notes())
    assert not SceneLayout(root).frames.exists() and len(list(SceneLayout(root).frames_subsampled.glob("*.png"))) == 3


def test_failed_geometry_keeps_the_earlier_scene(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = preprocess_video.run(config(clip), Notes())
    before = SceneLayout(root).results_npz.read_bytes()

    def refuse(self: FlatGeometry, frames: ClipFrames, report: Reporter) -> Scene:
        raise GeometryError("no parallax", "move")

    monkeypatch.setattr(sys.modules[__name__].FlatGeometry, "estimate", refuse)
    with pytest.raises(GeometryError):
        preprocess_video.run(config(clip, max_frames=5), Notes())
    assert SceneLayout(root).results_npz.read_bytes() == before


def test_bad_inputs_are_explained(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        preprocess_video.run(config(tmp_path / "absent.mp4"), Notes())
    with pytest.raises(UnknownBackendError):
        preprocess_video.run(config(clip, backend="laser"), Notes())
    with pytest.raises(ConfigError):
        PreprocessConfig()
    media.write_mp4(tmp_path / "one.mp4", np.zeros((1, 48, 64, 3), np.uint8), 10)
    with pytest.raises(InputError, match="at least 2"):
        preprocess_video.run(config(tmp_path / "one.mp4"), Notes())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError):
        preprocess_video.run(config(clip, scene_root=tmp_path / "file" / "scene"), Notes())


def test_command_line_has_the_published_flags(capsys: pytest.CaptureFixture[str]) -> None:
    parsed = preprocess_video.parse(["--input_video", "a.mp4", "b.mp4", "--scene_root", "s", "--max_frames", "50", "--max_stride", "4"])
    assert parsed.input_video == (Path("a.mp4"), Path("b.mp4")) and parsed.root == Path("s")
    assert (parsed.max_frames, parsed.max_stride, parsed.image_ext) == (50, 4, "png")
    with pytest.raises(ConfigError, match="either"):
        preprocess_video.parse(["--input_video", "a.mp4", "--frames_dir", "d"])
    assert preprocess_video.parse(["--frames_dir", "shots"]).root == Path("shots_preprocessed")
