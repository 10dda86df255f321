"""The page for annotators alone: one run's answers to rank, behind a password, and nothing else of this machine."""

import asyncio
import hmac
import socket
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from lowrank_rlhf.dashboard.guard import GradioSessions, Guard, hosts
from lowrank_rlhf.dashboard.ranking.text import LANGUAGES, language_of, say
from lowrank_rlhf.dashboard.tabs import rank
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.labelling import annotator_name

_NAMES = {"en": "English", "zh": "中文"}
_FONTS = ["system-ui", "Noto Sans", "Noto Sans CJK SC", "sans-serif"]
_CSS = """
.gradio-container .main.fillable { max-width: 1180px !important; margin: 0 auto; padding: .6rem .8rem !important; }
.gradio-container .html-container { padding: 0 !important; }
#ranking-top { align-items: center; gap: .6rem; flex-wrap: nowrap; }
#ranking-top h1 { font-size: 1.15rem; margin: 0; }
#ranking-language .wrap { flex-wrap: nowrap; gap: .3rem; } #ranking-language label { padding: .3rem .6rem; }
"""
SHORTEST_PASSWORD = 12
_WRONG_COSTS = 1.0  # seconds
_LOGIN = {"/login", "/login_check", "/logout"}
"""Gradio's own addresses for names and passwords."""


def build(folder: Path) -> gr.Blocks:
    """The page for one folder with answers to rank."""
    with gr.Blocks(title="lowrank_rlhf", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="ranking-top"):
            title = gr.HTML(_title(LANGUAGES[0]), min_width=120)
            language = gr.Radio(
                [(_NAMES[code], code) for code in LANGUAGES],
                value=LANGUAGES[0],
                show_label=False,
                container=False,
                min_width=190,
                scale=0,
                elem_id="ranking-language",
            )
        rank.build(folder.parent, gr.State(folder.name), language)

        def browsers_language(request: gr.Request) -> str:
            return language_of(request.headers.get("accept-language", ""))

        blocks.load(browsers_language, None, language, api_visibility="private", show_progress="hidden")
        language.change(_title, language, title, api_visibility="private", show_progress="hidden")
    return blocks


def _title(language: str) -> str:
    return f"<h1>{say('page.title', language)}</h1>"


def serve(
    folder: Path, host: str, port: int, password: str, told: Callable[[str], None], names: Collection[str] = ()
) -> None:
    """Serve the page until Ctrl-C. `told` gets its address once it can be opened; `names` are a proxy's for it.

    Raises `UserError` for a password that is too short and where nothing can listen at that address.
    """
    if len(password) < SHORTEST_PASSWORD:
        raise UserError(f"the password has {len(password)} characters; it needs {SHORTEST_PASSWORD}")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            port = probe.getsockname()[1]
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot listen there: {error.strerror}; choose another --port") from None
    blocks = build(folder)
    login: Any = _login(password)  # Gradio awaits it, and its types do not say so
    blocks.launch(
        auth=login,
        auth_message=say("login.title", LANGUAGES[0]),
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        run_history=False,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=True,
        footer_links=[],
        app_kwargs={
            "middleware": [Middleware(Guard, hosts=hosts(host, names), also=_LOGIN), Middleware(GradioSessions)],
            "docs_url": None,
            "redoc_url": None,
        },
        theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONTS),
        css=_CSS,
    )
    told(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    blocks.block_thread()


def _login(password: str) -> Callable[[str, str], Awaitable[bool]]:
    """Anybody who knows the password comes in, under a name of their own."""
    trying = asyncio.Lock()

    async def check(name: str, given: str) -> bool:
        try:
            annotator_name(name)
        except UserError:
            return False
        async with trying:  # one attempt at a time; those who are in go on meanwhile
            if hmac.compare_digest(given.encode(), password.encode()):
                return True
            await asyncio.sleep(_WRONG_COSTS)
            return False

    return check
