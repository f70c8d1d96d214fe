"""What the benchmark of hostile inputs counts as wrong, and that its damage comes by seed."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reliability import spoil
from benchmarks.reliability.hostile import Result, table
from benchmarks.reliability.hostile_cases import KINDS, SETTINGS, fields_of, usual
from benchmarks.reliability.sandbox import COMMANDS, Case, Ending, verdict

TOLD = "error: it is broken\nhint: mend it\n"
CASE = Case("settings", "train_gs", (), "")


@pytest.mark.parametrize(
    ("end", "wrong"),
    [
        (Ending(0, "", 1, 1, 10), ""),
        (Ending(2, "note\n" + TOLD, 1, 1, 10), ""),
        (Ending(2, "usage: x\nx: error: no\n", 1, 1, 10), "words"),
        (Ending(2, "error: only this\n", 1, 1, 10), "words"),
        (Ending(1, TOLD, 1, 1, 10), "code"),
        (Ending(-11, "", 1, 1, 10), "code"),
        (Ending(70, "Traceback (most recent call last):\n", 1, 1, 10), "traceback"),
        (Ending(-9, "", 1, 1, 10, "still"), "hang"),
        (Ending(130, "", 99, 1, 10, "asked"), ""),
        (Ending(130, "", 1, 1, 10), "code"),
        (Ending(2, TOLD, 1, 1, 9000), "memory"),
    ],
)
def test_endings_are_judged(end: Ending, wrong: str) -> None:
    assert verdict(CASE, end) == wrong


def test_damage_comes_by_seed_and_changes_something(tmp_path: Path) -> None:
    def spoilt(seed: int, name: str) -> bytes | None:
        folder = tmp_path / f"{seed} {name} {len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "a.json").write_text(json.dumps({"frames": [{"w": 3, "m": [[1, 2], [3, 4]]}], "name": "x"}))
        np.savez(folder / "a.npz", depth=np.ones((2, 3, 4), np.float32), names=np.array(["a", "b"]))
        (folder / "a.txt").write_text("1 2 3\n4 5 6\n")
        spoil.spoil(random.Random(seed), folder / name)
        path = folder / name
        return path.read_bytes() if path.is_file() and not path.is_symlink() else None

    for name in ("a.json", "a.txt"):
        assert [spoilt(seed, name) for seed in range(12)] == [spoilt(seed, name) for seed in range(12)]
        assert len({spoilt(seed, name) for seed in range(30)}) > 15
    assert len({spoilt(seed, "a.npz") for seed in range(30)}) > 15


def test_every_command_has_settings_and_a_line_that_works() -> None:
    assert set(SETTINGS) | {"utils.synthetic"} == set(COMMANDS)
    assert sum(share for share, _ in KINDS.values()) == 100
    for name, cls in SETTINGS.items():
        assert usual(name) and len(list(fields_of(cls))) > 5


def test_the_table_counts() -> None:
    good = Result(0, "settings", "", 2, 0.1, 1, "", "", "")
    bad = Result(1, "clip", "hang", -9, 61.0, 1, "", "", "")
    last = table([good, bad]).splitlines()[-1]
    assert last == "| **all** | 2 | 0 | 1 | 0 | 0 | 0 | 1 | 0 | 0 | 61 | 1 |"
