"""Hostile requests to the web page: addresses, settings, names, headers, and bodies that are no clips."""

import argparse
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import quote

from benchmarks.reliability.hostile_cases import FLOATS, INTEGERS, TEXTS, Ground
from benchmarks.reliability.sandbox import REPOSITORY
from benchmarks.reliability.web import Server, page
from tests import web_attacks

_PATHS = (
    "/", "/api/state", "/api/jobs", "/api/jobs/{x}", "/api/jobs/{x}/cancel", "/api/jobs/{x}/resume", "/api/jobs/{x}/again",
    "/api/jobs/{x}/exports",
    "/jobs/{x}/log", "/jobs/{x}/thumbnail", "/jobs/{x}/previews/{x}", "/jobs/{x}/report", "/jobs/{x}/papers.zip", "/jobs/{x}/files/{x}",
    "/jobs/{x}/view/", "/jobs/{x}/view/{x}", "/static/{x}", "/viewer/{x}", "/{x}",
)  # fmt: skip
_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "BREW")
_NAMES = ("a.mp4", "a.zip", "a.gif", "a.webm", "a.exe", "a", ".mp4", "a.mp4.zip", "\u202e.mp4", "%00.mp4")
_MOST_MB = 1000.0
# Of these alone the page may say that it cannot: the disk is full, or the method is unknown to HTTP.
_SERVER_ERRORS_ALLOWED = (501, 507)


def _word(draws: random.Random) -> str:
    raw = draws.choice((*TEXTS, "%2e%2e%2f", "..%2f..%2fetc/passwd", "%ff", "%", "20260101-000000-clip", "?", "#", "\x01")).encode(
        errors="surrogateescape"
    )
    return quote(raw, safe="%/?#.") if draws.random() < 0.8 else quote(raw)


def _body(draws: random.Random) -> bytes:
    small = web_attacks.small_picture()
    return draws.choice(
        (
            lambda: b"", lambda: draws.randbytes(draws.choice((1, 16, 4000))), lambda: b"\0\0\0\x18ftypisom" + draws.randbytes(2000),
            lambda: b"\x1a\x45\xdf\xa3" + draws.randbytes(2000), lambda: b"GIF89a" + draws.randbytes(500),
            lambda: b"PK\x03\x04" + draws.randbytes(300),
            lambda: web_attacks.gif(draws.choice((1, 60, 60000)), draws.choice((1, 60, 60000))),
            lambda: web_attacks.frames_zip([web_attacks.png(draws.choice((1, 64, 5000)), draws.choice((1, 64, 5000)))] * draws.choice((1,
            8))),
            lambda: web_attacks.frames_zip([small] * 8)[: draws.randrange(2000)],
        )
    )()  # fmt: skip


def requests(seed: int, count: int) -> Iterator[tuple[str, str, bytes, dict[str, str]]]:
    """Method, address, body and headers of each."""
    draws = random.Random(f"web {seed}")
    for _ in range(count):
        path = draws.choice(_PATHS)
        while "{x}" in path:
            path = path.replace("{x}", _word(draws), 1)
        query = {}
        for key, pool in (
            ("name", _NAMES),
            ("mode", TEXTS),
            ("frames", INTEGERS),
            ("resolution", (*INTEGERS, *FLOATS)),
            ("renderer", TEXTS),
            ("kind", TEXTS),
        ):
            if draws.random() < (0.9 if key == "name" else 0.2):
                query[key] = quote(draws.choice(pool).encode(errors="surrogateescape"))
        headers = {}
        if draws.random() < 0.2:
            name = draws.choice(
                ("Host", "Origin", "Content-Length", "Accept", "Cookie", "Range", "If-None-Match", "Authorization", "X-Forwarded-For")
            )
            headers[name] = draws.choice(
                ("[", "evil.example", "-1", "9" * 30, "bytes=9-1", "bytes=0-99999999999", "a" * 5000, "", "token=\xff", "null", "::1")
            )
        method = "POST" if path == "/api/jobs" and draws.random() < 0.8 else draws.choice(_METHODS)
        address = path + ("?" + "&".join(f"{k}={v}" for k, v in query.items()) if query else "")
        yield method, address.replace(" ", "%20"), _body(draws) if method in ("POST", "PUT", "PATCH") else b"", headers


def _raw(server: Server, method: str, address: str, body: bytes, headers: dict[str, str]) -> int:
    """Status of the answer to a request that need not be valid HTTP; 0 for none, 400 where the connection is closed on it."""
    lines = {"Host": f"127.0.0.1:{server.port}", "Content-Length": str(len(body)), "Connection": "close", **headers}
    head = f"{method} {address} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(head.encode("latin-1", errors="replace") + body)
            if lines["Content-Length"] != str(len(body)):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
    except ConnectionResetError:
        return 400
    except OSError:
        return 0
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 400


def attack(seed: int, count: int, _: Ground) -> Iterator[tuple[str, str, float]]:
    """Sends the requests to one page; what each was, what is wrong ("" for nothing), and the server's memory in MB."""
    options = argparse.Namespace(checkout=REPOSITORY, memory_gb=6.0)
    with page(options) as (server, _workspace):
        base = server.peak * 1024
        for method, address, body, headers in requests(seed, count):
            status = _raw(server, method, address, body, headers)
            memory = server.peak * 1024 - base
            wrong = "hang" if status == 0 else "code" if status >= 500 and status not in _SERVER_ERRORS_ALLOWED else ""
            wrong = wrong or ("memory" if memory > _MOST_MB else "")
            yield f"{method} {address[:120]} {headers} -> {status}", wrong, memory
        yield "the page answers after all of them", "" if server.alive() else "hang", 0.0


if __name__ == "__main__":
    for line in requests(int(sys.argv[1]), 10):
        print(line)
