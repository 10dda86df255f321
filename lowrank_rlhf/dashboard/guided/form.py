"""The guided path to a new run: prompts, model, ranker. It fills the form's settings, and the form plans and starts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from lowrank_rlhf.config.data import Columns
from lowrank_rlhf.dashboard.access.guard import MAX_UPLOAD_BYTES
from lowrank_rlhf.dashboard.browser import text_drafts, yaml_draft
from lowrank_rlhf.dashboard.guided import models, prompt_files
from lowrank_rlhf.dashboard.guided.answers import answers_from, summary_of
from lowrank_rlhf.dashboard.guided.form_html import (
    choice_list,
    choice_text,
    drop_zone,
    heading,
    model_warning,
    preview_html,
)
from lowrank_rlhf.dashboard.guided.settings import guided
from lowrank_rlhf.dashboard.guided.sizes import DATASET, HUMAN, JUDGES, Refused
from lowrank_rlhf.dashboard.guided.summary import Summary
from lowrank_rlhf.dashboard.guided.yaml_text import yaml_text
from lowrank_rlhf.dashboard.page import EVENT, QUIET, DashboardPage
from lowrank_rlhf.dashboard.runs_folder import cannot_write
from lowrank_rlhf.dashboard.served.uploads import PREFIX
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.text import LANGUAGES, t
from lowrank_rlhf.dashboard.wording import error_text, worded
from lowrank_rlhf.errors import UserError, recorded_parts
from lowrank_rlhf.run.progress import memory

_UNREACHABLE, _SENT, _REMOVED, _LOGGED_OUT, _TOO_LARGE = 0, 200, 204, 401, 413
_SEND = (Path(__file__).parents[1] / "static" / "drop_zone.js").read_text(encoding="utf-8")
_FOLDED = "folded"
_STEPS = ("prompts", "model", "ranker")
_EXAMPLE = Summary((40,) * 40)
"""Prompts for which the models' memory is shown before there are any."""


class GuidedForm(NamedTuple):
    """Components of the guided path."""

    column: gr.Column
    headings: list[gr.HTML]
    zone: gr.HTML
    pasted: gr.Textbox
    paste: gr.Button
    shown: gr.HTML
    """Preview of the prompts."""
    mapping: gr.Row
    prompt: gr.Dropdown
    response: gr.Dropdown
    model: gr.Dropdown
    warning: gr.HTML
    """Warning of a model that has hardly read the prompts' language."""
    ranker: gr.Radio
    compared: gr.HTML
    """Zone for a file of comparisons."""
    make: gr.Button
    choices: gr.HTML
    file: gr.State
    """Path of the prompts; None before there are any."""
    comparisons: gr.State


def lay_out(page: DashboardPage) -> GuidedForm:
    """Add the path's components, hidden until `GuidedForm.column` is shown."""
    texts, first = page.texts, next(iter(LANGUAGES))
    headings = []

    def step(number: int) -> None:
        headings.append(gr.HTML(heading(_STEPS[number], first)))

    with gr.Column(visible=False, elem_id="guided") as column:
        step(0)
        with gr.Row():
            zone = gr.HTML(drop_zone("prompts", first), js_on_load=_script(), elem_id="drop-prompts")
            with gr.Column():
                pasted = texts.add(gr.Textbox(lines=4, max_lines=8, elem_id="paste"), label="guided.paste")
                paste = texts.add(gr.Button(elem_id="use-pasted"), value="guided.use_pasted")
        shown = gr.HTML("", elem_id="prompts-preview")
        with gr.Row(elem_id="columns", elem_classes=_FOLDED) as mapping:
            prompt = texts.add(gr.Dropdown([], elem_id="column-prompt"), label="guided.column_prompt")
            response = texts.add(gr.Dropdown([], elem_id="column-response"), label="guided.column_response")
        step(1)
        model = texts.add(
            gr.Dropdown(_models(first, _EXAMPLE), value=models.PRESETS[0], allow_custom_value=True, elem_id="model"),
            label="guided.model", info="guided.model_info",
        )  # fmt: skip
        warning = gr.HTML("", elem_id="model-warning")
        step(2)
        ranker = texts.add(
            gr.Radio(_rankers(first), value=HUMAN, show_label=False, container=False, elem_id="ranker"),
            label="guided.ranker",
        )
        compared = gr.HTML(
            drop_zone("comparisons", first), js_on_load=_script(), visible=False, elem_id="drop-comparisons"
        )
        make = texts.add(gr.Button(variant="primary", elem_id="make-settings"), value="guided.make")
        choices = gr.HTML("", elem_id="choices")
        file, comparisons = gr.State(None), gr.State(None)
    return GuidedForm(
        column, headings, zone, pasted, paste, shown, mapping, prompt, response, model, warning, ranker, compared, make,
        choices, file, comparisons,
    )  # fmt: skip


def connect(page: DashboardPage, form: GuidedForm, filled: Sequence[gr.Component]) -> Any:
    """Connect the path's events; return the event that fills in settings: loaded text, its editor, name and preset."""
    runs = page.runs.folder
    read = [form.file, form.prompt, form.response, form.model, page.language]
    seen = [form.shown, form.model, form.warning]

    def received(choices: str, language: str, event: gr.SelectData) -> tuple[Any, str, Any]:
        path, problem = _received(runs, event.index, event.value, language)
        return path, note(problem, "bad"), _of_another_file(choices, language)

    def pasted(text: str, choices: str, language: str) -> tuple[Any, str, Any]:
        path, problem = _pasted(runs, text, language)
        return path, note(problem, "bad"), _of_another_file(choices, language)

    def compared(event: gr.SelectData, language: str) -> tuple[Any, str]:
        path, problem = _received(runs, event.index, event.value, language)
        return path, _comparisons_zone(path, language, problem)

    def make(ranker: str, kept: str, *answers: Any) -> list[Any]:
        return ["", *[gr.skip()] * 4] if kept else _make(page, ranker, *answers)

    text_drafts.keep({"lowrank-prompts": form.pasted})
    taken = [form.file, form.shown, form.choices]
    for event in (
        form.zone.select(received, [form.choices, page.language], taken, **EVENT),
        form.paste.click(pasted, [form.pasted, form.choices, page.language], taken, **EVENT),
    ):
        event.success(_columns, form.file, [form.mapping, form.prompt, form.response], **QUIET).then(
            _default_model, read[:-1], form.model, **QUIET
        ).then(_look, read, seen, **EVENT)
    for dropdown in (form.prompt, form.response):
        dropdown.input(_default_model, read[:-1], form.model, **QUIET).then(_look, read, seen, **EVENT)
    form.model.input(_look, read, seen, **QUIET)
    form.ranker.change(_shows_comparisons, form.ranker, form.compared, **QUIET)
    form.compared.select(compared, page.language, [form.comparisons, form.compared], **EVENT)
    page.language.change(
        _in_language,
        [page.language, form.comparisons],
        [*form.headings, form.zone, form.compared, form.ranker],
        **QUIET,
    ).then(_look, read, seen, **QUIET)
    made = form.make.click(
        make, [form.ranker, filled[1], *read[:-1], form.comparisons, page.language], [*filled, form.choices],
        js=yaml_draft.asks_first(), **EVENT,
    )  # fmt: skip
    made.then(None, None, None, js="() => document.querySelector('#choices').scrollIntoView()", **QUIET)
    return made


def _script() -> str:
    limits = (
        f"const address = {json.dumps(PREFIX)}, most = {MAX_UPLOAD_BYTES}, large = {_TOO_LARGE}, removed = {_REMOVED};"
    )
    return f"{limits}\n{_SEND}"


def _received(runs: Path, status: Any, answer: Any, language: str) -> tuple[Any, str]:
    """Return the path of a file that the browser has sent, or None and what is wrong; both empty if it was removed."""
    known = {_REMOVED: "", _UNREACHABLE: t("drop.unreachable", language), _LOGGED_OUT: t("drop.logged_out", language)}
    if status in known:
        return None, known[status]
    if status == _TOO_LARGE:
        return None, t("drop.too_large", language, size=MAX_UPLOAD_BYTES >> 20)
    if status != _SENT:
        return None, _refused(answer, language)
    try:
        return str(prompt_files.kept(runs, str(answer))), ""
    except UserError as error:
        return None, error_text(error, language)


def _refused(answer: Any, language: str) -> str:
    """Return the words of an upload's error; those of a proxy in between as they are."""
    try:
        return worded(recorded_parts(json.loads(answer)), language)
    except (AttributeError, TypeError, ValueError):
        return str(answer)


def _pasted(runs: Path, text: str, language: str) -> tuple[Any, str]:
    if not text.strip():
        return None, t("guided.prompts_first", language)
    try:
        return str(prompt_files.keep(runs, prompt_files.PASTED, text.encode())), ""
    except UserError as error:
        return None, error_text(error, language)
    except OSError as error:
        return None, error_text(cannot_write(runs, error), language)


def _of_another_file(choices: str, language: str) -> Any:
    """Return a warning in place of the numbers that were chosen for the file before; nothing if there are none."""
    return note(t("guided.another_file", language), "bad") if choices else gr.skip()


def _columns(file: str | None) -> list[Any]:
    """Return choices of columns for a new file; none are shown if it has only one.

    Hidden by style: Gradio would leave the value of an invisible component as it is.
    """
    names = prompt_files.preview(Path(file), {}).names if file else []
    options = [gr.update(choices=[("–", ""), *names], value="") for _ in range(2)]
    return [gr.update(elem_classes="" if len(names) > 1 else _FOLDED), *options]


def _default_model(file: str | None, prompt: str, response: str, model: str) -> Any:
    """Return the default model for the language of the prompts, while no other one is chosen."""
    if not file or not model:
        return gr.skip()
    try:
        return models.default_for(summary_of(Path(file), _mapped(file, prompt, response), model), model)
    except UserError:  # `_look` says which
        return gr.skip()


def _look(file: str | None, prompt: str, response: str, model: str, language: str) -> list[Any]:
    """Return the preview of the prompts, the models with the memory that they need for these, and a warning."""
    if not file:
        return [gr.skip(), gr.update(choices=_models(language, _EXAMPLE)), ""]  # in another language
    preview = prompt_files.preview(Path(file), _mapped(file, prompt, response))
    shown = preview_html(preview, language)
    if preview.loaded is None or not model:
        return [shown, gr.skip(), ""]
    try:
        summary = summary_of(Path(file), _mapped(file, prompt, response), model)
        return [shown, gr.update(choices=_models(language, summary, model)), model_warning(summary, language)]
    except Refused as error:
        return [shown + note(t(f"refused.{error.reason}", language, **error.values), "bad"), gr.skip(), ""]
    except UserError as error:
        return [shown + note(error_text(error, language), "bad"), gr.skip(), ""]


def _mapped(file: str, prompt: str, response: str) -> Columns:
    names = prompt_files.preview(Path(file), {}).names if prompt or response else []
    return prompt_files.column_map(names, prompt, response)


def _models(language: str, summary: Summary, chosen: str = models.PRESETS[0]) -> list[tuple[str, str]]:
    """Return the labels and values of the offered models and the chosen one, each with the memory that it needs."""
    labels = []
    for each in models.memory_of_each(summary, dict.fromkeys([*models.PRESETS, chosen])):
        needs = t("guided.unknown", language)
        if each.needed is not None:
            key = "guided.fits" if each.fits else "guided.too_large"
            needs = t(key, language, needed=memory(each.needed), free=memory(each.free))
        labels.append((f"{each.name} · {needs}", each.model))
    return labels


def _rankers(language: str) -> list[tuple[str, str]]:
    judges = [(t(f"judge.{known}", language), judge) for judge in JUDGES for known in [judge.replace("-", "_")]]
    return [(t("guided.human", language), HUMAN), *judges, (t("guided.dataset", language), DATASET)]


def _shows_comparisons(ranker: str) -> Any:
    return gr.update(visible=ranker == DATASET)


def _comparisons_zone(path: str | None, language: str, problem: str = "") -> str:
    return drop_zone("comparisons", language, Path(path).name if path else "", problem)


def _in_language(language: str, comparisons: str | None) -> list[Any]:
    zones = [drop_zone("prompts", language), _comparisons_zone(comparisons, language)]
    return [*(heading(step, language) for step in _STEPS), *zones, gr.update(choices=_rankers(language))]


def _make(
    page: DashboardPage, ranker: str, file: str | None, prompt: str, response: str, model: str,
    comparisons: str | None, language: str,
) -> list[Any]:  # fmt: skip
    """Return settings, twice, and name for the form, and the reasons for the numbers; or what is missing."""
    kept = ["", gr.skip(), gr.skip(), gr.skip()]
    if not file:
        return [*kept, note(t("guided.prompts_first", language), "bad")]
    if not model:
        return [*kept, note(t("guided.model_first", language), "bad")]
    try:
        found = answers_from(Path(file), _mapped(file, prompt, response), model, ranker, comparisons)
        made = guided(replace(found, name=page.runs.free_name(found.name)))
    except Refused as error:
        return [*kept, note(t(f"refused.{error.reason}", language, **error.values), "bad")]
    except UserError as error:
        return [*kept, note(error_text(error, language), "bad")]
    reasons = {choice.setting: choice_text(choice, language) for choice in made.choices}
    text = yaml_text(made.values, reasons)
    return [text, text, made.config.name, None, choice_list(made.choices, language)]
