"""Tab Runs: ways to begin, a form for a new run, the list of all runs, and actions on the chosen one."""

from pathlib import Path
from typing import Any, Literal

import gradio as gr

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.browser import address
from lowrank_rlhf.dashboard.page import (
    EVENT,
    OF_RUN,
    QUIET,
    SECONDS,
    DashboardPage,
    as_updates,
    delayed_update,
    updates_of,
)
from lowrank_rlhf.dashboard.run_status import RunStatus, is_archived
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs import deleting, redo, run_filter, start
from lowrank_rlhf.dashboard.tabs.run_filter import ALL, RunFilter
from lowrank_rlhf.dashboard.tabs.runs_html import command_line, details, note, run_list
from lowrank_rlhf.dashboard.text import t
from lowrank_rlhf.dashboard.wording import error_text
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.project import NothingToRank, open_project
from lowrank_rlhf.run.directory import RunDir

Action = Literal["stop", "resume", "redo", "undo"]

_READING_SECONDS = 1.0
_ALARM_SECONDS = 0.5
_LISTED = 200
"""Runs in the list; the others are found by search and filter."""
# Sends the name of the run whose button was clicked.
_PICK = """element.addEventListener('click', (event) => {
  const run = event.target.closest('[data-run]');
  if (run) trigger('select', {index: 0, value: run.dataset.run});
});"""


def build(page: DashboardPage) -> None:
    """Lay out the tab and connect its events."""
    above = gr.Column()
    filter_row, filter_fields = run_filter.lay_out(page)
    listing = gr.HTML("", js_on_load=_PICK, elem_id="run-list")
    about = gr.HTML("", elem_id="run-about")
    # Nothing can be pressed before the chosen run is known.
    with gr.Row(elem_classes="actions"):
        stop = page.texts.add(gr.Button(variant="stop", interactive=False, elem_id="stop"), value="runs.stop")
        resume = page.texts.add(gr.Button(variant="primary", interactive=False, elem_id="resume"), value="runs.resume")
        undo = page.texts.add(gr.Button(visible=False, elem_id="undo-redo"), value="runs.undo_redo")
        rank = page.texts.add(gr.Button(visible=False, elem_id="to-rank"), value="runs.rank")
    outcome = gr.HTML("", elem_id="run-outcome")
    again = redo.build(page, lambda run, stage, language: _act(page, "redo", run, language, stage))
    previous = gr.State({})
    archive, unarchive, *changed_list = deleting.build(page)
    with above:
        begin = start.build(page)
    buttons = [stop, resume, updates_of(again.stage), again.button, undo, rank, archive, unarchive]
    outputs = [listing, about, updates_of(page.run), *buttons, begin.block, filter_row, previous]
    inputs = [page.run, page.language, previous, *filter_fields]

    def refresh(chosen: str | None, language: str, before: dict[str, Any], *wanted: str | None) -> list[Any]:
        found = _refresh(page.runs, chosen, language, before, RunFilter(*(value or "" for value in wanted)))
        return as_updates(found)

    def act(action: Action) -> Any:
        return lambda chosen, language: _act(page, action, chosen, language)

    # On all tabs: it offers new runs in the page's choice of a run too.
    gr.Timer(SECONDS).tick(refresh, inputs, outputs, **OF_RUN)
    for field in filter_fields:
        field.change(refresh, inputs, outputs, trigger_mode="always_last", **OF_RUN)
    page.run.change(refresh, inputs, outputs, **OF_RUN)
    page.language.change(refresh, inputs, outputs, **OF_RUN)
    listing.select(_picked, None, page.run, **QUIET)
    actions: list[tuple[gr.Button, Action]] = [(stop, "stop"), (resume, "resume"), (undo, "undo")]
    for button, action in actions:
        clicked = button.click(
            act(action), [page.run, page.language], outcome, js=address.OF_RUN_SHOWN, **EVENT | {"preprocess": False}
        )
        clicked.then(refresh, inputs, outputs, **OF_RUN)
    rank.click(None, None, None, js="() => document.querySelector('#tab-rank-button').click()", **QUIET)
    page.run.change(lambda: "", None, outcome, **QUIET)  # it is of the run before
    for event in (begin.started, again.confirmed, *changed_list):
        event.then(refresh, inputs, outputs, **OF_RUN)


def resume_after_ranking(page: DashboardPage, name: str) -> str:
    """Start the run's command again in the background and return it. Raises `UserError` if it cannot start."""
    path = page.runs.path(name)
    command = jobs.run_command(str(path / "config.yaml"), page.runs.folder, *_changed_rankings(path))
    page.chat.close()  # frees memory for the training
    jobs.start(path, command)
    return jobs.as_typed(command)


def _changed_rankings(path: Path) -> list[str]:
    """Return `--redo rank` if rankings changed since stage `rank` finished, else no options."""
    try:
        project = open_project(path)
    except NothingToRank:
        return []
    return ["--redo", project.rank_stage] if project.rankings_changed else []


def _missing(path: Path) -> int:
    """Return how many more prompts must be ranked before the run can resume."""
    try:
        project = open_project(path)
    except NothingToRank:
        return 0
    return max(0, project.needed - project.store.ranked_prompts())


def _picked(event: gr.SelectData) -> str:
    return str(event.value)


def _refresh(
    runs: RunsFolder, chosen: str | None, language: str, before: dict[str, Any], wanted: RunFilter = ALL
) -> list[Any]:
    """Return updates of the list and the buttons, each only if it has changed: an open dropdown stays open."""
    names = runs.names()
    searched = set(run_filter.matching(names, {}, ALL._replace(search=wanted.search)))
    statuses = runs.statuses(sorted(names, key=lambda name: name not in searched), _READING_SECONDS)
    offered = [name for name in names if name == chosen or not is_archived(runs.folder / name)]
    chooses: dict[str, Any] = (
        {} if chosen in names else {"value": next(iter(offered), None)}
    )  # another may be chosen meanwhile
    chosen = chooses.get("value", chosen)
    run = runs.status(chosen) if chosen else None
    found = run_filter.matching(names, statuses, wanted)
    shown = [statuses[name] for name in found if name in statuses][:_LISTED]
    unread = len(names) - len(statuses)
    now = {
        "listing": (shown, chosen, language, len(found), unread, bool(names), runs.alarms(shown, _ALARM_SECONDS)),
        "about": details(run, language),
        "choice": (offered, chosen),
        "archived": run is not None and run.archived,
        "empty": not offered,
        "many": len(names) > run_filter.FEW
        or any(run.archived for run in statuses.values())
        or bool(wanted.search or wanted.state),
        **_buttons(run),
    }

    def changed(update: Any, *keys: str) -> Any:
        return gr.skip() if all(now[key] == before.get(key) for key in keys) else update

    return [
        gr.skip() if now["listing"] == before.get("listing") else run_list(*now["listing"]),
        changed(now["about"], "about"),
        changed(delayed_update(choices=offered, **chooses), "choice"),
        changed(gr.update(interactive=now["can_stop"]), "can_stop"),
        changed(gr.update(interactive=now["can_resume"]), "can_resume"),
        changed(delayed_update(choices=now["redo"], value=None, interactive=bool(now["redo"])), "redo", "choice"),
        changed(gr.update(interactive=bool(now["redo"])), "redo"),
        changed(gr.update(visible=now["can_undo"]), "can_undo"),
        changed(gr.update(visible=now["can_rank"]), "can_rank"),
        changed(gr.update(visible=not now["archived"]), "archived"),
        changed(gr.update(visible=now["archived"]), "archived"),
        changed(gr.update(open=now["empty"]), "empty"),
        changed(gr.update(visible=now["many"]), "many"),
        changed(now, *now),
    ]


def _buttons(run: RunStatus | None) -> dict[str, Any]:
    """Return which actions the chosen run allows."""
    idle = run is not None and not run.busy
    return {
        "can_stop": run is not None and run.busy,
        "can_resume": idle and run is not None and run.state != "finished",
        "can_rank": run is not None and run.state == "waiting",
        "redo": run.done if idle and run is not None else [],
        "can_undo": idle and run is not None and bool(RunDir(run.path).earlier.stages()),
    }


def _act(page: DashboardPage, action: Action, chosen: str | None, language: str, stage: str | None = None) -> str:
    """Stop, resume, redo or undo a redo, and return the outcome as HTML."""
    if not chosen:
        return note(t("runs.choose", language))
    try:
        path = page.runs.path(chosen)
        if action == "stop":
            return note(t("runs.stopping" if jobs.stop(path) else "runs.not_running", language))
        if action == "redo" and not stage:
            return note(t("runs.redo_which", language))
        config, waits = path / "config.yaml", page.runs.status(chosen).state == "waiting"
        if not config.is_file():
            return note(t("runs.no_config", language), "bad")
        if action == "resume" and waits and (missing := _missing(path)):
            return note(t("runs.rank_more", language, more=missing))
        options = {"redo": ["--redo", str(stage)], "undo": ["--undo-redo"]}
        more = options.get(action) or (_changed_rankings(path) if waits else [])
        command = jobs.run_command(str(config), page.runs.folder, *more)
        page.chat.close()
        jobs.start(path, command)
    except UserError as error:
        return note(error_text(error, language), "bad")
    return note(t("runs.started", language), "good") + command_line(jobs.as_typed(command), language)
