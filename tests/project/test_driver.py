"""The driver: presets, flags, the plan of stages, commands a user can repeat, errors."""

import importlib
import io
import json
import re
import shlex
import subprocess
import sys
import threading
import time
import typing
from pathlib import Path

import numpy as np
import pytest

import preprocess_video
import run_reconstruction
from configs.base import from_plain, parse
from configs.evaluation import EvalConfig
from configs.pipeline import BUDGETS, PipelineConfig, preset
from configs.preprocess import PreprocessConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from frame_to_model_icp.selection import select_frames
from run_reconstruction import command_of, configure, plan
from utils.errors import ArtifactError, ConfigError, CorruptArtifactError
from utils.reporting import ConsoleReporter, ProgressFileReporter, line
from utils.scene.layout import SceneLayout
from utils.scene.manifest import read_manifest, to_plain
from utils.types import NULL_REPORTER, StepReport

STAGE_OF = {
    GlobalOptimizationConfig: "global_optimization.stage",
    InverseDeformationConfig: "train_inverse_deformation.stage",
    GSConfig: "train_gs.stage",
}
ROOT = Path(__file__).resolve().parents[2]


def test_flags_win_over_the_preset_even_with_its_defaults():
    assert preset("extensive", "cpu").gs.num_iters == BUDGETS["extensive", "cpu"].iterations
    config = configure(
        ["--config.input-video", "a.mp4", "--config.mode", "extensive", "--config.device", "cpu", "--config.gs.num-iters", "15000"]
    )
    assert config.gs.num_iters == 15000
    assert config.gs.target_num_points == BUDGETS["extensive", "cpu"].splats
    assert config.stage0.process_res == BUDGETS["extensive", "cpu"].resolution
    assert config.renderers == ("2dgs", "3dgs")


@pytest.mark.parametrize(("mode", "device"), list(BUDGETS))
def test_every_preset_saves_states_to_resume_from(mode, device):
    settings = preset(mode, device).gs
    assert settings.save_every <= settings.num_iters / 2


def test_fast_is_the_default_and_runs_the_joint_stage():
    calls = plan(configure(["--config.input-video", "clips/a.mp4", "--config.device", "cpu"]))
    assert [c.module for c in calls] == [
        "preprocess_video", "frame_to_model_icp", "global_optimization", "train_inverse_deformation", "train_gs", "eval_gs",
    ]  # fmt: skip
    run = Path("clips/a/frame_to_model_icp_32_1_offset0")
    assert calls[0].folder == Path("clips/a/exports/npz")
    assert calls[2].folder == run / "after_global_optimization"
    assert calls[3].config.checkpoint_subdir == calls[4].config.global_opt_subdir == "after_global_optimization"
    assert calls[4].folder == run / "gs_3dgs"
    assert calls[5].folder == run / "gs_3dgs" / "gs_video_eval"


def test_the_published_skip_uses_stage_1s_alignment():
    calls = plan(configure(["--config.root-path", "s", "--config.skip-global-optimization", "--config.renderer", "both"]))
    assert [c.module for c in calls] == ["frame_to_model_icp", "train_inverse_deformation", *(["train_gs", "eval_gs"] * 2)]
    assert calls[1].config.checkpoint_subdir == "after_non_rigid_icp"
    assert calls[2].config.renderer == "2dgs" and calls[4].config.renderer == "3dgs"


def aligned_frames(total: int, *flags: str) -> list[int]:
    """The frames of a scene of `total` that stage 1 aligns."""
    calls = plan(configure(["--config.device", "cpu", *flags]))
    stage1 = next(c for c in calls if c.module == "frame_to_model_icp")
    return select_frames(total, stage1.config.alignment).tolist()


def test_stage_1_covers_the_whole_clip_whatever_number_is_changed(tmp_path):
    clip = ("--config.input-video", "a.mp4")
    assert aligned_frames(32, *clip) == list(range(32))
    assert aligned_frames(64, *clip, "--config.preprocess-max-frames", "64") == list(range(64))
    assert aligned_frames(64, *clip, "--config.preprocess_max_frames=64") == list(range(64))
    some = aligned_frames(32, *clip, "--config.stage1.alignment.num-frames", "10")
    assert len(some) == 10 and some[0] == 0 and some[-1] == 31
    asked = (*clip, "--config.preprocess-max-frames", "64", "--config.stage1.alignment.stride", "1")
    assert aligned_frames(64, *asked, "--config.stage1.alignment.num-frames", "8") == list(range(8))
    folder = SceneLayout(tmp_path).npz_dir
    folder.mkdir(parents=True)
    arrays = {"intrinsics": np.tile(np.diag([20.0, 20, 1]), (100, 1, 1)), "extrinsics": np.tile(np.eye(4)[:3], (100, 1, 1))}
    arrays |= {"depth": np.ones((100, 28, 42), np.float32), "conf": np.ones((100, 28, 42), np.float32)}
    np.savez(folder / "results.npz", image=np.zeros((100, 28, 42, 3), np.uint8), **arrays)  # of another program
    many = aligned_frames(100, "--config.root-path", str(tmp_path))
    assert len(many) == 32 and many[0] == 0 and many[-1] == 99
    (folder / "results.npz").write_bytes(b"no npz")
    with pytest.raises(CorruptArtifactError):
        configure(["--config.root-path", str(tmp_path)])


def test_frames_to_measure_on_are_held_out_of_the_alignment_too():
    def every(*flags: str) -> list[int]:
        calls = {c.module: c.config for c in plan(configure(["--config.input-video", "a.mp4", "--config.device", "cpu", *flags]))}
        return [calls["frame_to_model_icp"].alignment.holdout_every, calls["train_gs"].holdout_every]

    assert every() == [8, 8]
    assert every("--config.gs.holdout-every", "5") == [5, 5]
    assert every("--config.gs.holdout-every", "0") == [0, 0]
    assert every("--config.stage1.alignment.holdout-every", "0") == [0, 8]
    assert every("--config.stage31.method", "network") == [0, 8]


def test_root_path_is_where_a_clip_is_written():
    calls = plan(configure(["--config.input-video", "a.mp4", "--config.root-path", "out"]))
    assert calls[0].config.scene_root == Path("out") and calls[1].config.root_path == Path("out")


def test_reusing_parts_of_a_run():
    calls = plan(configure(["--config.root-path", "s", "--config.alignment-run", "mine", "--config.skip-inverse-deform"]))
    assert [c.module for c in calls] == ["global_optimization", "train_gs", "eval_gs"]
    assert calls[1].config.inverse_deform_dir == Path("s/mine/inverse_deformation")


def test_no_source_and_two_sources_are_errors():
    with pytest.raises(ConfigError, match="no input"):
        plan(configure([]))
    with pytest.raises(ConfigError, match="both"):
        configure(["--config.input-video", "a.mp4", "--config.frames-dir", "f"])


@pytest.mark.parametrize("index", range(6))
def test_printed_commands_give_the_same_settings(index, monkeypatch):
    flags = ["--config.input-video", "a b.mp4", "--config.device", "cpu", "--config.stage1.alignment.offset", "1"]
    flags += ["--config.stage2.matching.gaps", "1", "2", "--config.gs.no-deform"]
    call = plan(configure(flags))[index]
    words = run_reconstruction.shlex.split(command_of(call))
    if call.module == "preprocess_video":
        from preprocess_video import parse as parse_args

        assert parse_args(words[2:]) == call.config
        return
    from configs.base import parse

    assert words[1:3] == ["-m", call.module]
    assert parse(type(call.config), words[3:]) == call.config


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "run_reconstruction.py", *args], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_dry_run_prints_and_makes_nothing(tmp_path):
    done = run("--config.input-video", "x.mp4", "--config.root-path", str(tmp_path / "s"), "--config.dry-run")
    assert done.returncode == 0 and done.stdout.count("python ") == 6
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("args", [[], ["--config.input-video", "does_not_exist.mp4"], ["--config.root-path", "does_not_exist"]])
def test_user_errors_are_one_line_a_hint_and_exit_2(args):
    done = run(*args)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and done.stderr.count("hint:") == 1
    assert "Traceback" not in done.stderr


def test_a_progress_file_replaces_no_file_of_the_users(tmp_path):
    mine = tmp_path / "keep.txt"
    mine.write_text("mine")
    with pytest.raises(ArtifactError, match=r"keep\.txt"):
        run_reconstruction.run(configure(["--config.root-path", str(tmp_path / "scene"), "--config.progress-file", str(mine)]))
    assert mine.read_text() == "mine" and not (tmp_path / "scene").exists()


def test_progress_file_says_where_a_run_is(tmp_path, monkeypatch):
    import json

    from utils import reporting
    from utils.types import NULL_REPORTER, StepReport

    clock = iter(range(100))
    monkeypatch.setattr(reporting.time, "monotonic", lambda: float(next(clock)))
    path = tmp_path / "job" / "progress.json"
    progress = reporting.ProgressFileReporter(path, ["geometry", "alignment"], NULL_REPORTER)
    progress.begin(1)
    for step in range(4):
        progress.step(StepReport("matching", step, 10))
    now = json.loads(path.read_text())
    assert (now["number"], now["of"], now["title"], now["phase"], now["step"], now["total"]) == (1, 2, "geometry", "matching", 4, 10)
    assert now["seconds_left"] == pytest.approx(6 * 2)  # two ticks of this clock per step, one of them the writing's
    progress.end(3.2, kept=False)
    progress.begin(2)
    after = json.loads(path.read_text())
    assert after["title"] == "alignment" and after["seconds_left"] is None
    assert after["finished"] == [{"title": "geometry", "seconds": 3.2, "kept": False}]
    assert list(tmp_path.rglob("*.partial")) == []


def test_one_memory_limit_reaches_every_stage_and_a_stages_own_wins():
    config = configure(["--config.root-path", "a", "--config.max-gpu-gb", "8", "--config.eval.max-gpu-gb", "3"])
    limits = {c.module: getattr(c.config, "max_gpu_gb", None) for c in plan(config)}
    assert limits == {
        "frame_to_model_icp": 8, "global_optimization": 8, "train_inverse_deformation": None, "train_gs": 8, "eval_gs": 3,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="max_gpu_gb"):
        configure(["--config.root-path", "a", "--config.max-gpu-gb", "-1"])


def test_the_limit_caps_the_allocator_and_device_cpu_keeps_off_the_gpu(monkeypatch):
    import torch

    from utils.device import accelerator

    fractions = []
    monkeypatch.setattr(accelerator, "accelerator", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("Card", (), {"total_memory": 32 * 2**30}))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: fractions.append(share))
    with run_reconstruction.computing_on(configure(["--config.root-path", "a", "--config.max-gpu-gb", "8"])):
        assert fractions == [0.25]
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert accelerator.accelerator() is not None
    with run_reconstruction.computing_on(configure(["--config.root-path", "a", "--config.device", "cpu"])):
        assert accelerator.accelerator() is None


def test_geometry_settings_reach_the_stage_and_its_command() -> None:
    """What the driver prints for stage 0 is what it runs, read back by the stage's own parser."""
    flags = ["--config.input-video", "a.mp4", "b.mp4", "--config.preprocess-masks", "m", "--config.preprocess-mask-overlays"]
    flags += ["--config.preprocess-mask-sky", "on", "--config.preprocess-prefer-sharp", "--config.preprocess-lens", "0.8,-0.03"]
    call = plan(configure([*flags, "--config.commercial-safe"]))[0]
    wanted = call.config
    assert (wanted.masks, wanted.mask_overlays, wanted.mask_sky, wanted.prefer_sharp) == (Path("m"), True, "on", True)
    assert (wanted.lens, wanted.commercial_safe, len(wanted.input_video)) == ("0.8,-0.03", True, 2)
    assert preprocess_video.parse(shlex.split(command_of(call))[2:]) == wanted


VALUES = {Path: "given", int: "84", bool: None, str: "given"}
CHOICES = {"image_ext": "jpg", "features": "sift", "mask_sky": "off", "lens": "0.9,0.1"}


@pytest.mark.parametrize("alias", sorted(PipelineConfig.ALIASES))
def test_every_earlier_flag_reaches_stage_0(alias: str, tmp_path: Path) -> None:
    """With hyphens, underscores, and in a saved file of settings."""
    name = PipelineConfig.ALIASES[alias].removeprefix("stage0.")
    hint = typing.get_type_hints(PreprocessConfig)[name]
    kind = next(k for k in VALUES if k in (hint, *typing.get_args(hint)) or k is str)
    word = CHOICES.get(name, VALUES[kind])
    wanted = True if word is None else kind(word)
    for flag in (f"--config.{alias}", f"--config.{alias.replace('_', '-')}"):
        given = plan(configure(["--config.input-video", "a.mp4", flag, *([] if word is None else [word])]))[0].config
        assert getattr(given, name) == wanted != getattr(PipelineConfig().stage0, name)
    (tmp_path / "saved.json").write_text(json.dumps({"input_video": ["a.mp4"], alias: to_plain(wanted)}))
    assert getattr(configure(["--config-file", str(tmp_path / "saved.json")]).stage0, name) == wanted


def test_earlier_switches_can_be_turned_off() -> None:
    flags = ["--config.root-path", "s", "--config.stage0.mask-overlays", "--config.no-preprocess-mask-overlays"]
    assert configure(flags).stage0.mask_overlays is False


def test_stage_0_takes_its_input_from_the_run() -> None:
    with pytest.raises(ConfigError, match="stage 0 alone"):
        configure(["--config.root-path", "s", "--config.stage0.scene-root", "elsewhere"])


@pytest.mark.parametrize("config", [InverseDeformationConfig, GSConfig, GlobalOptimizationConfig])
def test_a_stage_that_is_told_no_run_names_those_there_are(config, tmp_path):
    (tmp_path / "frame_to_model_icp_9_1_offset0").mkdir()
    stage = importlib.import_module(STAGE_OF[config])
    with pytest.raises(ConfigError, match="no alignment run") as refused:
        stage.run(config(root_path=tmp_path), NULL_REPORTER)
    assert "frame_to_model_icp_9_1_offset0" in refused.value.hint


@pytest.mark.parametrize(("count", "told"), [(1, False), (5, True)])
def test_many_frames_left_out_bring_advice(count, told, tmp_path):
    report = {"frames": list(range(32)), "aligned": [i >= count for i in range(32)], "contradictions": []}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (words,) = run_reconstruction.alignment_words(tmp_path)
    assert "frames left out" in words and ("--config.preprocess-max-frames" in words) == told


def test_places_of_a_clip_and_how_to_build_the_others_are_said_at_the_end(tmp_path: Path) -> None:
    parts = [{"folder": ".", "frames": [1, 2]}, {"folder": "parts/02", "frames": [3, 4]}, {"folder": None, "frames": [5]}]
    record = {"findings": [{"kind": "parts", "text": "the clip shows 3 places"}, {"kind": "repeats", "text": "x"}], "parts": parts}
    (tmp_path / "preprocess_frames.json").write_text(json.dumps(record))
    summary = {"seconds": 1.0, "stages": [{"title": "geometry", "kept": True, "seconds": 0, "peak_memory_mb": 1}]}
    words = run_reconstruction.closing_words(configure(["--config.root-path", str(tmp_path)]), [], summary).splitlines()
    assert "  warning: the clip shows 3 places" in words and words[-1] == f"  python run_reconstruction.py {tmp_path}/parts/02"
    assert sum("parts/" in line for line in words) == 1


def test_flags_that_do_nothing_any_more_are_accepted() -> None:
    words = ["--config.root-path", "S", "--config.target-num-points", "5", "--config.global-opt-subdir=x", "--config.fps", "24"]
    assert parse(EvalConfig, words) == EvalConfig(root_path=Path("S"), fps=24)
    assert from_plain(EvalConfig, {"root_path": "S", "target_num_points": 5}) == EvalConfig(root_path=Path("S"))


@pytest.mark.parametrize("content", ["", '{"created"', "[]", "3", "[" * 100_000])
def test_a_damaged_manifest_is_no_result_of_before(tmp_path: Path, content: str) -> None:
    """The driver ended in a traceback before any stage could replace it."""
    (tmp_path / "manifest.json").write_text(content)
    assert run_reconstruction._created(tmp_path) is None
    with pytest.raises(CorruptArtifactError):
        read_manifest(tmp_path, "alignment/1", "x")


def test_a_report_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run_summary.json").write_text('{"mine": 1}')
    done = run("--config.root-path", str(tmp_path), "--config.device", "cpu")
    assert done.returncode == 2 and "run_summary.json exists and was not made by this program" in done.stderr
    assert (tmp_path / "run_summary.json").read_text() == '{"mine": 1}'


def test_lines_of_stages_do_not_run_into_an_open_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with ConsoleReporter() as console:
        console.step(StepReport(stage="films", step=0, total=10))
        before = len(screen.getvalue())
        line("[2/5] alignment: done in 3.0 s")
    written = screen.getvalue()[before:]
    assert re.match(r"\r *\r\[2/5\] alignment: done in 3\.0 s\n", written), repr(written)  # the bar's line is wiped first


def test_later_stages_are_imported_beside_the_first_and_failures_are_left_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_reconstruction, "_LOOKING_SECONDS", 0.0)
    (tmp_path / "stage_of_a_test.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("stage_of_a_test", "stage_that_is_not_there")
    calls = [run_reconstruction.StageCall("a stage", name, f"{name}:run", None, tmp_path / "nothing") for name in names]
    with run_reconstruction.importing_ahead(calls):
        for _ in range(500):
            if "stage_of_a_test" in sys.modules:
                break
            time.sleep(0.01)
    assert sys.modules.pop("stage_of_a_test")
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]


def test_a_progress_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "progress.json"
    reporter = ProgressFileReporter(gone, ["geometry"], NULL_REPORTER)
    gone.parent.rmdir()  # removed under the run
    with pytest.raises(ConfigError, match=r"cannot write the progress file .*progress\.json"):
        reporter.begin(1)
