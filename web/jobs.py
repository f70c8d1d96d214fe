"""What is known of every run: a folder in the workspace with a `job.json` that is replaced as a whole, so no crash leaves half of it."""

import json
import logging
import os
import re
import shutil
import threading
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from web.processes import end_leftover

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]
JOB_FILE = "job.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        id: name of its folder.
        name: the upload's name as shown.
        source: what was uploaded, relative to the folder: a clip or `frames`.
        mode: preset.
        renderer: splat type(s), empty for the preset's.
        frames: most frames, 0 for the preset's.
        resolution: longest side in pixels, 0 for the preset's.
        about: size and length of the clip in words.
        state: where it is.
        created: seconds of the epoch.
        queued: when it joined the queue; the smallest is next.
        started: when it last started, 0 before.
        finished: when it ended, 0 before.
        spent: seconds the pipeline has run for it, over all attempts.
        error: what went wrong, empty if nothing did.
        hint: what helps.
        reconstructed: the pipeline has finished; what follows are exports.
        exports: formats wanted besides the PLY that training writes.
        export_errors: format -> why it could not be made.
        pid: the process under way, 0 if none.
    """

    id: str
    name: str
    source: str
    mode: str = "fast"
    renderer: str = ""
    frames: int = 0
    resolution: int = 0
    about: str = ""
    state: State = "queued"
    created: float = 0.0
    queued: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    spent: float = 0.0
    error: str = ""
    hint: str = ""
    reconstructed: bool = False
    exports: tuple[str, ...] = ("splat", "spz")
    export_errors: dict[str, str] = field(default_factory=dict)
    pid: int = 0

    @property
    def active(self) -> bool:
        """Waiting or running."""
        return self.state in ("queued", "running")


def new_id(name: str) -> str:
    """A folder name that sorts by time and says what is inside."""
    words = re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")[:40].strip("-")
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}-{words or 'clip'}"


class JobStore:
    """All jobs of a workspace, safe to use from several threads.

    A job that was running when the last server ended is queued again, ahead of the others; the pipeline keeps its finished stages.
    """

    def __init__(self, workspace: Path):
        self.workspace = workspace
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        for path in sorted(workspace.glob(f"*/{JOB_FILE}")):
            job = _read(path)
            if job is not None and job.id == path.parent.name:
                self._jobs[job.id] = job
        for job in self.all():
            if job.state == "running":
                end_leftover(job.pid, str(self.folder(job.id)))
                self.update(job.id, state="queued", pid=0)

    def folder(self, job_id: str) -> Path:
        """The job's folder."""
        return self.workspace / job_id

    def scene_root(self, job_id: str) -> Path:
        """The scene inside the job's folder."""
        return self.folder(job_id) / "world"

    def all(self) -> list[Job]:
        """Newest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda j: (j.created, j.id), reverse=True)

    def get(self, job_id: str) -> Job | None:
        """The job of this name; the only way from a request to a folder."""
        with self._lock:
            return self._jobs.get(job_id)

    def queue(self) -> list[Job]:
        """Waiting jobs, the next one first."""
        with self._lock:
            return sorted((j for j in self._jobs.values() if j.state == "queued"), key=lambda j: (j.queued, j.id))

    def add(self, job: Job) -> Job:
        """Makes a new job known; its folder exists."""
        with self._lock:
            self._jobs[job.id] = job
            self._write(job)
            return job

    def update(self, job_id: str, **changes: Any) -> Job:
        """Changes fields of a job on disk and in memory."""
        with self._lock:
            job = replace(self._jobs[job_id], **changes)
            self._write(job)
            self._jobs[job_id] = job
            return job

    def remove(self, job_id: str) -> None:
        """Forgets a job and deletes its folder."""
        with self._lock:
            del self._jobs[job_id]
            # Renamed first: a deletion that is cut short leaves no job that looks whole.
            doomed = self.workspace / f".deleted-{job_id}"
            self.folder(job_id).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _write(self, job: Job) -> None:
        path = self.folder(job.id) / JOB_FILE
        beside = path.with_suffix(".json.partial")
        with beside.open("w") as stream:
            json.dump(asdict(job), stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)


def _read(path: Path) -> Job | None:
    try:
        content = json.loads(path.read_text())
        known = {f.name for f in fields(Job)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k in known}
        return Job(**values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read and is left out: %s", path, error)
        return None
