"""A killed alignment goes on where it was and ends with the same bits."""

from collections import Counter

import numpy as np
import pytest

from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from frame_to_model_icp import stage as stage1
from global_optimization import stage as stage2
from tests.registration.test_stage1 import FAST, write_box
from utils.matching.flow.dis import FlowMatcher
from utils.registration import sequential
from utils.registration.solver import numba as solver
from utils.scene.checkpoints import CheckpointFolder
from utils.scene.manifest import content_hash
from utils.types import StepReport


class Killed(Exception):
    pass


class Reporter:
    """Raises at a step of a phase."""

    def __init__(self, phase="", at=0):
        self.phase, self.at, self.lines = phase, at, []

    def step(self, report: StepReport) -> None:
        if (report.stage, report.step) == (self.phase, self.at):
            raise Killed

    def note(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def calls(monkeypatch):
    """Counts matched pairs, registered frames and linear solves."""
    count = Counter()
    monkeypatch.setattr("utils.registration.sequential.BLOCK", 1)  # each frame a part of its own

    def watch(owner, name, label):
        inner = getattr(owner, name)

        def counted(*args, **kwargs):
            count[label] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    watch(FlowMatcher, "match", "match")
    watch(sequential, "_register", "frame")
    watch(solver._System, "step", "solve")
    return count


def stage1_config(root, **changes):
    return FrameToModelICPConfig(root_path=root, alignment=AlignmentDataConfig(num_frames=6, stride=1), **(FAST | changes))


def stage2_config(root):
    run = stage1_config(root)
    name = f"frame_to_model_icp_{run.alignment.num_frames}_1_offset0"
    solvers = {"coarse": FAST["solver"], "fine": FAST["solver"]}
    return GlobalOptimizationConfig(root_path=root, run=name, matching=FAST["matching"], heldout_pairs=0, **solvers)


def arrays_of(folder):
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as stored:
            found |= {f"{path.name}:{key}": stored[key] for key in stored.files}
    return found | {p.name: p.read_bytes() for p in folder.glob("*.pt")}


def same_bits(a, b):
    a, b = arrays_of(a), arrays_of(b)
    assert a.keys() == b.keys() and len(a) > 10
    for key, value in a.items():
        np.testing.assert_array_equal(value, b[key], err_msg=key, strict=True) if isinstance(value, np.ndarray) else None
        assert isinstance(value, np.ndarray) or value == b[key]


@pytest.mark.parametrize(("phase", "at"), [("matching", 4), ("frame to model", 2)])
def test_stage_1_resumes(tmp_path, calls, phase, at):
    for name in ("straight", "killed"):
        write_box(tmp_path / name, frames=6, size=(48, 80))
    straight = stage1.run(stage1_config(tmp_path / "straight"))
    all_of_it = calls.copy()
    calls.clear()
    config = stage1_config(tmp_path / "killed")
    with pytest.raises(Killed):
        stage1.run(config, Reporter(phase, at))
    first = calls.copy()
    assert first["match"] >= 5 and (phase == "matching" or first["frame"] == at + 1)
    calls.clear()
    report = Reporter()
    resumed = stage1.run(config, report)
    assert calls["match"] == all_of_it["match"] - first["match"]
    assert calls["frame"] == all_of_it["frame"] - first["frame"]
    assert any("interrupted" in line for line in report.lines)
    same_bits(straight, resumed)
    assert not resumed.with_name(resumed.name + ".resume").exists()


@pytest.mark.parametrize(("phase", "at", "done"), [("joint round 1", 3, 0), ("joint round 2", 3, 6)])
def test_stage_2_resumes_within_a_round_and_after_one(tmp_path, calls, phase, at, done):
    for name in ("straight", "killed"):
        write_box(tmp_path / name, frames=6, size=(48, 80))
        stage1.run(stage1_config(tmp_path / name))
    calls.clear()
    straight = stage2.run(stage2_config(tmp_path / "straight"))
    all_of_it = calls.copy()
    calls.clear()
    config = stage2_config(tmp_path / "killed")
    with pytest.raises(Killed):
        stage2.run(config, Reporter(phase, at))
    first = calls.copy()
    assert first["match"] >= 4 and first["solve"] == done
    calls.clear()
    resumed = stage2.run(config)
    assert calls["match"] == all_of_it["match"] - first["match"]
    assert calls["solve"] == all_of_it["solve"] - done
    same_bits(straight, resumed)


def test_stage_2_resumes_between_two_reweighting_steps(tmp_path, calls, monkeypatch):
    for name in ("straight", "killed"):
        write_box(tmp_path / name, frames=6, size=(48, 80))
        stage1.run(stage1_config(tmp_path / name))
    straight = stage2.run(stage2_config(tmp_path / "straight"))
    save, saved = CheckpointFolder.save, []

    def dying(self, name, arrays):
        save(self, name, arrays)
        saved.append(name)
        if name == "solve_1_1":
            raise Killed

    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", dying)
        with pytest.raises(Killed):
            stage2.run(stage2_config(tmp_path / "killed"))
    assert calls["solve"] == 11  # in each round three steps to decide whether the cameras move, then the solve
    calls.clear()
    resumed = stage2.run(stage2_config(tmp_path / "killed"))
    assert calls["solve"] == 1 and not calls["match"]
    same_bits(straight, resumed)


def test_parts_of_other_settings_are_ignored(tmp_path, calls):
    write_box(tmp_path, frames=6, size=(48, 80))
    with pytest.raises(Killed):
        stage1.run(stage1_config(tmp_path), Reporter("frame to model", 2))
    calls.clear()
    report = Reporter()
    stage1.run(stage1_config(tmp_path, min_fitness=0.3), report)
    assert calls["match"] > 5 and calls["frame"] == 5
    assert not any("interrupted" in line for line in report.lines)


def test_a_damaged_part_counts_as_missing(tmp_path):
    folder = CheckpointFolder(tmp_path / "stage", {"a": 1}, {"results": content_hash(1)})
    folder.save("part", {"x": np.arange(5)})
    again = CheckpointFolder(tmp_path / "stage", {"a": 1, "root_path": "elsewhere"}, {"results": content_hash(1)})
    assert len(again) == 1
    np.testing.assert_array_equal(again.load("part")["x"], np.arange(5))
    path = next((tmp_path / "stage.resume").rglob("part.npz"))
    path.write_bytes(path.read_bytes()[:60])
    assert again.load("part") is None
    assert again.load("other") is None
