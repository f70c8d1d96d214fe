"""One thread that takes the next job, runs the pipeline for it, then the exports; one job at a time, since a run uses the whole machine."""

import json
import logging
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from utils.scene.layout import SceneLayout
from web.jobs import Job, JobStore
from web.processes import Commands, end
from web.results import export_path, splat_folders

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
LOG_FILE = "log.txt"
EXPORT_STAGE = "exports"
_LINES_OF_A_CRASH = 6


class Runner:
    """Works the queue off until stopped.

    Args:
        store: the jobs.
        commands: how programs are called.
    """

    def __init__(self, store: JobStore, commands: Commands):
        self._store, self._commands = store, commands
        self._changed = threading.Condition()
        self._stopping = False
        self._cancelled: set[str] = set()
        self._current: tuple[str, subprocess.Popen[bytes]] | None = None
        self._thread = threading.Thread(target=self._work, name="runner", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def wake(self) -> None:
        """There may be something to do."""
        with self._changed:
            self._changed.notify_all()

    def cancel(self, job_id: str) -> None:
        """Takes a job out of the queue, or ends its process; finished stages are kept."""
        with self._changed:
            job = self._store.get(job_id)
            if job is None or not job.active:
                return
            if job.state == "queued":
                self._store.update(job_id, state="cancelled", finished=time.time())
                return
            self._cancelled.add(job_id)
            current = self._current
        if current is not None and current[0] == job_id:
            end(current[1])

    def stop(self) -> None:
        """Ends the process under way; its job stays first in the queue for the next start."""
        with self._changed:
            self._stopping = True
            current = self._current
            self._changed.notify_all()
        if current is not None:
            end(current[1])
        if self._thread.is_alive():
            self._thread.join(30)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and not self._store.queue():
                    self._changed.wait()
                if self._stopping:
                    return
                job = self._store.queue()[0]
                self._cancelled.discard(job.id)
                self._store.update(job.id, state="running", started=time.time(), finished=0.0, error="", hint="", export_errors={})
            try:
                self._run(job.id)
            except Exception as error:  # one broken job must not end the queue
                logger.exception("job %s", job.id)
                self._store.update(job.id, state="failed", finished=time.time(), error=f"{type(error).__name__}: {error}", pid=0)

    def _run(self, job_id: str) -> None:
        job = self._job(job_id)
        if not job.reconstructed:
            (self._store.folder(job_id) / PROGRESS_FILE).unlink(missing_ok=True)
            code, said = self._call(job, pipeline_command(self._commands, self._store, job))
            if self._interrupted(job_id):
                return
            if code:
                error, hint = explain(code, said)
                self._store.update(job_id, state="failed", finished=time.time(), error=error, hint=hint)
                return
            job = self._store.update(job_id, reconstructed=True)
        root = self._store.scene_root(job_id)
        for folder in splat_folders(root):
            for kind in job.exports:
                if export_path(folder, kind).is_file():
                    continue
                argv = [*self._commands.export, "--config.root-path", str(root), "--config.run", folder.parent.name]
                argv += ["--config.checkpoint-dir", str(folder), "--config.format", kind]
                code, said = self._call(job, argv)
                if self._interrupted(job_id):
                    return
                if code:
                    job = self._store.update(job_id, export_errors={**job.export_errors, kind: " ".join(explain(code, said)).strip()})
        self._store.update(job_id, state="done", finished=time.time())

    def _job(self, job_id: str) -> Job:
        job = self._store.get(job_id)
        assert job is not None
        return job

    def _interrupted(self, job_id: str) -> bool:
        """Whether the process was ended on purpose; then the job's state says why."""
        with self._changed:
            if job_id in self._cancelled:
                self._cancelled.discard(job_id)
                self._store.update(job_id, state="cancelled", finished=time.time())
                return True
            if self._stopping:
                self._store.update(job_id, state="queued")
                return True
        return False

    def _call(self, job: Job, argv: list[str]) -> tuple[int, str]:
        """Runs one command to its end; returns its exit code and what it printed."""
        log = self._store.folder(job.id) / LOG_FILE
        before = log.stat().st_size if log.exists() else 0
        with self._changed:
            if self._stopping or job.id in self._cancelled:
                return -1, ""
            process = self._commands.start(argv, log)
            self._current = (job.id, process)
            self._store.update(job.id, pid=process.pid)
        started = time.monotonic()
        code = process.wait()
        seconds = 0.0 if job.reconstructed else time.monotonic() - started
        with self._changed:
            self._current = None
            self._store.update(job.id, pid=0, spent=job.spent + seconds)
        with log.open("rb") as stream:
            stream.seek(before)
            return code, stream.read().decode(errors="replace")


def pipeline_command(commands: Commands, store: JobStore, job: Job) -> list[str]:
    """The command line of a job."""
    folder = store.folder(job.id)
    source = folder / job.source
    argv = [*commands.pipeline, "--config.frames-dir" if job.source == "frames" else "--config.input-video", str(source)]
    argv += ["--config.root-path", str(store.scene_root(job.id)), "--config.progress-file", str(folder / PROGRESS_FILE)]
    argv += ["--config.mode", job.mode]
    if job.renderer:
        argv += ["--config.renderer", job.renderer]
    if job.frames:
        argv += ["--config.preprocess-max-frames", str(job.frames), "--config.stage1.alignment.num-frames", str(job.frames)]
    if job.resolution:
        argv += ["--config.preprocess-process-res", str(job.resolution)]
    return argv


def explain(code: int, said: str) -> tuple[str, str]:
    """The `error:` and `hint:` of a command as it printed them, or what else is known of its end."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", said) if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("error:")]
    if errors:
        hints = [line.removeprefix("hint:").strip() for line in lines[errors[-1] :] if line.startswith("hint:")]
        return lines[errors[-1]].removeprefix("error:").strip(), hints[0] if hints else ""
    if code in (-9, 137):
        return (
            "The run was ended by the system, most likely because memory ran out.",
            "Choose fewer frames or a lower resolution. Finished stages are kept: run it again to go on.",
        )
    last = "\n".join(lines[-_LINES_OF_A_CRASH:])
    return f"The run ended unexpectedly (exit code {code}).\n{last}".strip(), "The whole log is below. Finished stages are kept."


def progress(folder: Path) -> dict[str, Any]:
    """Where the pipeline is, as it last said; empty before its first word."""
    try:
        found = json.loads((folder / PROGRESS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def seconds_left(job: Job, now: dict[str, Any], earlier: dict[str, float]) -> float | None:
    """Time left of the whole job: the stage under way by its own steps or by an earlier run, later stages by the earlier run.

    Args:
        job: the job.
        now: its progress.
        earlier: stage title -> seconds, from a run with the same settings.

    Returns:
        Seconds, or None if a stage's time is not known.
    """
    if job.reconstructed or not now.get("number"):
        return None
    later = now["stages"][now["number"] :]
    if any(title not in earlier for title in later):
        return None
    spent = time.time() - now["since"]
    by_steps = now.get("seconds_left")
    by_history = max(earlier[now["title"]] - spent, 0.0) if now["title"] in earlier else None
    if by_history is None and by_steps is None:
        return None
    return max(by_steps or 0.0, by_history or 0.0) + sum(earlier[title] for title in later)


def earlier_times(store: JobStore, job: Job) -> dict[str, float]:
    """Stage title -> seconds of the newest finished job with the same settings; empty if there is none."""
    for other in store.all():
        same = (other.mode, other.renderer, other.frames, other.resolution) == (job.mode, job.renderer, job.frames, job.resolution)
        if other.id == job.id or not other.reconstructed or not same:
            continue
        try:
            stages = json.loads(SceneLayout(store.scene_root(other.id)).summary_json.read_text())["stages"]
            times = {s["title"]: float(s["seconds"]) for s in stages if not s["kept"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if times:
            return times
    return {}
