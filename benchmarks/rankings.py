r"""What a number of rankings gives: figures of finished runs by the rankings that their reward models learnt from.

    python -m lowrank_rlhf sweep quickstart rounds=1,2 sample.prompts=48,96,192 seed=1,2,3 \
        ppo.accept_weak_reward=true evaluate.yardstick_prompts=0 name=rankings
    python benchmarks/rankings.py runs/rankings-rounds-* --output docs/performance

Each round of a run is one observation, with the rankings of all rounds so far. Prints a Markdown table of the means
over seeds, with the lowest and the highest; with `--output` also writes `rankings.json`, a row for each run and round,
and `rankings.svg` into that folder. Win rates are against the SFT model on test prompts.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.reports.svg.drawing import Chart, Guide, Line, draw
from lowrank_rlhf.run.directory import RunDir

Row = dict[str, Any]
SHARES = {
    "win_rate": "win rate",
    "equal_length": "at equal length",
    "second": "second judge",
    "accuracy": "reward accuracy",
}


def main(arguments: list[str] | None = None) -> None:
    """Read the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="folder for rankings.json and rankings.svg")
    given = parser.parse_args(arguments)
    rows = list(
        {(row["seed"], row["round"], row["rankings"]): row for run in given.runs for row in rounds(run)}.values()
    )
    if not rows:
        sys.exit("No run has been evaluated. Finish one first.")
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "rankings.json").write_text(json.dumps(rows, indent=1) + "\n")
        (given.output / "rankings.svg").write_text(plot(rows))
    print(table(rows))


def rounds(path: Path) -> Iterator[Row]:
    """Yield the figures of each evaluated round of a run."""
    run, seed, asked = RunDir(path), load_config(path / "config.yaml").seed, 0
    for each in run.rounds:
        reward, found = each.results().reward, each.results().evaluate
        if reward is None or found is None:
            return
        asked += len(each.artifact("rankings.jsonl").read_text(encoding="utf-8").splitlines())
        second = next((row for row in found.table if row.id == "win_rate" and row.judge == found.second_judge), None)
        yield {
            "rankings": asked,
            "round": each.number,
            "seed": seed,
            "win_rate": found.win_rate,
            "equal_length": found.length_controlled_win_rate,
            "second": None if second is None else second.policy,
            "accuracy": reward.accuracy,
            "kl": found.kl_per_answer,
        }


def table(rows: Sequence[Row]) -> str:
    """Return a line for each number of rankings and rounds: means over seeds, shares in percent."""
    lines = [f"| rankings | rounds | seeds | {' | '.join(SHARES.values())} | KL |", "|---" * (len(SHARES) + 4) + "|"]
    for (asked, number), group in sorted(_groups(rows).items()):
        cells = [_mean([row[name] for row in group if row[name] is not None], 100, 0, " %") for name in SHARES]
        cells.append(_mean([row["kl"] for row in group], 1, 2))
        lines.append(f"| {asked} | {number} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row]) -> str:
    """Return the win rate by the number of rankings as SVG: a curve for each number of rounds, a thin one per seed."""
    lines = []
    for colour, number in enumerate(sorted({row["round"] for row in rows})):
        label = f"{number} round{'s' * (number > 1)}"
        chosen = [row for row in rows if row["round"] == number]
        lines += [
            Line(
                label,
                sorted((row["rankings"], row["win_rate"]) for row in chosen if row["seed"] == seed),
                colour,
                thin=True,
            )
            for seed in sorted({row["seed"] for row in chosen})
        ]
        means = {asked: fmean(row["win_rate"] for row in group) for (asked, _), group in _groups(chosen).items()}
        lines.append(Line(label, sorted(means.items()), colour))
    even = Guide((None, None), (0.5, 0.5), "no preference")
    chart = Chart(
        "win rate against SFT by the number of rankings",
        "rankings",
        "win rate",
        lines=lines,
        guides=[even],
        legend=True,
    )
    return draw(chart, standalone=True)


def _groups(rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
    found: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["rankings"], row["round"]].append(row)
    return found


def _mean(values: Sequence[float], factor: float, digits: int, unit: str = "") -> str:
    if not values:
        return "-"
    low, mean, high = (f"{factor * value:.{digits}f}" for value in (min(values), fmean(values), max(values)))
    return f"{mean}{unit} ({low} to {high})" if len(values) > 1 else f"{mean}{unit}"


if __name__ == "__main__":
    main()
