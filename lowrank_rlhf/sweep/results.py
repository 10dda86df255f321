"""Figures of a sweep's runs, from their done marks: rows for JSON, a table for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lowrank_rlhf.reports.format import number, percent, percent_bounds
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_record, write_atomic, write_json_atomic
from lowrank_rlhf.run.progress import duration, memory
from lowrank_rlhf.run.results import EvaluateResult, RewardResult
from lowrank_rlhf.run.results.rounds import stages_in
from lowrank_rlhf.sweep.grid import Combination, Sweep

PLOT = "sweep.svg"
STATES = {0: "done", 5: "waiting for people", 6: "in use elsewhere", 130: "stopped"}
_HEADER = ("accuracy", "win rate", "shift", "KL", "EOS", "dist-2", "time", "memory", "state")


def figures(run_dir: RunDir) -> dict[str, Any]:
    """Return the figures of the run's finished stages, of the newest round; a missing stage has no keys."""
    marks = {name: mark for name in stages_in(run_dir.run) if (mark := run_dir.mark(name))}
    results = run_dir.newest.results()
    own = [mark for mark in marks.values() if not mark.taken_from]
    reward, evaluation = results.reward or RewardResult(), results.evaluate or EvaluateResult(prompts=0)
    policy = {row.id: row.policy for row in evaluation.table}
    found = {
        "reward_accuracy": reward.accuracy,
        "reward_accuracy_interval": reward.accuracy_interval,
        "win_rate": evaluation.win_rate,
        "win_rate_interval": evaluation.win_rate_interval,
        "mean_shift": evaluation.mean_shift,
        "kl_per_answer": evaluation.kl_per_answer,
        "eos_rate": policy.get("eos_rate"),
        "distinct_2": policy.get("distinct_2"),
        "judge": evaluation.judge,
        "seconds": round(sum(mark.seconds for mark in own), 1) if own else None,
        "peak_memory_bytes": max((mark.peak_memory_bytes for mark in own), default=None),
        "taken_from": {name: mark.taken_from for name, mark in marks.items() if mark.taken_from} or None,
    }
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in found.items() if value is not None
    }


def row(combination: Combination, runs: Path, state: str, message: str = "") -> dict[str, Any]:
    """Return a run's entry in sweep.json; `message` is the reason of a failure."""
    reason = {"message": message} if message else {}
    return {
        "run": combination.config.name,
        "settings": combination.settings,
        "state": state,
        **reason,
        **figures(RunDir(runs / combination.config.name)),
    }


def header(sweep: Sweep) -> tuple[str, ...]:
    """Return the column titles: the settings that vary, then the figures."""
    return (*sweep.short_names.values(), *_HEADER)


def cells(sweep: Sweep, entry: dict[str, Any]) -> tuple[str, ...]:
    """Return one run's cells for the columns of `header`."""
    seconds, peak = entry.get("seconds"), entry.get("peak_memory_bytes")
    return (
        *(entry["settings"][key] for key in sweep.axes),
        *(
            percent(entry.get(key)) + percent_bounds(entry.get(f"{key}_interval"))
            for key in ("reward_accuracy", "win_rate")
        ),
        *(number(entry.get(key)) for key in ("mean_shift", "kl_per_answer", "eos_rate", "distinct_2")),
        "–" if seconds is None else duration(seconds),
        "–" if peak is None else memory(peak),
        entry["state"],
    )


def save(folder: Path, sweep: Sweep, rows: Sequence[dict[str, Any]], drawn: bool = False) -> dict[str, Any]:
    """Write sweep.json and sweep.md (with the plot if it is drawn), and return the contents of the former."""
    record = {"schema": 1, "name": sweep.name, "config": sweep.source, "settings": sweep.axes, "runs": list(rows)}
    write_json_atomic(folder / "sweep.json", record)
    write_atomic(folder / "sweep.md", markdown(sweep, rows, drawn))
    return record


class _SweepEntry(BaseModel):
    run: str


class _SweepRecord(BaseModel):
    runs: list[_SweepEntry]


def runs_of_sweep(name: str, runs: Path) -> list[str]:
    """Return the folders of a sweep's runs that were started; none if there is no sweep of that name or folder.

    Raises `UserError` for a damaged sweep.json.
    """
    for folder in (runs / name, Path(name)):
        if found := read_record(folder / "sweep.json", _SweepRecord):
            entries = [folder.parent / entry.run for entry in _SweepRecord.model_validate(found).runs]
            return [str(path) for path in entries if (path / "config.yaml").is_file()]
    return []


def markdown(sweep: Sweep, rows: Sequence[dict[str, Any]], drawn: bool) -> str:
    """Return the table, an explanation of its columns, and the reasons for failures."""
    lines = [
        f"# {sweep.name}",
        "",
        f"`{sweep.source}` with every combination of {', '.join(f'`{key}`' for key in sweep.axes)}. Accuracy is "
        "the reward model's on held-out comparisons; win rate, shift "
        "and KL are of the policy against SFT on held-out prompts; in brackets 95 % intervals over the prompts, not "
        "over seeds. Time excludes stages copied from another run.",
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


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(part.replace('|', chr(92) + '|') for part in parts)} |"
