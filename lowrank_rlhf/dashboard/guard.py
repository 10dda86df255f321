"""Who may speak to a page: the right host and the page itself (`Guard`), and whoever knows the password (`Password`).

Both wrap the whole application, so they hold for Gradio's own addresses too. A browser that is led to another site
must not be able to read or steer this one: the Host header stops DNS rebinding, Origin and Sec-Fetch-Site cross-site
requests.
"""

import asyncio
import hmac
import secrets
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import psutil
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION_SECONDS = 12 * 3600
MOST_BYTES = 64 * 2**20
"""Of one request's body: an upload of annotations is the largest."""
MOST_BYTES_OF_A_LOGIN = 4096
COOKIE = "lowrank-session"
_TOKEN = "access-token"  # noqa: S105 - of a cookie, the beginning of its name
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_OPEN = (
    "/assets/", "/static/", "/svelte/", "/runs/", "/gradio_api/heartbeat/", "/gradio_api/file=/",
)  # fmt: skip
_EXACT = {
    "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/startup-events",
    "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/reset",
    "/gradio_api/app_id", "/gradio_api/component_server", "/gradio_api/component_server/",
    "/gradio_api/upload", "/gradio_api/upload_progress",
    "/gradio_api/theme.css",
}  # fmt: skip
_STARTUP = "/gradio_api/startup-events"  # Gradio asks it of itself at the launch, and it tells nothing
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    # Gradio builds components' templates with `new Function`, hence 'unsafe-eval'. Nothing comes from elsewhere.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'",
}
_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>lowrank_rlhf</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root{{color-scheme:light dark}}body{{font:16px system-ui,sans-serif;display:grid;place-items:center;
min-height:90vh}}form{{display:grid;gap:.8rem;width:min(20rem,85vw)}}input,button{{font:inherit;padding:.5rem}}</style>
<form method="post" action="/login"><b>lowrank_rlhf</b><label for="password">Password / 密码</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus>
<button>OK</button><span role="alert">{message}</span></form></html>"""


class _TooLarge(Exception):
    """The body is longer than it may be."""


@dataclass
class Guard:
    """ASGI middleware. `hosts` are the names and addresses under which the page may be asked for, without ports.

    `also` are paths that this page needs beside those of every page of ours, for logging in.
    """

    app: ASGIApp
    hosts: Collection[str]
    also: Collection[str] = ()

    def __post_init__(self) -> None:
        self.hosts = frozenset(host.lower() for host in self.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":  # no WebSocket is used: leaving one unanswered closes it
            await self._pass_on(self._refusal(scope) or self.app, scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, method = Headers(scope=scope), scope["method"]
        host = headers.get("host", "")
        if _name(host) not in self.hosts:
            return PlainTextResponse("This host name is not served here.\n", 403)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return PlainTextResponse("Requests from other sites are refused.\n", 403)
        cross = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if cross and not (method == "GET" and headers.get("sec-fetch-mode") == "navigate"):
            return PlainTextResponse("Requests from other sites are refused.\n", 403)
        path = scope["path"]
        if path not in _EXACT and path not in self.also and not path.startswith(_OPEN):
            return PlainTextResponse("There is nothing here.\n", 404)
        return None

    async def _pass_on(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it answer, with a bound on what it reads and with the headers that all answers have."""
        most = MOST_BYTES_OF_A_LOGIN if scope["path"] in self.also else MOST_BYTES
        taken, started = 0, False

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _TooLarge
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                if taken > most:  # FastAPI made a plain 400 of it
                    raise _TooLarge
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await app(scope, bounded, guarded)
        except _TooLarge:
            if not started:
                await PlainTextResponse("Too large.\n", 413)(scope, receive, send)


@dataclass
class Password:
    """ASGI middleware for inside a `Guard`: answers with a form until the password was given, then for hours."""

    app: ASGIApp
    password: str
    sessions: dict[str, float] = field(default_factory=dict)
    """Of those who gave the password: when each ends."""

    def __post_init__(self) -> None:
        self._trying = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._login(scope, receive) if scope["type"] == "http" else None
        await (answer or self.app)(scope, receive, send)

    async def _login(self, scope: Scope, receive: Receive) -> Response | None:
        """What to answer instead of the page to whoever has not given the password; None where the page may answer."""
        path = scope["path"]
        if path == "/login" and scope["method"] == "POST":
            return await self._try(Request(scope, receive))
        if path == "/login":
            return HTMLResponse(_LOGIN.format(message=""))
        if path == _STARTUP or self._known(scope):
            return None
        return RedirectResponse("/login", 303) if path == "/" else PlainTextResponse("Log in first.\n", 401)

    async def _try(self, request: Request) -> Response:
        form = await request.body()  # `Guard` lets little through: nobody has given a password yet
        given = parse_qs(form.decode(errors="replace")).get("password", [""])[0]
        async with self._trying:  # one attempt at a time, and a second for each wrong one
            if not hmac.compare_digest(given.encode(), self.password.encode()):
                await asyncio.sleep(1)
                return HTMLResponse(_LOGIN.format(message="That is not the password. / 密码不对。"), 401)
        now = time.monotonic()
        self.sessions = {key: end for key, end in self.sessions.items() if end > now}
        key = secrets.token_urlsafe(32)
        self.sessions[key] = now + SESSION_SECONDS
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, key, max_age=SESSION_SECONDS, httponly=True, samesite="strict")
        return answer

    def _known(self, scope: Scope) -> bool:
        return self.sessions.get(_cookies(scope).get(COOKIE, ""), 0.0) > time.monotonic()


@dataclass
class GradioSessions:
    """ASGI middleware for inside a `Guard`: whom Gradio's own login let in is unknown to it again after hours.

    Gradio marks them by cookies whose names begin with `access-token`, and never forgets one.
    """

    app: ASGIApp
    ends: dict[str, float] = field(default_factory=dict)
    """Of each token that was given out: when it ends."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        now = time.monotonic()
        known = {name: value for name, value in _cookies(scope).items() if not self._ended(name, value, now)}
        cookie = "; ".join(f"{name}={value}" for name, value in known.items())
        others = [pair for pair in scope["headers"] if pair[0] != b"cookie"]
        headers = [*others, (b"cookie", cookie.encode("latin-1"))] if cookie else others

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(Headers(raw=message["headers"]).getlist("set-cookie"), now)
            await send(message)

        await self.app({**scope, "headers": headers}, receive, noting)

    def _ended(self, name: str, value: str, now: float) -> bool:
        return name.startswith(_TOKEN) and self.ends.get(value, 0.0) <= now

    def _note(self, given: Collection[str], now: float) -> None:
        tokens = [value for one in given for name, value in cookie_parser(one).items() if name.startswith(_TOKEN)]
        if tokens:
            self.ends = {token: end for token, end in self.ends.items() if end > now}
            self.ends |= dict.fromkeys(filter(None, tokens), now + SESSION_SECONDS)


def _cookies(scope: Scope) -> dict[str, str]:
    return cookie_parser(Headers(scope=scope).get("cookie", ""))


def _name(host: str) -> str:
    """The name in a Host header, without the port: `[::1]:7860` -> `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def guards(host: str, password: str | None, names: Collection[str] = ()) -> list[Middleware]:
    """What stands before a page that listens there; `names` are those under which a proxy serves it."""
    if password is None:
        return [Middleware(Guard, hosts=hosts(host, names))]
    return [Middleware(Guard, hosts=hosts(host, names), also={"/login"}), Middleware(Password, password=password)]


def hosts(host: str, names: Collection[str] = ()) -> frozenset[str]:
    """Names under which a page that listens there may be asked for, with those that a proxy has for it."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        return frozenset({host, *_LOOPBACK, *names})
    own = {address.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for address in addresses}
    return frozenset({*own, *_LOOPBACK, *names, socket.gethostname().lower()})
