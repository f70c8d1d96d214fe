"""Takes the next job, runs the pipeline for it, then the exports; one world at a time, since a run uses the whole machine.

Files asked for after a world is done (a mesh, another format) are made beside it by a thread of their own: they take a minute and need
not wait for the worlds of others. Neither thread can end before it is told to: what cannot be written is tried again until there is space.
"""

import logging
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.scene.json_files import json_object
from utils.viewer.world import World
from web.jobs import ConflictError, Job, JobStore, NotFoundError
from web.processes import Commands, end
from web.results import export_path, splat_folders

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
LOG_FILE = "log.txt"
EXPORT_STAGE = "exports"
_LINES_OF_A_CRASH = 6
_LOG_BYTES = 1 << 20
_SECONDS_BETWEEN_TRIES = 2.0


class Runner:
    """Works the queues off until stopped.

    Args:
        store: the jobs.
        commands: how programs are called.

    Attributes:
        trouble: why a change cannot be written just now, empty if all is well.
    """

    def __init__(self, store: JobStore, commands: Commands):
        self._store, self._commands = store, commands
        self._changed = threading.Condition()
        self._stopping = False
        self._cancelled: set[str] = set()
        self._current: dict[str, subprocess.Popen[bytes]] = {}
        self.trouble = ""
        self._threads = [
            threading.Thread(target=self._work, args=(store.queue, self._make_world), name="worlds", daemon=True),
            threading.Thread(target=self._work, args=(store.extras_queue, self._make_extras), name="extras", daemon=True),
        ]

    def start(self) -> None:
        """Begins to work."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """There may be something to do."""
        with self._changed:
            self._changed.notify_all()

    def cancelling(self, job_id: str) -> bool:
        """Whether the job's process has been told to end and has not ended yet."""
        return job_id in self._cancelled

    def cancel(self, job_id: str) -> None:
        """Takes a job out of its queue, or ends its process; finished stages are kept. A finished world stays finished.

        Raises:
            OSError: the disk does not take it; then nothing has changed.
        """
        with self._changed:
            job = self._store.get(job_id)
            if job is None or not job.active:
                return
            if job.state == "queued":
                self._store.update(job_id, state="cancelled", finished=time.time())
                return
            if job.extras == "queued":
                self._store.update(job_id, extras="", exports=self._made(job))
                return
            self._cancelled.add(job_id)
            current = self._current.get(job_id)
            self._changed.notify_all()
        if current is not None:
            end(current)

    def stop(self) -> None:
        """Ends the processes under way; their jobs stay first in the queue for the next start."""
        with self._changed:
            self._stopping = True
            current = list(self._current.values())
            self._changed.notify_all()
        for process in current:
            end(process)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(30)

    def _work(self, queue: Callable[[], list[Job]], make: Callable[[Job], dict[str, Any]]) -> None:
        """Takes jobs from a queue and makes what they wait for, until stopped."""
        while True:
            with self._changed:
                while not self._stopping and not queue():
                    self._changed.wait()
                if self._stopping:
                    return
                job = queue()[0]
                self._cancelled.discard(job.id)
            started = {"started": time.time(), "finished": 0.0} if job.state == "queued" else {}
            under_way = {"state": "running"} if job.state == "queued" else {"extras": "running"}
            begun = self._settle(job.id, job, **under_way, **started, error="", hint="", stage="", export_errors={})
            if begun is None:
                continue
            try:
                result = make(begun)
            except Exception as error:  # one broken job must not end the queue
                logger.exception("job %s", job.id)
                result = {"extras": "", "error": f"{type(error).__name__}: {error}"}
                result |= {} if begun.reconstructed else {"state": "failed", "finished": time.time()}
            self._settle(job.id, **result, pid=0)
            with self._changed:
                self._cancelled.discard(job.id)

    def _settle(self, job_id: str, was: Job | None = None, **changes: Any) -> Job | None:
        """Makes a change of a job; where the disk is full it is made when there is space.

        Args:
            job_id: the job.
            was: make the change only if the job still waits as it did then.
            **changes: fields.

        Returns:
            The job; None if it is gone, waits no longer, or the server ends.
        """
        while True:
            try:
                job = self._store.update(job_id, was, **changes)
                self.trouble = ""
                return job
            except (NotFoundError, ConflictError):
                return None
            except OSError as error:
                logger.warning("job %s: %s", job_id, error)
                self.trouble = f"the workspace cannot be written: {error.strerror or error}"
            with self._changed:
                if self._stopping:
                    return None
                self._changed.wait(_SECONDS_BETWEEN_TRIES)

    def _make_world(self, job: Job) -> dict[str, Any]:
        """Runs pipeline and exports; returns the changes that say how it ended."""
        if not job.reconstructed:
            (self._store.folder(job.id) / PROGRESS_FILE).unlink(missing_ok=True)
            code, said = self._call(job.id, pipeline_command(self._commands, self._store, job))
            if self._interrupted(job.id):
                return self._after_interruption({"state": "cancelled", "finished": time.time()}, {"state": "queued"})
            if code:
                error, hint = explain(code, said)
                stage = str(progress(self._store.folder(job.id)).get("title", ""))
                return {"state": "failed", "finished": time.time(), "error": error, "hint": hint, "stage": stage}
            job = self._settle(job.id, reconstructed=True) or job
        errors = self._export(job)
        if self._interrupted(job.id):
            return self._after_interruption({"state": "cancelled", "finished": time.time()}, {"state": "queued"})
        return {"state": "done", "finished": time.time(), "export_errors": errors}

    def _make_extras(self, job: Job) -> dict[str, Any]:
        """Makes the files that were asked for afterwards; the world stays what it is."""
        errors = self._export(job)
        if self._interrupted(job.id):
            return self._after_interruption({"extras": "", "exports": self._made(job)}, {"extras": "queued"})
        return {"extras": "", "export_errors": errors, "exports": tuple(k for k in job.exports if k not in errors)}

    def _export(self, job: Job) -> dict[str, str]:
        """Writes the formats that are wanted and not there; returns why some could not be written."""
        root = self._store.scene_root(job.id)
        errors: dict[str, str] = {}
        for folder in splat_folders(root):
            if not World(root, folder).prepared():  # so that the viewer opens at once; it asks again itself if this fails
                self._call(job.id, [*self._commands.prepare, str(root), str(folder)])
            for kind in job.exports:
                if export_path(folder, kind).is_file():
                    continue
                argv = [*self._commands.export, "--config.root-path", str(root), "--config.run", folder.parent.name]
                argv += ["--config.checkpoint-dir", str(folder), "--config.format", kind]
                if kind == "html":
                    argv += ["--config.title", Path(job.name).stem]
                code, said = self._call(job.id, argv)
                if self._interrupted(job.id):
                    return errors
                if code:
                    errors[kind] = " ".join(explain(code, said)).strip()
        return errors

    def _made(self, job: Job) -> tuple[str, ...]:
        """The formats of a job whose files are there."""
        folders = splat_folders(self._store.scene_root(job.id))
        return tuple(k for k in job.exports if any(export_path(f, k).is_file() for f in folders))

    def _interrupted(self, job_id: str) -> bool:
        """Whether the job's process was ended on purpose."""
        with self._changed:
            return self._stopping or job_id in self._cancelled

    def _after_interruption(self, cancelled: dict[str, Any], stopped: dict[str, Any]) -> dict[str, Any]:
        return stopped if self._stopping else cancelled

    def _call(self, job_id: str, argv: list[str]) -> tuple[int, str]:
        """Runs one command to its end; returns its exit code and what it printed."""
        log = self._store.folder(job_id) / LOG_FILE
        before = log.stat().st_size if log.exists() else 0
        with self._changed:
            if self._stopping or job_id in self._cancelled:
                return -1, ""
            process = self._commands.start(argv, log)
            self._current[job_id] = process
        started = time.monotonic()
        self._note(job_id, pid=process.pid)
        try:
            code = process.wait()
        finally:
            with self._changed:
                del self._current[job_id]
        job = self._store.get(job_id)
        if job is not None:
            self._note(job_id, pid=0, spent=job.spent + (0.0 if job.reconstructed else time.monotonic() - started))
        with log.open("rb") as stream:
            stream.seek(max(before, log.stat().st_size - _LOG_BYTES))
            return code, stream.read().decode(errors="replace")

    def _note(self, job_id: str, **facts: Any) -> None:
        """Keeps a fact that nothing depends on; a full disk loses it."""
        try:
            self._store.update(job_id, **facts)
        except (OSError, NotFoundError) as error:
            logger.warning("job %s: %s", job_id, error)


def pipeline_command(commands: Commands, store: JobStore, job: Job) -> list[str]:
    """The command line of a job."""
    folder = store.folder(job.id)
    source = folder / job.source
    watched = ["--config.root-path", str(store.scene_root(job.id)), "--config.progress-file", str(folder / PROGRESS_FILE)]
    if job.words:
        return [*commands.pipeline, *job.words, *watched]
    argv = [*commands.pipeline, "--config.frames-dir" if job.source == "frames" else "--config.input-video", str(source), *watched]
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
    if code == 137:
        return (
            "The run was ended by the system, most likely because memory ran out.",
            "Choose fewer frames or a lower resolution. Finished stages are kept: run it again to go on.",
        )
    last = "\n".join(lines[-_LINES_OF_A_CRASH:])
    return f"The run ended unexpectedly (exit code {code}).\n{last}".strip(), "The whole log is below. Finished stages are kept."


def progress(folder: Path) -> dict[str, Any]:
    """Where the pipeline is, as it last said; empty before its first word."""
    return json_object(folder / PROGRESS_FILE)
