"""The tab Result: the report, and the models to take home."""

from pathlib import Path
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard import exports, jobs, run_status
from lowrank_rlhf.dashboard.chat_worker import TALKER
from lowrank_rlhf.dashboard.page import EVENT, QUIET, Page
from lowrank_rlhf.dashboard.tabs.runs_html import command_line, note
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.progress import memory

_SECONDS = 2.0


def build(page: Page) -> None:
    """Lay the tab out and say what each part does."""
    texts = page.texts
    texts.add(gr.Markdown(elem_classes="heading"), value="result.take")
    with gr.Row(elem_classes="actions"):
        buttons = {
            what: texts.add(gr.Button(elem_id=f"export-{what}"), value=f"result.{what}") for what in exports.WHATS
        }
    said = gr.HTML("", elem_id="export-said")
    ready = gr.HTML("", elem_id="export-ready")
    report = gr.HTML("", elem_id="report")
    seen = gr.State(None)

    def refresh(chosen: str | None, language: str, before: Any) -> list[Any]:
        now = _made(page.runs, chosen, language)
        return [gr.skip()] * 3 if now == before else [*now, now]

    def export(what: str) -> Any:
        return lambda chosen, language: _export(page.runs, chosen, language, what)

    inputs, outputs = [page.run, page.language, seen], [ready, report, seen]
    gr.Timer(_SECONDS).tick(refresh, inputs, outputs, **QUIET)
    page.run.change(refresh, inputs, outputs, **QUIET)
    page.run.change(lambda: "", None, said, **QUIET)
    page.language.change(refresh, inputs, outputs, **QUIET)
    for what, button in buttons.items():
        button.click(export(what), [page.run, page.language], said, **EVENT).then(refresh, inputs, outputs, **QUIET)


def _export(folder: Path, chosen: str | None, language: str, what: str) -> str:
    """Start an export; what was started, or why it was not, as HTML."""
    if not chosen:
        return note(t("runs.choose", language))
    try:
        run = run_status.run_path(folder, chosen)
        if busy := run_status.training(folder):
            return note(t("result.training", language, run=busy), "bad")
        if exports.state(run, what)[0] == "working":
            return note(t("result.working", language, what=t(f"result.{what}", language)))
        TALKER.close()
        command = exports.start(run, what)
    except UserError as error:
        return note(str(error), "bad")
    return command_line(jobs.as_typed(command), language)


def _made(folder: Path, chosen: str | None, language: str) -> tuple[str, str]:
    """The exports and the report of the chosen run, as HTML."""
    try:
        path = run_status.run_path(folder, chosen) if chosen else None
    except UserError:
        path = None
    if path is None:
        return "", f'<p class="empty">{html(t("runs.choose", language))}</p>'
    ready = "".join(_exported(path, what, language) for what in exports.WHATS)
    return ready, _report(path, language)


def _exported(run: Path, what: str, language: str) -> str:
    state, said = exports.state(run, what)
    if state == "none":
        return ""
    title = t(f"result.{what}", language)
    if state == "ready":
        link = f"/runs/{run.name}/exports/{what}.zip"
        text = t("result.download", language, what=title, size=memory(exports.size(run, what)))
        where = html(str(exports.folder(run, what)))
        body = f'<a href="{link}" download>{html(text)}</a> <code>{where}</code>'
    else:
        kind = "" if state == "working" else "bad"
        lead = t(f"result.{state}", language, what=title)
        body = f"{html(lead)}{note(said, kind)}"
    return f'<div class="export {state}">{body}</div>'


def _report(run: Path, language: str) -> str:
    path = run / "report.html"
    if not path.is_file():
        return f'<p class="empty">{html(t("result.no_report", language))}</p>'
    source = f"/runs/{run.name}/report.html"
    version = path.stat().st_mtime_ns
    title = html(t("result.report", language))
    return (
        f'<p><a href="{source}" target="_blank" rel="noopener">{html(t("result.open", language))}</a></p>'
        f'<iframe class="report" sandbox src="{source}?v={version}" title="{title}"></iframe>'
    )
