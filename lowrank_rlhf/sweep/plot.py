"""Plot of the gold score over √KL (Gao et al. 2022, figure 1): a curve per setting, a thin one per seed."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_rlhf.reports.charts import distance_and_gold, sweep_chart
from lowrank_rlhf.reports.locale import ENGLISH
from lowrank_rlhf.reports.svg.drawing import COLOURS, Line, Point, draw
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_atomic

Points = dict[int, Point]
"""PPO step -> distance and gold score."""


def mean_points(runs: Sequence[Points]) -> Points:
    """Return mean distance and gold score over the runs, for the steps that all of them have."""
    if not runs:
        return {}
    common = sorted(set.intersection(*(set(run) for run in runs)))
    return {step: _mean([run[step] for run in runs]) for step in common}


def write_plot(entries: Sequence[dict[str, Any]], runs: Path, path: Path) -> bool:
    """Write the plot as SVG, the seeds of a setting averaged; return False without a file if no run has been judged."""
    groups: dict[str, list[Points]] = defaultdict(list)
    for entry in entries:
        found = distance_and_gold(list(RunDir(runs / entry["run"]).newest.metrics.read("ppo")))
        if found:
            settings = [f"{key} {value}" for key, value in entry["settings"].items() if key != "seed"]
            groups[", ".join(settings) or "all seeds"].append(found)
    if not groups:
        return False
    lines = []
    for index, (label, of_seeds) in enumerate(groups.items()):
        colour = index % COLOURS
        if len(of_seeds) > 1:
            label += f" (mean of {len(of_seeds)} seeds)"
            lines += [Line(label, _in_order(one), colour, thin=True) for one in of_seeds]
        lines.append(Line(label, _in_order(mean_points(of_seeds)), colour))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(
        path, draw(sweep_chart("The judge's score over the distance from SFT", lines, ENGLISH), standalone=True)
    )
    return True


def _in_order(found: Points) -> list[Point]:
    return [found[step] for step in sorted(found)]


def _mean(pairs: Sequence[Point]) -> Point:
    distances, golds = zip(*pairs, strict=True)
    return sum(distances) / len(pairs), sum(golds) / len(pairs)
