"""Child processes: commands, orderly ends, and leftovers of a server that was killed."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_SECONDS_TO_END = 10.0


def _home() -> Path:
    """Where the program's modules are, in a checkout as well as installed."""
    found = importlib.util.find_spec("run_reconstruction")
    assert found is not None and found.origin is not None
    return Path(found.origin).resolve().parent


@dataclass(frozen=True)
class Commands:
    """How the programs behind the page are called; replaced by quick stand-ins in tests.

    Attributes:
        pipeline: makes a world.
        export: writes one format.
        viewer: shows a world.
        home: folder they run in.
    """

    pipeline: tuple[str, ...] = (sys.executable, "-m", "run_reconstruction")
    export: tuple[str, ...] = (sys.executable, "-m", "utils.export_checkpoint_to_ply")
    viewer: tuple[str, ...] = (sys.executable, "-m", "utils.view_checkpoint")
    home: Path = field(default_factory=_home)

    def start(self, argv: list[str], log: Path) -> "subprocess.Popen[bytes]":
        """Starts a command in a process group of its own; what it prints is added to the log."""
        with log.open("ab") as stream:
            return subprocess.Popen(
                argv,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )


def end(process: "subprocess.Popen[bytes]") -> None:
    """Asks a process and its children to stop, and makes them after a while."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)
            return


def end_leftover(pid: int, marker: str) -> None:
    """Ends a process that an earlier server left behind, if it still is that process: its command line contains the marker."""
    for number in (signal.SIGINT, signal.SIGKILL):
        until = time.monotonic() + _SECONDS_TO_END
        if not _is_ours(pid, marker):
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)
        while _is_ours(pid, marker) and time.monotonic() < until:
            time.sleep(0.05)


def _is_ours(pid: int, marker: str) -> bool:
    try:
        return pid > 0 and marker.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
