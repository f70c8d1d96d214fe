"""What surrounds a stage: errors to exit codes, logging, seeds and threads. Imports nothing heavy, so `--help` stays quick."""

import ctypes
import errno
import io
import logging
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from utils.ending import (
    INTERRUPTED,
    INTERRUPTED_LINES,
    NO_READER,
    Interrupts,
    flush_output,
    open_streams,
    polite_interrupts,
    reader_gone,
    say_no_more,
    unwritable,
)
from utils.errors import V2WError

T = TypeVar("T")
# Characters of a message that are shown.
_LONGEST = 1200
_PERMISSIONS, _DISK = "check that you may read and write there, or give another path", "check the disk that the file is on"
_ROOM = "free space, then run the same command again"
_HINTS = {
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "give another path"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _PERMISSIONS),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV), _DISK),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n), or use fewer threads (V2W_CPUS)"),
}
"""What to do where the system refuses something that no part of this program has foreseen, by its number."""


def run_stage(work: Callable[[], None]) -> None:
    """Runs `work` as a command: what ends it is told in two lines at most.

    A `V2WError` prints `error:` and `hint:` and exits with 2, an interrupt with 130, a fault with 1; where nobody reads what is printed
    (`| head`), the exit is quiet.
    """
    open_streams()
    configure_logging()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    with polite_interrupts() as interrupts:
        code = _ended(work, interrupts)
    if code:
        sys.exit(code)


def _ended(work: Callable[[], None], interrupts: Interrupts) -> int:
    """Runs `work` and tells what ended it; the exit code."""
    code = 0
    try:
        try:
            work()
        except SystemExit as ended:  # --help
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        flush_output()
        return code
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and reader_gone():
            say_no_more(sys.stdout, sys.stderr)
            return NO_READER
        code, lines = _told(_of_output(error), interrupts)
        try:
            print(lines, file=sys.stderr, flush=True)
        except OSError:  # nor can that be read
            say_no_more(sys.stdout, sys.stderr)
        return code


def _of_output(error: BaseException) -> BaseException:
    """The error, or that of a standard stream where that is what cannot be written: then another line cannot, either."""
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF):
        for stream in (sys.stdout, sys.stderr):
            try:
                print(file=stream, flush=True)
            except BrokenPipeError:
                return error
            except OSError as told:
                return unwritable(told, stream)
    return error


def _told(error: BaseException, interrupts: Interrupts) -> tuple[int, str]:
    """The exit code of what ended a command, and what is said."""
    if interrupts.seen or _from_interrupt(error):
        return INTERRUPTED, INTERRUPTED_LINES
    if isinstance(error, V2WError):
        return 2, error_lines(error)
    if not isinstance(error, Exception):
        raise error
    if _out_of_memory(error):
        hint = "use fewer frames, a lower resolution or smaller settings, or a machine with more memory"
        return 2, error_lines(V2WError(f"not enough memory: {str(error) or type(error).__name__}", hint))
    if (of_the_system := _of_the_system(error)) is not None:
        return 2, error_lines(of_the_system)
    # a fault of this program: one line, and all of it where it can be sent from
    told = f"{_one_line(str(error) or 'no reason given')} ({type(error).__name__})"
    return 1, error_lines(V2WError(told, f"this is a fault of the program; what led to it is in {_log_of(error)}"))


def _from_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C ended it: compiled kernels that it meets say SystemError."""
    inner = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemError) and isinstance(inner, KeyboardInterrupt))


def _out_of_memory(error: Exception) -> bool:
    """Whether memory was asked for that is not there; PyTorch has no type of its own for that on a CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def _of_the_system(error: Exception) -> V2WError | None:
    """The error of a path, a disk or a limit of the system that somebody other than this program can mend; None for others."""
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # no OSError before Python 3.13
        return V2WError(str(error), "give another path")
    hint = _HINTS.get(error.errno or 0) if isinstance(error, OSError) else None
    return V2WError(str(error), hint) if hint else None


def _log_of(error: Exception) -> str:
    """Path of a file with the error's traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="video_to_world_", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write(f"{sys.argv}\n\n{text}")
            return log.name
    except OSError:  # nowhere to write: better here than nowhere
        print(text, file=sys.stderr)
        return "the lines above"


def _one_line(text: str) -> str:
    """A message that stays one line whatever names it quotes."""
    shown = " ".join(text.split())
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 4] + " ..."


def error_lines(error: V2WError) -> str:
    """One line of what is wrong and one of what to do."""
    lines = [f"error: {_one_line(error.message)}"]
    return "\n".join([*lines, f"hint: {_one_line(error.hint)}"] if error.hint else lines)


def configure_logging(verbose: bool = False) -> None:
    """Messages of this program to stderr, one line each; third-party chatter from warnings up."""
    if not logging.getLogger().handlers:
        logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    for name in (
        "utils",
        "configs",
        "frame_to_model_icp",
        "global_optimization",
        "train_inverse_deformation",
        "train_gs",
        "eval_gs",
        "batch",
        "v2w",
    ):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch. On the CPU a run is then repeatable; on CUDA atomics leave differences of rounding."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def cpu_count() -> int:
    """Cores this process may use: those the system gives it, and no more than V2W_CPUS says where it shares them with others."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("V2W_CPUS", "")
    return max(1, min(there, int(share))) if share.isdecimal() else there


def in_threads(work: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """`map(work, *arguments)` on a thread per core, in order; for work that releases the interpreter (NumPy, OpenCV, hashing, files)."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        return list(pool.map(work, *arguments))


def cuda_device_present() -> bool:
    """Whether the CUDA driver answers and has a device; asks the driver itself, so that `--help` need not import torch."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return False


def ffmpeg_name(path: Path) -> str:
    """A path as FFmpeg takes it: absolute, so that a colon in it (`a:b.mp4`) does not make it an address."""
    return os.path.abspath(path)
