"""Addresses and answers of the page.

What keeps it safe: it listens on this machine only unless told otherwise; it answers only under its own name, so that no foreign site can
reach it through a name of theirs; what changes something is refused when another site's page asks for it; runs and files are looked
up in lists, never by a path from a request; and the page may load nothing from elsewhere.
"""

import asyncio
import fcntl
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from configs.pipeline import BUDGETS
from configs.web import WebConfig
from utils.device.ports import bound_socket
from utils.errors import ConfigError, InputError, MissingDependencyError, V2WError
from utils.runtime import cuda_device_present
from utils.scene.layout import SceneLayout
from web import clips, results
from web.jobs import Job, JobStore, new_id
from web.processes import Commands
from web.runner import EXPORT_STAGE, LOG_FILE, Runner, earlier_times, progress, seconds_left
from web.viewers import Viewers

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ModuleNotFoundError as missing:
    raise MissingDependencyError(
        f"the web page needs the package '{missing.name}', which is not installed", 'pip install -e ".[web]"'
    ) from missing

logger = logging.getLogger(__name__)

_STATIC = Path(__file__).parent / "static"
_MODES, _RENDERERS = ("fast", "extensive"), ("", "2dgs", "3dgs", "both")
_LOG_BYTES = 60_000
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ANYWHERE = ("0.0.0.0", "::")
_PAGE_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'"
_PAGE_POLICY += "; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
# The report is one file with its style and pictures inside.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"


@dataclass
class Site:
    """Everything an answer needs."""

    config: WebConfig
    store: JobStore
    runner: Runner
    viewers: Viewers

    @property
    def limit(self) -> int:
        """Largest upload in bytes."""
        return self.config.max_upload_mb * 1_000_000


class Guard:
    """Refuses requests under a foreign host name and changes asked for by foreign pages; adds the headers every answer carries."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refusal = self._refusal(request)
        if refusal:
            await PlainTextResponse(refusal, 403)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                have = {name.lower() for name, _ in message["headers"]}
                extra = {b"x-content-type-options": b"nosniff", b"referrer-policy": b"same-origin", b"cache-control": b"no-cache"}
                extra[b"content-security-policy"] = _PAGE_POLICY.encode()
                message["headers"] = [*message["headers"], *((k, v) for k, v in extra.items() if k not in have)]
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refusal(self, request: Request) -> str:
        host = urlsplit(f"//{request.headers.get('host', '')}")
        if self._hosts and host.hostname not in self._hosts:
            return "This page answers only under the address it was started with (--host)."
        if request.method in ("GET", "HEAD"):
            return ""
        origin = request.headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
        if foreign or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return "Another site's page asked for this; only this page may."
        return ""


def make_app(config: WebConfig, commands: Commands | None = None) -> Starlette:
    """The application over a workspace.

    Raises:
        ConfigError: the workspace cannot be used, or another server uses it.
    """
    workspace = config.workspace.resolve()
    lock = _claim(workspace)
    commands = commands or Commands()
    store = JobStore(workspace)
    site = Site(config, store, Runner(store, commands), Viewers(store, commands, config.host, config.port + 1))

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        site.runner.start()
        yield
        await run_in_threadpool(site.viewers.close_all)
        await run_in_threadpool(site.runner.stop)
        lock.close()

    def route(path: str, answer: Callable[[Site, Request], Awaitable[Response]], *methods: str) -> Route:
        return Route(path, partial(_guarded, site, answer), methods=list(methods) or ["GET"])

    routes = [
        route("/", _page),
        route("/api/state", _state),
        route("/api/jobs", _upload, "POST"),
        route("/api/jobs/{job}", _delete, "DELETE"),
        route("/api/jobs/{job}/cancel", _cancel, "POST"),
        route("/api/jobs/{job}/resume", _resume, "POST"),
        route("/api/jobs/{job}/mesh", _mesh, "POST"),
        route("/jobs/{job}/log", _log),
        route("/jobs/{job}/thumbnail", _thumbnail),
        route("/jobs/{job}/report", _report),
        route("/jobs/{job}/papers.zip", _papers),
        route("/jobs/{job}/files/{key:path}", _file),
        route("/jobs/{job}/viewer", _open_viewer, "POST"),
        route("/jobs/{job}/viewer", _viewer),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    hosts = () if config.host in _ANYWHERE else (*_LOOPBACK, config.host)
    return Starlette(routes=routes, middleware=[Middleware(Guard, hosts=hosts)], lifespan=life)


def serve(config: WebConfig) -> None:
    """Serves until interrupted.

    Raises:
        ConfigError: no port is free, or the workspace cannot be used.
    """
    sock = bound_socket(config.host, config.port, "choose others with --port and --host")
    sock.listen(128)
    port = sock.getsockname()[1]
    app = make_app(config)
    shown = "localhost" if config.host in (*_LOOPBACK, *_ANYWHERE) else config.host
    if port != config.port:
        print(f"port {config.port} is taken, {port} is used instead")
    if config.host not in _LOOPBACK:
        print(f"listening on {config.host}: whoever reaches this machine can upload, look and delete; there is no password")
    print(f"worlds are kept in {config.workspace.resolve()}")
    print(f"open http://{shown}:{port} (Ctrl+C ends it)", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[sock])


def _claim(workspace: Path) -> IO[str]:
    """Makes the workspace and keeps other servers out of it; forgets uploads that an earlier one did not finish."""
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        lock = (workspace / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"{workspace} cannot be used as workspace: {error.strerror}", "choose another with --workspace") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(f"another server works in {workspace}", "use its page, or choose another folder with --workspace") from error
    for rest in (*workspace.glob(".upload-*"), *workspace.glob(".deleted-*")):
        shutil.rmtree(rest, ignore_errors=True)
    return lock


async def _guarded(site: Site, answer: Callable[[Site, Request], Awaitable[Response]], request: Request) -> Response:
    """Turns an error that has a remedy into an answer that tells it."""
    try:
        return await answer(site, request)
    except V2WError as error:
        status = 413 if isinstance(error, _TooLarge) else 404 if isinstance(error, _NotFound) else 422
        return JSONResponse({"error": error.message, "hint": error.hint}, status)
    except OSError as error:
        logger.exception("%s", request.url.path)
        return JSONResponse({"error": f"cannot write the workspace: {error.strerror}", "hint": "free space, then try again"}, 507)


class _NotFound(InputError):
    """No such run or file."""


class _TooLarge(InputError):
    """An upload over the limit."""


def _job(site: Site, request: Request) -> Job:
    job = site.store.get(request.path_params["job"])
    if job is None:
        raise _NotFound("there is no such run", "go back to the list; it may have been deleted")
    return job


# ------------------------------------------------------------------------------------------------ page and state


async def _page(site: Site, request: Request) -> Response:
    return FileResponse(_STATIC / "page.html")


async def _state(site: Site, request: Request) -> Response:
    return JSONResponse(await run_in_threadpool(_describe, site))


def _describe(site: Site) -> dict[str, Any]:
    device = "cuda" if cuda_device_present() else "cpu"
    budgets = {mode: asdict(BUDGETS[mode, device]) for mode in _MODES}  # type: ignore[index]
    waiting = [j.id for j in site.store.queue()]
    jobs = [_describe_job(site, job, waiting.index(job.id) + 1 if job.id in waiting else 0) for job in site.store.all()]
    limits = {"bytes": site.limit, "types": clips.UPLOAD_TYPES}
    return {"jobs": jobs, "limits": limits, "budgets": budgets, "device": device, "mesh": find_spec("trimesh") is not None}


def _describe_job(site: Site, job: Job, place: int) -> dict[str, Any]:
    now = progress(site.store.folder(job.id))
    running = job.state == "running"
    left = seconds_left(job, now, earlier_times(site.store, job)) if running else None
    described: dict[str, Any] = {
        **{name: getattr(job, name) for name in ("id", "name", "state", "mode", "renderer", "frames", "resolution", "about")},
        **{name: getattr(job, name) for name in ("created", "started", "finished", "spent", "error", "hint", "export_errors")},
        "place": place,
        "now": time.time(),
        "stages": [*now.get("stages", []), EXPORT_STAGE] if now.get("stages") else [],
        "number": len(now["stages"]) + 1 if job.reconstructed and now.get("stages") else now.get("number", 0),
        "phase": EXPORT_STAGE if job.reconstructed else now.get("phase", ""),
        "step": 0 if job.reconstructed else now.get("step", 0),
        "total": 0 if job.reconstructed else now.get("total", 0),
        "phase_left": None if job.reconstructed else now.get("seconds_left"),
        "left": left,
        "times": now.get("finished", []),
        "thumbnail": (site.store.folder(job.id) / clips.THUMBNAIL).is_file(),
    }
    return described | _describe_results(site, job)


def _describe_results(site: Site, job: Job) -> dict[str, Any]:
    root = site.store.scene_root(job.id)
    found = [{"key": o.key, "kind": o.kind, "words": o.words, "bytes": o.path.stat().st_size} for o in results.offers(root)]
    return {
        "files": found,
        "quality": results.quality(root),
        "report": SceneLayout(root).report_html.is_file(),
        "viewer": results.viewable(root),
        "mesh_wanted": any(kind in job.exports for kind in results.MESHES),
    }


# ------------------------------------------------------------------------------------------------ changes


async def _upload(site: Site, request: Request) -> Response:
    """Takes a clip as the request's body; name and settings are in the address."""
    if len(site.store.queue()) >= site.config.max_queue:
        raise InputError(f"{site.config.max_queue} jobs are waiting already", "wait for one to finish, or cancel one")
    asked = request.query_params
    name = clips.shown_name(asked.get("name", ""))
    suffix = clips.type_of(name)
    settings = _settings(dict(asked))
    job_id = new_id(name)
    incoming = site.store.workspace / f".upload-{job_id}"
    incoming.mkdir()
    try:
        upload = incoming / f"upload{suffix}"
        await _receive(request, upload, site.limit)
        source, about = await run_in_threadpool(clips.accept, upload, suffix, name, incoming)
        incoming.rename(site.store.folder(job_id))
    except ClientDisconnect:
        return Response(status_code=499)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    now = time.time()
    job = site.store.add(Job(id=job_id, name=name, source=source, about=about, created=now, queued=now, **settings))
    site.runner.wake()
    return JSONResponse({"id": job.id}, 201)


async def _receive(request: Request, path: Path, limit: int) -> None:
    """Streams the body to a file, up to the limit."""
    too_large = _TooLarge(
        f"the file is larger than {limit // 1_000_000} MB", "choose a shorter clip, or start the page with --max-upload-mb"
    )
    if int(request.headers.get("content-length") or 0) > limit:
        raise too_large
    size = 0
    with path.open("wb") as stream:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise too_large
            await asyncio.to_thread(stream.write, chunk)
    if not size:
        raise InputError("the file is empty", "choose another")


def _settings(asked: dict[str, str]) -> dict[str, Any]:
    """The settings of a job from the request, checked."""
    mode, renderer = asked.get("mode", "fast"), asked.get("renderer", "")
    if mode not in _MODES:
        raise ConfigError(f"mode is {mode!r}", f"choose one of: {', '.join(_MODES)}")
    if renderer not in _RENDERERS:
        raise ConfigError(f"renderer is {renderer!r}", "choose 2dgs, 3dgs or both")
    numbers = {}
    for key, low, high in (("frames", 2, 2000), ("resolution", 56, 2016)):
        text = asked.get(key, "").strip()
        if text and not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise ConfigError(f"{key} is {text!r}", f"give a whole number from {low} to {high}, or leave it empty")
        numbers[key] = int(text) if text else 0
    return {"mode": mode, "renderer": renderer, **numbers}


async def _cancel(site: Site, request: Request) -> Response:
    job = _job(site, request)
    await run_in_threadpool(site.runner.cancel, job.id)
    return JSONResponse({})


async def _resume(site: Site, request: Request) -> Response:
    """Puts a run that ended early back into the queue; its finished stages are kept."""
    job = _job(site, request)
    if job.state not in ("failed", "cancelled"):
        raise InputError(f"this run is {job.state}", "only one that failed or was cancelled can go on")
    site.store.update(job.id, state="queued", queued=time.time(), error="", hint="")
    site.runner.wake()
    return JSONResponse({})


async def _mesh(site: Site, request: Request) -> Response:
    """Queues the meshes of a finished run."""
    job = _job(site, request)
    if job.state != "done":
        raise InputError(f"this run is {job.state}", "meshes can be made when it is done")
    if find_spec("trimesh") is None:
        raise MissingDependencyError("meshes need the package 'trimesh', which is not installed", 'pip install -e ".[mesh]"')
    exports = tuple(dict.fromkeys((*job.exports, *results.MESHES)))
    site.store.update(job.id, state="queued", queued=time.time(), exports=exports)
    site.runner.wake()
    return JSONResponse({})


async def _delete(site: Site, request: Request) -> Response:
    job = _job(site, request)
    if job.active:
        raise InputError("this run is not over", "cancel it first")
    await run_in_threadpool(site.viewers.close, job.id)
    await run_in_threadpool(site.store.remove, job.id)
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


async def _report(site: Site, request: Request) -> Response:
    path = SceneLayout(site.store.scene_root(_job(site, request).id)).report_html
    return _send(path, headers={"content-security-policy": _REPORT_POLICY})


async def _papers(site: Site, request: Request) -> Response:
    job = _job(site, request)
    packed = await run_in_threadpool(results.papers, site.store.scene_root(job.id))
    name = f"{Path(job.name).stem}_report.zip"
    return Response(packed, media_type="application/zip", headers={"content-disposition": f'attachment; filename="{name}"'})


async def _file(site: Site, request: Request) -> Response:
    """A film, played or downloaded, or an export; `?download` makes the browser save it."""
    job = _job(site, request)
    offered = {o.key: o for o in results.offers(site.store.scene_root(job.id))}
    offer = offered.get(request.path_params["key"])
    if offer is None:
        raise _NotFound("there is no such file", "go back to the run")
    save = offer.kind == "export" or "download" in request.query_params
    return _send(offer.path, filename=f"{Path(job.name).stem}_{offer.path.name}" if save else None)


def _send(path: Path, **options: Any) -> Response:
    if not path.is_file():
        raise _NotFound("this file is not there", "it appears when the run has made it")
    return FileResponse(path, **options)


# ------------------------------------------------------------------------------------------------ viewer


async def _open_viewer(site: Site, request: Request) -> Response:
    job = _job(site, request)
    if not results.viewable(site.store.scene_root(job.id)):
        raise InputError("this run has no splats yet", "come back when training has begun")
    await run_in_threadpool(site.viewers.start, job.id)
    return RedirectResponse(request.url.path, 303)


async def _viewer(site: Site, request: Request) -> Response:
    """Leads on to the viewer, or waits for it."""
    job = _job(site, request)
    viewing = await run_in_threadpool(site.viewers.look, job.id)
    words = f"{viewing.error} {viewing.hint}".strip() or "Loading the world; the viewer opens in a few seconds."
    headers = {"refresh": "1"} if viewing.state == "starting" else {}
    if viewing.state == "ready":
        # Not a redirect: after a form, a page's policy holds for those too, and the viewer has another port.
        host = request.url.hostname or "localhost"
        headers["refresh"] = f"0; url=http://{f'[{host}]' if ':' in host else host}:{viewing.port}/"
    body = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>Viewer: {escape(job.name)}</title><link rel="stylesheet" href="/static/page.css"></head>'
        f'<body class="waiting"><main><h1>{escape(job.name)}</h1><p role="status">{escape(words)}</p>'
        f'<p><a href="/#{escape(job.id)}">Back to the run</a></p></main></body></html>'
    )
    return HTMLResponse(body, headers=headers)
