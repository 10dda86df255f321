"""Login for a page: a form for the password, for annotators their name or a personal link; sessions end after hours.

Sessions are kept here rather than in Starlette's signed cookies, so that logging out and the end of a session take
effect on the server too.
"""

import hmac
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from starlette.authentication import SimpleUser
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lowrank_rlhf.dashboard.access.password import WrongPasswords
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.team.invitations import Invitations, digest_of

SESSION_SECONDS = 12 * 3600
COOKIE = "lowrank-session"
PATHS = frozenset({"/login", "/logout"})
_STARTUP = "/gradio_api/startup-events"  # requested by Gradio's own launch; discloses nothing
_NAME_FIELD = """<label for="username">Name / 姓名</label>
<input id="username" name="username" autocomplete="username" maxlength="100" required autofocus>"""
_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><title>lowrank_rlhf</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root{{color-scheme:light dark}}body{{font:16px system-ui,sans-serif;display:grid;place-items:center;
min-height:90vh}}h1{{font-size:1.1rem;margin:0}}form{{display:grid;gap:.8rem;width:min(20rem,85vw)}}input,button{{font:inherit;padding:.5rem}}</style>
<main><form method="post" action="{action}"><h1>lowrank_rlhf</h1>{name}<label for="password">Password / 密码</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus>
<button>Log in / 登录</button><span role="alert">{message}</span></form></main></html>"""

# The token follows the # of the link, which browsers send to no server: no log and no proxy has it.
_LINK = """<script>
function follow() {
  const found = /^#invite=([\\w-]+)$/.exec(location.hash);
  if (!found) return;
  history.replaceState(null, '', location.pathname + location.search);
  const form = document.forms[0];
  form.append(Object.assign(document.createElement('input'), { type: 'hidden', name: 'invitation', value: found[1] }));
  form.submit();
}
follow();
addEventListener('hashchange', follow);
</script>"""
_WRONG_LINK = "This link is no longer valid. Ask for a new one. / 该链接已失效，请索取新链接。"
_BY_LINK = "This person logs in with a personal link. / 此姓名须用专属链接登录。"
_NO_LINKS = "Links cannot be checked now. Tell the person who runs this page. / 暂时无法验证链接，请联系管理员。"


class _Session(NamedTuple):
    user: str
    ends_at: float
    digest: str
    """Of the invitation's token that opened it; empty after a password."""


@dataclass
class Login:
    """ASGI middleware inside a `RequestGuard`: answers with the login form until the visitor has a session.

    `checked_name` returns the name to use, or raises `UserError`; without it the form asks for the password alone.
    `invitations` are the personal links that log in without the password; their names log in by link only.
    """

    app: ASGIApp
    password: str
    checked_name: Callable[[str], str] | None = None
    invitations: Invitations | None = None
    sessions: dict[str, _Session] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._wrong = WrongPasswords()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with `scope["user"]` set, as Starlette's authentication does, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        session = self._session(scope)
        if session and not self._admitted(session):
            session = None
        response = await self._response(scope, receive, session)
        if session:
            scope["user"] = SimpleUser(session.user)
        await (response or self.app)(scope, receive, send)

    async def _response(self, scope: Scope, receive: Receive, session: _Session | None) -> Response | None:
        """Return the login's own response; None if the page may answer."""
        path = scope["path"]
        if path == "/login":
            query = scope["query_string"].decode("latin-1")
            return (
                await self._log_in(Request(scope, receive), query) if scope["method"] == "POST" else self._form(query)
            )
        if path == "/logout":
            return self._log_out(scope)
        if path == _STARTUP or session:
            return None
        if path == "/":
            return RedirectResponse(_with_query("/login", scope["query_string"].decode("latin-1")), 303)
        return PlainTextResponse("Log in first.\n", 401)

    async def _log_in(self, request: Request, query: str) -> Response:
        body = await request.body()  # bounded by `RequestGuard`, since anybody may send it
        fields = parse_qs(body.decode(errors="replace"))
        given, user, token = (fields.get(name, [""])[0] for name in ("password", "username", "invitation"))
        address = request.client.host if request.client else ""
        if seconds := self._wrong.seconds_blocked(address):
            return self._too_many(query, seconds)
        if token and self.invitations:
            return self._follow_link(self.invitations, token, address, query)
        if not hmac.compare_digest(given.encode(), self.password.encode()):
            if seconds := self._wrong.add(address, user):
                return self._too_many(query, seconds)
            return self._form(query, "Incorrect password. / 密码不对。", 401)
        try:
            user = self.checked_name(user) if self.checked_name else ""
        except UserError as error:
            return self._form(query, f"{error} / 请换一个名字。", 401)
        try:
            if self.invitations and not self.invitations.admits(user):
                return self._form(query, _BY_LINK, 401)
        except UserError:
            return self._form(query, _NO_LINKS, 503)
        return self._start_session(user, query)

    def _follow_link(self, invitations: Invitations, token: str, address: str, query: str) -> Response:
        try:
            user = invitations.annotator_of(token)
        except UserError:
            return self._form(query, _NO_LINKS, 503)
        if user is None:
            seconds = self._wrong.add(address, "")
            return self._too_many(query, seconds) if seconds else self._form(query, _WRONG_LINK, 401)
        return self._start_session(user, query, digest_of(token))

    def _start_session(self, user: str, query: str, digest: str = "") -> Response:
        now = time.monotonic()
        self.sessions = {key: session for key, session in self.sessions.items() if session.ends_at > now}
        key = secrets.token_urlsafe(32)
        self.sessions[key] = _Session(user, now + SESSION_SECONDS, digest)
        response = RedirectResponse(_with_query("/", query), 303)
        response.set_cookie(COOKIE, key, max_age=SESSION_SECONDS, httponly=True, samesite="strict")
        return response

    def _too_many(self, query: str, seconds: int) -> Response:
        minutes = math.ceil(seconds / 60)
        response = self._form(
            query,
            f"Too many wrong passwords or links. Retry in {minutes} min. / "
            f"密码或链接错误次数过多，请 {minutes} 分钟后再试。",
            429,
        )
        response.headers["Retry-After"] = str(seconds)
        return response

    def _log_out(self, scope: Scope) -> Response:
        self.sessions.pop(_cookie(scope), None)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    def _session(self, scope: Scope) -> _Session | None:
        session = self.sessions.get(_cookie(scope))
        return session if session and session.ends_at > time.monotonic() else None

    def _admitted(self, session: _Session) -> bool:
        """Return False if the person's link was revoked or replaced, or cannot be checked."""
        try:
            return not self.invitations or self.invitations.admits(session.user, session.digest)
        except UserError:
            return False

    def _form(self, query: str, message: str = "", status: int = 200) -> Response:
        """Return the form. The `query` of the page's address, its run and tab, comes back after the login."""
        action, name = escape(_with_query("/login", query)), _NAME_FIELD if self.checked_name else ""
        html = _FORM.format(action=action, name=name, message=escape(message)) + (_LINK if self.invitations else "")
        # With the page's `no-referrer` a browser posts the form with `Origin: null`, which the guard refuses.
        return HTMLResponse(html, status, headers={"Referrer-Policy": "same-origin"})


def _with_query(path: str, query: str) -> str:
    return f"{path}?{query}" if query else path


def user_name(request: Any) -> str:
    """Return the name that the visitor of a request logged in with; empty if the page asks for none."""
    received = getattr(request, "request", request)  # Gradio gives a component's server functions Starlette's request
    user = received.scope.get("user") if received else None
    return user.display_name if user else ""


def _cookie(scope: Scope) -> str:
    return cookie_parser(Headers(scope=scope).get("cookie", "")).get(COOKIE, "")
