"""Ports of this machine."""

import socket

from utils.errors import ConfigError

_TRIED = 100


def bound_socket(host: str, wanted: int, hint: str = "choose another with --config.port", or_any: bool = False) -> socket.socket:
    """A socket bound to the wanted port, to the next one that nobody listens on, or at last (`or_any`) to whichever is free.

    Raises:
        ConfigError: none of them is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (*range(wanted, min(wanted + _TRIED, 65536)), *((0,) if or_any else ())):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            sock.close()
            continue
        return sock
    raise ConfigError(f"ports {wanted} to {wanted + _TRIED - 1} on {host} cannot be used", hint)


def free_port(host: str, wanted: int, hint: str = "choose another with --config.port", or_any: bool = False) -> int:
    """The port of `bound_socket`, free again for somebody else to listen on."""
    with bound_socket(host, wanted, hint, or_any) as sock:
        return int(sock.getsockname()[1])
