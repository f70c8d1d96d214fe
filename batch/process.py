"""The near end of `batch.worker`: a process that does one task at a time."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from batch.tasks import Outcome, StageTask

WORKER = (sys.executable, "-m", "batch.worker")
_SECONDS_TO_END = 15.0
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "V2W_CPUS")


class WorkerProcess:
    """A worker with a number of threads; `run` may be called from one thread at a time, `interrupt` and `end` from any.

    Args:
        cpus: threads that its stages use.
        command: how it is started; tests put a stand-in here.
    """

    def __init__(self, cpus: int, command: tuple[str, ...] = WORKER):
        self.cpus = cpus
        self._stopping = threading.Event()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("V2W_BATCH_DEBUG") else None,
            start_new_session=True,  # Ctrl-C is passed on in order, not by the terminal
            env={**os.environ, "PYTHONPATH": _search_path(), **dict.fromkeys(THREADS, str(max(1, cpus))), "PYTHONUNBUFFERED": "1"},
        )

    @property
    def alive(self) -> bool:
        """Whether it can take a task."""
        return self._process.poll() is None and not self._stopping.is_set()

    def run(self, task: StageTask) -> Outcome:
        """Does a task; a worker that ends over it counts as lost."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(task.plain()).encode() + b"\n")
            self._process.stdin.flush()
            while line := self._process.stdout.readline():
                message = json.loads(line)
                if "ready" not in message:
                    return Outcome(**message)
        except (OSError, ValueError) as error:
            return Outcome("lost", error=f"its worker is gone: {error}")
        if self._stopping.is_set():
            return Outcome("stopped")
        return Outcome(
            "lost", error=f"its worker ended with code {self._process.wait()}", hint="the command python -m batch.worker shows why"
        )

    def interrupt(self) -> None:
        """Asks the stage under way to stop."""
        self._stopping.set()
        with suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(b'{"interrupt": true}\n')
            self._process.stdin.flush()

    def end(self) -> None:
        """Ends it, and the stage under way with it."""
        self._stopping.set()
        with suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """Ends it at once, as a system that is out of memory would."""
        self._process.kill()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid


def _search_path() -> str:
    """PYTHONPATH with the folder of this program's modules, in a checkout as well as installed."""
    found = importlib.util.find_spec("run_reconstruction")
    assert found is not None and found.origin is not None
    home = str(Path(found.origin).resolve().parent)
    return os.pathsep.join(p for p in (home, os.environ.get("PYTHONPATH", "")) if p)
