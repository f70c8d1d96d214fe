"""Runs a command line in a forked process with limits, and judges how it ended.

The parent has every module loaded, so a case costs what it does and not what its imports take. A forked process has its own memory, working
folder and limits; threads are started by none of the imports, which is what makes forking safe.
"""

import importlib
import io
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = {
    "run_reconstruction": "run_reconstruction.py",
    "preprocess_video": "preprocess_video.py",
    "frame_to_model_icp": "-m",
    "global_optimization": "-m",
    "train_inverse_deformation": "-m",
    "train_gs": "-m",
    "eval_gs": "-m",
    "utils.export_checkpoint_to_ply": "-m",
    "utils.view_checkpoint": "-m",
    "utils.synthetic": "-m",
    "web": "-m",
    "batch": "-m",
}
"""Every command -> its script, or "-m"."""

_LOADED = (
    "torch", "cv2", "av", "scipy.spatial", "scipy.sparse.linalg", "scipy.ndimage", "numba", "pycolmap", "tyro", "tqdm",
    "preprocess.stage", "frame_to_model_icp.stage", "global_optimization.stage", "train_inverse_deformation.stage", "train_gs.stage",
    "train_gs.train", "eval_gs.stage", "utils.exports.stage", "utils.viewer.app", "utils.report.html",
    "utils.sfm.backend", "utils.imports.backend", "utils.synthetic.world", "web.server", "uvicorn", "batch.cli",
)  # fmt: skip
_ADDRESS_SPACE, _CPU_SECONDS, _WALL_SECONDS, _STILL_SECONDS = 6 << 30, 60.0, 600.0, 45.0
_SECONDS_TO_SETTLE = 1.5
_MOST_MEMORY_MB = 1500.0
_READY = b"Ctrl+C ends it"
_LAST_LINES = re.compile(r"error: \S[^\n]*\nhint: \S[^\n]*\n?\Z")


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        kind: of input.
        command: a key of `COMMANDS`.
        words: its arguments.
        about: what is hostile, in words.
        long: it may ask for much work: then it has to be interruptible and need not end.
        guarded: files and folders of the user's that have to stay as they are.
        environment: variables that are set.
    """

    kind: str
    command: str
    words: tuple[str, ...]
    about: str
    long: bool = False
    guarded: tuple[str, ...] = ("own",)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """How a case ended.

    Attributes:
        code: exit code, negative for a signal.
        said: standard error.
        cpu: seconds of CPU.
        wall: seconds.
        memory_mb: resident memory beyond what the imports take.
        stopped: why it was ended from outside: "" | "served" | "asked" | "hang" | "still".
    """

    code: int
    said: str
    cpu: float
    wall: float
    memory_mb: float
    stopped: str = ""


def verdict(case: Case, end: Ending) -> str:
    """What is wrong with an ending: "" | "traceback" | "code" | "words" | "hang" | "memory"."""
    if "Traceback (most recent call last)" in end.said:
        return "traceback"
    if end.stopped in ("hang", "still"):
        return "hang"
    if end.memory_mb > _MOST_MEMORY_MB:
        return "memory"
    if end.code not in ((0, 130) if end.stopped else (0, 2)):
        return "code"
    if end.code == 2 and not _LAST_LINES.search(end.said):
        return "words"
    return ""


def load() -> None:
    """Imports everything that a command may need, with one thread for each library."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    sys.path.insert(0, str(REPOSITORY))
    for name in _LOADED:
        importlib.import_module(name)
    import cv2

    cv2.setNumThreads(1)


@dataclass
class _Child:
    """A case under way."""

    case: Case
    number: int
    pid: int
    folder: Path
    started: float
    base_mb: float
    cpu: float = 0.0
    moved: float = 0.0
    asked: float = 0.0
    again: float = 0.0
    stopped: str = ""


def run_all(
    cases: Iterable[tuple[int, Case, Path]], jobs: int, done: Callable[[Case], None] = lambda _: None
) -> Iterator[tuple[int, Case, Ending]]:
    """Runs cases in forked processes, `jobs` at a time; each is a number, the case, and the folder that it runs in.

    Args:
        cases: prepared lazily, just before each is started.
        jobs: processes at once.
        done: told of a case before its ending is yielded.
    """
    waiting, running = iter(cases), dict[int, _Child]()
    more = True
    while more or running:
        while more and len(running) < jobs:
            entry = next(waiting, None)
            if entry is None:
                more = False
                break
            child = _start(*entry)
            running[child.pid] = child
        if not running:
            return
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid in running:
            child = running.pop(pid)
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)  # whatever it left running
            done(child.case)
            yield child.number, child.case, _ended(child, status, usage)
            continue
        for child in running.values():
            _watch(child)
        time.sleep(0.02)


def _start(number: int, case: Case, folder: Path) -> _Child:
    sys.stdout.flush()
    sys.stderr.flush()
    base = _resident_mb("self")
    pid = os.fork()
    if pid == 0:
        _become(case, folder)
    now = time.monotonic()
    return _Child(case, number, pid, folder, now, base, moved=now)


def _become(case: Case, folder: Path) -> NoReturn:
    """Turns a forked process into the command."""
    os.setsid()
    os.chdir(folder)
    _redirect(folder)
    os.environ.update(case.environment)
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    end_with(lambda: _call(case))


def end_with(call: Callable[[], int]) -> NoReturn:
    """Ends a forked process with the exit code of the call."""
    code = 70
    try:
        code = call()
    except BaseException:  # the program's own last net has failed
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(folder: Path) -> None:
    redirect(folder.parent / f"{folder.name}.out.txt", folder.parent / f"{folder.name}.err.txt")


def redirect(out: Path, errors: Path) -> None:
    """Makes files the standard streams of a forked process."""
    for number, path, mode in ((0, Path(os.devnull), os.O_RDONLY), (1, out, 577), (2, errors, 577)):
        file = os.open(path, mode, 0o644)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            os.fdopen(number, "rb" if number == 0 else "wb", 0),
            write_through=number > 0,
            errors="backslashreplace" if number == 2 else "strict",
        )
        for number in range(3)
    )


def _call(case: Case) -> int:
    """Runs the command as `python` would; its exit code."""
    script = COMMANDS[case.command]
    return as_python(["-m", case.command, *case.words] if script == "-m" else [str(REPOSITORY / script), *case.words])


def as_python(words: list[str]) -> int:
    """Runs `-m MODULE ...` or `SCRIPT ...` in this process as `python` would; the exit code."""
    module = words[0] == "-m"
    sys.argv = words[1:] if module else words
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    return 0


def _watch(child: _Child) -> None:
    """Ends a case that serves and is ready, works for long, or does nothing."""
    now, cpu = time.monotonic(), _cpu_seconds(child.pid)
    if cpu - child.cpu > 0.05:
        child.cpu, child.moved = cpu, now
    if child.stopped in ("served", "asked"):
        if now - child.asked > _WALL_SECONDS / 4:
            _stop(child, "hang", signal.SIGKILL)
        elif child.stopped == "served" and now - child.again > _SECONDS_TO_SETTLE:
            child.again = now
            _stop(child, "served", signal.SIGINT)
    elif _says(child, "err.txt") or _says(child, "out.txt"):
        child.stopped, child.asked, child.again = "served", now, now  # its loop is about to begin
    elif cpu > _CPU_SECONDS and child.case.long:
        child.asked = now
        _stop(child, "asked", signal.SIGINT)
    elif cpu > _CPU_SECONDS or now - child.started > _WALL_SECONDS:
        _stop(child, "hang", signal.SIGKILL)
    elif now - child.moved > _STILL_SECONDS:
        _stop(child, "still", signal.SIGKILL)


def _stop(child: _Child, why: str, number: signal.Signals) -> None:
    child.stopped = why
    with suppress(OSError):
        os.kill(child.pid, number)


def _says(child: _Child, name: str) -> bool:
    if child.case.command not in ("web", "utils.view_checkpoint"):
        return False
    path = child.folder.parent / f"{child.folder.name}.{name}"
    return path.exists() and _READY in path.read_bytes()


def _ended(child: _Child, status: int, usage: resource.struct_rusage) -> Ending:
    said = (child.folder.parent / f"{child.folder.name}.err.txt").read_text(errors="replace")
    memory = max(0.0, usage.ru_maxrss / 1024 - child.base_mb)
    code = os.waitstatus_to_exitcode(status)
    return Ending(code, said, usage.ru_utime + usage.ru_stime, time.monotonic() - child.started, memory, child.stopped)


def _resident_mb(pid: str) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(f) for f in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def run_alone(case: Case, folder: Path) -> Ending:
    """Runs a case as a user does, in a process of its own that imports everything itself."""
    script = COMMANDS[case.command]
    words = [sys.executable, *(["-m", case.command] if script == "-m" else [str(REPOSITORY / script)]), *case.words]
    environment = {**os.environ, **case.environment, "PYTHONPATH": str(REPOSITORY)}
    with tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        stopped = ""
        try:
            process.wait(_WALL_SECONDS if not case.long else _CPU_SECONDS)
        except subprocess.TimeoutExpired:
            stopped = "asked" if case.long else "hang"
            process.send_signal(signal.SIGINT if case.long else signal.SIGKILL)
            process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    return Ending(process.returncode, said, 0.0, time.monotonic() - began, 0.0, stopped)
