"""Clips as they are: every kind of `benchmarks/inputs.py`, and what a single module decides."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.inputs import answer, look
from benchmarks.inputs_clips import CLIPS, encode, small_disk
from benchmarks.inputs_folders import FOLDERS
from benchmarks.inputs_world import make_cube
from tests.scene.test_media import moving_frames
from utils.errors import ArtifactError, InputError
from utils.scene import media
from utils.scene.clip.extract import write_frames
from utils.scene.clip.plan import plan_clip
from utils.scene.clip.survey import survey_clip


@pytest.mark.parametrize("kind", CLIPS, ids=lambda kind: kind.name)
def test_every_kind_of_clip_has_its_right_answer(kind):
    assert answer(kind, 0)[0] == ""


@pytest.mark.parametrize("kind", FOLDERS, ids=lambda kind: kind.name)
def test_every_kind_of_frame_folder_has_its_right_answer(kind):
    assert answer(kind, 0)[0] == ""


def test_every_frame_is_written_in_order(tmp_path: Path) -> None:
    media.write_mp4(tmp_path / "clip.mp4", moving_frames(30), 10)
    survey = survey_clip(tmp_path / "clip.mp4")
    plan = plan_clip(survey, as_is=True)
    (tmp_path / "frames").mkdir()
    paths = write_frames(tmp_path / "clip.mp4", survey, plan, plan.used, tmp_path / "frames", extension="png")
    assert [p.name for p in paths][:2] == ["000001.png", "000002.png"] and len(paths) == 30
    assert survey.facts is not None and survey.facts.fps == 10 and not survey.damage.lost and not survey.damage.ended
    assert np.abs(media.read_frames(paths).astype(int) - moving_frames(30)).mean() < 6


def test_truncated_clip_gives_what_is_there_or_explains(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 255, (40, 48, 64, 3)).astype(np.uint8)
    media.write_mp4(tmp_path / "whole.mp4", noisy, 10)
    raw = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "most.mp4").write_bytes(raw[: int(len(raw) * 0.7)])
    (tmp_path / "bit.mp4").write_bytes(raw[: int(len(raw) * 0.05)])
    survey = survey_clip(tmp_path / "most.mp4")
    assert 8 <= len(survey) < 40 and (survey.damage.ended or survey.damage.lost)
    with pytest.raises(InputError) as caught:
        survey_clip(tmp_path / "bit.mp4")
    assert caught.value.hint


def test_only_what_is_used_is_written_where_all_would_fill_the_disk(tmp_path: Path) -> None:
    world = make_cube(40, (144, 192))
    encode(tmp_path / "clip.mp4", world.images)
    with small_disk(1.6e9):  # a little over what is left free; 40 frames of this size take 2 MB
        out = look(tmp_path / "clip.mp4", tmp_path, max_frames=5, between_frames=1)
        assert len(out.source.frames) == 40
    with small_disk(1.5e9 + 3e6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("utils.scene.clip.extract._ALL_FRAMES_BYTES", 1e6)
            out = look(tmp_path / "clip.mp4", tmp_path, max_frames=5, between_frames=1)
        assert [int(p.stem) - 1 for p in out.source.frames] == [0, 5, 10, 15, 20, 24, 29, 34, 39]
        assert out.choice.scene == [0, 2, 4, 6, 8] and out.says("too much disk")
        assert np.abs(media.read_image(out.source.frames[3]).astype(int) - world.images[15]).mean() < 6
    with small_disk(1e9), pytest.raises(ArtifactError, match="GB are free"):
        look(tmp_path / "clip.mp4", tmp_path)


def test_as_is_leaves_everything_in(tmp_path: Path) -> None:
    world = make_cube(12, (144, 192))
    images = [np.pad(image, ((20, 20), (0, 0), (0, 0))) for image in np.repeat(world.images, 2, axis=0)]
    encode(tmp_path / "clip.mp4", images)
    whole, usual = (look(tmp_path / "clip.mp4", tmp_path / str(flag), as_is=flag) for flag in (True, False))
    assert len(whole.source.frames) == 24 and not whole.source.crop and not whole.notes
    assert len(usual.source.frames) == 12 and usual.source.crop.top in (20, 21, 22)


def test_of_several_shots_the_one_with_the_named_frame_is_used(tmp_path: Path) -> None:
    encode(tmp_path / "clip.mp4", np.concatenate([make_cube(n, seed=seed).images for seed, n in ((123456, 24), (987654, 12))]))
    survey = survey_clip(tmp_path / "clip.mp4")
    assert plan_clip(survey).used.tolist() == list(range(24))
    plan = plan_clip(survey, part_of=30)
    assert plan.used.tolist() == list(range(24, 36))
    assert any("that of frame 31 is used, frames 25 to 36" in found.text for found in plan.findings)
