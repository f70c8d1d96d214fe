"""One writer of a scene at a time, told by process and machine; a killed one is taken over; readers never wait."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.notes import Notes
from utils.errors import ArtifactError
from utils.scene import lock
from utils.scene.lock import LOCK, one_writer, writing_scene

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import pathlib, sys
from utils.scene.lock import writing_scene
with writing_scene(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that writes the scene."""
    (tmp_path / "scene").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "scene")], stdin=-1, stdout=-1, text=True, cwd=ROOT)
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_told_who_is_at_work(holder: subprocess.Popen, tmp_path: Path) -> None:
    os.symlink(tmp_path / "scene", tmp_path / "link")
    for spelling in (tmp_path / "scene", tmp_path / "link", tmp_path / "scene" / ".." / "scene"):
        with pytest.raises(ArtifactError, match=f"process {holder.pid} on ") as caught, writing_scene(spelling):
            pass
        assert "wait" in caught.value.hint
    assert (tmp_path / "scene" / LOCK).read_text()  # readable: nobody waits for it
    holder.communicate("")
    with writing_scene(tmp_path / "scene", notes := Notes()):
        pass
    assert notes.lines == [] and list((tmp_path / "scene").iterdir()) == []


def test_a_killed_writer_is_taken_over_and_this_is_said(holder: subprocess.Popen, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with writing_scene(tmp_path / "scene", notes := Notes()):
        assert json.loads((tmp_path / "scene" / LOCK).read_text())["pid"] == os.getpid()
    (line,) = notes.lines
    assert f"process {holder.pid}" in line and "takes over" in line


def test_stages_of_one_run_share_the_lock_but_threads_do_not(tmp_path: Path) -> None:
    errors: list[str] = []

    def other() -> None:
        try:
            with writing_scene(tmp_path):
                pass
        except ArtifactError as error:
            errors.append(error.message)

    @one_writer(lambda config: config)
    def run(config: Path, report: object) -> str:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return "done"

    with writing_scene(tmp_path):
        assert run(tmp_path) == "done"
    assert run(tmp_path) == "done"
    assert len(errors) == 2 and "another thread" in errors[0]
    other()
    assert len(errors) == 2


def test_a_scene_that_stays_empty_is_not_left_behind_unless_it_was_there(tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    for name in ("new", "users"):
        with writing_scene(tmp_path / name):
            assert (tmp_path / name).is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["users"]


@pytest.mark.parametrize(("owner", "refused"), [({"pid": os.getpid()}, True), ({"pid": 2**22 + 1}, False), ({"host": "elsewhere"}, True)])
def test_without_file_locks_the_signature_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: dict, refused: bool) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": lock.socket.gethostname(), "since": "", "command": ""} | owner))
    if not refused:
        with writing_scene(tmp_path):
            pass
        return
    with pytest.raises(ArtifactError) as caught, writing_scene(tmp_path):
        pass
    assert f"delete {tmp_path / LOCK}" in caught.value.hint


@pytest.mark.parametrize("number", [13, 30])
def test_where_nothing_can_be_written_what_is_current_may_still_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(number, "refused", str(path))

    monkeypatch.setattr(lock, "_acquire", refuse)
    with writing_scene(tmp_path):
        pass
    monkeypatch.setattr(lock, "_acquire", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(ArtifactError, match="cannot lock"), writing_scene(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000])
def test_a_damaged_signature_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with writing_scene(tmp_path, notes := Notes()):
        pass
    assert notes.lines == []
