"""Redo a stage of the chosen run, after a question that lists the results that are set aside."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gradio as gr

from lowrank_rlhf.dashboard.page import EVENT, QUIET, DashboardPage
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.text import t
from lowrank_rlhf.pipeline.selection import built_on, named
from lowrank_rlhf.run.progress import duration
from lowrank_rlhf.run.results.rounds import split
from lowrank_rlhf.stages import of_rounds

_HIDE: dict[str, Any] = gr.update(visible=False)


class Redo(NamedTuple):
    """Parts that the rest of the tab uses."""

    stage: gr.Dropdown
    button: gr.Button
    confirmed: Any
    """Event of a confirmed redo."""


def build(page: DashboardPage, start: Callable[[str, str, str], str]) -> Redo:
    """Lay out the fold and connect it. `start` redoes a run's stage and returns the outcome in a language as HTML."""
    texts = page.texts
    with texts.add(gr.Accordion(open=False, elem_id="again"), label="runs.again"):
        with gr.Row(elem_classes="actions"):
            stage = texts.add(gr.Dropdown([], elem_id="redo-stage"), label="runs.redo_stage", info="runs.redo_info")
            button = texts.add(gr.Button(interactive=False, elem_id="redo"), value="runs.redo")
        with gr.Column(visible=False, elem_id="redo-question") as question:
            goes = gr.HTML("", elem_id="redo-goes")
            with gr.Row(elem_classes="actions"):
                yes = texts.add(gr.Button(variant="stop", elem_id="redo-yes"), value="runs.redo_yes")
                no = texts.add(gr.Button(elem_id="redo-no"), value="runs.redo_no")
        outcome = gr.HTML("", elem_id="redo-outcome")
    asked = gr.State(None)

    def ask(chosen: str | None, language: str, stage: str | None) -> list[Any]:
        return _ask(page, chosen, language, stage)

    def confirm(asked: Any, language: str) -> list[Any]:
        return [_HIDE, None, start(asked[0], asked[1], language) if asked else gr.skip()]

    button.click(ask, [page.run, page.language, stage], [question, goes, asked, outcome], **EVENT)
    confirmed = yes.click(confirm, [asked, page.language], [question, asked, outcome], **EVENT)
    gr.on([no.click, page.run.change], lambda: [_HIDE, None, ""], None, [question, asked, outcome], **QUIET)
    return Redo(stage, button, confirmed)


def _ask(page: DashboardPage, chosen: str | None, language: str, stage: str | None) -> list[Any]:
    """Ask for confirmation, with a list of the results that a redo sets aside."""
    if not chosen or not stage:
        why = note(t("runs.redo_which" if chosen else "runs.choose", language))
        return [_HIDE, "", None, why]
    run = page.runs.status(chosen)
    lines = [t("runs.redo_question", language, run=chosen, stage=stage)]
    known = list(of_rounds(max(split(name)[0] for name in run.stages)))
    for again in built_on(named([stage], known), known):
        if mark := run.marks.get(again.name):
            files = ", ".join(name for name in again.writes if (run.path / name).exists())
            lines.append(t("runs.redo_goes", language, stage=again.name, time=duration(mark.seconds), files=files))
    return [gr.update(visible=True), note("\n".join(lines), "bad"), [chosen, stage], ""]
