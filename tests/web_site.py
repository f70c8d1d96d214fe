"""A served page over a workspace, with quick stand-ins for the programs behind it, and a plain client."""

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import av
import numpy as np
import uvicorn

from configs.web import WebConfig
from utils.serving.access import Access
from web.processes import Commands
from web.server import claimed, make_app

STAND_IN = Path(__file__).with_name("web_stand_in.py")
QUICK = replace(Commands(), **{name: (sys.executable, str(STAND_IN), name) for name in ("pipeline", "export", "prepare")})


def write_clip(path: Path, tail: bytes = b"") -> Path:
    """A short clip that moves; the bytes behind it steer the stand-in and are no part of the film."""
    rng = np.random.default_rng(0)
    wall = rng.integers(0, 255, (64, 160, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wall[:, 4 * i : 4 * i + 96]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if tail:
        with path.open("ab") as stream_:
            stream_.write(b"\0\0\0\x0dfree" + tail)
    return path


class Client:
    """Requests to the page."""

    def __init__(self, port: int):
        self.port = port

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def get(self, path: str) -> bytes:
        status, body, _ = self.ask("GET", path)
        assert status == 200, (status, body)
        return body

    def post(self, path: str, body: bytes | None = None, **query: Any) -> tuple[int, dict[str, str]]:
        status, said, _ = self.ask("POST", path + (f"?{urlencode(query)}" if query else ""), body)
        return status, json.loads(said)

    def upload(self, clip: Path, **settings: Any) -> str:
        status, said = self.post("/api/jobs", clip.read_bytes(), name=clip.name, **settings)
        assert status == 201, said
        return said["id"]

    def job(self, job_id: str) -> dict[str, Any]:
        return next(j for j in json.loads(self.get("/api/state"))["jobs"] if j["id"] == job_id)

    def until(self, job_id: str, holds: Callable[[dict[str, Any]], bool], seconds: float = 120) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while not holds(job := self.job(job_id)):
            assert time.monotonic() < end, job
            time.sleep(0.05)
        return job


@contextmanager
def site(workspace: Path, commands: Commands = QUICK, access: Access | None = None, **settings: Any) -> Iterator[Client]:
    """The page, served by a thread of this process."""
    config = WebConfig(**{"workspace": workspace, "min_free_mb": 0, **settings})
    with claimed(workspace.resolve()):
        app = make_app(config, access or Access(), commands)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Client(server.servers[0].sockets[0].getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
