"""Clips and images in and out."""

from pathlib import Path

import av
import numpy as np
import pytest

from utils.errors import ArtifactError, InputError
from utils.scene import media
from utils.scene.clip import stream
from utils.scene.folders import list_frames


def moving_frames(count: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """(F, h, w, 3) smooth colour ramps that move, so that compression keeps them."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    return np.stack(
        [np.stack([(x * 3 + 4 * i) % 256, (y * 4) % 256, np.full_like(x, 40 + 2 * i)], -1).astype(np.uint8) for i in range(count)]
    )


def test_written_clip_plays_in_browsers_and_keeps_colours(tmp_path: Path) -> None:
    flat = np.full((20, 33, 47, 3), (200, 30, 90), np.uint8)
    media.write_mp4(tmp_path / "flat.mp4", flat, 24)
    with av.open(str(tmp_path / "flat.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 24)
        assert (stream.height, stream.width) == (34, 48)
    raw = (tmp_path / "flat.mp4").read_bytes()
    assert raw.index(b"moov") < raw.index(b"mdat"), "the index must stand in front for a browser to start at once"
    decoded = np.stack(list(media.decode(tmp_path / "flat.mp4")))
    assert np.abs(decoded[:, :33, :47].astype(int) - flat).max() <= 4


def test_a_colon_in_a_name_makes_no_address_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("a:b") / "http:clip.mp4"
    path.parent.mkdir()
    media.write_mp4(path, moving_frames(4), 12)
    assert len(list(stream.decoded(path))) == 4


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(InputError, match="cannot be read"):
        next(media.decode(tmp_path / "text.mp4"))
    with pytest.raises(InputError, match="does not exist"):
        next(media.decode(tmp_path / "absent.mp4"))
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="no video stream"):
        next(media.decode(tmp_path / "sound.wav"))


def test_animated_gif_is_a_clip(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.gif"), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        for image in moving_frames(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="rgb8")))
        container.mux(stream.encode(None))
    assert [image.shape for image in media.decode(tmp_path / "clip.gif")] == [(48, 64, 3)] * 5


def test_frame_folder_must_share_one_size(tmp_path: Path) -> None:
    media.write_image(tmp_path / "a.png", np.zeros((8, 10, 3), np.uint8))
    media.write_image(tmp_path / "b.png", np.zeros((9, 10, 3), np.uint8))
    with pytest.raises(InputError, match=r"b\.png is 10x9, but a\.png is 10x8"):
        media.read_frames(list_frames(tmp_path))
    (tmp_path / "c.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="not a readable image"):
        media.read_image(tmp_path / "c.png")
    with pytest.raises(InputError, match="no images"):
        (tmp_path / "empty").mkdir()
        list_frames(tmp_path / "empty")


def test_image_round_trip_keeps_channel_order(tmp_path: Path) -> None:
    image = moving_frames(1)[0]
    media.write_image(tmp_path / "x.png", image)
    np.testing.assert_array_equal(media.read_image(tmp_path / "x.png"), image)


def test_full_disk_is_an_error_with_a_remedy() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(ArtifactError, match="cannot write"), media.writing(full):
        full.write_bytes(b"x" * 100_000)


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [((720, 1280), 504, (280, 504)), ((144, 256), 256, (140, 252)), ((1280, 720), 504, (504, 280)), ((304, 528), 256, (154, 252))],
)
def test_working_size_is_a_multiple_of_14(size: tuple[int, int], longest: int, expected: tuple[int, int]) -> None:
    assert media.working_size(size, longest) == expected
