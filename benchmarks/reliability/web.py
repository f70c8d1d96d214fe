"""Attacks the web page and the viewer from outside, as any visitor could, and tells what came of each.

    python -m benchmarks.reliability.web --clip C --scene S [--checkout DIR] [--memory-gb 6] [--only PART ...] [--json F]

The servers are started from `--checkout` (another version to compare with) with a limit on memory, since one upload could take all of the
machine. The clip is one that takes minutes, so that there is a run to be left behind; the scene is a trained one. A row is held if
the answer was a refusal in words, within bounds, and the server still answered afterwards.
"""

import argparse
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from tests.web_attacks import attacks

ROOT = Path(__file__).resolve().parents[2]
HARMLESS = ("names with a superscript digit", "names of 5000 digits")
_MOST_GB, _MOST_SECONDS = 2.5, 120.0
_UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "A" * 22 + "=="}


class Server:
    """A page started from a checkout."""

    def __init__(self, command: list[str], checkout: Path, port: int, memory_gb: float):
        self.port, self.peak = port, 0.0
        limited = ["bash", "-c", f'ulimit -v {int(memory_gb * 2**20)}; exec "$@"', "--", *command]
        self.process = subprocess.Popen(limited, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            self.peak = max(self.peak, sum(_resident(pid) for pid in [self.process.pid, *_descendants(self.process.pid)]))
            time.sleep(0.1)

    def ask(self, method: str, path: str, body: bytes | None = None, timeout: float = _MOST_SECONDS, **headers: str) -> tuple[int, bytes]:
        """Status and body; status 0 if nobody answered in time."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read() if answer.status != 101 else b""
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def alive(self) -> bool:
        """Whether it still answers."""
        return self.ask("GET", "/api/state", timeout=20)[0] == 200

    def stop(self) -> None:
        """Ends it with all it started."""
        for pid in [*_descendants(self.process.pid), self.process.pid]:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _descendants(pid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


def _resident(pid: int) -> float:
    """GB."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**30
    return 0.0


@contextmanager
def page(options: argparse.Namespace, *flags: str) -> Iterator[tuple[Server, Path]]:
    """A page over an empty workspace."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "worlds"
        command = [sys.executable, "-m", "web", "--workspace", str(workspace), "--port", str(free_port()), *flags]
        server = Server(command, options.checkout, int(command[6]), options.memory_gb)
        try:
            _until(lambda: _listens(server.port), 90)
            yield server, workspace
        finally:
            server.stop()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False


Row = tuple[str, bool, str]


def uploads(options: argparse.Namespace) -> Iterator[Row]:
    """Small files that ask for much."""
    for words, make in attacks().items():
        name, content = make()
        with page(options) as (server, _):
            before, started = server.peak, time.monotonic()
            status, said = server.ask("POST", f"/api/jobs?name={quote(name)}", content)
            seconds, peak = time.monotonic() - started, server.peak - before
            told = b'"error"' in said if words not in HARMLESS else status == 201
            held = told and status < 500 and peak < _MOST_GB and seconds < _MOST_SECONDS and server.alive()
            yield f"upload: {words} ({len(content)} bytes)", held, f"{status}, {peak:.1f} GB, {seconds:.0f} s"


def doors(options: argparse.Namespace) -> Iterator[Row]:
    """Other websites and strangers."""
    foreign = {"Origin": "https://evil.example"}
    with page(options) as (server, _):
        for words, status in (
            ("foreign Host reads", server.ask("GET", "/api/state", Host="evil.example")[0]),
            ("foreign page gives an order", server.ask("DELETE", "/api/jobs/x", **foreign)[0]),
            ("Host that is no name", server.ask("GET", "/", Host="[")[0]),
        ):
            yield f"door: {words}", status in (400, 403), str(status)
        status, _ = server.ask("GET", "/", **foreign, **_UPGRADE)
        yield "door: foreign page opens a WebSocket", status not in (0, 101), str(status)
        yield "door: damaged job file stops the start", *_damaged_start(options)
    with page(options, "--host", "0.0.0.0") as (server, _):
        evil = {"Host": "evil.example", "Origin": "http://evil.example"}
        yield from (
            (f"door, --host 0.0.0.0: {words}", status in (401, 403), str(status))
            for words, status in (
                ("foreign name reads", server.ask("GET", "/api/state", Host="evil.example")[0]),
                ("foreign name gives an order", server.ask("DELETE", "/api/jobs/x", **evil)[0]),
                ("stranger without a token reads", server.ask("GET", "/api/state")[0]),
            )
        )


def _damaged_start(options: argparse.Namespace) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "a"
        job.mkdir()
        (job / "job.json").write_text("[" * 100_000)
        (job / "viewer.pid").write_bytes(b"\0\0")
        port = free_port()
        command = [sys.executable, "-m", "web", "--workspace", folder, "--port", str(port)]
        server = Server(command, options.checkout, port, options.memory_gb)
        try:
            _until(lambda: _listens(port) or server.process.poll() is not None, 60)
            held = server.alive()
            return held, "starts" if held else "does not start"
        finally:
            server.stop()


def viewer(options: argparse.Namespace) -> Iterator[Row]:
    """The viewer of a scene, asked by a foreign page."""
    port = free_port()
    flags = ["--config.root-path", str(options.scene.resolve()), "--config.port", str(port)]
    server = Server([sys.executable, "-m", "utils.view_checkpoint", *flags], options.checkout, port, 64)
    try:
        _until(lambda: _listens(port), 120)
        status, _ = server.ask("GET", "/", timeout=20, Origin="https://evil.example", **_UPGRADE)
        yield "viewer: foreign page opens its WebSocket", status not in (0, 101), str(status)
        status, _ = server.ask("GET", "/", timeout=20, Host="evil.example")
        yield "viewer: foreign Host reads", status in (400, 403), str(status)
    finally:
        server.stop()


def crowds(options: argparse.Namespace) -> Iterator[Row]:
    """Many at once, and some that stand still."""
    clip = options.clip.read_bytes()
    with page(options, "--max-queue", "1") as (server, _):
        server.ask("POST", "/api/jobs?name=first.mp4", clip)
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(server.ask("POST", "/api/jobs?name=a.mp4", clip)[0])) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = statuses.count(201)
        yield "crowd: six uploads where one may wait", taken <= 1, f"{taken} taken"
    with page(options) as (server, _):
        standing = []
        for _ in range(12):
            connection = socket.create_connection(("127.0.0.1", server.port))
            connection.sendall(b"POST /api/jobs?name=a.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
            standing.append(connection)
        closed = _until(lambda: all(_is_answered(c) for c in standing), 60)
        yield "crowd: twelve uploads that stand still", closed, "ended within 60 s" if closed else "kept"
        for connection in standing:
            connection.close()


def _is_answered(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    with suppress(OSError):
        return bool(connection.recv(1, socket.MSG_PEEK)) or True
    return False


def ends(options: argparse.Namespace) -> Iterator[Row]:
    """What a server leaves behind."""
    clip = options.clip.read_bytes()
    for number in (signal.SIGHUP, signal.SIGKILL):
        with page(options) as (server, workspace):
            server.ask("POST", "/api/jobs?name=a.mp4", clip)
            _until(lambda: bool(_naming(workspace)), 30)
            os.kill(server.process.pid, number)
            gone = _until(lambda: not _naming(workspace), 30)
            yield f"end: {number.name} to the server", gone, "its run ends" if gone else "its run goes on"
            for pid in _naming(workspace):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


def _naming(folder: Path) -> list[int]:
    """Processes that work in a run's folder."""
    mark, found = f"{folder}/2".encode(), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "doors": doors,
    "viewer": viewer,
    "crowds": crowds,
    "ends": ends,
    "uploads": uploads,
}


def main() -> None:
    """Runs the attacks and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--scene", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--memory-gb", type=float, default=6.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    for part in options.only:
        for row in PARTS[part](options):
            rows.append(row)
            print(f"{'held  ' if row[1] else 'FAILED'} {row[0]}: {row[2]}", flush=True)
    print(f"{sum(held for _, held, _ in rows)} of {len(rows)} held")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
