"""The tab Runs: all runs and what can be done with one, and a form that starts another."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from lowrank_rlhf.config.loading import parse_config, preset_names, preset_path
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard import jobs, run_status
from lowrank_rlhf.dashboard.chat_worker import TALKER
from lowrank_rlhf.dashboard.page import EVENT, QUIET, Page
from lowrank_rlhf.dashboard.tabs.runs_html import command_line, details, note, run_list
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.project import open_project
from lowrank_rlhf.run.files import write_atomic
from lowrank_rlhf.stages import STAGES

_SECONDS = 2.0
_MOST_RUNS = 60
_EDITOR = "editor"
_PLAN_SECONDS = 120
# A click on a run's button says which one.
_PICK = """element.addEventListener('click', (event) => {
  const run = event.target.closest('[data-run]');
  if (run) trigger('select', {index: 0, value: run.dataset.run});
});"""


def build(page: Page) -> None:
    """Lay the tab out and say what each part does."""
    listing = gr.HTML(run_list([], None, "en"), js_on_load=_PICK, elem_id="run-list")
    about = gr.HTML("", elem_id="run-about")
    with gr.Row(elem_classes="actions"):
        stop = page.texts.add(gr.Button(variant="stop", elem_id="stop"), value="runs.stop")
        resume = page.texts.add(gr.Button(variant="primary", elem_id="resume"), value="runs.resume")
    with page.texts.add(gr.Accordion(open=False, elem_id="again"), label="runs.again"), gr.Row(elem_classes="actions"):
        stage = page.texts.add(gr.Dropdown([], elem_id="redo-stage"), label="runs.redo_stage", info="runs.redo_info")
        redo = page.texts.add(gr.Button(elem_id="redo"), value="runs.redo")
    said = gr.HTML("", elem_id="run-said")
    seen = gr.State({})
    shown = [listing, about, page.run, stop, resume, stage, redo, seen]

    def refresh(chosen: str | None, language: str, before: dict[str, Any]) -> list[Any]:
        return _refresh(page.runs, chosen, language, before)

    inputs = [page.run, page.language, seen]
    gr.Timer(_SECONDS).tick(refresh, inputs, shown, **QUIET)
    page.run.change(refresh, inputs, shown, **QUIET)
    page.language.change(refresh, inputs, shown, **QUIET)
    listing.select(_picked, None, page.run, **QUIET)

    def act(what: str) -> Any:
        def acted(chosen: str | None, language: str, stage: str | None) -> str:
            return _act(page.runs, what, chosen, language, stage)

        return acted

    for button, what in ((stop, "stop"), (resume, "resume"), (redo, "redo")):
        button.click(act(what), [page.run, page.language, stage], said, **EVENT).then(refresh, inputs, shown, **QUIET)
    _new_run(page, refresh, inputs, shown)


def _picked(event: gr.SelectData) -> str:
    return str(event.value)


def _refresh(folder: Path, chosen: str | None, language: str, before: dict[str, Any]) -> list[Any]:
    """The list and the buttons, each only where it has changed: what a person is just choosing stays as it is."""
    names = run_status.names(folder)[:_MOST_RUNS]
    found = [run_status.look(folder, name) for name in names]
    chosen = chosen if chosen in names else next(iter(names), None)
    run = next((one for one in found if one.name == chosen), None)
    idle = run is not None and not run.busy
    now = {
        "listing": run_list(found, chosen, language),
        "about": details(run, language),
        "choice": (names, chosen),
        "can stop": run is not None and run.busy,
        "can resume": idle and run is not None and run.kind != "finished",
        "resume": t("runs.continue" if run and run.kind == "waiting" else "runs.resume", language),
        "again": [stage.name for stage in STAGES if run and stage.name in run.done] if idle else [],
    }

    def changed(update: Any, *keys: str) -> Any:
        return gr.skip() if all(now[key] == before.get(key) for key in keys) else update

    return [
        changed(now["listing"], "listing"),
        changed(now["about"], "about"),
        changed(gr.update(choices=names, value=chosen), "choice"),
        changed(gr.update(interactive=now["can stop"]), "can stop"),
        changed(gr.update(interactive=now["can resume"], value=now["resume"]), "can resume", "resume"),
        changed(gr.update(choices=now["again"], value=None, interactive=bool(now["again"])), "again", "choice"),
        changed(gr.update(interactive=bool(now["again"])), "again"),
        changed(now, *now),
    ]


def _act(folder: Path, what: str, chosen: str | None, language: str, stage: str | None) -> str:
    """Stop, resume or redo; what was done, or why it was not, as HTML."""
    if not chosen:
        return note(t("runs.choose", language))
    try:
        path = run_status.run_path(folder, chosen)
        if what == "stop":
            return note(t("runs.stopping" if jobs.stop(path) else "runs.not_running", language))
        if what == "redo" and not stage:
            return note(t("runs.redo_which", language))
        config = path / "config.yaml"
        if not config.is_file():
            return note(t("runs.no_config", language), "bad")
        command = jobs.run_command(str(config), folder, *(["--redo", str(stage)] if what == "redo" else []))
        return _start(path, command, language)
    except UserError as error:
        return note(str(error), "bad")


def go_on_with_rankings(folder: Path, name: str) -> str:
    """Start the run's command again in the background, and say it. Raises `UserError` where it cannot."""
    path = run_status.run_path(folder, name)
    redo = ["--redo", "rank"] if open_project(path).rankings_changed else []
    command = jobs.run_command(str(path / "config.yaml"), folder, *redo)
    TALKER.close()  # its model's memory is for the training
    jobs.start(path, command)
    return jobs.as_typed(command)


def _start(path: Path, command: list[str], language: str) -> str:
    TALKER.close()
    jobs.start(path, command)
    return note(t("runs.started", language), "good") + command_line(jobs.as_typed(command), language)


def _new_run(page: Page, refresh: Any, inputs: list[Any], shown: list[Any]) -> None:
    """The form: a preset, its YAML, the plan, the start."""
    texts = page.texts
    with texts.add(gr.Accordion(open=False, elem_id="new-run"), label="new.title"):
        with gr.Row():
            preset = texts.add(gr.Dropdown(preset_names(), value=None, elem_id="preset"), label="new.preset")
            name = texts.add(gr.Textbox(max_length=64, elem_id="name"), label="new.name", info="new.name_info")
            own = texts.add(gr.Button(min_width=120, scale=0, elem_id="own"), value="new.own")
        source = texts.add(
            gr.Code(language="yaml", lines=12, max_lines=24, interactive=True, elem_id="yaml"), label="new.yaml"
        )
        verdict = gr.HTML("", elem_id="verdict")
        with gr.Row(elem_classes="actions"):
            plan = texts.add(gr.Button(elem_id="plan"), value="new.plan")
            start = texts.add(gr.Button(variant="primary", interactive=False, elem_id="start"), value="new.start")
        planned = gr.HTML("", elem_id="planned")
        agreed = gr.State(None)

    def start_it(text: str, name: str, preset: str | None, language: str, agreed: Any) -> list[Any]:
        return _start_new(page.runs, text, name, preset, language, agreed)

    def plan_it(text: str, name: str, preset: str | None, language: str) -> tuple[str, Any, Any]:
        return _plan(page.runs, text, name, preset, language)

    def own_settings(chosen: str | None, language: str) -> tuple[Any, Any, str, Any]:
        return _own_settings(page.runs, chosen, language)

    preset.change(_preset, preset, [source, planned, start], **QUIET)
    own.click(own_settings, [page.run, page.language], [source, name, planned, start], **EVENT)
    for field in (source, name):
        field.change(_check, [source, name, page.language], [verdict, start], trigger_mode="always_last", **QUIET)
    plan.click(plan_it, [source, name, preset, page.language], [planned, start, agreed], **EVENT)
    began = start.click(
        start_it, [source, name, preset, page.language, agreed], [page.run, planned, start, agreed], **EVENT
    )
    began.then(refresh, inputs, shown, **QUIET)


def _preset(name: str | None) -> tuple[str, str, Any]:
    text = preset_path(name).read_text(encoding="utf-8") if name else ""
    return text, "", gr.update(interactive=False)


def _own_settings(folder: Path, chosen: str | None, language: str) -> tuple[Any, Any, str, Any]:
    """The chosen run's settings and name into the form, to go on with one of them changed."""
    locked = gr.update(interactive=False)
    if not chosen:
        return gr.skip(), gr.skip(), note(t("runs.choose", language)), locked
    try:
        text = (run_status.run_path(folder, chosen) / "config.yaml").read_text(encoding="utf-8")
    except UserError as error:
        return gr.skip(), gr.skip(), note(str(error), "bad"), locked
    except OSError:
        return gr.skip(), gr.skip(), note(t("runs.no_config", language), "bad"), locked
    return text, chosen, "", locked


def _check(text: str, name: str, language: str) -> tuple[str, Any]:
    """What the CLI's `validate` would say, but for what needs a process of its own; no start before the next plan."""
    locked = gr.update(interactive=False)
    if not text.strip():
        return "", locked
    try:
        _parse(text, name)
    except UserError as error:
        return note(str(error), "bad"), locked
    return note(t("new.valid", language), "good"), locked


def _parse(text: str, name: str) -> Config:
    return parse_config(text, _EDITOR, _overrides(name))


def _overrides(name: str) -> list[str]:
    return [f"name={name.strip()}"] if name.strip() else []


def _plan(folder: Path, text: str, name: str, preset: str | None, language: str) -> tuple[str, Any, Any]:
    """What `plan` prints, from the command itself; the start is free where memory and disk hold the run."""
    try:
        config = _parse(text, name)
        path = run_status.run_path(folder, config.name)
    except UserError as error:
        return note(str(error), "bad"), gr.update(interactive=False), None
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "plan.yaml"
        file.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "lowrank_rlhf", "plan", str(file), *_overrides(name), "--runs", str(folder)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_PLAN_SECONDS,
                env=jobs.environment(), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return note(t("new.plan_slow", language), "bad"), gr.update(interactive=False), None
    said = (done.stdout + done.stderr).replace(str(file), _EDITOR)
    fits = done.returncode == 0
    lead = t("new.planned" if fits else "new.refused", language)
    command = jobs.run_command(_config_name(text, preset, path), folder, *_overrides(name))
    shown = (
        note(lead, "good" if fits else "bad") + _folded(said, language) + command_line(jobs.as_typed(command), language)
    )
    return shown, gr.update(interactive=fits), [text, name] if fits else None


def _folded(said: str, language: str) -> str:
    """What `plan` printed, the settings folded away: memory, disk and time should be in sight."""
    settings, stages, rest = said.partition("Stages, in ")
    if not stages:
        return note(said)
    summary = html(t("new.settings", language))
    return note(stages + rest) + f"<details><summary>{summary}</summary>{note(settings)}</details>"


def _config_name(text: str, preset: str | None, path: Path) -> str:
    """The preset itself where nothing was changed, else the file that the start writes."""
    if preset and text.rstrip() == preset_path(preset).read_text(encoding="utf-8").rstrip():  # the editor's end differs
        return preset
    return str(path / "logs" / "start.yaml")


def _start_new(folder: Path, text: str, name: str, preset: str | None, language: str, agreed: Any) -> list[Any]:
    """Start what was planned, and choose it; a second press starts nothing, for it takes another plan."""
    if agreed != [text, name]:
        return [gr.skip(), note(t("new.plan_first", language), "bad"), gr.skip(), gr.skip()]
    try:
        path = run_status.run_path(folder, _parse(text, name).name)
        source = _config_name(text, preset, path)
        if source != preset and jobs.working(path) is None:
            write_atomic(Path(source), text)
        said = _start(path, jobs.run_command(source, folder, *_overrides(name)), language)
    except UserError as error:
        return [gr.skip(), note(str(error), "bad"), gr.skip(), gr.skip()]
    return [gr.update(choices=run_status.names(folder), value=path.name), said, gr.update(interactive=False), None]
