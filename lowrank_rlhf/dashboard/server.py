"""Server of a page: the same address check, request guard, login and launch for every page."""

import os
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import psutil
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from lowrank_rlhf.dashboard.access.guard import MAX_BODY_BYTES, RequestGuard
from lowrank_rlhf.dashboard.access.login import PATHS, Login
from lowrank_rlhf.dashboard.access.password import LOOPBACK
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.allocator import return_large_blocks
from lowrank_rlhf.preferences.team.invitations import Invitations

_FONTS = ["system-ui", "Noto Sans", "Noto Sans CJK SC", "sans-serif"]
_MONO = ["ui-monospace", "Noto Sans Mono", "monospace"]
_DONE, _DONE_ZH = {"common.complete": "Done"}, {"common.complete": "完成"}
_ANNOUNCED = {"en": _DONE, "zh": _DONE_ZH, "zh-CN": _DONE_ZH, "zh-TW": _DONE_ZH}
"""Word for the end of an event, which Gradio 6.31 announces to screen readers and translates into no language."""
_NO_STATISTICS = {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(sys.maxsize)}
"""Without these Gradio 6.31 makes a table of the last 10,000 events after each event, for a view that no page has."""
_SCRIPTS = [Path(__file__).parent / "static" / name for name in ("session.js", "links.js")]
_SESSION_CSS = """
#session-ended { position: sticky; top: 0; z-index: 1000; padding: .7rem 1rem; text-align: center; color: #1c1e21;
  background: #fff4e5; border-bottom: 2px solid #c2570c; }
#session-ended a { font-weight: 600; text-decoration: underline; white-space: nowrap; color: #1f6fb2; }
body:has(> #session-ended) .toast-wrap { display: none; }
"""
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared, not listened on


@dataclass(frozen=True)
class Address:
    """Address that a page listens on. `proxy_names` are host names under which a proxy serves it."""

    host: str
    port: int
    """0 takes a free one."""
    proxy_names: Collection[str] = ()

    @property
    def url(self) -> str:
        """Return the page's URL on this computer."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def host_names(self) -> frozenset[str]:
        """Return the names and addresses under which the page may be requested."""
        own = {self.host}
        if self.host in _EVERY_ADDRESS:
            interfaces = psutil.net_if_addrs().values()
            own = {address.address.partition("%")[0] for addresses in interfaces for address in addresses}
            own.add(socket.gethostname().lower())
        return frozenset({*own, *LOOPBACK, *self.proxy_names})

    def checked(self) -> "Address":
        """Return the address with its actual port. Raises `UserError` if the page cannot listen on it."""
        try:
            with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self.host, self.port))
                return Address(self.host, probe.getsockname()[1], self.proxy_names)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self.host}:{self.port}: cannot listen: {reason}. Choose another --port.") from None


def middleware(
    address: Address,
    password: str | None,
    checked_name: Callable[[str], str] | None = None,
    prefixes: tuple[str, ...] = (),
    upload_prefixes: tuple[str, ...] = (),
    invitations: Invitations | None = None,
) -> list[Middleware]:
    """Return the guard of a page and, with a password, its login.

    `prefixes` are the paths of the page's own routes, `upload_prefixes` those that take a file; `invitations` the
    personal links of a page for annotators.
    """
    paths = {"prefixes": prefixes, "upload_prefixes": upload_prefixes}
    hosts = address.host_names()
    if password is None:
        return [Middleware(RequestGuard, hosts=hosts, **paths)]
    login = Middleware(Login, password=password, checked_name=checked_name, invitations=invitations)
    return [Middleware(RequestGuard, hosts=hosts, login_paths=PATHS, **paths), login]


def serve(
    blocks: gr.Blocks,
    address: Address,
    protection: Sequence[Middleware],
    css: str,
    on_ready: Callable[[], Any],
    routes: Sequence[BaseRoute] = (),
) -> None:
    """Serve a page until Ctrl-C. `on_ready` is called when it can be opened."""
    if not address.proxy_names:  # no proxy is expected: a visitor must not choose the address that the login counts
        os.environ["FORWARDED_ALLOW_IPS"] = ""
    os.environ |= _NO_STATISTICS
    return_large_blocks()
    blocks.queue()
    blocks.launch(
        server_name=address.host,
        server_port=address.port,
        share=False,
        ssr_mode=False,
        run_history=False,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=True,
        footer_links=[],
        allowed_paths=[],
        max_file_size=MAX_BODY_BYTES,
        state_session_capacity=100,
        app_kwargs={
            "middleware": list(protection),
            "routes": list(routes),
            "docs_url": None,
            "redoc_url": None,
        },
        theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONO),
        css=css + _SESSION_CSS,
        head="".join(f"<script>{script.read_text(encoding='utf-8')}</script>" for script in _SCRIPTS),
        i18n=gr.I18n(**_ANNOUNCED),
    )
    on_ready()
    blocks.block_thread()
