"""The verdict: judged by the consistent world, with its reason, what to avoid and what to do."""

import json
import shlex
from pathlib import Path

import pytest

from utils.report.verdict import verdict


def write(folder: Path, canonical: float | None, own: float = 31.0, rigid: list[float] | None = None, part: str = "heldout") -> Path:
    (folder / "gs_video_eval").mkdir(parents=True)
    values = {"psnr": own} | ({} if canonical is None else {"canonical_psnr": canonical})
    (folder / "gs_video_eval" / "metrics.json").write_text(json.dumps({part: values}))
    (folder / "report.json").write_text(json.dumps({"frames": [{"frame_id": i, "psnr_rigid": v} for i, v in enumerate(rigid or [])]}))
    return folder


@pytest.mark.parametrize(("psnr", "grade"), [(27.0, "excellent"), (24.4, "good"), (20.3, "usable"), (10.0, "poor")])
def test_fog_is_poor_however_well_each_frame_is_reproduced_through_its_own_deformation(tmp_path: Path, psnr: float, grade: str) -> None:
    found = verdict(write(tmp_path / "gs_3dgs", psnr), "fast")
    assert found is not None and (found.grade, found.psnr) == (grade, psnr) and found.advice
    assert f"{psnr:.1f} dB" in found.reason and "never saw" in found.reason


def test_weak_frames_are_named_as_people_count(tmp_path: Path) -> None:
    found = verdict(write(tmp_path / "gs_3dgs", 24.0, rigid=[24, 25, 24, 12, 24, 25]))
    assert found is not None and found.avoid == "weaker around frame 4 of 6"
    assert verdict(write(tmp_path / "gs_2dgs", 24.0, rigid=[24.0] * 6)).avoid == ""  # type: ignore[union-attr]


def test_figures_of_training_stand_in_and_without_any_there_is_no_verdict(tmp_path: Path) -> None:
    found = verdict(write(tmp_path / "a", 22.0, part="train"))
    assert found is not None and "trained on" in found.reason
    assert verdict(write(tmp_path / "b", None)) is None and verdict(tmp_path / "none") is None
    (tmp_path / "b" / "report.json").write_text('{"heldout_psnr_rigid": 19.5}')
    assert verdict(tmp_path / "b").psnr == 19.5  # type: ignore[union-attr]
    for text in ("[]", "[" * 100_000, "{", '{"heldout": 3}'):
        (tmp_path / "b" / "report.json").write_text(text)
        (tmp_path / "b" / "gs_video_eval" / "metrics.json").write_text(text)
        assert verdict(tmp_path / "b") is None


def test_bent_frames_do_not_make_a_sharp_world_bad(tmp_path: Path) -> None:
    folder = write(tmp_path / "gs_3dgs", 19.3, own=27.7)
    metrics = folder / "gs_video_eval" / "metrics.json"
    sharp = {"psnr": 27.7, "canonical_psnr": 19.3, "sharpness": 70.0, "input_sharpness": 100.0}
    metrics.write_text(json.dumps({"heldout": sharp}))
    found = verdict(folder)
    assert found is not None and found.grade == "good" and "27.7 dB" in found.reason and found.psnr == 19.3
    for fog in (sharp | {"sharpness": 30.0}, sharp | {"psnr": 24.0}, {k: v for k, v in sharp.items() if k != "sharpness"}):
        metrics.write_text(json.dumps({"heldout": fog}))
        assert verdict(folder).grade == "usable"  # type: ignore[union-attr]


def test_views_off_the_path_that_nobody_saw_are_to_be_avoided(tmp_path: Path) -> None:
    folder = write(tmp_path / "gs_3dgs", 24.0)
    metrics = folder / "gs_video_eval" / "metrics.json"
    metrics.write_text(json.dumps({"heldout": {"canonical_psnr": 24.0}, "off_path": {"degrees": 10.0, "known": 0.6}}))
    assert "10 degrees off it 40%" in verdict(folder).avoid  # type: ignore[union-attr]


def test_the_next_command_is_one_that_the_program_takes(tmp_path: Path) -> None:
    from run_reconstruction import configure

    clip, root = tmp_path / "my clip.mp4", tmp_path / "my clip"
    clip.write_bytes(b"")
    folder = write(root / "frame_to_model_icp_8_1_offset0" / "gs_3dgs", 24.0)
    settings: dict[str, object] = {"mode": "fast", "input_video": [str(clip)], "root_path": None}
    (root / "run_summary.json").write_text(json.dumps({"config": settings}))
    words = shlex.split(verdict(folder).command)  # type: ignore[union-attr]
    config = configure(words[1:])
    assert words[0] == "video-to-world" and config.mode == "extensive" and config.scene_root == root
    (root / "run_summary.json").write_text(json.dumps({"config": settings | {"mode": "extensive"}}))
    write(folder.with_name("gs_2dgs"), 12.0)
    (root / "preprocess_frames.json").write_text(json.dumps({"num_frames_used": 32, "clip_frames": [50]}))
    config = configure(shlex.split(verdict(folder.with_name("gs_2dgs")).command)[1:])  # type: ignore[union-attr]
    assert (config.stage0.max_frames, config.input_video, config.scene_root) == (50, (clip,), root)
    (root / "preprocess_frames.json").write_text(json.dumps({"num_frames_used": 32, "clip_frames": [50], "shown": 40}))
    config = configure(shlex.split(verdict(folder.with_name("gs_2dgs")).command)[1:])  # type: ignore[union-attr]
    assert config.stage0.max_frames == 40  # the other frames show another place
    found = verdict(folder)
    assert found is not None and found.advice == "" and "--config.format html" in found.command
    settings = {"mode": "fast", "input_video": [str(clip)]}
    (root / "run_summary.json").write_text(json.dumps({"config": settings | {"root_path": "."}}))
    assert configure(shlex.split(verdict(folder).command)[1:]).root_path == root  # type: ignore[union-attr]
    (root / "exports" / "npz").mkdir(parents=True)
    clip.unlink()
    assert configure(shlex.split(verdict(folder).command)[1:]).root_path == root  # type: ignore[union-attr]
