"""Clips and folders as users have them: odd ones that must work, and broken ones whose message must say what, where and what to do."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import preprocess_video
from configs.preprocess import PreprocessConfig
from tests.scene.test_media import moving_frames
from tests.sfm.test_preprocess import FlatGeometry, Notes
from utils.errors import InputError, V2WError
from utils.geometry_backend import GEOMETRY
from utils.scene import media
from utils.scene.artifacts import load_scene
from utils.scene.folders import frames_of_scene
from utils.scene.masks import load_masks

RED, BLUE = (200, 30, 40), (30, 60, 210)


@pytest.fixture(autouse=True)
def flat_backend() -> None:
    GEOMETRY.register("flat", f"{FlatGeometry.__module__}:FlatGeometry")


def settings(tmp_path: Path, **changes: object) -> PreprocessConfig:
    plain = {"max_frames": 6, "process_res": 64, "backend": "flat", "scene_root": tmp_path / "scene", "every_frame": False}
    return PreprocessConfig(**{**plain, **changes})  # type: ignore[arg-type]


def encode(path: Path, frames: np.ndarray, codec: str, pix_fmt: str, times: list[int] | None = None, options: dict[str, str] | None = None):
    """Writes frames (F, h, w, 3), at `times` in hundredths of a second if given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, 100)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.time_base, frame.pts = Fraction(1, 100), 10 * i if times is None else times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Sets the rotation that a phone writes beside the pixels: the 2x2 part of the track header's display matrix."""
    raw = bytearray(path.read_bytes())
    start = raw.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 65536 for value in matrix)
    raw[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("matrix", "red_corner"), [((0, 1, -1, 0), (0, -1)), ((-1, 0, 0, -1), (-1, -1)), ((0, -1, 1, 0), (-1, 0))], ids=["90", "180", "270"]
)
def test_a_turned_clip_is_decoded_upright(tmp_path: Path, matrix: tuple[int, int, int, int], red_corner: tuple[int, int]) -> None:
    """Stored with red at the upper left; players turn it clockwise by 90, 180 or 270 degrees."""
    stored = np.full((10, 48, 80, 3), BLUE, np.uint8)
    stored[:, :24, :40] = RED
    media.write_mp4(tmp_path / "phone.mp4", stored, 10)
    turn(tmp_path / "phone.mp4", matrix)
    image = list(media.decode(tmp_path / "phone.mp4"))[4]
    assert image.shape == ((48, 80, 3) if matrix[0] else (80, 48, 3))
    corners = {(i, j): np.abs(image[i, j].astype(int) - RED).max() < 20 for i in (0, -1) for j in (0, -1)}
    assert [corner for corner, red in corners.items() if red] == [red_corner]
    scene = load_scene(preprocess_video.run(settings(tmp_path, input_video=(tmp_path / "phone.mp4",)), Notes()))
    assert (scene.cameras.size[0] > scene.cameras.size[1]) == (matrix[0] == 0)


@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv420p10le"), ("ffv1", "yuv444p10le"), ("ffv1", "gray16le")])
def test_ten_bits_and_more_keep_their_colours(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    frames = np.full((9, 48, 64, 3), RED if "yuv" in pix_fmt else (90, 90, 90), np.uint8)
    encode(tmp_path / "deep.mkv", frames, codec, pix_fmt)
    decoded = np.stack(list(media.decode(tmp_path / "deep.mkv")))
    assert decoded.dtype == np.uint8 and decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).max() <= 4


def test_variable_rate_gives_every_frame_once(tmp_path: Path) -> None:
    frames = moving_frames(12)
    encode(tmp_path / "vfr.mkv", frames, "ffv1", "bgr0", [0, 3, 4, 30, 31, 90, 95, 120, 250, 251, 252, 400])
    np.testing.assert_array_equal(np.stack(list(media.decode(tmp_path / "vfr.mkv"))), frames)
    root = preprocess_video.run(settings(tmp_path, input_video=(tmp_path / "vfr.mkv",)), Notes())
    assert len(list((root / "frames").glob("*.png"))) == 12


def test_odd_sizes_are_used_whole(tmp_path: Path) -> None:
    frames = moving_frames(9, (47, 61))
    encode(tmp_path / "odd.mkv", frames, "ffv1", "bgr0")
    root = preprocess_video.run(settings(tmp_path, input_video=(tmp_path / "odd.mkv",)), Notes())
    np.testing.assert_array_equal(media.read_image(root / "frames" / "000009.png"), frames[8])
    assert all(side % 14 == 0 for side in load_scene(root).cameras.size)


@pytest.mark.parametrize("kind", ["grey", "alpha", "16 bit"])
def test_frame_folders_of_any_pixel_format(tmp_path: Path, kind: str) -> None:
    images = {
        "grey": np.full((48, 64), 90, np.uint8),
        "alpha": np.full((48, 64, 4), 90, np.uint8),
        "16 bit": np.full((48, 64, 3), 90 << 8, np.uint16),
    }
    (tmp_path / "shots").mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / "shots" / f"{i}.png"), images[kind])
    scene = load_scene(preprocess_video.run(settings(tmp_path, frames_dir=tmp_path / "shots"), Notes()))
    assert scene.images.shape[-1] == 3 and np.abs(scene.images.astype(int) - 90).max() <= 1


def explained(error: V2WError, *words: str) -> None:
    """What, where, expected against got; and what to do next."""
    for word in words:
        assert word in error.message, error.message
    assert len(error.hint) > 20, error.hint


def test_clips_that_hold_nothing_or_one_frame(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        preprocess_video.run(settings(tmp_path, input_video=(tmp_path / "empty.mp4",)), Notes())
    explained(caught.value, "empty.mp4", "cannot be read")
    media.write_mp4(tmp_path / "one.mp4", moving_frames(1), 10)
    with pytest.raises(InputError) as caught:
        preprocess_video.run(settings(tmp_path, input_video=(tmp_path / "one.mp4",)), Notes())
    explained(caught.value, "one.mp4", "1 frame", "at least 2")
    (tmp_path / "single").mkdir()
    media.write_image(tmp_path / "single" / "a.png", moving_frames(1)[0])
    with pytest.raises(InputError) as caught:
        preprocess_video.run(settings(tmp_path, frames_dir=tmp_path / "single"), Notes())
    explained(caught.value, "single", "1 frame", "at least 2")


def test_clips_of_mixed_sizes_name_the_one_that_differs(tmp_path: Path) -> None:
    media.write_mp4(tmp_path / "a.mp4", moving_frames(9), 10)
    media.write_mp4(tmp_path / "b.mp4", moving_frames(9, (48, 80)), 10)
    with pytest.raises(InputError) as caught:
        preprocess_video.run(settings(tmp_path, input_video=(tmp_path / "a.mp4", tmp_path / "b.mp4")), Notes())
    explained(caught.value, "b.mp4 is 80x48", "a.mp4 is 64x48")
    assert not (tmp_path / "scene" / "frames").exists()


def test_names_that_are_no_text_are_told_before_work(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    for i in range(4):
        media.write_image(tmp_path / "shots" / f"{i}.png", moving_frames(1)[0])
    (tmp_path / "shots" / "3.png").rename(tmp_path / "shots" / "\udcff.png")
    with pytest.raises(InputError) as caught:
        preprocess_video.run(settings(tmp_path, frames_dir=tmp_path / "shots"), Notes())
    explained(caught.value, "\\udcff.png", "no text")
    assert not (tmp_path / "scene" / "exports").exists()


def test_a_damaged_frame_is_named(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    for i in range(5):
        media.write_image(tmp_path / "shots" / f"{i}.png", moving_frames(1)[0])
    whole = (tmp_path / "shots" / "3.png").read_bytes()
    (tmp_path / "shots" / "3.png").write_bytes(whole[:40])
    with pytest.raises(InputError) as caught:
        preprocess_video.run(settings(tmp_path, frames_dir=tmp_path / "shots"), Notes())
    explained(caught.value, "3.png", "not a readable image")


@pytest.mark.parametrize("what", ["input_video", "frames_dir", "masks", "cameras"])
def test_paths_that_do_not_exist(tmp_path: Path, what: str) -> None:
    (tmp_path / "shots").mkdir()
    for i in range(3):
        media.write_image(tmp_path / "shots" / f"{i}.png", moving_frames(1)[0])
    changes: dict[str, object] = {} if what in ("input_video", "frames_dir") else {"frames_dir": tmp_path / "shots"}
    changes[what] = (tmp_path / "gone",) if what == "input_video" else tmp_path / "gone"
    if what == "cameras":
        changes["backend"] = "auto"
    with pytest.raises(V2WError) as caught:
        preprocess_video.run(settings(tmp_path, **changes), Notes())
    explained(caught.value, "gone")
    assert "--" in caught.value.hint


def test_masks_of_another_aspect_are_refused_and_other_sizes_are_not(tmp_path: Path) -> None:
    """Frames of 1280x720 become 252x140: masks may have the aspect of either."""
    white = np.full((360, 640), 255, np.uint8)
    white[:180] = 0
    for shape, fits in (((360, 640), True), ((140, 252), True), ((90, 160), True), ((640, 360), False), ((360, 360), False)):
        media.write_image(tmp_path / "all.png", cv2.resize(white, shape[::-1], interpolation=cv2.INTER_NEAREST))
        if fits:
            keep = load_masks(tmp_path, ["a", "b"], (140, 252), (288, 512))
            assert not keep[:, :69].any() and keep[:, 71:].all()
            continue
        with pytest.raises(InputError) as caught:
            load_masks(tmp_path, ["a", "b"], (140, 252), (288, 512))
        explained(caught.value, "all.png", f"{shape[1]}x{shape[0]}", "512x288")


def test_originals_are_as_many_as_the_scene_has_frames(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(InputError) as caught:
        frames_of_scene(tmp_path / "own", 3)
    explained(caught.value, "own", "no images")
    for i in range(2):
        media.write_image(tmp_path / "own" / f"{i}.png", moving_frames(1)[0])
    with pytest.raises(InputError) as caught:
        frames_of_scene(tmp_path / "own", 3)
    explained(caught.value, "2 images", "3 frames")
    assert [path.name for path in frames_of_scene(tmp_path / "own", 2)] == ["0.png", "1.png"]
