"""The verdict: judged by the consistent world, with its reason, what to avoid and what to do."""

import json
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
