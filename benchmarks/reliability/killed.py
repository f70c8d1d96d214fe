"""`python -m benchmarks.reliability.killed N (SCRIPT | -m MODULE) ...`: runs a command that dies before its N-th change to any folder."""

import os
import runpy
import signal
import sys

CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir"})


def main() -> None:
    """Counts changes below the scene and kills the process; with N = -1 it only says how many there were."""
    limit, words = int(sys.argv[1]), sys.argv[2:]
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in CHANGES or written) and not str(arguments[0]).endswith((".pyc", ".nbi", ".nbc")):
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    module = words[0] == "-m"
    sys.argv = words[1:] if module else words
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, "")
            runpy.run_path(words[0], run_name="__main__")
    finally:
        if limit < 0:
            print(f"changes: {count}", file=sys.stderr)


if __name__ == "__main__":
    main()
