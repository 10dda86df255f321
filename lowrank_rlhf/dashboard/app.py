"""The dashboard: a page with a tab for each activity, in two languages."""

import os
import sys
import webbrowser
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard import server
from lowrank_rlhf.dashboard.browser import address
from lowrank_rlhf.dashboard.browser.storage import with_storage
from lowrank_rlhf.dashboard.chat_worker import ChatWorker
from lowrank_rlhf.dashboard.page import QUIET, SECONDS, DashboardPage, Texts
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.served.routes import routes
from lowrank_rlhf.dashboard.served.uploads import PREFIX, upload_routes
from lowrank_rlhf.dashboard.server import Address
from lowrank_rlhf.dashboard.tabs import compare, rank, result, runs, talk, watch
from lowrank_rlhf.dashboard.text import LANGUAGE_LABEL, LANGUAGES
from lowrank_rlhf.reports.svg.drawing import CHART_CSS

_CSS = Path(__file__).parent / "static" / "page.css"
# The language chosen earlier in this browser, else the browser's own.
_CHOOSE_LANGUAGE = with_storage("""() => {
  const kept = stored((storage) => storage.getItem('lowrank-language'));
  const own = navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en';
  return document.documentElement.lang = kept === 'en' || kept === 'zh' ? kept : own;
}""")
_KEEP_LANGUAGE = with_storage("""(language) => {
  stored((storage) => storage.setItem('lowrank-language', language));
  document.documentElement.lang = language;
  return language;
}""")
_SWITCH_THEME = with_storage("""() => {
  const dark = document.body.classList.toggle('dark');
  stored((storage) => storage.setItem('lowrank-light', dark ? 'dark' : 'light'));
}""")
_RESTORE_THEME = with_storage("""() => {
  const kept = stored((storage) => storage.getItem('lowrank-light'));
  if (kept) document.body.classList.toggle('dark', kept === 'dark');
}""")
Tab = Callable[[DashboardPage], None]


def build(folder: RunsFolder, chat: ChatWorker) -> gr.Blocks:
    """Return the page for a folder of runs."""
    texts = Texts()
    with gr.Blocks(title="lowrank_rlhf", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="top"):
            gr.HTML("<h1>lowrank_rlhf</h1>", elem_id="title", min_width=140)
            names = folder.listed()
            run = texts.add(
                gr.Dropdown(names, value=next(iter(names), None), elem_id="run", scale=2, min_width=180),
                label="page.run",
            )
            language = _language_switch()
            theme = gr.Button("◐", elem_id="theme", min_width=44, scale=0)
        timers, pages = {name: gr.Timer(SECONDS, active=False) for name in _TABS}, {}
        with gr.Tabs(elem_id="tabs"):
            for name, build_tab in _TABS.items():
                with texts.add(gr.Tab(id=name, elem_id=f"tab-{name}"), label=f"tab.{name}") as tab:
                    tab.select(partial(_only, name), None, [*timers.values()], js=address.keep_tab(name), **QUIET)
                    pages[name] = DashboardPage(folder, run, language, texts, chat, tab, timers[name])
                    build_tab(pages[name])
        page = pages["runs"]
        address.connect(_connect(blocks, page, theme), page, list(_TABS))
    _show_progress_of_hidden_events_on(theme, blocks)
    return blocks


def _show_progress_of_hidden_events_on(component: gr.Button, blocks: gr.Blocks) -> None:
    """Name one small component for the progress that is not shown.

    Gradio's script copies every component that may show some event's progress, with its value, at each event.
    """
    for event in blocks.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = [component]


def _only(shown: str) -> list[dict[str, Any]]:
    """Return the timers of all tabs, of which that of the shown one is active."""
    return [gr.update(active=name == shown) for name in _TABS]


def _language_switch() -> gr.Radio:
    return gr.Radio(
        [(name, code) for code, name in LANGUAGES.items()],
        value="en",
        label=LANGUAGE_LABEL,
        show_label=False,
        container=False,
        elem_id="language",
        min_width=190,
        scale=0,
    )


def _rank(page: DashboardPage) -> None:
    rank.build(page.runs.folder, page.run, page.language, resume=lambda run: runs.resume_after_ranking(page, run))


_TABS: dict[str, Tab] = {
    "runs": runs.build,
    "rank": _rank,
    "watch": watch.build,
    "talk": talk.build,
    "result": result.build,
    "compare": compare.build,
}


def _connect(blocks: gr.Blocks, page: DashboardPage, theme: gr.Button) -> Any:
    """Connect the events of language and theme; return the event after which all texts are shown."""
    shown = blocks.load(None, None, page.language, js=_CHOOSE_LANGUAGE, **QUIET).then(
        page.texts.updates, page.language, page.texts.components, **QUIET
    )
    blocks.load(None, None, None, js=_RESTORE_THEME, **QUIET)
    page.language.change(None, page.language, None, js=_KEEP_LANGUAGE, **QUIET)
    page.language.change(page.texts.updates, page.language, page.texts.components, **QUIET)
    theme.click(None, None, None, js=_SWITCH_THEME, **QUIET)
    return shown


def serve(
    folder: Path, listens_on: Address, password: str | None, *, open_browser: bool, on_ready: Callable[[str], None]
) -> None:
    """Serve the page until Ctrl-C. `on_ready` gets its URL. Raises `UserError` if the address cannot be used."""
    listens_on = listens_on.checked()
    runs = RunsFolder(folder)

    def ready() -> None:
        on_ready(listens_on.url)
        if open_browser and _has_desktop():
            webbrowser.open(listens_on.url)

    with closing(ChatWorker()) as chat:
        css = _CSS.read_text(encoding="utf-8") + CHART_CSS
        server.serve(
            build(runs, chat),
            listens_on,
            server.middleware(listens_on, password, prefixes=("/runs/", "/compare"), upload_prefixes=(PREFIX,)),
            css,
            ready,
            [*routes(runs), *upload_routes(folder)],
        )


def _has_desktop() -> bool:
    """Return True if a browser opens a window; without a desktop it might take over the terminal."""
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
