"""What the reliability benchmark counts as the same bits, and what as left over."""

import json
from pathlib import Path

from benchmarks.reliability.interrupted import Trial, table
from benchmarks.reliability.runs import STAGES, bits, command, folders, killed_at_change, leftovers
from utils.scene.layout import SceneLayout

INVERSE = "inverse deformation"


def write(root: Path, seconds: float, value: int) -> dict[str, str]:
    (folder,) = folders(root, INVERSE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.bin").write_bytes(bytes([value]))
    (folder / "report.json").write_text(json.dumps({"seconds": seconds, "error": value}))
    (folder / "manifest.json").write_text(
        json.dumps({"created": seconds, "files": {"report.json": [1, str(seconds)], "data.bin": [1, value]}})
    )
    return bits(root, INVERSE)


def test_times_do_not_count_and_values_do(tmp_path: Path) -> None:
    first = write(tmp_path, 1.0, 1)
    assert write(tmp_path, 2.0, 1) == first
    assert {Path(name).name for name, digest in write(tmp_path, 1.0, 2).items() if first[name] != digest} == {
        "data.bin", "report.json", "manifest.json",
    }  # fmt: skip


def test_every_stage_has_a_command_and_results(tmp_path: Path) -> None:
    for stage in STAGES:
        words = command(tmp_path / "clip.mp4", tmp_path / "scene", stage)
        assert str(tmp_path / "scene") in words and folders(tmp_path / "scene", stage)
        killed = killed_at_change(words, 7)
        assert killed[1:4] == ["-m", "benchmarks.reliability.killed", "7"] and killed[-1] == words[-1]


def test_leftovers_are_found_and_the_table_counts(tmp_path: Path) -> None:
    (tmp_path / "frames.partial-0123abcd").mkdir()
    SceneLayout(tmp_path).npz_dir.mkdir(parents=True)
    assert leftovers(tmp_path) == ["frames.partial-0123abcd"]
    good = Trial("kill -9", INVERSE, 0.1, True, True, True, [], [])
    bad = Trial("kill -9", INVERSE, 0.1, True, True, False, ["x"], ["y"])
    assert table([good, bad]).splitlines()[-1] == "| kill -9 | **all** | 2 | 2 | 2 | 1 | 1 |"
