"""Tab Watch: curves, alarms, answers and log of a run during training."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.page import OF_RUN, DashboardPage, as_updates, delayed_update, updates_of
from lowrank_rlhf.dashboard.run_status import RunStatus
from lowrank_rlhf.dashboard.served.curves import CURVES
from lowrank_rlhf.dashboard.tabs import tokens
from lowrank_rlhf.dashboard.tabs.runs_html import damage_note, interval_note, last_figure, state_line
from lowrank_rlhf.dashboard.tabs.samples import (
    ALL,
    AnswerFilter,
    Rows,
    evaluated_step,
    lay_out,
    place_of,
    samples,
    step_choices,
)
from lowrank_rlhf.dashboard.tail import last_lines
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.reports.alarms import ANSWERS, Alarm
from lowrank_rlhf.reports.charts import ChartFigure, curve_figures, in_round, of_round, reward_names
from lowrank_rlhf.reports.locale import Locale, locale
from lowrank_rlhf.reports.templating import inline_code
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import duration, figure, memory

_LOG_LINES = 40
_EVENTS = 20


def build(page: DashboardPage) -> None:
    """Lay out the tab. Only parts that have changed are sent to the browser."""
    scripts = {"curves": f"{CURVES}connectCurves(element, () => document.documentElement.lang);"}
    names = ("state", "alarms", "curves", "earlier")
    parts = [gr.HTML("", elem_id=f"watch-{name}", js_on_load=scripts.get(name)) for name in names]
    filter_row, fields = lay_out(page)
    parts.append(gr.HTML("", elem_id="watch-samples"))
    tokens.build(page)
    parts.append(gr.HTML("", elem_id="watch-log"))
    seen = gr.State({})

    def refresh(chosen: str | None, language: str, before: dict[str, Any], *wanted: Any) -> list[Any]:
        search, order, step = wanted
        return as_updates(_refresh(page, chosen, language, before, AnswerFilter(search or "", order, step or 0)))

    inputs, outputs = [page.run, page.language, seen, *fields], [*parts, filter_row, updates_of(fields[-1]), seen]
    for field in fields:
        field.change(refresh, inputs, outputs, trigger_mode="always_last", **OF_RUN)
    for event in (*page.while_shown, page.run.change, page.language.change):
        event(refresh, inputs, outputs, **OF_RUN)


def _refresh(
    page: DashboardPage, chosen: str | None, language: str, before: dict[str, Any], wanted: AnswerFilter = ALL
) -> list[Any]:
    """Return the six parts of the tab, the row of the answers' filter, its steps, and the inputs of all of them.

    A part whose input has not changed is skipped.
    """
    try:
        run = page.runs.status(chosen) if chosen else None
    except UserError:
        run = None
    if run is None:
        empty = f'<p class="empty">{html(t("runs.choose", language))}</p>'
        if before == {"none": language}:
            return [gr.skip()] * 9
        return [empty, *[""] * 5, gr.update(visible=False), gr.skip(), {"none": language}]
    round_dir = run.round_dir
    rows, version = page.runs.rows(round_dir.metrics.path)
    events, _ = page.runs.rows(run.path / "events.jsonl")
    evaluated, second = page.runs.rows(round_dir.artifact("eval.jsonl"))
    watched, third = page.runs.rows(round_dir.watched.path)
    earlier = [(each.number, *page.runs.rows(each.metrics.path)) for each in RunDir(run.path).rounds[:-1]]
    alarms = page.runs.alarms([run])[run.name]
    place, choices = (run.name, round_dir.number), step_choices(watched, language)
    if before.get("steps", ())[:1] != (place,):
        wanted = wanted._replace(step=0)
    steps = {step for alarm in alarms if (step := answers_step(alarm, watched)) is not None}
    inputs_of = {
        "state": _state(run, language),
        "alarms": (run.name, round_dir.number, version, third, alarms, language),
        "curves": (run.name, round_dir.number, version, language),
        "earlier": (run.name, [(number, version) for number, _, version in earlier], language),
        "samples": (run.name, round_dir.number, second, third, len(run.done), language, steps, wanted),
        "log": _log(run, events, language),
        "filter": bool(evaluated or watched),
        "steps": (place, choices),
    }
    made = {
        "state": lambda: inputs_of["state"],
        "alarms": lambda: _alarms(alarms, round_dir.number, watched, language) if rows or alarms else "",
        "curves": lambda: _curves(rows, round_dir.number, language),
        "earlier": lambda: "".join(_folded(rows, number, language) for number, rows, _ in earlier),
        "samples": lambda: samples(
            round_dir.path, watched, evaluated, language, round_dir.number, steps, bool(reward_names(rows)), wanted
        ),
        "log": lambda: inputs_of["log"],
        "filter": lambda: gr.update(visible=bool(evaluated or watched)),
        "steps": lambda: delayed_update(choices=choices, value=wanted.step),
    }
    changed = [made[name]() if inputs_of[name] != before.get(name) else gr.skip() for name in made]
    return [*changed, inputs_of]


def _state(run: RunStatus, language: str) -> str:
    """Return the run's state, stages, memory and pace."""
    cells = []
    for stage in run.stages:
        mark = run.marks.get(stage)
        if mark:
            kind, below = "done", f"{duration(mark.seconds)} · {memory(mark.peak_memory_bytes)}"
        elif stage == run.stage and run.busy:
            kind, below = (
                "now",
                f"{run.progress.done}/{run.progress.total} {run.progress.unit}" if run.progress else "…",
            )
        else:
            kind, below = "todo", ""
        cells.append(f'<li class="{kind}"><b>{html(stage)}</b><span>{html(below)}</span></li>')
    headline = f"<span{interval_note(run, language)}>{html(last_figure(run, language))}</span>" if run.figure else ""
    figures = [part for part in (headline, html(_pace(run))) if part]
    return (
        f'<p class="lead"><span class="badge {run.state}">{html(run.name)}</span> {html(state_line(run, language))}</p>'
        f"{damage_note(run, language)}"
        f'<ol class="pipeline">{"".join(cells)}</ol><p class="soft">{" · ".join(figures)}</p>'
    )


def _pace(run: RunStatus) -> str:
    """Return the latest figures of the running stage and the memory of its process: `340 tokens/s  1.2 GiB`."""
    used = run.memory_bytes()
    figures = run.progress.figures if run.progress else {}
    return "  ".join(
        [
            *(figure(name, value) for name, value in figures.items() if value is not None),
            *([memory(used)] if used else []),
        ]
    )


def answers_step(alarm: Alarm, watched: Rows) -> int | None:
    """Return the step of the answers behind an alarm; None for one about the whole run, or without answers."""
    return None if alarm.step is None else evaluated_step(watched, alarm.step)


def _alarms(alarms: Sequence[Alarm], number: int, watched: Rows, language: str) -> str:
    """Return each alarm with its figures and advice, and a link to the answers of its step."""
    if not alarms:
        return f'<p class="soft">{html(t("watch.quiet", language))}</p>'
    texts, items = locale(language), []
    for alarm in alarms:
        step = answers_step(alarm, watched)
        words = "" if step is None else html(t("watch.answers", language, step=step))
        answers = f' <a href="#{place_of(step)}">{words}</a>' if step is not None else ""
        items.append(
            f"<li><b>{_linked(alarm, number, texts)}</b><span>{inline_code(alarm.text(texts))}{answers}</span></li>"
        )
    return f'<h2>{html(t("watch.alarms", language))}</h2><ul class="alarms">{"".join(items)}</ul>'


def _linked(alarm: Alarm, number: int, texts: Locale) -> str:
    """Return the alarm's title, as a link to the curve or the answers that show its cause, if any do."""
    title = html(alarm.title(texts))
    place = "watch-samples" if alarm.seen_in == ANSWERS else f"chart-{in_round(alarm.seen_in, number)}"
    return f'<a href="#{place}">{title}</a>' if alarm.seen_in else title


def _curves(rows: Sequence[dict[str, Any]], number: int, language: str) -> str:
    texts = locale(language)
    drawn = "".join(_figure(figure, texts) for figure in of_round(curve_figures(rows, texts), number, texts))
    return (
        f'<div class="plots">{drawn}</div>' if drawn else f'<p class="empty">{html(t("watch.no_rows", language))}</p>'
    )


def _folded(rows: Sequence[dict[str, Any]], number: int, language: str) -> str:
    """Return the curves of an earlier round, folded."""
    summary = html(t("watch.earlier", language, round=number))
    return f"<details><summary>{summary}</summary>{_curves(rows, number, language)}</details>"


def _figure(figure: ChartFigure, texts: Locale) -> str:
    name, title = html(f"{figure.id}.csv"), html(texts("chart.csv"))
    table = f'<a class="csv" download="{name}" href="{html(figure.csv_link)}" title="{title}">CSV</a>'
    below = f"<figcaption>{html(figure.hint)}</figcaption>"
    return f'<figure id="chart-{html(figure.id)}">{table}<b>{html(figure.title)}</b>{figure.svg}{below}</figure>'


def _log(run: RunStatus, events: Sequence[dict[str, Any]], language: str) -> str:
    """Return the end of the log; for a run started in a terminal the events from its folder instead."""
    path = jobs.log_path(run.path)
    lines = last_lines(path, _LOG_LINES) if path else []
    lead = t("watch.log", language)
    if not lines:
        lead = t("watch.events", language)
        shown = [{key: value for key, value in event.items() if value is not None} for event in events[-_EVENTS:]]
        lines = ["  ".join(str(value) for value in event.values()) for event in shown]
    if not lines:
        return ""
    text = html("\n".join(lines))
    return f'<details open><summary>{html(lead)}</summary><pre class="log">{text}</pre></details>'
