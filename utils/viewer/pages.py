"""Addresses of the viewer in the browser: its page, its modules, and what it shows. The same for the web page and for the command.

A server mounts `static_routes` once and `world_routes` for what it shows; the pages refer to each other by relative addresses, so that
they work below any path.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from utils import viewer_bundle
from utils.errors import InputError
from utils.report.verdict import verdict
from utils.viewer.world import World

STATIC = Path(__file__).parent / "static"
_KEEP = {"cache-control": "private, max-age=31536000, immutable"}


class NotThereError(InputError):
    """What was asked for is not there, or not yet."""


@dataclass(frozen=True)
class Exhibit:
    """What a viewer's page shows.

    Attributes:
        world: the splats and what belongs to them.
        name: its title.
        prepare: makes the files for the browser if they are not there; may take seconds.
        facts: further entries of the page's description, as they are.
    """

    world: World
    name: str
    prepare: Callable[[], None]
    facts: dict[str, Any] = field(default_factory=dict)


Find = Callable[[Request], Exhibit]
Guarded = Callable[[Callable[[Request], Awaitable[Response]]], Callable[[Request], Awaitable[Response]]]


def static_routes() -> list[BaseRoute]:
    """Modules, style and icons of the viewer, the same for every world."""
    return [Route("/viewer/{module}", _module), Mount("/viewer/page", StaticFiles(directory=STATIC))]


def world_routes(base: str, find: Find, guarded: Guarded) -> list[BaseRoute]:
    """Addresses of the worlds that `find` knows.

    Args:
        base: path before them, without a slash at the end; may hold parameters.
        find: the world a request means.
        guarded: what errors of an answer go through.
    """
    root = "../" * base.count("/") or "./"

    async def page(request: Request) -> Response:
        exhibit = find(request)
        html = (STATIC / "viewer.html").read_text(encoding="utf-8")
        return HTMLResponse(html.replace("@ROOT@/", root).replace("@NAME@", _escaped(exhibit.name)))

    async def description(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(_describe, find(request)))

    async def splats(request: Request) -> Response:
        shown = await run_in_threadpool(find(request).world.look)
        if shown is None or not shown.file.is_file():
            raise NotThereError("these splats are not there", "come back when training has begun")
        keep = _KEEP if request.path_params["version"] == shown.version else {}
        return FileResponse(shown.file, media_type="application/octet-stream", headers=keep)

    async def ply(request: Request) -> Response:
        path = find(request).world.ply()
        if path is None:
            raise NotThereError("there is no PLY of this world yet", "export it with python -m utils.export_checkpoint_to_ply")
        return FileResponse(path, media_type="application/octet-stream")

    async def frame(request: Request) -> Response:
        path = find(request).world.frame(request.path_params["frame"])
        if path is None:
            raise NotThereError("this frame is not there", "its scene may have been imported without pictures")
        return FileResponse(path, headers=_KEEP)

    async def cloud(request: Request) -> Response:
        world, which = find(request).world, request.path_params["which"]
        if which not in world.clouds():
            raise NotThereError("this cloud is not there", "come back when its stage is done")
        return Response(await run_in_threadpool(world.cloud, which), media_type="application/octet-stream", headers=_KEEP)

    return [
        Route(f"{base}/", guarded(page)),
        Route(f"{base}/view.json", guarded(description)),
        Route(f"{base}/splats/{{version}}", guarded(splats)),
        Route(f"{base}/world.ply", guarded(ply)),
        Route(f"{base}/frames/{{frame:int}}", guarded(frame)),
        Route(f"{base}/clouds/{{which}}", guarded(cloud)),
    ]


def _describe(exhibit: Exhibit) -> dict[str, Any]:
    exhibit.prepare()
    shown = exhibit.world.look()
    if shown is None:
        raise NotThereError("there are no splats yet", "come back when training has begun")
    clouds = exhibit.world.clouds()
    settings = {key: value for key, value in shown.settings.items() if key != "file"}
    frames = exhibit.world.frame(0) is not None
    judged = None if settings.get("unfinished") else verdict(exhibit.world.folder)
    return {
        **settings,
        **exhibit.facts,
        "verdict": "" if judged is None else judged.grade,
        "name": exhibit.name,
        "version": shown.version,
        "file": f"splats/{shown.version}",
        "bytes": shown.file.stat().st_size,
        "clouds": clouds,
        "clips": exhibit.world.clips([camera["frame"] for camera in settings.get("cameras", [])]),
        "frames": frames,
    }


async def _module(request: Request) -> Response:
    name = request.path_params["module"]
    if name not in viewer_bundle.MODULES:
        return Response(status_code=404)
    return FileResponse(viewer_bundle.FOLDER / name, media_type="text/javascript")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
