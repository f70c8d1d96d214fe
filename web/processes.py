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

# Of one picture; OpenCV refuses larger ones in every program behind the page.
MAX_PIXELS = 40_000_000
_SECONDS_TO_END = 6.0


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
        check: looks at an upload.
        prepare: writes what the viewer in the browser needs.
        home: folder they run in.
    """

    pipeline: tuple[str, ...] = (sys.executable, "-m", "run_reconstruction")
    export: tuple[str, ...] = (sys.executable, "-m", "utils.export_checkpoint_to_ply")
    check: tuple[str, ...] = (sys.executable, "-m", "web.check_upload")
    prepare: tuple[str, ...] = (sys.executable, "-m", "utils.viewer.prepare")
    home: Path = field(default_factory=_home)

    def start(self, argv: list[str], log: Path) -> "subprocess.Popen[bytes]":
        """Starts a command in a process group of its own that ends with this process; what it prints is added to the log."""
        with log.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "web.keeper", *argv],
                cwd=self.home,
                stdin=subprocess.PIPE,  # held open as long as this process lives
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(),
            )

    def ask(self, argv: list[str], seconds: float) -> "subprocess.CompletedProcess[str]":
        """Runs a quick command and returns what it said.

        Raises:
            subprocess.TimeoutExpired: it took too long and was ended.
        """
        return subprocess.run(
            argv, cwd=self.home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, env=_environment(), check=False
        )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "OPENCV_IO_MAX_IMAGE_PIXELS": str(MAX_PIXELS)}


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
