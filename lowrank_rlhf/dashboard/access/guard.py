"""Checks on every request to a page, Gradio's own paths included.

A foreign site open in the visitor's browser must not read or control the page: the Host header stops DNS rebinding,
Origin and Sec-Fetch-Site stop cross-site requests. Starlette's TrustedHostMiddleware covers the first of these alone.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 2**20
"""Limit of a request's body. The largest is the text of a config."""
MAX_UPLOAD_BYTES = 2**25
"""Limit of a body to one of the page's `upload_prefixes`: a file of prompts."""
MAX_LOGIN_BYTES = 4096
_PREFIXES = (
    "/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/",
)  # fmt: skip
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE)
_PATHS = {
    "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/startup-events",
    "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/reset",
    "/gradio_api/app_id", "/gradio_api/component_server", "/gradio_api/component_server/",
    "/gradio_api/theme.css",
}  # fmt: skip
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    # Gradio compiles components' templates with `new Function`, hence 'unsafe-eval'. All sources are our own.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'",
}


class _TooLarge(Exception):
    """The body exceeds its limit."""


@dataclass
class RequestGuard:
    """ASGI middleware that refuses requests under foreign host names, from foreign sites and to unused paths.

    `hosts` are the names and addresses under which the page may be requested, without ports; `login_paths` the paths
    of its login, whose bodies are limited strictly since anybody may send them; `prefixes` the
    beginnings of the paths of its routes, and `upload_prefixes` those of the routes that take a file as the body.
    """

    app: ASGIApp
    hosts: Collection[str]
    login_paths: Collection[str] = ()
    prefixes: tuple[str, ...] = ()
    upload_prefixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.hosts = frozenset(host.lower() for host in self.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on to the app or answer it with a refusal."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":  # no WebSocket is used: an unanswered one is closed
            await self._answer(self._refusal(scope) or self.app, scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, method = Headers(scope=scope), scope["method"]
        host = headers.get("host", "")
        if _host_name(host) not in self.hosts:
            return PlainTextResponse("Unknown host name.\n", 403)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return PlainTextResponse("Cross-site request refused.\n", 403)
        cross = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if cross and not (method == "GET" and headers.get("sec-fetch-mode") == "navigate"):
            return PlainTextResponse("Cross-site request refused.\n", 403)
        path = scope["path"]
        allowed = _PREFIXES + self.prefixes + self.upload_prefixes
        if path not in _PATHS and path not in self.login_paths and not path.startswith(allowed):
            return PlainTextResponse("Not found.\n", 404)
        if headers.get("content-type", "").lower().startswith("multipart/"):  # Gradio would write its files to the disk
            return PlainTextResponse("File uploads are not accepted.\n", 415)
        return None

    def _limit(self, path: str) -> int:
        if path in self.login_paths:
            return MAX_LOGIN_BYTES
        return MAX_UPLOAD_BYTES if path.startswith(self.upload_prefixes) else MAX_BODY_BYTES

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer, with a limit on the body that it reads and with the security headers."""
        limit = self._limit(scope["path"])
        received, started = 0, False

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _TooLarge
            return message

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                if received > limit:  # FastAPI turned the exception into a plain 400
                    raise _TooLarge
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await app(scope, limited_receive, guarded_send)
        except _TooLarge:
            if not started:
                await PlainTextResponse("Request too large.\n", 413)(scope, receive, send)


def _host_name(host: str) -> str:
    """Return the name in a Host header without the port, `[::1]:7860` -> `::1`; empty for any other form."""
    found = _HOST.fullmatch(host)
    return found["name"].strip("[]").lower() if found else ""
