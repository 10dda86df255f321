"""Tab Result: the report, and downloads of the trained models."""

from pathlib import Path
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.page import EVENT, OF_RUN, QUIET, DashboardPage, as_updates
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.served import exports
from lowrank_rlhf.dashboard.tabs.runs_html import command_line, note, report_frame
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.dashboard.wording import error_text, worded
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import memory
from lowrank_rlhf.run.results.rounds import prefix

_REPORT = "report.html"


def build(page: DashboardPage) -> None:
    """Lay out the tab and connect its events."""
    texts = page.texts
    texts.add(gr.Markdown(elem_classes="heading"), value="result.download_title")
    with gr.Row(elem_classes="actions"):
        buttons = {
            kind: texts.add(gr.Button(elem_id=f"export-{kind}"), value=f"result.{kind}") for kind in exports.KINDS
        }
    outcome = gr.HTML("", elem_id="export-outcome")
    ready = gr.HTML("", elem_id="export-ready")
    report = gr.HTML("", elem_id="report")
    previous = gr.State(None)

    def refresh(chosen: str | None, language: str, before: Any) -> list[Any]:
        now = _contents(page.runs, chosen, language)
        return [gr.skip()] * 3 if now == before else as_updates([*now, now])

    def export(kind: str) -> Any:
        return lambda chosen, language: _export(page, chosen, language, kind)

    inputs, outputs = [page.run, page.language, previous], [ready, report, previous]
    for event in (*page.while_shown, page.run.change, page.language.change):
        event(refresh, inputs, outputs, **OF_RUN)
    page.run.change(lambda: "", None, outcome, **QUIET)
    for kind, button in buttons.items():
        clicked = button.click(export(kind), [page.run, page.language], outcome, **EVENT)
        clicked.then(refresh, inputs, outputs, **OF_RUN)


def _export(page: DashboardPage, chosen: str | None, language: str, kind: str) -> str:
    """Start an export and return its command, or the reason for not starting it, as HTML."""
    if not chosen:
        return note(t("runs.choose", language))
    try:
        run = page.runs.path(chosen)
        if busy := page.runs.training():
            return note(t("result.training", language, run=busy), "bad")
        if exports.state(run, kind) == "working":
            return note(t("result.working", language, kind=t(f"result.{kind}", language)))
        page.chat.close()
        command = exports.start(run, kind)
    except UserError as error:
        return note(error_text(error, language), "bad")
    return command_line(jobs.as_typed(command), language)


def _contents(runs: RunsFolder, chosen: str | None, language: str) -> tuple[str, str]:
    """Return the exports and the report of the chosen run as HTML."""
    try:
        run = runs.path(chosen) if chosen else None
    except UserError:
        run = None
    if run is None:
        return "", f'<p class="empty">{html(t("runs.choose", language))}</p>'
    ready = "".join(_exported(run, kind, language) for kind in exports.KINDS)
    return ready, _report(run, language)


def _exported(run: Path, kind: str, language: str) -> str:
    state = exports.state(run, kind)
    if state == "none":
        return ""
    title = t(f"result.{kind}", language)
    if state == "ready":
        link = f"/runs/{run.name}/exports/{kind}.zip"
        text = t("result.download", language, kind=title, size=memory(exports.size(run, kind)))
        folder = html(str(exports.folder(run, kind)))
        body = f'<a href="{link}" download>{html(text)}</a> <code>{folder}</code>'
    else:
        style = "info" if state == "working" else "bad"
        why = worded(exports.error(run, kind), language) or exports.log_end(run, kind)
        body = html(t(f"result.{state}", language, kind=title)) + note(why, style)
    return f'<div class="export {state}">{body}</div>'


def _report(run: Path, language: str) -> str:
    rounds = [each for each in RunDir(run).rounds if each.artifact(_REPORT).is_file()]
    if not rounds:
        return f'<p class="empty">{html(t("result.no_report", language))}</p>'
    path = rounds[-1].artifact(_REPORT)
    try:
        rounds[-1].check_outputs(_REPORT)
    except UserError as error:
        return note(error_text(error, language), "bad")
    source = f"/runs/{run.name}/{prefix(rounds[-1].number)}{_REPORT}"
    version = path.stat().st_mtime_ns
    return (
        f'<p><a href="{source}#{language}" target="_blank" rel="noopener">{html(t("result.open", language))}</a></p>'
        + report_frame(f"{source}?v={version}#{language}", t("result.report", language))
    )
