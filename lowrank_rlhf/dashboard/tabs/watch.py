"""The tab Watch: how a run learns, while it does."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard import jobs, run_status
from lowrank_rlhf.dashboard.curves import figures
from lowrank_rlhf.dashboard.page import QUIET, Page
from lowrank_rlhf.dashboard.run_status import TAILS, Run
from lowrank_rlhf.dashboard.tabs.runs_html import last_figure, state_line
from lowrank_rlhf.dashboard.tabs.samples import samples
from lowrank_rlhf.dashboard.tail import last_lines
from lowrank_rlhf.dashboard.text import html, t, table
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.reports.alarms import named_alarms
from lowrank_rlhf.run.progress import duration, figure, memory

_SECONDS = 2.0
_LOG_LINES = 40
_EVENTS = 20


def build(page: Page) -> None:
    """Lay the tab out: every part is sent to the browser only when it has changed."""
    parts = [gr.HTML("", elem_id=f"watch-{name}") for name in ("state", "alarms", "curves", "samples", "log")]
    seen = gr.State({})

    def refresh(chosen: str | None, language: str, before: dict[str, Any]) -> list[Any]:
        return _refresh(page, chosen, language, before)

    inputs, outputs = [page.run, page.language, seen], [*parts, seen]
    gr.Timer(_SECONDS).tick(refresh, inputs, outputs, **QUIET)
    page.run.change(refresh, inputs, outputs, **QUIET)
    page.language.change(refresh, inputs, outputs, **QUIET)


def _refresh(page: Page, chosen: str | None, language: str, before: dict[str, Any]) -> list[Any]:
    """Five parts of the tab and what they were made from, each only if that has changed."""
    try:
        run = run_status.look(page.runs, chosen) if chosen else None
    except UserError:
        run = None
    if run is None:
        empty = f'<p class="empty">{html(t("runs.choose", language))}</p>'
        return [gr.skip()] * 6 if before == {"none": language} else [empty, "", "", "", "", {"none": language}]
    rows, version = TAILS.look(run.path / "metrics.jsonl")
    events, _ = TAILS.look(run.path / "events.jsonl")
    evaluated, second = TAILS.look(run.path / "eval.jsonl")
    watched, third = TAILS.look(run.path / "watched.jsonl")
    made_from = {
        "state": _state(run, language),
        "alarms": (run.name, version, run.done, language),
        "curves": (run.name, version, language),
        "samples": (run.name, second, third, "sample" in run.done, language),
        "log": _log(run, events, language),
    }
    made = {
        "state": lambda: made_from["state"],
        "alarms": lambda: _alarms(rows, run, language),
        "curves": lambda: _curves(rows, language),
        "samples": lambda: samples(run.path, watched, evaluated, language),
        "log": lambda: made_from["log"],
    }
    changed = [made[name]() if made_from[name] != before.get(name) else gr.skip() for name in made]
    return [*changed, made_from]


def _state(run: Run, language: str) -> str:
    """Where the run stands, with its stages, memory and pace."""
    cells = []
    for stage in run.stages:
        mark = run.marks.get(stage)
        if mark:
            kind, below = "done", f"{duration(float(mark.get('seconds', 0)))} · {memory(mark['peak_memory_bytes'])}"
        elif stage == run.stage and run.busy:
            kind, below = "now", f"{run.bar.at}/{run.bar.total} {run.bar.unit}" if run.bar else "…"
        else:
            kind, below = "todo", ""
        cells.append(f'<li class="{kind}"><b>{html(stage)}</b><span>{html(below)}</span></li>')
    figures = [text for text in (last_figure(run, language), run.bar.details if run.bar else _pace(run)) if text]
    return (
        f'<p class="lead"><span class="badge {run.kind}">{html(run.name)}</span> {html(state_line(run, language))}</p>'
        f'<ol class="pipeline">{"".join(cells)}</ol><p class="soft">{html("  ·  ".join(figures))}</p>'
    )


def _pace(run: Run) -> str:
    """What a bar would show of a run at work that a terminal shows the bar of: `340 tokens/s  1.2 GiB`."""
    used = run_status.memory_bytes(run)
    if not used:
        return ""
    rows, _ = TAILS.look(run.path / "metrics.jsonl")
    paces = (row.get("tokens_per_second") for row in reversed(rows) if row.get("stage") == run.stage)
    pace = next((pace for pace in paces if pace), None)
    return "  ".join([figure("tokens_per_second", pace), memory(used)] if pace else [memory(used)])


def _alarms(rows: Sequence[dict[str, Any]], run: Run, language: str) -> str:
    """Each alarm in the reader's words, what to do, and the figures behind it."""
    found = named_alarms(rows, run.summaries, run.algorithm)
    if not found:
        quiet = t("watch.quiet", language) if rows else ""
        return f'<p class="soft">{html(quiet)}</p>' if quiet else ""
    known = table(language)
    items = "".join(
        f"<li><b>{html(known.get(f'alarm.{name}', name))}</b><span>{html(text)}</span></li>" for name, text in found
    )
    return f'<h3>{html(t("watch.alarms", language))}</h3><ul class="alarms">{items}</ul>'


def _curves(rows: Sequence[dict[str, Any]], language: str) -> str:
    drawn = figures(rows, language)
    return (
        f'<div class="plots">{drawn}</div>' if drawn else f'<p class="empty">{html(t("watch.no_rows", language))}</p>'
    )


def _log(run: Run, events: Sequence[dict[str, Any]], language: str) -> str:
    """The end of the log; of a run that was started in a terminal what the folder notes instead."""
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
