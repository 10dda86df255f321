"""HTML of a plan: the JSON object that the command `plan --json` prints."""

from collections.abc import Mapping
from typing import Any

from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.run.progress import duration, memory

Plan = Mapping[str, Any]
_STATES = {"done": "plan.done", "to do": "plan.to_do", "half done": "plan.half_done", "stale": "plan.stale"}
_NOTES = (
    "memory_selected", "stale_stages", "model_missing", "known_shape", "data_assumed", "helps_too_small",
    "few_validation_prompts", "activations_estimated",
)  # fmt: skip
"""Ids of the notes for which the page has its own texts."""


def plan_html(plan: Plan, language: str) -> str:
    """Return stages, memory, disk and time of a planned run, its settings folded."""
    rows = "".join(_stage_row(stage, language) for stage in plan["stages"])
    names = ("stage", "state", "time", "memory")
    head = "".join(f"<th>{html(t(f'plan.{name}', language))}</th>" for name in names)
    needs = "".join(
        f"<li><b>{html(t(f'plan.{name}', language))}</b> {html(text)}</li>"
        for name, text in (
            ("memory", _memory(plan["memory"], language)),
            ("disk", _disk(plan["disk"], language)),
            ("time", _time(plan["time"], plan["memory"]["verdict"], language)),
        )
    )
    return (
        f'<table class="plan"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f'<ul class="plan">{needs}</ul>{_reasons(plan, language)}{_helps(plan, language)}{_settings(plan, language)}'
    )


def _stage_row(stage: Plan, language: str) -> str:
    time, need = stage["time"], stage["memory"]
    cells = (
        stage["stage"],
        t(_STATES[stage["state"]], language),
        duration(time["seconds"]) if time else "",
        memory(need["needed_bytes"]) if need else "",
    )
    return f"<tr>{''.join(f'<td>{html(cell)}</td>' for cell in cells)}</tr>"


def _memory(need: Plan, language: str) -> str:
    free, total = memory(need["free_bytes"]), memory(need["total_bytes"])
    if need["needed_bytes"] is None:
        return t("plan.unknown" if need["verdict"] == "unknown" else "plan.nothing_to_load", language)
    key = "plan.memory_fits" if need["fits"] else "plan.memory_too_small"
    return t(key, language, needed=memory(need["needed_bytes"]), free=free, total=total)


def _disk(need: Plan, language: str) -> str:
    if not need["writable"]:
        return t("plan.not_writable", language)
    if need["needed_bytes"] is None:
        return t("plan.unknown", language)
    key = "plan.disk_fits" if need["fits"] else "plan.disk_too_small"
    return t(key, language, needed=memory(need["needed_bytes"]), free=memory(need["free_bytes"]))


def _time(span: Plan | None, memory_verdict: str, language: str) -> str:
    if span is None:
        return t("plan.unknown" if memory_verdict == "unknown" else "plan.nothing_to_do", language)
    about, low, high = (duration(span[key]) for key in ("seconds", "low", "high"))
    return t("plan.duration", language, about=about, low=low, high=high)


def _reasons(plan: Plan, language: str) -> str:
    """Return the reasons for stale stages, in the command's words, and the notes that the lines above do not cover."""
    reasons = [f"{stage['stage']}: {reason}" for stage in plan["stages"] for reason in stage["why"]]
    found = {entry["id"]: entry["data"] for entry in plan["notes"]}
    reasons += [t(f"plan.{name}", language, **found[name]) for name in _NOTES if name in found]
    return note("\n".join(reasons))


def _helps(plan: Plan, language: str) -> str:
    """Return the settings that need less memory, for a run that does not fit."""
    if plan["memory"]["fits"] or not plan["helps"]:
        return ""
    rows = "\n".join(f"{entry['override']}: {memory(entry['needed_bytes'])}" for entry in plan["helps"])
    return f'<p class="soft">{html(t("plan.helps", language))}</p>{note(rows)}'


def _settings(plan: Plan, language: str) -> str:
    text = dump_config(Config.model_validate(plan["config"]), changed_only=True)
    title = html(t("new.settings", language))
    return f"<details><summary>{title}</summary>{note(text)}</details>"
