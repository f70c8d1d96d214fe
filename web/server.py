"""Addresses and answers of the page.

What keeps it safe: it listens on this machine only unless told otherwise; `utils.serving.access` lets in whom it should; runs and files are
looked up in lists, never by a path from a request; the page may load nothing from elsewhere; and what came with an upload is decoded by
processes that may fail.
"""

import fcntl
import logging
import os
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from configs.web import WebConfig
from utils.errors import ConfigError, MissingDependencyError, V2WError
from utils.report.style import SCRIPT_SOURCE
from utils.scene.layout import SceneLayout
from utils.serving import listen
from utils.serving.access import LOOPBACK, Access, Guard, access_for
from utils.viewer.pages import NotThereError, static_routes, world_routes
from web import clips, describe, previews, results
from web.exhibits import Exhibits
from web.jobs import BusyError, ConflictError, Job, JobStore, NotFoundError, discard
from web.processes import Commands
from web.runner import LOG_FILE, Runner
from web.uploads import DiskFullError, TooLargeError, TooSlowError, Uploads

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
_RENDERERS = ("", "2dgs", "3dgs", "both")
# The most work a visitor may ask for: what stage 0 holds in memory grows with frames times pixels (11 GB at 2000 frames of 2016 px).
_MOST_FRAMES, _MOST_PIXELS, _MOST_FRAME_PIXELS = 1000, 2016, 200_000_000
_LOG_BYTES = 60_000
_STATUS: tuple[tuple[type[V2WError], int], ...] = (
    (NotFoundError, 404),
    (NotThereError, 404),
    (TooSlowError, 408),
    (ConflictError, 409),
    (TooLargeError, 413),
    (BusyError, 429),
    (DiskFullError, 507),
)
# The report is one file with its style and pictures inside.
_REPORT_POLICY = (
    f"default-src 'none'; script-src {SCRIPT_SOURCE}; style-src 'unsafe-inline'; img-src data:; media-src data:; base-uri 'none'; "
    "frame-ancestors 'none'"
)


@dataclass
class Site:
    """Everything an answer needs."""

    config: WebConfig
    store: JobStore
    runner: Runner
    uploads: Uploads
    exhibits: Exhibits


def make_app(config: WebConfig, access: Access, commands: Commands | None = None) -> Starlette:
    """The application over a workspace that is `claimed`."""
    commands = commands or Commands()
    store = JobStore(config.workspace.resolve(), config.max_queue)
    site = Site(config, store, Runner(store, commands), Uploads(config, store, commands), Exhibits(store, commands))

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        site.runner.start()
        yield
        await run_in_threadpool(site.runner.stop)

    def route(path: str, answer: Callable[[Site, Request], Awaitable[Response]], *methods: str) -> Route:
        return Route(path, partial(_guarded, site, answer), methods=list(methods) or ["GET"])

    routes = [
        route("/", _page),
        route("/api/state", _state),
        route("/api/jobs", _upload, "POST"),
        route("/api/jobs/{job}", _delete, "DELETE"),
        route("/api/jobs/{job}/cancel", _cancel, "POST"),
        route("/api/jobs/{job}/resume", _resume, "POST"),
        route("/api/jobs/{job}/again", _again, "POST"),
        route("/api/jobs/{job}/exports", _export, "POST"),
        route("/jobs/{job}/log", _log),
        route("/jobs/{job}/thumbnail", _thumbnail),
        route("/jobs/{job}/previews/{kind}", _preview),
        route("/jobs/{job}/report", _report),
        route("/jobs/{job}/papers.zip", _papers),
        route("/jobs/{job}/files/{key:path}", _file),
        *world_routes("/jobs/{job}/view", site.exhibits.find, lambda answer: partial(_answered, answer)),
        *static_routes(),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, access=access)], lifespan=life)


def serve(config: WebConfig) -> None:
    """Serves until interrupted.

    Raises:
        ConfigError: no port is free, or the workspace cannot be used.
    """
    workspace = config.workspace.resolve()
    password = config.password or os.environ.get("V2W_PASSWORD", "")
    with listen.listen(config.host, config.port) as sock, claimed(workspace):
        port = sock.getsockname()[1]
        access = access_for(config.host, config.public_url, password, open_to_all=config.open_to_all, folder=workspace)
        app = make_app(config, access)
        if port != config.port:
            print(f"port {config.port} is taken, {port} is used instead")
        print(f"worlds are kept in {workspace}")
        if config.host not in LOOPBACK or access.public_url:
            names = ", ".join(access.hosts) + (", and its addresses" if access.any_address else "")
            print(f"listening on {config.host}; the page answers to {names}")
            print("visitors need the password" if password else _door_words(access))
        link = listen.address(config.host, port, access) + (f"?token={access.secret}" if access.secret and not password else "")
        print(f"open {link} (Ctrl+C ends it)", flush=True)
        listen.run(app, sock)


def _door_words(access: Access) -> str:
    if access.secret:
        return "visitors need the link below, or its token; --password sets one that is easier to say"
    return "whoever reaches it can upload, look and delete: nobody is asked for a password"


@contextmanager
def claimed(workspace: Path) -> Iterator[None]:
    """Makes the workspace and keeps other servers out of it; forgets uploads that an earlier one did not finish.

    Raises:
        ConfigError: the workspace cannot be used, or another server uses it.
    """
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        # Neither waits for the other end of a pipe nor empties what a link leads to.
        lock = os.fdopen(os.open(workspace / ".lock", os.O_RDWR | os.O_CREAT | os.O_NONBLOCK))
    except OSError as error:
        raise ConfigError(f"{workspace} cannot be used as workspace: {error.strerror}", "choose another with --workspace") from error
    with lock:
        if not stat.S_ISREG(os.fstat(lock.fileno()).st_mode):
            raise ConfigError(f"{workspace / '.lock'} is not a file", "remove it, or choose another folder with --workspace")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another server works in {workspace}", "use its page, or choose another folder with --workspace") from error
        for rest in (*workspace.glob(".upload-*"), *workspace.glob(".deleted-*")):
            shutil.rmtree(rest, ignore_errors=True)
        yield


async def _guarded(site: Site, answer: Callable[[Site, Request], Awaitable[Response]], request: Request) -> Response:
    return await _answered(partial(answer, site), request)


async def _answered(answer: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
    """Turns an error that has a remedy into an answer that tells it."""
    try:
        return await answer(request)
    except ClientDisconnect:
        return Response(status_code=499)
    except V2WError as error:
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 422)
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return _apology(error, status, request)
        return JSONResponse({"error": error.message, "hint": error.hint}, status)
    except OSError as error:
        logger.warning("%s: %s", request.url.path, error)
        return JSONResponse({"error": f"cannot write the workspace: {error.strerror}", "hint": "free space, then try again"}, 507)


def _apology(error: V2WError, status: int, request: Request) -> Response:
    """An error for somebody who followed a link, as a page with the way back."""
    root = "../" * (request.url.path.count("/") - 1) or "./"
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>Not there</title><link rel="stylesheet" href="{root}static/page.css"></head><body class="waiting"><main>'
        f"<h1>{escape(error.message)}</h1><p>{escape(error.hint)}</p>"
        f'<p><a class="button main" href="{root}">All worlds</a></p></main></body></html>',
        status,
    )


def _job(site: Site, request: Request) -> Job:
    job = site.store.get(request.path_params["job"])
    if job is None:
        raise NotFoundError("there is no such run", "go back to the list; it may have been deleted")
    return job


# ------------------------------------------------------------------------------------------------ page and state


async def _page(site: Site, request: Request) -> Response:
    return FileResponse(STATIC / "page.html")


async def _state(site: Site, request: Request) -> Response:
    return JSONResponse(await run_in_threadpool(describe.state, site.config, site.store, site.runner))


# ------------------------------------------------------------------------------------------------ changes


async def _upload(site: Site, request: Request) -> Response:
    """Takes a clip as the request's body; name and settings are in the address."""
    asked = request.query_params
    job = await site.uploads.take(request, asked.get("name", ""), _settings(dict(asked)))
    site.runner.wake()
    return JSONResponse({"id": job.id}, 201)


def _settings(asked: dict[str, str]) -> dict[str, Any]:
    """The settings of a job from the request, checked."""
    mode, renderer = asked.get("mode", "fast"), asked.get("renderer", "")
    if mode not in describe.MODES:
        raise ConfigError(f"mode is {mode!r}", f"choose one of: {', '.join(describe.MODES)}")
    if renderer not in _RENDERERS:
        raise ConfigError(f"renderer is {renderer!r}", "choose 2dgs, 3dgs or both")
    numbers = {}
    for key, low, high in (("frames", clips.MIN_FRAMES, _MOST_FRAMES), ("resolution", 56, _MOST_PIXELS)):
        text = asked.get(key, "").strip()
        if text and not (text.isascii() and text.isdigit() and len(text) < 9 and low <= int(text) <= high):
            raise ConfigError(f"{key} is {text!r}", f"give a whole number from {low} to {high}, or leave it empty")
        numbers[key] = int(text) if text else 0
    budget = describe.budget(mode)
    frames, side = numbers["frames"] or budget.frames, numbers["resolution"] or budget.resolution
    if frames * side * side > _MOST_FRAME_PIXELS:
        raise ConfigError(f"{frames} frames at {side} pixels are more than one run may hold", "lower one of the two")
    return {"mode": mode, "renderer": renderer, **numbers}


async def _cancel(site: Site, request: Request) -> Response:
    job = _job(site, request)
    await run_in_threadpool(site.runner.cancel, job.id)
    return JSONResponse({})


async def _resume(site: Site, request: Request) -> Response:
    """Puts a run that ended early back into the queue; its finished stages are kept."""
    words = "only one that failed or was cancelled can go on"
    changes = {"state": "queued", "error": "", "hint": ""}
    await run_in_threadpool(partial(site.store.enqueue, _job(site, request).id, ("failed", "cancelled"), words, **changes))
    site.runner.wake()
    return JSONResponse({})


async def _again(site: Site, request: Request) -> Response:
    """Makes another world from a run's clip, with other settings; the run stays."""
    settings = _settings(dict(request.query_params))
    job = await run_in_threadpool(site.uploads.copy, _job(site, request), settings)
    site.runner.wake()
    return JSONResponse({"id": job.id}, 201)


async def _export(site: Site, request: Request) -> Response:
    """Queues further files of a finished run."""
    job, kind = _job(site, request), request.query_params.get("kind", "")
    form = results.FORMATS.get(kind)
    if form is None:
        raise ConfigError(f"kind is {kind!r}", f"choose one of: {', '.join(results.FORMATS)}")
    if form.needs and find_spec(form.needs) is None:
        raise MissingDependencyError(
            f"this file needs the package '{form.needs}', which is not installed", 'pip install -e ".[formats,mesh]"'
        )
    exports = tuple(dict.fromkeys((*job.exports, *form.kinds)))
    words = "further files can be made when it is done"
    await run_in_threadpool(partial(site.store.enqueue, job.id, ("done",), words, extras="queued", exports=exports))
    site.runner.wake()
    return JSONResponse({})


async def _delete(site: Site, request: Request) -> Response:
    doomed = await run_in_threadpool(site.store.remove, _job(site, request).id)
    await run_in_threadpool(discard, doomed)
    return JSONResponse({})


# ------------------------------------------------------------------------------------------------ results


async def _log(site: Site, request: Request) -> Response:
    path = site.store.folder(_job(site, request).id) / LOG_FILE
    if not path.is_file():
        return PlainTextResponse("")
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _LOG_BYTES), os.SEEK_SET)
        return PlainTextResponse(stream.read().decode(errors="replace"))


async def _thumbnail(site: Site, request: Request) -> Response:
    return _send(site.store.folder(_job(site, request).id) / clips.THUMBNAIL)


async def _preview(site: Site, request: Request) -> Response:
    """A picture of a run on its way."""
    root, kind = site.store.scene_root(_job(site, request).id), request.path_params["kind"]
    if kind not in previews.available(root):
        raise NotFoundError("this picture is not there", "it appears when the run has come so far")
    return Response(await run_in_threadpool(previews.picture, root, kind), media_type="image/jpeg")


async def _report(site: Site, request: Request) -> Response:
    job = _job(site, request)
    path = SceneLayout(site.store.scene_root(job.id)).report_html
    return _send(path, headers={"content-security-policy": _REPORT_POLICY})


async def _papers(site: Site, request: Request) -> Response:
    job = _job(site, request)
    packed = await run_in_threadpool(results.papers, site.store.scene_root(job.id))
    name = quote(f"{Path(job.name).stem}_report.zip")
    return Response(packed, media_type="application/zip", headers={"content-disposition": f"attachment; filename*=utf-8''{name}"})


async def _file(site: Site, request: Request) -> Response:
    """A film, played or downloaded, or an export; `?download` makes the browser save it."""
    job = _job(site, request)
    offered = {o.key: o for o in results.offers(site.store.scene_root(job.id))}
    offer = offered.get(request.path_params["key"])
    if offer is None:
        raise NotFoundError("there is no such file", "go back to the run")
    save = offer.kind == "export" or "download" in request.query_params
    return _send(offer.path, filename=f"{Path(job.name).stem}_{offer.path.name}" if save else None)


def _send(path: Path, **options: Any) -> Response:
    if not path.is_file():
        raise NotFoundError("this file is not there", "it appears when the run has made it")
    return FileResponse(path, **options)
