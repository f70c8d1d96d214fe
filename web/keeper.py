"""`python -m web.keeper COMMAND ...`: runs a command that ends when the server does.

Its standard input is a pipe that the server holds open and never writes to. When the server is gone, however it went, the pipe ends, and
the command with all its children is asked to stop, and made to after a while. Imports nothing heavy.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

_SECONDS_TO_END = 10.0
# A run that wants more memory than there is must be what the system ends, not the server.
_OOM_SCORE = "600"
_NICE = 5


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code, 128 and the signal's number if a signal ended it."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    os.nice(_NICE)
    # An interrupt goes to the whole group; this process waits for the command to obey. A handler, since a command inherits `ignore`.
    signal.signal(signal.SIGINT, lambda *_: None)
    command = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_server, daemon=True).start()
    code = command.wait()
    return code if code >= 0 else 128 - code


def _end_with_server() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGINT)
    time.sleep(_SECONDS_TO_END)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
