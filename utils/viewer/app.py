"""`python -m utils.view_checkpoint`: the viewer of one scene, for the browser of this machine or, with a token, of others."""

import threading
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from configs.evaluation import ViewerConfig
from utils.errors import V2WError
from utils.serving import listen
from utils.serving.access import LOOPBACK, Access, Guard, access_for
from utils.types import NULL_REPORTER, Reporter
from utils.viewer.pages import Exhibit, static_routes, world_routes
from utils.viewer.prepare import prepare
from utils.viewer.source import locate_source
from utils.viewer.world import World


def run(config: ViewerConfig, report: Reporter = NULL_REPORTER) -> str:
    """Serves the viewer until interrupted; returns a closing word.

    Raises:
        V2WError: there are no splats, or no port can be used.
    """
    world = load_world(config)
    with listen.listen(config.host, config.port) as sock:
        port = sock.getsockname()[1]
        access = access_for(config.host, config.public_url, config.password)
        if port != config.port:
            report.note(f"viewer: port {config.port} is taken, {port} is used instead")
        if config.host not in LOOPBACK:
            report.note(f"viewer: listening on {config.host}; it answers to {', '.join(access.hosts)}")
        link = listen.address(config.host, port, access) + (f"?token={access.secret}" if access.secret and not config.password else "")
        report.note(f"viewer: open {link} (Ctrl+C ends it)")
        listen.run(make_app(config, world, access), sock)
    return "viewer closed"


def load_world(config: ViewerConfig) -> World:
    """What the viewer shows, with its files made ready.

    Raises:
        V2WError: there are no splats, or they cannot be read.
    """
    world = World(config.root_path, locate_source(config).folder)
    prepare(world)
    return world


def make_app(config: ViewerConfig, world: World, access: Access) -> Starlette:
    """The application that shows one world."""
    preparing = threading.Lock()

    def ready() -> None:
        with preparing:
            prepare(world)

    facts = {"show_cameras": config.show_cameras, "camera_size": config.training_cameras_scale, "near": config.near_plane}
    exhibit = Exhibit(world, Path(config.root_path).resolve().name, ready, facts)
    routes = [*static_routes(), *world_routes("", lambda _: exhibit, lambda answer: partial(_guarded, answer))]
    return Starlette(routes=routes, middleware=[Middleware(Guard, access=access, style="/viewer/page/viewer.css")])


async def _guarded(answer, request: Request) -> Response:  # type: ignore[no-untyped-def]
    """Turns an error that has a remedy into an answer that tells it."""
    try:
        return await answer(request)  # type: ignore[no-any-return]
    except V2WError as error:
        return JSONResponse({"error": error.message, "hint": error.hint}, 404)
