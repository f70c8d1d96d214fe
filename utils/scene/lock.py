"""One writer at a time: a lock on the scene that says who holds it. Readers do not ask for it.

The lock is an advisory `flock` on `<scene>/.video_to_world.lock`, so that it ends with its process whatever happens. The file also holds
process, machine, command and time, for the message to a second writer and to tell of a writer that was killed.
"""

import contextlib
import errno
import functools
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from utils.errors import ArtifactError, SceneBusyError
from utils.scene.json_files import json_object
from utils.scene.manifest import writing
from utils.scene.transaction import recover
from utils.types import NULL_REPORTER, Reporter

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".video_to_world.lock"
_SIGNED = "signed by another process"  # where there are no locks, the signature alone must do
Result = TypeVar("Result")


@dataclass
class _Held:
    """A scene that this process writes.

    Attributes:
        thread: the one that took the lock; its nested calls share it.
        depth: how many of them there are.
    """

    thread: int
    depth: int = 1


_held: dict[Path, _Held] = {}
_guard = threading.Lock()


@contextlib.contextmanager
def writing_scene(root: Path, report: Reporter = NULL_REPORTER) -> Iterator[None]:
    """Holds the scene's lock and finishes what a killed writer left half published; a stage inside a run that holds it just goes on.

    Args:
        root: the scene; made if it is missing, and removed again if it stays empty.
        report: told of a writer that was killed.

    Raises:
        SceneBusyError: another process or thread writes the scene.
        ArtifactError: the folder cannot be made.
    """
    place, new = Path(os.path.realpath(root)), False
    with _guard:
        held = _held.get(place)
        if held is not None and held.thread != threading.get_ident():
            raise SceneBusyError(f"{root} is being written by another thread of this program", "wait until it has finished")
        if held is not None:
            held.depth += 1
        else:
            _held[place] = _Held(threading.get_ident())
    try:
        if held is not None:
            yield
            return
        with writing(root):
            new = not place.exists()
            place.mkdir(parents=True, exist_ok=True)
        with _locked(root, place, report):
            recover(place, report)
            yield
    finally:
        with _guard:
            _held[place].depth -= 1
            if not _held[place].depth:
                del _held[place]
        if new:
            with contextlib.suppress(OSError):
                place.rmdir()  # only if nothing was written


def one_writer(root_of: Callable[[Any], Path]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Decorates a stage's `run(config, report)`: it holds the lock of `root_of(config)` while it works."""

    def decorate(run: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(run)
        def alone(config: Any, report: Reporter = NULL_REPORTER) -> Result:
            with writing_scene(root_of(config), report):
                return run(config, report)

        return alone

    return decorate


@contextlib.contextmanager
def _locked(root: Path, place: Path, report: Reporter) -> Iterator[None]:
    path = place / LOCK
    try:
        stream = _acquire(path)
    except BlockingIOError as error:
        unsure = f"; if that process is gone, delete {path}" if error.strerror == _SIGNED else ""
        raise SceneBusyError(
            f"{root} is being written by another run: {_words(json_object(path))}",
            f"wait until it has finished, stop it, or choose another scene root{unsure}",
        ) from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise ArtifactError(f"cannot lock {path}: {error.strerror}", "choose a scene root you may write to") from error
        yield  # where no lock can be made nothing can be written either; what is current may still be used
        return
    try:
        left = json_object(path)
        if left:
            report.note(f"{root}: the run before this one was cut off ({_words(left)}); this one takes over")
        _sign(stream)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        stream.close()


def _acquire(path: Path) -> TextIO:
    """The open, locked file; never one that its last holder has just removed.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    while True:
        stream = path.open("a+")
        try:
            if not _flocked(stream) and _lives(json_object(path)):
                raise BlockingIOError(errno.EWOULDBLOCK, _SIGNED)
            if path.exists() and path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
                return stream
        except BaseException:
            stream.close()
            raise
        stream.close()


def _flocked(stream: TextIO) -> bool:
    """Locks the file; False on systems and file systems without locks.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the process that signed may still be at work; one of another machine may."""
    if not owner or owner.get("host") != socket.gethostname():
        return bool(owner)
    try:
        os.kill(int(owner["pid"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _words(owner: dict[str, Any]) -> str:
    if not owner:
        return "an unknown process"
    return f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')} ({owner.get('command')})"


def _sign(stream: TextIO) -> None:
    stream.seek(0)
    stream.truncate()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": shlex.join(sys.argv)[:300]}, stream)
    stream.flush()
