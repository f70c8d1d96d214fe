"""Who is let in by a server of this program: the names it answers to, the pages it takes orders from, and what a visitor has to know.

A browser carries requests of any website to a server on this machine. Three checks keep them out: the `Host` must be a name of this server
(else a site could point a name of its own here: DNS rebinding), the `Origin` of anything but a look must be this server's own page, and
where other machines can reach it, visitors must have the link printed at start, or the password.
"""

import hashlib
import hmac
import ipaddress
import secrets
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from utils.errors import ConfigError, MissingDependencyError

try:
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ModuleNotFoundError as missing:
    raise MissingDependencyError(
        f"pages in the browser need the package '{missing.name}', which is not installed", 'pip install -e ".[web]"'
    ) from missing

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = ("0.0.0.0", "::")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self' blob:; worker-src 'self' blob:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cache-control": b"no-cache",
    b"content-security-policy": PAGE_POLICY.encode(),
}
_COOKIE_SECONDS = 30 * 24 * 3600
_MOST_FAILURES, _FAILURES_SECONDS = 10, 60.0
_MAX_FORM_BYTES = 4096


@dataclass(frozen=True)
class Access:
    """Who is let in.

    Attributes:
        hosts: names and addresses the server answers to, lower case, without port.
        any_address: it answers to every IP address too. No site can point a name of its own at it that way.
        public_url: the address under which a proxy shows it, without a slash at the end; empty if there is no proxy.
        secret: what a visitor has to know; empty lets everybody in whom the other checks let in.
        key: what cookies are made with.
    """

    hosts: tuple[str, ...] = LOOPBACK
    any_address: bool = False
    public_url: str = ""
    secret: str = ""
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @property
    def prefix(self) -> str:
        """The path of the public address; empty if the server stands at its root."""
        return urlsplit(self.public_url).path

    @property
    def cookie(self) -> str:
        """Name of the cookie; servers on other ports of this machine have others."""
        return f"v2w_{hashlib.sha256(self.key).hexdigest()[:8]}"

    @property
    def pass_value(self) -> str:
        """What the cookie of a visitor holds who knew the secret; it does not tell the secret, and ends with it."""
        return hmac.new(self.key, self.secret.encode(), hashlib.sha256).hexdigest()

    def knows(self, said: str) -> bool:
        """Whether that is the secret; takes the same time for every wrong one."""
        return hmac.compare_digest(said.encode(), self.secret.encode())

    def answers_to(self, header: str) -> bool:
        """Whether a `Host` header names this server."""
        name = host_name(header)
        return bool(name) and (name in self.hosts or (self.any_address and _is_address(name)))

    def is_own_page(self, origin: str, host: str) -> bool:
        """Whether an `Origin` is this server's page, asked under this `Host` or through the proxy."""
        try:
            said = urlsplit(origin)
        except ValueError:
            return False
        public = urlsplit(self.public_url)
        return said.netloc.lower() == host.lower() or (bool(public.netloc) and said[:2] == (public.scheme, public.netloc))


def access_for(host: str, public_url: str = "", password: str = "", *, open_to_all: bool = False, folder: Path | None = None) -> Access:
    """The rules for a server.

    Args:
        host: address it listens on.
        public_url: address under which a proxy shows it, or empty.
        password: what visitors must know; empty makes a token where other machines can reach the server, and asks nothing where not.
        open_to_all: ask for neither.
        folder: keeps the key and the token in it, so that links and cookies outlive a restart; None makes new ones.

    Raises:
        ConfigError: the public address is none, or the folder cannot be written.
    """
    public = checked_public_url(public_url)
    host = host.lower()
    names = dict.fromkeys((*LOOPBACK, host))
    if public:
        names[str(urlsplit(public).hostname)] = None
    if host in ANYWHERE:
        names.update(dict.fromkeys(machine_names()))
    key = _kept_key(folder)
    reachable = host not in LOOPBACK or bool(public)
    token = base_token(key) if reachable and not open_to_all else ""
    return Access(tuple(names), host in ANYWHERE, public, "" if open_to_all else password or token, key)


def base_token(key: bytes) -> str:
    """The token that belongs to a key: 128 bits."""
    return hmac.new(key, b"token", hashlib.sha256).hexdigest()[:32]


def checked_public_url(url: str) -> str:
    """The address without a slash at the end.

    Raises:
        ConfigError: it is no address of a page.
    """
    if not url:
        return ""
    hint = "give it as visitors type it, for example https://worlds.example.org or https://example.org/worlds"
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise ConfigError(f"public_url is {url!r}: {error}", hint) from error
    if not named or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(f"public_url is {url!r}, which is no address of a page", hint)
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def machine_names() -> list[str]:
    """The names and addresses under which other machines may know this one; nothing is sent to find out."""
    name = socket.gethostname().lower()
    names = [name, socket.getfqdn().lower(), f"{name.partition('.')[0]}.local"]
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # a datagram socket only looks up the route
            names.append(probe.getsockname()[0])
    return [n for n in dict.fromkeys(names) if n and n not in LOOPBACK]


def host_name(header: str) -> str:
    """Name or address in a `Host` header, lower case, without port; empty if the header is none."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return ""
    if parts.netloc != header or "@" in header:
        return ""
    return (parts.hostname or "").rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _kept_key(folder: Path | None) -> bytes:
    """The key of a folder, made if there is none; only its owner may read it."""
    if folder is None:
        return secrets.token_bytes(32)
    path = folder / ".key"
    try:
        with suppress(FileNotFoundError):
            kept = path.read_bytes()
            if len(kept) == 32:
                path.chmod(0o600)
                return kept
            path.unlink()
        key = secrets.token_bytes(32)
        path.touch(mode=0o600)
        path.write_bytes(key)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", "choose a folder that can be written") from error
    return key


class Guard:
    """Lets in whom `Access` lets in, and adds the headers every answer carries.

    Args:
        app: what is guarded.
        access: the rules.
        style: path of the style sheet of the page that asks for the password; it is sent to everybody, as is the icon beside it.
    """

    def __init__(self, app: ASGIApp, access: Access, style: str = "/static/page.css"):
        self._app, self._access, self._style = app, access, style
        self._free = (style, f"{style.rpartition('/')[0]}/icon.svg")
        self._failures: deque[float] = deque(maxlen=_MOST_FAILURES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                have = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((k, v) for k, v in _HEADERS.items() if k not in have)]
            await send(message)

        prefix = self._access.prefix
        if prefix and (scope["path"] == prefix or scope["path"].startswith(f"{prefix}/")):
            scope = {**scope, "path": scope["path"][len(prefix) :] or "/", "raw_path": None}
        request = Request(scope, receive)
        answer = self._refusal(request) or await self._at_the_door(request)
        await (answer or self._app)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to requests that come from elsewhere; None for others."""
        host = request.headers.get("host", "")
        if not host_name(host):
            return PlainTextResponse("The Host header is no name of a server.", 400)
        if not self._access.answers_to(host):
            words = "This server does not answer to that name. Start it with --host or --public-url and the name that visitors use."
            return PlainTextResponse(words, 403)
        if request.method in ("GET", "HEAD"):
            return None
        origin = request.headers.get("origin")
        foreign = origin is not None and not self._access.is_own_page(origin, host)
        if foreign or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return PlainTextResponse("Another site's page asked for this; only this server's own may.", 403)
        return None

    async def _at_the_door(self, request: Request) -> Response | None:
        """Asks visitors for the secret; None for those who have shown it, and where none is needed."""
        access = self._access
        if not access.secret or request.url.path in self._free:
            return None
        if request.url.path == "/login" and request.method == "POST":
            return await self._login(request)
        said = request.query_params.get("token")
        if said is not None and request.method in ("GET", "HEAD"):
            rest = urlencode([(k, v) for k, v in parse_qsl(request.url.query) if k != "token"])
            return self._judge(said, request.url.path + (f"?{rest}" if rest else ""))
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return None if self._patient() and self._right(value.strip()) else PlainTextResponse("That is not the token.", 401)
        if hmac.compare_digest(request.cookies.get(access.cookie, "").encode(), access.pass_value.encode()):
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return self._door(request.url.path)
        return PlainTextResponse("Log in first: open the page, or the link printed when the server was started.", 401)

    async def _login(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_FORM_BYTES:
                return PlainTextResponse("That is too long.", 413)
        form = parse_qs(body.decode(errors="replace"))
        return self._judge(form.get("password", [""])[0], form.get("next", ["/"])[0])

    def _judge(self, said: str, path: str) -> Response:
        """Lets in who knows the secret, and leads on to where they wanted."""
        access = self._access
        if not self._patient():
            return self._door(path, "Too many wrong tries: wait a minute.", 429)
        if not self._right(said):
            return self._door(path, "That is not the password, or an old link.")
        inside = path if path.startswith("/") and not path.startswith("//") and "\\" not in path else "/"
        answer = RedirectResponse(access.prefix + inside, 303)
        answer.set_cookie(
            access.cookie,
            access.pass_value,
            max_age=_COOKIE_SECONDS,
            path=access.prefix or "/",
            secure=access.public_url.startswith("https:"),
            httponly=True,
            samesite="lax",
        )
        return answer

    def _right(self, said: str) -> bool:
        if self._access.knows(said):
            return True
        self._failures.append(time.monotonic())
        return False

    def _patient(self) -> bool:
        """Whether guesses are still judged."""
        return len(self._failures) < _MOST_FAILURES or time.monotonic() - self._failures[0] > _FAILURES_SECONDS

    def _door(self, path: str, words: str = "", status: int = 401) -> Response:
        prefix = self._access.prefix
        problem = f'<p class="problem" role="alert">{escape(words)}</p>' if words else ""
        return HTMLResponse(
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>video_to_world: log in</title><link rel="stylesheet" href="{prefix}{self._style}"></head><body class="waiting"><main>'
            f'<h1>video_to_world</h1>{problem}<form method="post" action="{prefix}/login" class="card">'
            f'<input type="hidden" name="next" value="{escape(path)}"><label>Password or token'
            '<input type="password" name="password" autocomplete="current-password" autofocus required></label>'
            '<div class="row"><button class="main">Log in</button></div></form></main></body></html>',
            status,
        )
