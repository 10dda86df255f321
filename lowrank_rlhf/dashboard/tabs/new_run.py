"""Form for a new run: a preset, its YAML, the plan, the start."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from lowrank_rlhf.config.loading import parse_config, preset_names, preset_path
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.browser import yaml_draft
from lowrank_rlhf.dashboard.guided import form as guided_path
from lowrank_rlhf.dashboard.page import EVENT, QUIET, DashboardPage
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs.plan_html import plan_html
from lowrank_rlhf.dashboard.tabs.runs_html import command_line, note
from lowrank_rlhf.dashboard.text import t
from lowrank_rlhf.dashboard.wording import error_text, worded
from lowrank_rlhf.errors import ERROR_FILE, Fault, UserError, recorded_parts
from lowrank_rlhf.run.files import read_json, write_atomic

_EDITOR = "editor"
_PLAN_SECONDS = 120
_HIDE: dict[str, Any] = gr.update(visible=False)


class Form(NamedTuple):
    """Components of the form, and the event of a start."""

    accordion: gr.Accordion
    guided: gr.Column
    """The guided path, which fills the form."""
    preset: gr.Dropdown
    name: gr.Textbox
    copy: gr.Button
    not_copied: gr.HTML
    """Reason for which no settings were copied."""
    yaml: gr.Code
    loaded: gr.Textbox
    """Text that the last event loaded into `yaml`, empty if it loaded none."""
    verdict: gr.HTML
    plan: gr.Button
    start: gr.Button
    planned: gr.HTML
    agreed: gr.State
    """YAML and name of the shown plan, and its stale stages if it has any; None without a plan."""
    stale: gr.Row
    """Buttons for a plan with stale stages."""
    rename: gr.Button
    redo: gr.Button
    started: Any = None


def build(page: DashboardPage) -> Form:
    """Lay out the form and connect its events."""
    form, guided_form = _lay_out(page)

    def start(text: str, name: str, preset: str | None, language: str, agreed: Any) -> list[Any]:
        return _start(page, text, name, preset, language, agreed)

    def redo(text: str, name: str, preset: str | None, language: str, agreed: Any) -> list[Any]:
        return [*_start(page, text, name, preset, language, agreed and agreed[:2], _redo(agreed)), _HIDE]

    def check(text: str, name: str, language: str, agreed: Any) -> list[Any]:
        if agreed and agreed[:2] == [text, name]:  # the path's own plan of this text was faster
            return [gr.skip()] * 5
        return [*_check(text, name, language), "", None, _HIDE]  # the plan was of other settings

    def rename(text: str, name: str) -> str:
        return page.runs.free_name(_parse(text, name).name)

    def copy_settings(chosen: str | None, kept: str, language: str) -> list[Any]:
        return ["", *[gr.skip()] * 5] if kept else _copy_settings(page.runs, chosen, language)

    fields = [form.yaml, form.name, form.preset, page.language]
    asks = yaml_draft.asks_first()
    chosen = form.preset.select(  # by a person; "Try the example" fills the form itself
        _preset, [form.preset, form.yaml], [form.loaded, form.yaml, form.not_copied, form.planned, form.start],
        js=asks, **QUIET,
    )  # fmt: skip
    copied = form.copy.click(
        copy_settings, [page.run, form.yaml, page.language],
        [form.loaded, form.yaml, form.name, form.not_copied, form.planned, form.start], js=asks, **EVENT,
    )  # fmt: skip
    for event in (chosen, copied):
        yaml_draft.loaded(event, form.loaded)
    yaml_draft.keep(form.yaml, form.name)
    for field in (form.yaml, form.name):
        field.change(
            check, [form.yaml, form.name, page.language, form.agreed],
            [form.verdict, form.start, form.planned, form.agreed, form.stale], trigger_mode="always_last", **QUIET,
        )  # fmt: skip
    _connect_plan(page, form, form.plan.click, form.yaml)
    made = guided_path.connect(page, guided_form, [form.loaded, form.yaml, form.name, form.preset])
    plan_loaded(page, form, made)
    form.rename.click(rename, [form.yaml, form.name], form.name, **EVENT)
    outputs = [page.run, form.planned, form.start, form.agreed]
    form.redo.click(redo, [*fields, form.agreed], [*outputs, form.stale], **EVENT)
    return form._replace(started=form.start.click(start, [*fields, form.agreed], outputs, **EVENT))


def plan_loaded(page: DashboardPage, form: Form, event: Any) -> None:
    """Remember the text that an event has loaded, and plan it."""
    yaml_draft.loaded(event, form.loaded)
    _connect_plan(page, form, event.success, form.loaded)


def _connect_plan(page: DashboardPage, form: Form, listener: Any, condition: gr.Component) -> None:
    """Plan the form's settings at an event if the component `condition` has a text."""

    def plan(given: str, text: str, name: str, preset: str | None, language: str) -> list[Any]:
        if condition is form.loaded and not given:
            return [gr.skip()] * 5
        shown, start, agreed = _plan(page.runs, text, name, preset, language)
        return [shown, start, agreed, "", gr.update(visible=bool(_redo(agreed)))]  # the plan has its own verdict

    fields = [condition, form.yaml, form.name, form.preset, page.language]
    outputs = [form.planned, form.start, form.agreed, form.verdict, form.stale]
    listener(plan, fields, outputs, **EVENT)


def _lay_out(page: DashboardPage) -> tuple[Form, guided_path.GuidedForm]:
    texts = page.texts
    with texts.add(gr.Accordion(open=False, elem_id="new-run"), label="new.title") as accordion:
        guided_form = guided_path.lay_out(page)
        with gr.Row():
            preset = texts.add(gr.Dropdown(preset_names(), value=None, elem_id="preset"), label="new.preset")
            name = texts.add(gr.Textbox(max_length=64, elem_id="name"), label="new.name", info="new.name_info")
            copy = texts.add(gr.Button(min_width=120, scale=0, elem_id="copy-settings"), value="new.copy")
        not_copied = gr.HTML("", elem_id="not-copied")
        yaml = texts.add(
            gr.Code(language="yaml", lines=12, max_lines=24, interactive=True, elem_id="yaml"), label="new.yaml"
        )
        loaded = yaml_draft.lay_out()
        verdict = gr.HTML("", elem_id="verdict")
        with gr.Row(elem_classes="actions"):
            plan = texts.add(gr.Button(elem_id="plan"), value="new.plan")
            start = texts.add(gr.Button(variant="primary", interactive=False, elem_id="start"), value="new.start")
        planned = gr.HTML("", elem_id="planned")
        with gr.Row(visible=False, elem_classes="actions", elem_id="stale") as stale:
            rename = texts.add(gr.Button(elem_id="new-name"), value="new.other_name")
            redo = texts.add(gr.Button(variant="stop", elem_id="redo-stale"), value="new.redo")
        agreed = gr.State(None)
    column = guided_form.column
    form = Form(
        accordion, column, preset, name, copy, not_copied, yaml, loaded, verdict, plan, start, planned, agreed, stale,
        rename, redo,
    )  # fmt: skip
    return form, guided_form


def _preset(name: str | None, kept: str) -> list[Any]:
    if kept:
        return ["", *[gr.skip()] * 4]
    text = preset_path(name).read_text(encoding="utf-8") if name else ""
    return [text, text, "", "", gr.update(interactive=False)]


def _copy_settings(runs: RunsFolder, chosen: str | None, language: str) -> list[Any]:
    """Return the chosen run's settings, twice, and its name for the form."""
    locked, kept = gr.update(interactive=False), ["", gr.skip(), gr.skip()]
    if not chosen:
        return [*kept, note(t("runs.choose", language)), "", locked]
    try:
        text = (runs.path(chosen) / "config.yaml").read_text(encoding="utf-8")
    except UserError as error:
        return [*kept, note(error_text(error, language), "bad"), "", locked]
    except OSError:
        return [*kept, note(t("runs.no_config", language), "bad"), "", locked]
    return [text, text, chosen, "", "", locked]


def _check(text: str, name: str, language: str) -> tuple[str, Any]:
    """Return the config's errors as `validate` reports them. The start stays locked until the next plan."""
    locked = gr.update(interactive=False)
    if not text.strip():
        return "", locked
    try:
        _parse(text, name)
    except UserError as error:
        return note(error_text(error, language), "bad"), locked
    return note(t("new.valid", language), "good"), locked


def _parse(text: str, name: str) -> Config:
    return parse_config(text, _EDITOR, _overrides(name))


def _overrides(name: str) -> list[str]:
    return [f"name={name.strip()}"] if name.strip() else []


def _plan(runs: RunsFolder, text: str, name: str, preset: str | None, language: str) -> tuple[str, Any, Any]:
    """Return the plan as HTML, and unlock the start if memory and disk suffice."""
    locked = gr.update(interactive=False)
    try:
        path = runs.path(_parse(text, name).name)
        done, failure = _run_plan(runs.folder, text, name)
    except UserError as error:
        return note(error_text(error, language), "bad"), locked, None
    except subprocess.TimeoutExpired:
        return note(t("new.plan_slow", language), "bad"), locked, None
    try:
        plan = json.loads(done.stdout)
    except ValueError:  # it ended with an error instead
        keyed = any(isinstance(part, Fault) for part in failure)
        why = worded(failure, language) if keyed else done.stderr  # which names the editor, not a temporary file
        return note(t("new.refused", language), "bad") + note(why), locked, None
    stale = [stage["stage"] for stage in plan["stages"] if stage["state"] == "stale"]
    fits = done.returncode == 0 and not stale
    command = jobs.run_command(_config_source(text, preset, path), runs.folder, *_overrides(name))
    verdict = t("new.planned" if fits else "new.refused", language)
    if stale:
        verdict = t("new.stale", language, stages=", ".join(stale), run=path.name)
    shown = (
        note(verdict, "good" if fits else "bad")
        + plan_html(plan, language)
        + command_line(jobs.as_typed(command), language)
    )
    may_redo = [text, name, stale] if stale and done.returncode == 0 else None
    return shown, gr.update(interactive=fits), [text, name] if fits else may_redo


def _run_plan(folder: Path, text: str, name: str) -> tuple[subprocess.CompletedProcess[str], tuple[str, ...]]:
    """Run `plan --json` on the editor's text; return it and the parts of its error. Printed, that names `editor`."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "plan.yaml"
        file.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "lowrank_rlhf", "plan", str(file), *_overrides(name), "--runs", str(folder)]
        done = subprocess.run(
            [*command, "--json"], capture_output=True, text=True, errors="replace", timeout=_PLAN_SECONDS,
            env=jobs.environment() | {ERROR_FILE: str(file.with_suffix(".json"))}, check=False,
        )  # fmt: skip
        done.stderr = done.stderr.replace(str(file), _EDITOR)
        return done, recorded_parts(read_json(file.with_suffix(".json")) or {})


def _config_source(text: str, preset: str | None, path: Path) -> str:
    """Return the name of an unchanged preset, else the file that the start writes."""
    if preset and text.rstrip() == preset_path(preset).read_text(encoding="utf-8").rstrip():  # editors trim the end
        return preset
    return str(path / "logs" / "start.yaml")


def _redo(agreed: Any) -> list[str]:
    """Return the stale stages of the shown plan."""
    return agreed[2] if agreed and len(agreed) > 2 else []


def _start(
    page: DashboardPage,
    text: str,
    name: str,
    preset: str | None,
    language: str,
    agreed: Any,
    redo: Sequence[str] = (),
) -> list[Any]:
    """Start the planned run and choose it. A second click has no effect: it needs a new plan."""
    if agreed != [text, name]:
        return [gr.skip(), note(t("new.plan_first", language), "bad"), gr.skip(), gr.skip()]
    try:
        path = page.runs.path(_parse(text, name).name)
        source = _config_source(text, preset, path)
        if source != preset and jobs.working(path) is None:
            write_atomic(Path(source), text)
        again = [word for stage in redo for word in ("--redo", stage)]
        command = jobs.run_command(source, page.runs.folder, *_overrides(name), *again)
        page.chat.close()
        path.mkdir(parents=True, exist_ok=True)
        jobs.start(path, command)
    except UserError as error:
        return [gr.skip(), note(error_text(error, language), "bad"), gr.skip(), gr.skip()]
    started = note(t("runs.started", language), "good") + command_line(jobs.as_typed(command), language)
    return [
        gr.update(choices=page.runs.listed(path.name), value=path.name),
        started,
        gr.update(interactive=False),
        None,
    ]
