"""Who is let in: host names, origins, tokens, passwords, proxies with a path."""

import asyncio
import socket
import stat

import pytest

pytest.importorskip("starlette", reason="the web extra is not installed")

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from utils.errors import ConfigError
from utils.serving import access as rules
from utils.serving.access import Access, Guard, access_for, checked_public_url, host_name, machine_names
from utils.serving.listen import address, listen


class Server:
    """A guarded page, asked without a network."""

    def __init__(self, access: Access):
        inner = Starlette(routes=[Route("/{rest:path}", lambda request: PlainTextResponse(request.url.path), methods=["GET", "POST"])])
        self.guard = Guard(inner, access)

    def ask(self, path="/", method="GET", query="", body=b"", kind="http", **headers):
        sent = []
        headers = {"host": "localhost:8000"} | {k.replace("_", "-"): v for k, v in headers.items()}
        scope = {"type": kind, "method": method, "path": path, "query_string": query.encode(), "scheme": "http", "root_path": ""}
        scope |= {"headers": [(k.encode(), v.encode()) for k, v in headers.items()], "server": ("127.0.0.1", 8000), "http_version": "1.1"}

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        asyncio.run(self.guard(scope, receive, send))
        return sent

    def status(self, *args, **more):
        return self.ask(*args, **more)[0]["status"]

    def header(self, name, *args, **more):
        return dict(self.ask(*args, **more)[0]["headers"]).get(name.encode(), b"").decode()


def test_only_names_of_this_server_are_answered():
    server = Server(access_for("127.0.0.1"))
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:9", "[::1]:8000", "localhost.:80"):
        assert server.status(host=host) == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "192.168.1.5", "localhost.evil.example:8000", "0x7f.1"):
        assert server.status(host=host) == 403, host
    for host in ("[", "[::1", "localhost:99999999", "a/b", "user@localhost", "localhost/..", ""):
        assert server.status(host=host) == 400, host


def test_listening_everywhere_answers_to_addresses_and_own_names_but_to_no_foreign_name():
    access = access_for("0.0.0.0", open_to_all=True)
    server = Server(access)
    for host in ("192.168.1.5:8000", "[fe80::1%25eth0]:8000", socket.gethostname().upper(), "localhost"):
        assert server.status(host=host) == 200, host
    assert server.status(host="evil.example:8000") == 403
    assert Server(access_for("MyBox", open_to_all=True)).status(host="mybox:8000") == 200
    assert set(machine_names()) <= set(access.hosts)


def test_orders_are_taken_from_own_pages_only():
    server = Server(access_for("127.0.0.1", "https://worlds.example.org", open_to_all=True))
    ours = {"host": "localhost:8000", "origin": "http://localhost:8000"}
    assert server.status(method="POST", **ours) == 200
    assert server.status(method="POST") == 200  # no browser: curl sends no origin
    for origin in ("https://evil.example", "null", "http://localhost:8001", "http://worlds.example.org", "https://[", "http://"):
        assert server.status(method="POST", origin=origin) == 403, origin
    for fetch in ("cross-site", "same-site"):
        assert server.status(method="POST", sec_fetch_site=fetch, **ours) == 403
    # behind a proxy that ends TLS: it may or may not pass on the name
    for host in ("worlds.example.org", "127.0.0.1:8000"):
        assert server.status(method="POST", host=host, origin="https://worlds.example.org") == 200
        assert server.status(method="POST", host=host, origin="https://evil.example") == 403


def test_websockets_are_closed_whoever_asks():
    for origin in ("https://evil.example", "http://localhost:8000"):
        assert Server(access_for("127.0.0.1")).ask(kind="websocket", origin=origin) == [{"type": "websocket.close", "code": 1008}]


def test_loopback_asks_nothing_and_everything_else_asks_for_the_token():
    assert access_for("127.0.0.1").secret == "" and access_for("::1").secret == ""
    for access in (access_for("0.0.0.0"), access_for("192.168.1.5"), access_for("127.0.0.1", "https://x.example")):
        assert len(access.secret) == 32
    assert access_for("0.0.0.0", open_to_all=True).secret == "" and access_for("127.0.0.1", password="p").secret == "p"


def test_the_printed_link_opens_the_page_and_leaves_a_cookie():
    access = access_for("0.0.0.0")
    server = Server(access)
    assert server.status("/api/state") == 401 and server.status("/api/jobs", "POST") == 401
    page = server.ask("/jobs/x", accept="text/html")
    assert page[0]["status"] == 401 and b'name="password"' in page[1]["body"] and b'value="/jobs/x"' in page[1]["body"]
    asked = {"path": "/jobs/x", "query": f"a=1&token={access.secret}"}
    assert server.status(**asked) == 303 and server.header("location", **asked) == "/jobs/x?a=1"
    cookie = server.header("set-cookie", **asked)
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and access.secret not in cookie
    cookie = cookie.partition(";")[0]
    assert server.status("/api/state", cookie=cookie) == 200
    assert Server(access_for("0.0.0.0")).status("/api/state", cookie=cookie) == 401
    assert server.status("/api/state", cookie=f"{access.cookie}={'0' * 64}") == 401
    assert server.status("/api/state", authorization=f"Bearer {access.secret}") == 200
    assert server.status("/api/state", authorization="Bearer é") == 401
    assert server.status("/static/page.css") == 200  # the page that asks must look like one


def test_a_password_is_asked_for_and_guesses_are_slowed(monkeypatch):
    server = Server(access_for("127.0.0.1", password="büro 7"))
    form = {"path": "/login", "method": "POST"}
    good = server.ask(body=b"password=b%C3%BCro+7&next=%2Fjobs%2Fx", **form)
    assert good[0]["status"] == 303 and dict(good[0]["headers"])[b"location"] == b"/jobs/x"
    for target in (b"//evil.example", b"https://evil.example", b"/\\evil.example"):
        answer = server.ask(body=b"password=b%C3%BCro+7&next=" + target, **form)
        assert dict(answer[0]["headers"])[b"location"] == b"/"
    assert [server.status(body=b"password=wrong", **form) for _ in range(11)] == [401] * 10 + [429]
    assert server.status(body=b"password=b%C3%BCro+7", **form) == 429
    assert server.status(query="token=wrong", accept="text/html") == 429
    monkeypatch.setattr(rules, "_FAILURES_SECONDS", 0.0)
    assert server.status(body=b"password=b%C3%BCro+7", **form) == 303
    assert server.status(body=b"x" * 5000, **form) == 413


def test_a_proxy_may_pass_its_path_on_or_take_it_off():
    access = access_for("127.0.0.1", "https://Example.org/worlds/", password="p")
    server = Server(access)
    assert access.public_url == "https://example.org/worlds"
    body = {"method": "POST", "body": b"password=p&next=%2Fjobs", "host": "example.org", "origin": "https://example.org"}
    for path in ("/worlds/login", "/login"):
        answer = dict(server.ask(path, **body)[0]["headers"])
        assert answer[b"location"] == b"/worlds/jobs"
        assert b"Path=/worlds" in answer[b"set-cookie"] and b"Secure" in answer[b"set-cookie"]
    cookie = f"{access.cookie}={access.pass_value}"
    assert server.ask("/worlds/jobs/x", cookie=cookie)[1]["body"] == b"/jobs/x"
    assert server.ask("/worldsmore", cookie=cookie)[1]["body"] == b"/worldsmore"
    assert address("127.0.0.1", 8000, access) == "https://example.org/worlds/"


@pytest.mark.parametrize(
    "url", ["example.org", "ftp://x", "https://", "https://u@x", "https://x?q", "https://x:0x", "https://[", "https://x/#a"]
)
def test_a_public_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="public_url"):
        checked_public_url(url)


def test_links_outlive_a_restart_and_their_key_is_the_owners_only(tmp_path):
    first, second = (access_for("0.0.0.0", folder=tmp_path) for _ in range(2))
    assert (first.secret, first.pass_value) == (second.secret, second.pass_value)
    assert stat.S_IMODE((tmp_path / ".key").stat().st_mode) == 0o600
    assert access_for("0.0.0.0", password="other", folder=tmp_path).pass_value != first.pass_value
    (tmp_path / ".key").write_bytes(b"short")
    assert access_for("0.0.0.0", folder=tmp_path).secret != first.secret
    with pytest.raises(ConfigError):
        access_for("0.0.0.0", folder=tmp_path / "no" / "such")


def test_every_answer_carries_the_headers_that_keep_pages_apart():
    headers = dict(Server(access_for("127.0.0.1")).ask()[0]["headers"])
    assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"cross-origin-resource-policy"] == b"same-origin"
    assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]


def test_sockets_of_both_kinds_and_addresses_to_print():
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("localhost", None)):
        try:
            first = listen(host, 8720)
        except ConfigError:
            if host == "::1":
                continue  # a machine without IPv6
            raise
        with first, listen(host, first.getsockname()[1]) as second:
            assert family in (None, first.family) and second.getsockname()[1] > first.getsockname()[1]
    for bad in ("203.0.113.1", "no such name", "[::1]"):
        with pytest.raises(ConfigError, match=r"cannot be used|no address"):
            listen(bad, 8720)
    assert address("::1", 8001, Access()) == "http://[::1]:8001/" and address("192.168.1.5", 80, Access()) == "http://192.168.1.5:80/"


def test_host_names():
    assert host_name("[fe80::1%25eth0]:80") == "fe80::1%25eth0" and host_name("LOCALHOST.") == "localhost"
