"""A served viewer of one world."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from configs.evaluation import ViewerConfig
from tests.browser import until
from utils.serving.access import Access
from utils.viewer.app import make_app
from utils.viewer.world import World


@contextmanager
def served(world: World, access: Access | None = None, **settings: Any) -> Iterator[str]:
    """Its address; a thread of this process serves it."""
    app = make_app(ViewerConfig(root_path=world.root, **settings), world, access or Access())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, 30)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
