"""Films: as large as the clip or 720 pixels, as long as the clip, and the clip beside the world."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from torch import Tensor

from configs.evaluation import EvalConfig
from eval_gs.films import Clip, clip_of, drawn_size, film_size, side_by_side
from eval_gs.render import Filming, FilmOptions
from eval_gs.stage import run as evaluate
from tests.trained_world import FRAMES, SIZE, write_trained_world
from utils.errors import InputError
from utils.scene.artifacts import load_scene
from utils.scene.layout import SceneLayout
from utils.scene.media import Mp4Writer, decode, read_image, write_image
from utils.splatting.checkpoint import load_checkpoint
from utils.splatting.render import SplatView, locate_checkpoint, resolve_rasterizer
from utils.types import NULL_REPORTER, RenderOutput


@pytest.mark.parametrize(
    ("clip", "height", "own", "expected"),
    [
        ((144, 256), 0, False, (720, 1280)),
        ((1080, 1920), 0, False, (720, 1280)),  # on a CPU large pictures take long
        ((1080, 1920), 0, True, (1080, 1920)),
        ((4320, 7680), 0, True, (2160, 3840)),
        ((640, 360), 0, False, (1280, 720)),  # a phone held upright
        ((141, 251), 2160, False, (2160, 3846)),
    ],
)
def test_films_have_the_clips_shape_and_720_pixels_at_least(clip, height, own, expected) -> None:
    assert film_size(clip, height, own) == expected


@pytest.mark.parametrize(
    ("film", "trained", "expected"),
    [
        ((720, 1280), (140, 252), (420, 746)),
        ((720, 1280), (280, 504), (720, 1280)),  # less than three times as fine
        ((1280, 720), (252, 140), (746, 420)),
    ],
)
def test_films_are_rendered_no_finer_than_the_splats_can_show(film, trained, expected) -> None:
    assert drawn_size(film, trained) == expected


def test_the_scenes_frames_last_as_long_as_the_clip() -> None:
    assert Clip((144, 256), 10.0, 81, 32).scene_fps(30) == pytest.approx(10 * 32 / 81)
    assert Clip((144, 256), 0.0, 0, 32).scene_fps(30) == 30


def with_clip(root: Path, fps: float) -> None:
    """Every frame of the scene is one of the clip's; its files are plain grey, lighter with time."""
    layout = SceneLayout(root)
    layout.preprocess_json.write_text(json.dumps({"fps": fps, "clip_frames": [FRAMES], "num_frames_used": FRAMES}))
    cameras = load_scene(root).cameras.resized((54, 90))
    frames = []
    layout.frames.mkdir()
    for i in range(FRAMES):
        write_image(layout.frames / f"{i}.png", np.full((54, 90, 3), 40 * (i + 1), np.uint8))
        k, pose = cameras.K[i], cameras.c2w[i] @ np.diag([1.0, -1, -1, 1])
        numbers = {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2], "w": 90, "h": 54}
        frames.append({"file_path": f"../../frames/{i}.png", "transform_matrix": pose.tolist(), "scene_frame": i} | numbers)
    layout.clip_cameras.mkdir()
    (layout.clip_cameras / "transforms.json").write_text(json.dumps({"camera_model": "OPENCV", "frames": frames}))


def length(path: Path) -> float:
    with av.open(str(path)) as film:
        return float(film.duration) / av.time_base


def test_films_are_full_size_and_stills_are_not_and_both_last_as_long_as_the_clip(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path)
    with_clip(tmp_path, 2.0)
    evaluate(EvalConfig(root_path=tmp_path, max_frames=4, render_optimised_poses=False, metrics=False, device="cpu"))
    folder = run.evaluation(run.gs("3dgs"))
    assert next(decode(folder / "render_input_poses.mp4")).shape[:2] == SIZE
    assert length(folder / "render_input_poses.mp4") == pytest.approx(FRAMES / 2.0)
    flight = folder / "render_gs_video.mp4"
    assert next(decode(flight)).shape == (720, 1200, 3)
    assert length(flight) == pytest.approx(len(list(decode(flight))) / 30, abs=0.01)
    stills = sorted((folder / "frames_input_poses").glob("*.png"))
    assert len(stills) == FRAMES and next(decode(stills[0])).shape[:2] == SIZE
    both = list(decode(folder / "render_clip_and_world.mp4"))
    assert len(both) == FRAMES and length(folder / "render_clip_and_world.mp4") == pytest.approx(FRAMES / 2.0)
    assert both[0].shape == (540, 900 + 4 + 900, 3)
    for i in (0, FRAMES - 1):
        left, right = both[i][60:, :900].astype(float), both[i][60:, 904:].astype(float)
        assert abs(left.mean() - 40 * (i + 1)) < 3 and left.std() < 3 < right.std()
    previews = {p.name: next(decode(p)).shape[1] for p in (folder / "report_pictures").glob("*.mp4")}
    assert previews == {"fly_through.mp4": drawn_size((720, 1200), SIZE)[1], "clip_and_world.mp4": 960}
    report = (tmp_path / "report.html").read_text()
    assert report.count("<video controls autoplay muted loop playsinline") == 2
    assert f"At full size: {folder.relative_to(tmp_path).as_posix()}/" in report


def test_without_files_of_the_clip_the_frames_of_the_scene_stand_beside_the_world(tmp_path: Path) -> None:
    run = write_trained_world(tmp_path)
    evaluate(EvalConfig(root_path=tmp_path, render_gs_video_path=False, render_input_poses=False, metrics=False, report=False))
    both = list(decode(run.evaluation(run.gs("3dgs")) / "render_clip_and_world.mp4"))
    assert len(both) == FRAMES
    left, right = both[1][60:, :900].astype(float), both[1][60:, 904:].astype(float)
    assert np.abs(left - right).mean() < 25 < np.abs(left - left[:, ::-1]).mean()  # the same view twice


def test_what_the_clip_is_survives_broken_records(tmp_path: Path) -> None:
    write_trained_world(tmp_path)
    trained = load_scene(tmp_path).cameras
    for text in ("[]", "{", '{"fps": "x", "clip_frames": 3}'):
        SceneLayout(tmp_path).preprocess_json.write_text(text)
        assert clip_of(tmp_path, trained) == Clip(SIZE, 0.0, 0, FRAMES)


def test_halves_lie_above_each_other_where_a_picture_is_wide() -> None:
    assert side_by_side(np.zeros((100, 160, 3), np.uint8), np.zeros((100, 160, 3), np.uint8)).shape == (100, 324, 3)
    assert side_by_side(np.zeros((100, 240, 3), np.uint8), np.zeros((100, 240, 3), np.uint8)).shape == (200, 240, 3)


def test_a_film_without_frames_is_refused_and_rates_need_not_be_whole(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frames"), Mp4Writer(tmp_path / "none.mp4", 10):
        pass
    with Mp4Writer(tmp_path / "slow.mp4", 3.75, speed="veryfast") as film:
        for level in range(15):
            film.add(np.full((32, 48, 3), 10 * level, np.uint8))
    assert length(tmp_path / "slow.mp4") == pytest.approx(4.0, abs=0.01)


def test_a_film_of_the_size_of_its_pictures_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trained_world(tmp_path)
    _, checkpoint = locate_checkpoint(tmp_path, "", None)
    rasterizer, device, _ = resolve_rasterizer("auto", "cpu")
    view, drawn = SplatView(load_checkpoint(checkpoint), rasterizer, device), []
    draw = SplatView._draw

    def counted(self: SplatView, camera: Tensor, size: tuple[int, int], *rest: object) -> RenderOutput:
        drawn.append(size)
        return draw(self, camera, size, *rest)

    monkeypatch.setattr(SplatView, "_draw", counted)
    cameras = view.trained.cameras
    options = FilmOptions(size=SIZE, fps=10, save_images=True, save_video=True, white=True, measure=True)
    with Filming(view, tmp_path, NULL_REPORTER) as filming:
        filming.path(cameras, "own", options)
        assert filming.consistency()["own"]
    assert drawn == [SIZE] * FRAMES
    film = np.stack(list(decode(tmp_path / "render_own.mp4"))).astype(float)
    stills = np.stack([read_image(path) for path in sorted((tmp_path / "frames_own").glob("*.png"))])
    assert len(film) == len(stills) == FRAMES
    apart = np.abs(film[:, None] - stills).mean(axis=(2, 3, 4))
    assert apart.argmin(axis=1).tolist() == list(range(FRAMES)) and apart.diagonal().max() < 12
