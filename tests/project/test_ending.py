"""How commands end: interrupted, with nobody reading what they say, with streams closed or full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.ending import INTERRUPTED, NO_READER

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ["run_reconstruction.py", "--config.frames-dir", ".", "--config.device", "cpu", "--config.dry-run"]
COMMANDS = (
    ["run_reconstruction.py", "--help"], ["run_reconstruction.py", "--help-all"], DRIVER, ["-m", "train_gs", "--help"],
    ["-m", "web", "--help"], ["-m", "batch", "--help"], ["preprocess_video.py", "--help"],
)  # fmt: skip


def ran(words: list[str], unbuffered: str = "", **streams: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    options = {"stderr": subprocess.PIPE, **streams}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, text=True, check=False, **options)  # type: ignore[call-overload]


def interrupted_in(work: str) -> subprocess.CompletedProcess[str]:
    """A command whose `work` sends itself SIGINT, as Ctrl-C does."""
    code = f"""
import os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
signal.signal(signal.SIGINT, signal.default_int_handler)
from utils.runtime import run_stage
def press(): os.kill(os.getpid(), signal.SIGINT)
def work():
{work}
run_stage(work)
"""
    return ran(["-c", code])


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_that_goes_away_ends_it_quietly(words: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = ran(words, unbuffered, stdout=writing)
    os.close(writing)
    by_itself = {0} if words[-1].startswith("--help") else set()  # parsers that keep quiet about it themselves
    assert done.stderr == "" and done.returncode in {NO_READER} | by_itself


def test_a_reader_of_errors_that_goes_away_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert ran(["preprocess_video.py", "--input_video", "x.mp4"], stderr=writing, stdout=subprocess.PIPE).returncode == NO_READER
    os.close(writing)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", COMMANDS[:3], ids=" ".join)
def test_output_that_cannot_be_written_is_told(words: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = ran(words, unbuffered, stdout=full)
    error, hint = done.stderr.splitlines()
    assert done.returncode == 2 and error.startswith("error: cannot write to stdout") and hint.startswith("hint: ")


def test_errors_that_cannot_be_written_keep_their_code() -> None:
    with open("/dev/full", "w") as full:
        assert ran(["preprocess_video.py", "--input_video", "x.mp4"], stderr=full).returncode == 2


def test_closed_streams_are_not_given_to_files(tmp_path: Path) -> None:
    code = f"""
import os, sys
os.closerange(0, 3)
sys.stdin = sys.stdout = sys.stderr = None
from utils.runtime import run_stage
def work():
    file = open({str(tmp_path / "result")!r}, "w")
    os.write(1, b"from a library"), os.write(2, b"from another")
    print("ours", file=sys.stderr)
    file.write("result")
run_stage(work)
"""
    assert ran(["-c", code]).returncode == 0
    assert (tmp_path / "result").read_text() == "result"


@pytest.mark.parametrize(
    "work",
    [
        "    press()",
        "    try:\n        press()\n    except KeyboardInterrupt as e:\n        raise RuntimeError('a library failed') from e",
        "    try:\n        press()\n    finally:\n        raise OSError(5, 'what came of it')",
        "    class Ends:\n        def __del__(self): press(); time.sleep(1)\n    del [Ends()][0]\n    time.sleep(30)",
        "    threading.Thread(target=time.sleep, args=(1,)).start()\n    press()",
        "    with ThreadPoolExecutor(1) as pool:\n        pool.submit(time.sleep, 1)\n        press()",
        "    def again():\n        time.sleep(0.5)\n        press()\n"
        "    threading.Thread(target=again).start()\n    try:\n        press()\n    finally:\n        time.sleep(30)",
    ],
    ids=["plain", "wrapped", "replaced", "destructor", "thread", "pool", "twice"],
)  # fmt: skip
def test_an_interrupt_is_told_in_two_lines(work: str) -> None:
    done = interrupted_in(work)
    assert done.returncode == INTERRUPTED
    assert done.stderr.strip().splitlines() == ["error: interrupted", "hint: finished stages are kept; run the same command again to go on"]
