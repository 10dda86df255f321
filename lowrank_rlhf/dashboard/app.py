"""The page as a whole: its tabs, its language, and the server that it is sent from."""

import os
import socket
import sys
import webbrowser
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from lowrank_rlhf.dashboard import run_status
from lowrank_rlhf.dashboard.guard import guards
from lowrank_rlhf.dashboard.page import QUIET, Page
from lowrank_rlhf.dashboard.routes import routes
from lowrank_rlhf.dashboard.tabs import rank, result, runs, talk, watch
from lowrank_rlhf.dashboard.text import LANGUAGES, Texts

_CSS = Path(__file__).parent / "static" / "page.css"
_MONO = ["ui-monospace", "Noto Sans Mono", "monospace"]
_FONTS = ["system-ui", "Noto Sans", "Noto Sans CJK SC", "sans-serif"]
# The language that was chosen here before, or else the browser's.
_CHOOSE_LANGUAGE = """() => {
  const kept = localStorage.getItem('lowrank-language');
  const own = navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en';
  return document.documentElement.lang = kept === 'en' || kept === 'zh' ? kept : own;
}"""
_KEEP_LANGUAGE = """(language) => {
  localStorage.setItem('lowrank-language', language);
  document.documentElement.lang = language;
  return language;
}"""
_SWITCH_LIGHT = """() => {
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('lowrank-light', dark ? 'dark' : 'light');
}"""
_SAME_LIGHT = """() => {
  const kept = localStorage.getItem('lowrank-light');
  if (kept) document.body.classList.toggle('dark', kept === 'dark');
}"""
Tab = Callable[[Page], None]


def build(folder: Path) -> gr.Blocks:
    """The page for the runs in a folder."""
    texts = Texts()
    with gr.Blocks(title="lowrank_rlhf", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="top"):
            gr.HTML("<h1>lowrank_rlhf</h1>", elem_id="title", min_width=140)
            names = run_status.names(folder)
            run = texts.add(
                gr.Dropdown(names, value=next(iter(names), None), elem_id="run", scale=2, min_width=180),
                label="page.run",
            )
            language = gr.Radio(
                [(name, code) for code, name in LANGUAGES.items()],
                value="en",
                show_label=False,
                container=False,
                elem_id="language",
                min_width=190,
                scale=0,
            )
            light = gr.Button("◐", elem_id="light", min_width=44, scale=0)
        page = Page(folder, run, language, texts)
        with gr.Tabs(elem_id="tabs"):
            for name, build_tab in _tabs().items():
                with texts.add(gr.Tab(id=name, elem_id=f"tab-{name}"), label=f"tab.{name}"):
                    build_tab(page)
        _behave(blocks, page, light)
    return blocks


def _tabs() -> dict[str, Tab]:
    return {
        "runs": runs.build,
        "rank": _rank,
        "watch": watch.build,
        "talk": talk.build,
        "result": result.build,
    }


def _rank(page: Page) -> None:
    rank.build(page.runs, page.run, page.language, resume=lambda run: runs.go_on_with_rankings(page.runs, run))


def _behave(blocks: gr.Blocks, page: Page, light: gr.Button) -> None:
    """What holds for all tabs: the language, and light or dark."""

    def chosen(run: str | None) -> Any:
        names = run_status.names(page.runs)
        return gr.update(choices=names, value=run if run in names else next(iter(names), None))

    blocks.load(None, None, page.language, js=_CHOOSE_LANGUAGE, **QUIET).then(
        page.texts.updates, page.language, page.texts.components, **QUIET
    ).then(chosen, page.run, page.run, **QUIET)
    blocks.load(None, None, None, js=_SAME_LIGHT, **QUIET)
    page.language.change(None, page.language, None, js=_KEEP_LANGUAGE, **QUIET)
    page.language.change(page.texts.updates, page.language, page.texts.components, **QUIET)
    light.click(None, None, None, js=_SWITCH_LIGHT, **QUIET)


def serve(
    folder: Path,
    host: str,
    port: int,
    password: str | None,
    *,
    open_browser: bool,
    say: Callable[[str], None],
    names: Collection[str] = (),
) -> None:
    """Serve the page until Ctrl-C; `names` are a proxy's for it. Raises OSError where the port is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
    blocks = build(folder)
    launch(blocks, host, port, guards(host, password, names), folder)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    say(f"The page is at {url}\nCtrl-C closes it; runs that it started go on.")
    if open_browser and _desktop():
        webbrowser.open(url)
    blocks.block_thread()


def _desktop() -> bool:
    """Whether a browser would be a window: in a plain terminal it could be a program that takes the terminal over."""
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())


def launch(blocks: gr.Blocks, host: str, port: int, middleware: list[Middleware], folder: Path) -> None:
    """Start the server in a thread of its own, with nothing of Gradio's that leads out of this machine."""
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        run_history=False,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=True,
        footer_links=[],
        allowed_paths=[],
        max_file_size="64mb",
        state_session_capacity=100,
        app_kwargs={"middleware": middleware, "routes": routes(folder), "docs_url": None, "redoc_url": None},
        theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONO),
        css=_CSS.read_text(encoding="utf-8"),
    )
