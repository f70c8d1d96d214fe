"""How a command ends when it is interrupted or when nobody reads what it says any more. Imports nothing heavy."""

import _thread
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from utils.errors import ConfigError

INTERRUPTED, NO_READER = 128 + signal.SIGINT, 128 + 13
"""Exit codes that a shell shows for a process ended by SIGINT and by SIGPIPE."""
INTERRUPTED_LINES = "\nerror: interrupted\nhint: finished stages are kept; run the same command again to go on"


class Interrupts:
    """What Ctrl-C does: the first raises KeyboardInterrupt, the second ends the process at once.

    Ending at once is safe: results are published whole, so it is no more than a kill.

    Attributes:
        seen: Ctrl-C was pressed. Whatever error comes then comes from it: compiled code and callbacks wrap it in theirs.
    """

    def __init__(self) -> None:
        self.seen = False
        self._lost = False

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        if self.seen and not self._lost:
            with suppress(OSError):
                os.write(2, f"{INTERRUPTED_LINES}\n".encode())
            os._exit(INTERRUPTED)
        self.seen, self._lost = True, False
        raise KeyboardInterrupt

    def ignored(self, report: Any) -> None:
        """The hook for errors that Python cannot pass on, in destructors and callbacks: an interrupt is raised again."""
        if issubclass(report.exc_type, KeyboardInterrupt):
            self._lost = True
            again = threading.Timer(0.05, _thread.interrupt_main)  # after this hook has returned: raised in it, it would be lost too
            again.daemon = True
            again.start()
        else:
            sys.__unraisablehook__(report)


@contextmanager
def polite_interrupts() -> Iterator[Interrupts]:
    """Handles Ctrl-C inside, in the main thread of a program that has not set a handler of its own or ignores it."""
    interrupts, hook = Interrupts(), sys.unraisablehook
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours:
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts.handle)
    sys.unraisablehook = interrupts.ignored
    try:
        yield interrupts
    finally:
        sys.unraisablehook = hook
        if not interrupts.seen:  # after an interrupt, the next one ends what the interpreter still waits for
            signal.signal(signal.SIGINT, signal.default_int_handler)


def open_streams() -> None:
    """Puts the null device where standard streams were closed, so that no file of results gets their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) == number and getattr(sys, name) is None:
                setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


def reader_gone() -> bool:
    """Whether standard output or standard error is a pipe whose other end is closed, as after `| head`."""
    return any(_without_reader(stream) for stream in (sys.stdout, sys.stderr))


def _without_reader(stream: TextIO | None) -> bool:
    try:
        number = stream.fileno() if stream is not None else -1
    except (OSError, ValueError, AttributeError):  # a stream of a program that runs this one
        return False
    if number < 0 or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def say_no_more(*streams: TextIO) -> None:
    """Sends what is still to be said, also while the interpreter ends, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(null, stream.fileno())
    os.close(null)


def flush_output() -> None:
    """Writes out what was printed.

    Raises:
        BrokenPipeError: nobody reads it.
        OSError: standard output cannot be written.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def unwritable(error: OSError, stream: TextIO) -> ConfigError:
    """The error of a standard stream that cannot be written, which is left alone from then on."""
    say_no_more(stream)
    return ConfigError(f"cannot write to {stream.name.strip('<>')}: {error.strerror}", "free space, or send the output elsewhere")
