"""The first thing on the page: what this program does, and three ways to begin."""

from typing import Any, NamedTuple

import gradio as gr

from lowrank_rlhf.config.loading import preset_path
from lowrank_rlhf.dashboard.browser import yaml_draft
from lowrank_rlhf.dashboard.page import EVENT, QUIET, DashboardPage
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs import new_run
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.text import LANGUAGES, explained, t

_EXAMPLE = "quickstart"
_SHOW = "() => setTimeout(() => document.querySelector('#%s').scrollIntoView({behavior: 'smooth'}), 300)"
_TO_RANK = "(outcome) => { if (!outcome) document.querySelector('#tab-rank-button').click(); }"


class Start(NamedTuple):
    """Parts that the rest of the tab uses."""

    block: gr.Accordion
    started: Any
    """Event of a start of a run."""


def build(page: DashboardPage) -> Start:
    """Lay out the start block and the form for a new run, and connect their events."""
    texts = page.texts
    first = next(iter(LANGUAGES))
    with texts.add(gr.Accordion(open=not page.runs.listed(), elem_id="start-here"), label="begin.title") as block:
        about = gr.HTML(_about(first), elem_id="start-about")
        with gr.Row(elem_classes="actions"):
            example = texts.add(gr.Button(elem_id="try-example"), value="begin.example")
            own = texts.add(gr.Button(variant="primary", elem_id="own-prompts"), value="begin.own")
            rank = texts.add(gr.Button(elem_id="rank-for"), value="begin.rank")
        outcome = gr.HTML("", elem_id="start-outcome")
    form = new_run.build(page)

    def waiting(language: str) -> tuple[Any, str]:
        return _waiting(page.runs, language)

    page.language.change(_about, page.language, about, **QUIET)
    loaded = example.click(
        _example, [form.preset, form.yaml],
        [form.accordion, form.guided, form.preset, form.loaded, form.yaml, form.name],
        js=yaml_draft.asks_first(_EXAMPLE), **EVENT,
    )  # fmt: skip
    loaded.then(None, None, None, js=_SHOW % "new-run", **QUIET)
    new_run.plan_loaded(page, form, loaded)
    own.click(_own, None, [form.accordion, form.guided], **EVENT).then(None, None, None, js=_SHOW % "guided", **QUIET)
    rank.click(waiting, page.language, [page.run, outcome], **EVENT).then(None, outcome, None, js=_TO_RANK, **QUIET)
    return Start(block, form.started)


def _about(language: str) -> str:
    return f'<p class="lead">{explained("begin.about", language)}</p>'


def _example(preset: str, kept: str) -> list[Any]:
    """Fill the form with the example's settings, unless the person keeps those that were edited."""
    if kept:
        return [gr.update(open=True), gr.skip(), gr.skip(), "", gr.skip(), gr.skip()]
    text = preset_path(preset).read_text(encoding="utf-8")
    return [gr.update(open=True), gr.update(visible=False), preset, text, text, ""]


def _own() -> list[Any]:
    return [gr.update(open=True), gr.update(visible=True)]


def _waiting(runs: RunsFolder, language: str) -> tuple[Any, str]:
    """Choose the newest run that waits for rankings, or explain how to get one."""
    found = next((name for name in runs.listed() if runs.status(name).state == "waiting"), None)
    return (found, "") if found else (gr.skip(), note(t("begin.nothing_to_rank", language)))
