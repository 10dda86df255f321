"""The figures of a sweep's runs, from their done-marks: rows for JSON, a table for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_rlhf.reports.format import number, percent
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_atomic, write_json_atomic
from lowrank_rlhf.run.progress import duration, memory
from lowrank_rlhf.stages import STAGES
from lowrank_rlhf.sweep.grid import Combination, Sweep

PLOT = "sweep.png"
STATES = {0: "done", 5: "waiting for people", 6: "in use elsewhere", 130: "stopped"}
_HEADER = ("accuracy", "win rate", "shift", "KL", "EOS", "dist-2", "time", "memory", "state")


def figures(run_dir: RunDir) -> dict[str, Any]:
    """What the run's finished stages found; keys of stages that are not done are missing."""
    marks = {stage.name: mark for stage in STAGES if (mark := run_dir.done(stage.name))}
    own = [mark for mark in marks.values() if "taken_from" not in mark]
    reward, evaluation = (marks.get(name, {}).get("summary", {}) for name in ("reward", "evaluate"))
    policy = {row["figure"]: row["policy"] for row in evaluation.get("table", [])}
    found = {
        "reward_accuracy": reward.get("accuracy"),
        "reward_accuracy_interval": reward.get("accuracy_interval"),
        "win_rate": evaluation.get("win_rate"),
        "win_rate_interval": evaluation.get("win_rate_interval"),
        "mean_shift": evaluation.get("mean_shift"),
        "kl_per_answer": evaluation.get("kl_per_answer"),
        "eos_rate": policy.get("answers that end by themselves"),
        "distinct_2": policy.get("distinct-2"),
        "judge": evaluation.get("judge"),
        "seconds": round(sum(mark["seconds"] for mark in own), 1) if own else None,
        "peak_memory_bytes": max((mark["peak_memory_bytes"] for mark in own), default=None),
        "taken_from": {name: mark["taken_from"] for name, mark in marks.items() if "taken_from" in mark} or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def row(combination: Combination, runs: Path, state: str, message: str = "") -> dict[str, Any]:
    """A run of the sweep as sweep.json holds it; `message` says why a run that failed did."""
    reason = {"message": message} if message else {}
    return {
        "run": combination.config.name,
        "settings": combination.settings,
        "state": state,
        **reason,
        **figures(RunDir(runs / combination.config.name)),
    }


def header(sweep: Sweep) -> tuple[str, ...]:
    """Column titles: the settings that change, then the figures."""
    return (*sweep.short_names.values(), *_HEADER)


def cells(sweep: Sweep, entry: dict[str, Any]) -> tuple[str, ...]:
    """One run's cells under `header`, in words."""
    seconds, peak = entry.get("seconds"), entry.get("peak_memory_bytes")
    return (
        *(entry["settings"][key] for key in sweep.axes),
        _with_interval(entry, "reward_accuracy"),
        _with_interval(entry, "win_rate"),
        *(number(entry.get(key)) for key in ("mean_shift", "kl_per_answer", "eos_rate", "distinct_2")),
        "–" if seconds is None else duration(seconds),
        "–" if peak is None else memory(peak),
        entry["state"],
    )


def save(folder: Path, sweep: Sweep, rows: Sequence[dict[str, Any]], drawn: bool = False) -> dict[str, Any]:
    """Write sweep.json and sweep.md (which shows the plot if it is drawn), and return what the first holds."""
    record = {"schema": 1, "name": sweep.name, "config": sweep.source, "settings": sweep.axes, "runs": list(rows)}
    write_json_atomic(folder / "sweep.json", record)
    write_atomic(folder / "sweep.md", markdown(sweep, rows, drawn))
    return record


def markdown(sweep: Sweep, rows: Sequence[dict[str, Any]], drawn: bool) -> str:
    """The table with a sentence on its columns, and why runs failed."""
    lines = [
        f"# {sweep.name}",
        "",
        f"`{sweep.source}` with every combination of {', '.join(f'`{key}`' for key in sweep.axes)}. Accuracy is "
        "the reward model's on held-out comparisons; win rate, shift "
        "and KL are of the policy against SFT on held-out prompts; in brackets 95 % intervals over the prompts, not "
        "over seeds. Time is of the stages that a run made itself.",
        "",
        _line(("run", *header(sweep))),
        _line(["---"] * (len(header(sweep)) + 1)),
        *(_line((entry["run"], *cells(sweep, entry))) for entry in rows),
    ]
    failures = [entry for entry in rows if entry.get("message")]
    if failures:
        lines += ["", *(f"- {entry['run']}: {' '.join(entry['message'].split())}" for entry in failures)]
    if drawn:
        lines += ["", f"![The judge's score over the distance from SFT]({PLOT})"]
    return "\n".join([*lines, ""])


def _with_interval(entry: dict[str, Any], key: str) -> str:
    interval = entry.get(f"{key}_interval")
    if not interval or any(end is None for end in interval):
        return percent(entry.get(key))
    return f"{percent(entry[key])} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(part.replace('|', chr(92) + '|') for part in parts)} |"
