"""What is known of every run: a folder in the workspace with a `job.json` that is replaced as a whole, so no crash leaves half of it.

Every change of a run is made under one lock, on disk first and then in memory: what the page shows is what a restart finds.
"""

import json
import logging
import os
import re
import shutil
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from utils.errors import InputError
from web.processes import end_leftover

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]
Extras = Literal["", "queued", "running"]
JOB_FILE = "job.json"


class NotFoundError(InputError):
    """No such run or file."""


class ConflictError(InputError):
    """The run is in a state in which this cannot be done."""


class BusyError(InputError):
    """More is asked for at once than is allowed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        id: name of its folder.
        name: the upload's name as shown.
        source: what was uploaded, relative to the folder: a clip or `frames`.
        mode: preset.
        scene: folder of the scene, relative to the job's: empty where both are one, as a batch makes them.
        words: the whole command line but for the scene's place, of a run that a batch has made.
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
        stage: title of the stage it failed in, empty if it did not or it is not known.
        reconstructed: the pipeline has finished; what follows are exports.
        exports: formats wanted besides the PLY that training writes.
        extras: whether formats asked for after the end are waited for.
        export_errors: format -> why it could not be made.
        pid: the process under way, 0 if none.
    """

    id: str
    name: str
    source: str
    mode: str = "fast"
    scene: str = "world"
    words: tuple[str, ...] = ()
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
    stage: str = ""
    reconstructed: bool = False
    exports: tuple[str, ...] = ("spz", "html")
    extras: Extras = ""
    export_errors: dict[str, str] = field(default_factory=dict)
    pid: int = 0

    @property
    def active(self) -> bool:
        """Waiting or running, for its world or for further files."""
        return self.state in ("queued", "running") or bool(self.extras)


def new_id(name: str) -> str:
    """A folder name that sorts by time and says what is inside, as far as that can be said in ASCII."""
    plain = unicodedata.normalize("NFKD", Path(name).stem).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40].strip("-")
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}-{words or 'clip'}"


class JobStore:
    """All jobs of a workspace, safe to use from several threads.

    A job that was running when the last server ended is queued again, ahead of the others; the pipeline keeps its finished stages.

    Args:
        workspace: their folders are in it.
        max_queue: most jobs that may wait, uploads under way among them.
    """

    def __init__(self, workspace: Path, max_queue: int = 20):
        self.workspace = workspace
        self._max_queue, self._coming = max_queue, 0
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
            elif job.extras == "running":
                end_leftover(job.pid, str(self.folder(job.id)))
                self.update(job.id, extras="queued", pid=0)

    def folder(self, job_id: str) -> Path:
        """The job's folder."""
        return self.workspace / job_id

    def scene_root(self, job_id: str) -> Path:
        """The scene inside the job's folder."""
        job = self.get(job_id)
        return self.folder(job_id) / (job.scene if job is not None else "world")

    def all(self) -> list[Job]:
        """Newest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda j: (j.created, j.id), reverse=True)

    def get(self, job_id: str) -> Job | None:
        """The job of this name; the only way from a request to a folder."""
        with self._lock:
            return self._jobs.get(job_id)

    def queue(self) -> list[Job]:
        """Jobs that wait for their world, the next one first."""
        with self._lock:
            return sorted((j for j in self._jobs.values() if j.state == "queued"), key=lambda j: (j.queued, j.id))

    def extras_queue(self) -> list[Job]:
        """Finished jobs that wait for further files, the next one first."""
        with self._lock:
            return sorted((j for j in self._jobs.values() if j.extras == "queued"), key=lambda j: (j.queued, j.id))

    @contextmanager
    def place(self) -> Iterator[None]:
        """Keeps a place in the queue for an upload under way.

        Raises:
            BusyError: there is none.
        """
        with self._lock:
            self._check_room()
            self._coming += 1
        try:
            yield
        finally:
            with self._lock:
                self._coming -= 1

    def _check_room(self) -> None:
        waiting = sum(j.state == "queued" or j.extras == "queued" for j in self._jobs.values()) + self._coming
        if waiting >= self._max_queue:
            raise BusyError(f"{waiting} jobs are waiting already", "wait for one to finish, or cancel one")

    def add(self, job: Job, folder: Path) -> Job:
        """Makes a new job known: `folder`, with what was uploaded, becomes the job's in one step.

        Raises:
            OSError: the disk does not take it; then there is no such job.
        """
        with self._lock:
            write_job(folder / JOB_FILE, job)
            folder.rename(self.folder(job.id))
            self._jobs[job.id] = job
            return job

    def update(self, job_id: str, was: Job | None = None, **changes: Any) -> Job:
        """Changes fields of a job.

        Args:
            job_id: the job.
            was: change it only if it still waits as it did then.
            **changes: fields.

        Raises:
            NotFoundError: there is no such job any more.
            ConflictError: it does not wait as it did.
            OSError: the disk does not take it; then nothing has changed.
        """
        with self._lock:
            job = self._known(job_id)
            if was is not None and (job.state, job.extras) != (was.state, was.extras):
                raise ConflictError(f"this run is {job.state}", "look again")
            job = replace(job, **changes)
            try:
                write_job(self.folder(job_id) / JOB_FILE, job)
            except FileNotFoundError as error:  # its folder was deleted by hand
                del self._jobs[job_id]
                raise _gone() from error
            self._jobs[job_id] = job
            return job

    def enqueue(self, job_id: str, allowed: tuple[State, ...], advice: str, **changes: Any) -> Job:
        """Puts a job that is over back into the queue, for its world or for further files.

        Args:
            job_id: the job.
            allowed: states in which this can be done.
            advice: the hint where it cannot.
            **changes: fields that change, among them the one that says what it waits for.

        Raises:
            NotFoundError: there is no such job.
            ConflictError: it is in another state, or waits already.
            BusyError: too many are waiting.
            OSError: the disk does not take it; then nothing has changed.
        """
        with self._lock:
            job = self._known(job_id)
            if job.state not in allowed or job.extras:
                raise ConflictError(f"this run is {'busy' if job.extras else job.state}", advice)
            self._check_room()
            return self.update(job_id, queued=time.time(), **changes)

    def remove(self, job_id: str) -> Path:
        """Forgets a job that is over; returns the folder that is left to be deleted.

        Raises:
            NotFoundError: there is no such job.
            ConflictError: it is waiting or running.
            OSError: the disk does not take it; then nothing has changed.
        """
        with self._lock:
            if self._known(job_id).active:
                raise ConflictError("this run is not over", "cancel it first")
            # Renamed first: a deletion that is cut short leaves no job that looks whole.
            doomed = self.workspace / f".deleted-{job_id}"
            with suppress(FileNotFoundError):
                self.folder(job_id).rename(doomed)
            del self._jobs[job_id]
            return doomed

    def _known(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise _gone()
        return job


def _gone() -> NotFoundError:
    return NotFoundError("there is no such run", "go back to the list; it may have been deleted")


def discard(folder: Path) -> None:
    """Deletes what is left of a job."""
    shutil.rmtree(folder, ignore_errors=True)


def write_job(path: Path, job: Job) -> None:
    """Replaces the file of a job as a whole.

    Raises:
        OSError: the disk does not take it.
    """
    beside = path.with_suffix(".json.partial")
    with beside.open("w") as stream:
        json.dump(asdict(job), stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


def _read(path: Path) -> Job | None:
    try:
        content = json.loads(path.read_text())
        known = {f.name: f for f in fields(Job)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k in known}
        job = Job(**values)
        _check_types(job)
        return job
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s cannot be read and is left out: %s", path, error)
        return None


def _check_types(job: Job) -> None:
    """Raises ValueError where a file that was changed by hand would end the server later."""
    for f in fields(job):
        value, default = getattr(job, f.name), f.default
        kinds = (int, float) if isinstance(default, int | float) and not isinstance(default, bool) else type(default)
        if f.name in ("id", "name", "source"):
            kinds = str
        elif f.name == "export_errors":
            kinds = dict
        if not isinstance(value, kinds):  # type: ignore[arg-type]
            raise ValueError(f"{f.name} is {value!r}")
