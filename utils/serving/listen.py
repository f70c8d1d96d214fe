"""Sockets, addresses to print, and a server that ends with its terminal."""

import signal
import socket
from contextlib import suppress
from typing import Any

from utils.errors import ConfigError, MissingDependencyError
from utils.serving.access import ANYWHERE, LOOPBACK, Access

try:
    import uvicorn
except ModuleNotFoundError as missing:
    raise MissingDependencyError(
        f"pages in the browser need the package '{missing.name}', which is not installed", 'pip install -e ".[web]"'
    ) from missing

_PORTS_TRIED = 50
# A request beyond is told to come back; each holds a connection and some memory.
_MOST_CONNECTIONS = 200


def listen(host: str, wanted: int) -> socket.socket:
    """A socket on the wanted port or the next free one, IPv4 or IPv6 as the address is.

    Raises:
        ConfigError: no port can be used, or the address is none of this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"'{host}' is no address of this machine: {error}", "choose another with --host, for example 127.0.0.1"
        ) from error
    last = min(wanted + _PORTS_TRIED, 65536) - 1
    for port in range(wanted, last + 1):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            sock.bind((address[0], port, *address[2:]))
            sock.listen(128)
        except OSError:
            sock.close()
            continue
        return sock
    raise ConfigError(f"ports {wanted} to {last} on {host} cannot be used", "choose others with --port and --host")


def address(host: str, port: int, access: Access) -> str:
    """What a visitor types or clicks, with the token if there is one that was not chosen by a person."""
    if access.public_url:
        return f"{access.public_url}/"
    if host in LOOPBACK:
        shown = "localhost" if host != "::1" else "[::1]"
    elif host in ANYWHERE:
        shown = next((name for name in access.hosts if name not in (*LOOPBACK, *ANYWHERE)), "localhost")
        shown = f"[{shown}]" if ":" in shown else shown
    else:
        shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/"


def run(app: Any, sock: socket.socket) -> None:
    """Serves until interrupted, told to end, or the terminal is closed."""
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, limit_concurrency=_MOST_CONNECTIONS, ws="none")
    )
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup wants it to go on
        signal.signal(signal.SIGHUP, lambda *_: setattr(server, "should_exit", True))
    with suppress(KeyboardInterrupt):  # which is how it ends
        server.run(sockets=[sock])
