"""Delete the chosen run after a question, restore deleted runs, and remove them for good after another question."""

from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard import deleted_runs
from lowrank_rlhf.dashboard.page import EVENT, QUIET, DashboardPage
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.text import t
from lowrank_rlhf.dashboard.wording import error_text
from lowrank_rlhf.errors import UserError

_HIDE: dict[str, Any] = gr.update(visible=False)
_SHOW: dict[str, Any] = gr.update(visible=True)


def build(page: DashboardPage) -> list[Any]:
    """Lay out the buttons and connect them.

    Returns the buttons that archive the chosen run and bring it back, and the events after which the list has changed.
    """
    texts = page.texts
    with texts.add(gr.Accordion(open=False, elem_id="deleting"), label="delete.title") as block:
        with gr.Row(elem_classes="actions"):
            # Two buttons, so that a late click does what its button says.
            archive = texts.add(gr.Button(elem_id="archive-run"), value="delete.archive")
            unarchive = texts.add(gr.Button(visible=False, elem_id="unarchive-run"), value="delete.unarchive")
            delete = texts.add(gr.Button(elem_id="delete-run"), value="delete.delete")
        with gr.Column(visible=False, elem_id="delete-question") as question:
            asks = gr.HTML("", elem_id="delete-asks")
            with gr.Row(elem_classes="actions"):
                yes = texts.add(gr.Button(variant="stop", elem_id="delete-yes"), value="delete.yes")
                no = texts.add(gr.Button(elem_id="delete-no"), value="runs.redo_no")
        with gr.Row(elem_classes="actions"):
            gone = texts.add(gr.Dropdown([], elem_id="deleted-runs"), label="delete.deleted", info="delete.info")
            restore = texts.add(gr.Button(elem_id="restore-run"), value="delete.restore")
            remove = texts.add(gr.Button(elem_id="remove-run"), value="delete.remove")
        outcome = gr.HTML("", elem_id="delete-outcome")
    asked = gr.State(None)

    def ask(kind: str) -> Any:
        return lambda name, language: _ask(kind, name, language)

    def confirm(given: Any, language: str) -> list[Any]:
        kind, name = given or ("", "")
        return [_HIDE, None, *(_carry_out(page, kind, name, language) if name else [gr.skip()] * 2)]

    def bring_back(name: str | None, language: str) -> list[Any]:
        return _carry_out(page, "restore", name, language) if name else [note(t("delete.which", language)), gr.skip()]

    def put_away(archived: bool) -> Any:
        return lambda name, language: _archive(page, name, language, archived)

    question_parts = [question, asks, asked, outcome]
    delete.click(ask("delete"), [page.run, page.language], question_parts, **EVENT)
    remove.click(ask("remove"), [gone, page.language], question_parts, **EVENT)
    no.click(lambda: [_HIDE, None], None, [question, asked], **QUIET)
    page.run.change(lambda: [_HIDE, None], None, [question, asked], **QUIET)
    done = [
        archive.click(put_away(True), [page.run, page.language], outcome, **EVENT),
        unarchive.click(put_away(False), [page.run, page.language], outcome, **EVENT),
        yes.click(confirm, [asked, page.language], [question, asked, outcome, gone], **EVENT),
        restore.click(bring_back, [gone, page.language], [outcome, gone], **EVENT),
    ]
    block.expand(lambda: _choices(page), None, gone, **QUIET)
    return [archive, unarchive, *done]


def _ask(kind: str, name: str | None, language: str) -> list[Any]:
    """Ask before a run is deleted, or before a deleted one is removed for good."""
    if not name:
        return [_HIDE, "", None, note(t("runs.choose" if kind == "delete" else "delete.which", language))]
    run = name if kind == "delete" else deleted_runs.run_of(name)
    return [_SHOW, note(t(f"question.{kind}", language, run=run), "bad"), [kind, name], ""]


def _archive(page: DashboardPage, name: str | None, language: str, archived: bool) -> str:
    """Take the run out of the list, or back into it, and return the outcome."""
    if not name:
        return note(t("runs.choose", language))
    try:
        page.runs.archive(name, archived)
    except UserError as error:
        return note(error_text(error, language), "bad")
    return note(t("outcome.archive" if archived else "outcome.restore", language, run=name), "good")


def _carry_out(page: DashboardPage, kind: str, name: str, language: str) -> list[Any]:
    """Delete, restore or remove, and return the outcome and the deleted runs."""
    try:
        if kind == "delete":
            deleted_runs.delete(page.runs, name)
            run = name
            if page.chat.run == page.runs.path(name):
                page.chat.close()
        elif kind == "restore":
            run = deleted_runs.restore(page.runs, name)
        else:
            run = deleted_runs.run_of(name)
            deleted_runs.remove(page.runs, name)
    except UserError as error:
        return [note(error_text(error, language), "bad"), _choices(page)]
    return [note(t(f"outcome.{kind}", language, run=run), "good"), _choices(page)]


def _choices(page: DashboardPage) -> Any:
    names = deleted_runs.deleted(page.runs)
    labels = [(f"{deleted_runs.run_of(name)} · {deleted_runs.deleted_at(name):%Y-%m-%d %H:%M}", name) for name in names]
    return gr.update(choices=labels, value=next(iter(names), None))
