"""Takes a clip as the body of a request: limits on size, time, disk and number, then a check by another process, then a job."""

import asyncio
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from configs.web import WebConfig
from utils.errors import InputError
from web import clips
from web.jobs import BusyError, Job, JobStore, discard, new_id
from web.processes import Commands

logger = logging.getLogger(__name__)

# Each upload holds a connection, a partial file and then a process that decodes.
MOST_UPLOADS = 4
_IDLE_SECONDS = 30.0
# After the first minute; slower ones hold their place for too long.
_LEAST_BYTES_PER_SECOND, _GRACE_SECONDS = 4_000, 60.0
_BYTES_BETWEEN_LOOKS = 32 << 20


class TooLargeError(InputError):
    """An upload over the limit."""


class DiskFullError(InputError):
    """Less space than a run needs."""


class TooSlowError(InputError):
    """An upload that does not come on."""


@dataclass
class Uploads:
    """Where uploads come in.

    Attributes:
        config: the limits.
        store: what they become.
        commands: how the check is called.
        coming: how many are under way.
    """

    config: WebConfig
    store: JobStore
    commands: Commands
    coming: int = 0

    async def take(self, request: Request, name: str, settings: dict[str, Any]) -> Job:
        """Receives, checks and queues the clip in a request's body.

        Raises:
            InputError: it cannot be used, or not now; the class says which status answers it.
            OSError: the disk does not take it.
        """
        name = clips.shown_name(name)
        suffix = clips.type_of(name)
        if self.coming >= MOST_UPLOADS:
            raise BusyError(f"{self.coming} clips are being uploaded already", "try again when one of them is there")
        self.coming += 1
        try:
            with self.store.place():
                return await self._take(request, name, suffix, settings)
        finally:
            self.coming -= 1

    async def _take(self, request: Request, name: str, suffix: str, settings: dict[str, Any]) -> Job:
        self._check_disk(_announced(request))
        job_id = new_id(name)
        incoming = self.store.workspace / f".upload-{job_id}"
        incoming.mkdir()
        try:
            upload = incoming / f"upload{suffix}"
            await self._receive(request, upload)
            room = max(0, self._free() - self.config.min_free_mb * 1_000_000)
            clip = await run_in_threadpool(clips.accept, self.commands, upload, name, incoming, room)
            now = time.time()
            job = Job(id=job_id, name=name, source=clip.source, about=clip.about, created=now, queued=now, **settings)
            return await run_in_threadpool(self.store.add, job, incoming)
        finally:
            discard(incoming)

    def copy(self, job: Job, settings: dict[str, Any]) -> Job:
        """A new job from the clip of another.

        Raises:
            BusyError: too many are waiting.
            OSError: the clip is not there any more, or the disk does not take a copy.
        """
        with self.store.place():
            job_id = new_id(job.name)
            incoming, kept = self.store.workspace / f".upload-{job_id}", self.store.folder(job.id)
            incoming.mkdir()
            try:
                for name in (job.source, clips.THUMBNAIL):
                    _link(kept / name, incoming / name)
                now = time.time()
                fresh = Job(id=job_id, name=job.name, source=job.source, about=job.about, created=now, queued=now, **settings)
                return self.store.add(fresh, incoming)
            finally:
                discard(incoming)

    async def _receive(self, request: Request, path: Path) -> None:
        """Streams the body to a file, up to the limits."""
        limit = self.config.max_upload_mb * 1_000_000
        too_large = TooLargeError(
            f"the file is larger than {self.config.max_upload_mb} MB", "choose a shorter clip, or start the page with --max-upload-mb"
        )
        if _announced(request) > limit:
            raise too_large
        size, looked, started = 0, 0, time.monotonic()
        chunks = request.stream().__aiter__()
        with path.open("wb") as stream:
            while True:
                try:
                    chunk = await asyncio.wait_for(chunks.__anext__(), _IDLE_SECONDS)
                except StopAsyncIteration:
                    break
                except asyncio.TimeoutError as error:
                    raise TooSlowError(f"nothing came for {_IDLE_SECONDS:.0f} s", "look at the connection, then try again") from error
                size += len(chunk)
                if size > limit:
                    raise too_large
                elapsed = time.monotonic() - started
                if elapsed > _GRACE_SECONDS and size < _LEAST_BYTES_PER_SECOND * elapsed:
                    raise TooSlowError("the upload hardly comes on", "look at the connection, then try again")
                if size - looked > _BYTES_BETWEEN_LOOKS:
                    looked = size
                    self._check_disk(0)
                await asyncio.to_thread(stream.write, chunk)
        if not size:
            raise InputError("the file is empty", "choose another")

    def _free(self) -> int:
        return shutil.disk_usage(self.store.workspace).free

    def _check_disk(self, coming: int) -> None:
        free = self._free()
        if free - coming < self.config.min_free_mb * 1_000_000:
            raise DiskFullError(
                f"the disk of the workspace has {free // 1_000_000} MB left", "delete runs that are not needed, or free space elsewhere"
            )


def _announced(request: Request) -> int:
    """Bytes the request says it brings, 0 if it does not."""
    text = request.headers.get("content-length") or "0"
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _link(source: Path, target: Path) -> None:
    """The same file or folder of files under another name, without a second copy where the disk can do that."""
    if source.is_dir():
        target.mkdir()
        for path in source.iterdir():
            _link(path, target / path.name)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
