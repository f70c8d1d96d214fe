"""The 3D viewer of a run: a process of its own on a free port, started when somebody wants to look."""

import re
import socket
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.device.ports import free_port
from web.jobs import JobStore
from web.processes import Commands, end, end_leftover
from web.runner import explain

_PID_FILE = "viewer.pid"
_LOG_FILE = "viewer.log"
# Each holds a world in memory; the one opened first makes room.
_MOST_OPEN = 2


@dataclass(frozen=True)
class Viewing:
    """State of one viewer.

    Attributes:
        state: `starting`, `ready` or `failed`.
        port: where it listens, once ready.
        error: what went wrong.
        hint: what helps.
    """

    state: Literal["starting", "ready", "failed"]
    port: int = 0
    error: str = ""
    hint: str = ""


class Viewers:
    """Starts, finds and ends viewers.

    Args:
        store: the jobs.
        commands: how the viewer is called.
        host: address the viewers listen on.
        first_port: they take free ports from here on, so that a tunnel can be set up beforehand.
    """

    def __init__(self, store: JobStore, commands: Commands, host: str, first_port: int):
        self._store, self._commands, self._host, self._first_port = store, commands, host, first_port
        self._lock = threading.Lock()
        self._open: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        for path in store.workspace.glob(f"*/{_PID_FILE}"):
            end_leftover(int(path.read_text() or 0), str(path.parent))
            path.unlink()

    def start(self, job_id: str) -> None:
        """Starts the viewer of a run unless it is open already."""
        with self._lock:
            found = self._open.get(job_id)
            if found is not None and found[0].poll() is None:
                return
            self._open.pop(job_id, None)
            surplus = [self._open.pop(next(iter(self._open))) for _ in range(len(self._open) - _MOST_OPEN + 1)]
            port = free_port(self._host, self._first_port, or_any=True)
            folder = self._store.folder(job_id)
            (folder / _LOG_FILE).unlink(missing_ok=True)
            argv = [*self._commands.viewer, "--config.root-path", str(self._store.scene_root(job_id))]
            argv += ["--config.port", str(port), "--config.host", self._host]
            process = self._commands.start(argv, folder / _LOG_FILE)
            (folder / _PID_FILE).write_text(str(process.pid))
            self._open[job_id] = (process, port)
        for old, _ in surplus:
            end(old)

    def look(self, job_id: str) -> Viewing:
        """How far the viewer of a run is."""
        with self._lock:
            found = self._open.get(job_id)
        if found is None:
            return Viewing("failed", error="The viewer is closed.", hint="Open it again from the page.")
        process, wanted = found
        said = _read(self._store.folder(job_id) / _LOG_FILE)
        code = process.poll()
        if code is not None:
            return Viewing("failed", 0, *explain(code, said))
        # The viewer takes the next port if somebody was quicker, and says which.
        told = re.search(r"viewer: open http://[^\s:]+:(\d+)", said)
        port = int(told[1]) if told else wanted
        return Viewing("ready", port) if told and _answers(self._host, port) else Viewing("starting")

    def close(self, job_id: str) -> None:
        """Ends the viewer of a run."""
        with self._lock:
            found = self._open.pop(job_id, None)
        if found is not None:
            end(found[0])
            (self._store.folder(job_id) / _PID_FILE).unlink(missing_ok=True)

    def close_all(self) -> None:
        """Ends every viewer."""
        for job_id in list(self._open):
            self.close(job_id)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _answers(host: str, port: int) -> bool:
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((target, port), timeout=0.5):
            return True
    except OSError:
        return False
