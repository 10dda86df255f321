"""Table of several finished runs of one preset that differ in their seed, and what the selection of a policy flatters.

    python -m lowrank_rlhf sweep quickstart seed=1,2,3
    python benchmarks/seeds.py runs/quickstart-seed-*

The old way to report chose a policy on the report's own prompts and repeated that evaluation: the best figures on
validation prompts. The new way reports the kept policy on test prompts. Both are read from the same runs; their prompts
differ, by chance alone, so only the mean over seeds tells them apart. Prints two Markdown tables.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.run.directory import RunDir

Row = dict[str, Any]


def main() -> None:
    """Read the runs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    rows = [read_run(run) for run in parser.parse_args().runs]
    print(table(rows))
    print()
    print(flattery(rows))


def read_run(path: Path) -> Row:
    """Return a run's figures on test prompts, and those of its best evaluation on validation prompts."""
    run, config = RunDir(path), load_config(path / "config.yaml")
    reward, found = run.results().reward, run.results().evaluate
    if reward is None or found is None:
        raise SystemExit(f"{path}: the run is not finished. Resume it first.")
    steps = [row for row in run.metrics.read("ppo") if "value/explained_variance" in row]
    best = max(
        (row for row in run.metrics.read("ppo") if "eval/objective" in row), key=lambda row: row["eval/objective"]
    )
    answers = [json.loads(line) for line in (path / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    second = next((row for row in found.table if row.id == "win_rate" and row.judge == found.second_judge), None)
    return {
        "seed": config.seed,
        "win_rate": found.win_rate,
        "interval": found.win_rate_interval,
        "equal_length": found.length_controlled_win_rate,
        "second": None if second is None else second.policy,
        "kl": found.kl_per_answer,
        "accuracy": reward.accuracy,
        "longer": reward.longer_wins,
        "explained": median(row["value/explained_variance"] for row in steps[len(steps) // 2 :]),
        "test_objective": fmean(row["score_policy"] - config.ppo.kl_coef * row["kl"] for row in answers),
        "old_win_rate": best["eval/win_rate"],
        "old_objective": best["eval/objective"],
    }


def table(rows: Sequence[Row]) -> str:
    """Return one line per seed, shares in percent."""
    columns = ("equal_length", "second", "accuracy", "longer", "explained")
    lines = [
        "| seed | win rate [95 %] | KL | at equal length | second judge | reward accuracy | longer wins | critic |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        shares = " | ".join(_percent(row[name]) for name in columns)
        interval = f"{_percent(row['win_rate'])} [{100 * low:.0f}, {100 * high:.0f}]"
        lines.append(f"| {row['seed']} | {interval} | {row['kl']:.2f} | {shares} |")
    return "\n".join(lines)


def flattery(rows: Sequence[Row]) -> str:
    """Return old and new figures per seed, and the mean difference with its standard error."""
    lines = ["| seed | win rate, old | new | objective, old | new |", "|---|---|---|---|---|"]
    for row in rows:
        shares = f"{_percent(row['old_win_rate'])} | {_percent(row['win_rate'])}"
        lines.append(f"| {row['seed']} | {shares} | {row['old_objective']:.2f} | {row['test_objective']:.2f} |")
    for name, new in (("win_rate", "win_rate"), ("objective", "test_objective")):
        differences = [row[f"old_{name}"] - row[new] for row in rows]
        error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
        lines.append(f"\n{name}, old less new: {fmean(differences):+.3f}, standard error {error:.3f}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


if __name__ == "__main__":
    main()
