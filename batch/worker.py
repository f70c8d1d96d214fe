"""`python -m batch.worker`: runs stages one after another, each in a process of its own that begins with everything imported.

Tasks come as JSON lines on standard input, outcomes go as JSON lines to standard output. The process imports what the stages need and then
forks for every task: memory is given back whole, threads and CUDA start anew, and a stage that is killed takes nothing with it. When
standard input ends, whatever became of the program at its other end, the stage under way is ended too.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from batch.tasks import Outcome, StageTask
from utils.errors import SceneBusyError, V2WError

PROGRESS_FILE, LOG_FILE = "progress.json", "log.txt"  # as the web page has them
# A machine that counts as lost may still be at work for a moment; its stage is waited for that long.
_SECONDS_FOR_ANOTHER = 60.0
_SECONDS_TO_END = 10.0
_OOM_SCORE = "600"  # where memory runs out, the stage is what the system ends
_LINES_OF_A_CRASH = 4
_PR_SET_PDEATHSIG = 1
_STAGES = ("preprocess", "frame_to_model_icp", "global_optimization", "train_inverse_deformation", "train_gs", "eval_gs")
_IMPORTED = ("run_reconstruction", "tyro", "torch._dynamo", "utils.report.html", *(f"{stage}.stage" for stage in _STAGES))


def preload() -> None:
    """Imports what stages import; runs nothing, so that no thread pool exists when the process forks."""
    for module in _IMPORTED:
        importlib.import_module(module)


def run_task(task: StageTask) -> Outcome:
    """Runs one stage here; what it says goes to the scene's log.

    Raises:
        V2WError: input, settings or storage cannot be used.
    """
    import run_reconstruction
    from batch.figures import figures
    from batch.storage import Storage, fetch_source
    from utils.runtime import configure_logging
    from utils.scene.lock import writing_scene

    storage = Storage(task.out, task.scratch)
    root = storage.fetch(task.scene)
    root.mkdir(parents=True, exist_ok=True)
    _say_into(root / LOG_FILE)
    configure_logging()
    inputs = storage.folder / ".inputs"
    if task.cwd and os.path.isdir(task.cwd):
        os.chdir(task.cwd)
    words = [str(fetch_source(word, inputs)) if "://" in word else word for word in task.words]
    watched = ["--config.root-path", str(root), "--config.progress-file", str(root / PROGRESS_FILE)]
    config = run_reconstruction.configure([*words, *watched])
    _wait_for_others(root) if task.attempt else None
    started = time.perf_counter()
    with writing_scene(root):
        run_reconstruction.run(config, task.number)
    seconds = time.perf_counter() - started
    storage.put(task.scene)
    stages = json.loads((root / "run_summary.json").read_bytes())["stages"]
    mine = next(stage for stage in reversed(stages) if stage["title"] == task.title)
    told = figures(root, config.mode) if task.number == task.of else {}
    return Outcome("done", round(seconds, 3), bool(mine["kept"]), peak_memory_mb=float(mine["peak_memory_mb"]), figures=told)


def _wait_for_others(root: Path) -> None:
    from utils.scene.lock import writing_scene

    until = time.monotonic() + _SECONDS_FOR_ANOTHER
    while time.monotonic() < until:
        with suppress(SceneBusyError), writing_scene(root):
            return
        time.sleep(0.2)


def _say_into(log: Path) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.close(stream)


def outcome_of(task: StageTask) -> Outcome:
    """How a task ended, whatever happened in it."""
    try:
        return run_task(task)
    except V2WError as error:
        # A scene that another process still writes is one to come back to; anything else would be refused again.
        end = "lost" if isinstance(error, SceneBusyError) and task.attempt else "refused"
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return Outcome(end, error=error.message, hint=error.hint)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        return Outcome("stopped")
    except Exception as error:
        traceback.print_exc()
        last = "".join(traceback.format_exception_only(error)).strip().splitlines()[:_LINES_OF_A_CRASH]
        return Outcome("fault", error=" ".join(last), hint=f"this is a fault of the program; {LOG_FILE} in the scene has all of it")


class _Child:
    """A forked process with one task.

    Args:
        task: what it does.

    Attributes:
        pipe: where its outcome is read from.
    """

    def __init__(self, task: StageTask):
        self.pipe, its_end = os.pipe()
        self._said = b""
        self.pid = os.fork()
        if self.pid == 0:
            _live(task, its_end)
        os.close(its_end)

    def read(self) -> bool:
        """Takes what it says; False when it has ended."""
        data = os.read(self.pipe, 1 << 20)
        self._said += data
        return bool(data)

    def outcome(self) -> dict[str, Any]:
        """How it ended, after `read` said that it has."""
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        with suppress(ValueError):
            return dict(json.loads(self._said))
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        words = f"its process was ended by signal {number}" if number else f"its process ended with code {os.WEXITSTATUS(status)}"
        hint = "most likely memory ran out: use fewer frames, or raise --stage-memory-gb" if number == signal.SIGKILL else ""
        return vars(Outcome("lost", error=words, hint=hint))

    def interrupt(self) -> None:
        """Asks it to stop, as Ctrl-C does."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)

    def end(self) -> None:
        """Stops it, and makes it after a while."""
        self.interrupt()
        until = time.monotonic() + _SECONDS_TO_END
        while time.monotonic() < until:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _live(task: StageTask, pipe: int) -> None:
    """The life of a child."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with suppress(OSError, AttributeError):  # Linux: a worker that is killed takes its stage with it
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
        if task.gpu_ids is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = task.gpu_ids
        outcome = outcome_of(task)
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(pipe, json.dumps(vars(outcome)).encode())
        code = 0
    except KeyboardInterrupt:
        pass
    finally:
        os._exit(code)


def serve(tasks: int, answers: int) -> None:
    """Works tasks off until their stream ends.

    Args:
        tasks: descriptor to read from.
        answers: descriptor to write to.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end decides what an interrupt means
    os.write(answers, b'{"ready": true}\n')
    buffer, child = b"", None
    while True:
        ready, _, _ = select.select([tasks] + ([child.pipe] if child else []), [], [])
        if child is not None and child.pipe in ready and not child.read():
            os.write(answers, json.dumps(child.outcome()).encode() + b"\n")
            child = None
        if tasks in ready:
            data = os.read(tasks, 1 << 20)
            if not data:
                child.end() if child is not None else None
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "interrupt" in message:
                    child.interrupt() if child is not None else None
                else:
                    child = _Child(StageTask.read(message))


def main() -> None:
    """Standard streams become the two ends; what libraries print goes to standard error."""
    tasks, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    preload()
    serve(tasks, answers)


if __name__ == "__main__":
    main()
