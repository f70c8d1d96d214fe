"""Settings that make no sense end in two lines and exit code 2, before any work; faults of the program in one line and a log."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.base import load_config_file, parse
from configs.stage1_align import FrameToModelICPConfig
from configs.stage3_gs import GSConfig
from utils.errors import ConfigError
from utils.runtime import run_stage

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ["preprocess_video.py", "--input_video", "x.mp4", "--max_frames", "0"],
        ["preprocess_video.py", "--input_video", "x.mp4", "--process_res", "-14"],
        ["preprocess_video.py", "--nonsense", "3"],
        ["preprocess_video.py", "--input_video", "x.mp4", "--seed", "1e12"],
        ["run_reconstruction.py", "--config.mode", "turbo"],
        ["-m", "train_gs", "--config.gs.nothing", "1"],
        ["-m", "utils.synthetic", "--out", "x", "--layout", "cave"],
        ["-m", "web", "--max-queue", "1.5"],
        ["-m", "web", "nonsense"],
    ],
    ids=" ".join,
)
def test_the_command_line_ends_in_two_lines(command):
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 2, done.stderr
    assert lines[0].startswith("error: ") and lines[1].startswith("hint: ")


@pytest.mark.parametrize("flags", [["--config.num-iters", "1000000000000"], ["--config.seed", "-1"], ["--config.seed", "1000000000000"]])
def test_numbers_beyond_any_use_are_refused(flags):
    with pytest.raises(ConfigError):
        parse(GSConfig, ["--config.root-path", "x", *flags])


def test_all_wrong_numbers_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(
            FrameToModelICPConfig,
            ["--config.root-path", "x", "--config.twists.seed", "-1", "--config.alignment.num-frames", "1000000000000"],
        )
    assert "seed" in caught.value.message and "num_frames" in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        "7", "[]", "null", "[" * 100_000, '{"num_iters": "many"}', '{"renderer": "4dgs"}', '{"deform": 1}', '{"refine_lattice": [1, 2]}',
        '{"lr_sh0": [1]}', '{"root_path": 3}', '{"lr_sh0": 1e999}', '{"num_iters": true}', '{"num_iters": null}',
    ],
)  # fmt: skip
def test_saved_settings_of_another_kind_are_refused(tmp_path, content):
    path = tmp_path / "saved.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config_file(GSConfig, path)
    assert caught.value.hint


def test_a_folder_or_pipe_is_no_file_of_settings(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "gone"):
        with pytest.raises(ConfigError):
            load_config_file(GSConfig, path)


def test_a_fault_is_one_line_and_a_log(capsys):
    def work():
        raise RuntimeError("first\nsecond")

    with pytest.raises(SystemExit) as ended:
        run_stage(work)
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1 and error == "error: first second (RuntimeError)"
    log = Path(hint.rpartition(" ")[2])
    assert "in work" in log.read_text()
    log.unlink()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes.")]
)
def test_too_little_memory_is_no_fault_of_the_program(capsys, error):
    def work():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_stage(work)
    error_line, hint = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and error_line.startswith("error: not enough memory") and hint.startswith("hint: ")


def test_an_interrupt_inside_of_a_kernel_is_an_interrupt(capsys):
    def work():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as inner:
            raise SystemError("returned a result with an exception set") from inner

    with pytest.raises(SystemExit) as ended:
        run_stage(work)
    assert ended.value.code == 130 and "interrupted" in capsys.readouterr().err
