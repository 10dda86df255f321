"""Gold over sqrt(KL) for the runs of a sweep (Gao et al. 2022, figure 1): a curve per setting, thin ones for seeds."""

import io
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_rlhf.reports.format import gold, series
from lowrank_rlhf.run.directory import RunDir

Points = dict[int, tuple[float, float]]
"""PPO step -> distance and gold."""

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


def points(run: Path) -> Points:
    """The evaluations of one run in which KL and judge are known."""
    metrics = list(RunDir(run).metrics.read("ppo"))
    of_judge, _ = gold(metrics)
    kl, judged = (dict(zip(*series(metrics, "ppo", key), strict=True)) for key in ("eval/kl", of_judge))
    return {
        step: (math.sqrt(max(kl[step], 0.0)), judged[step])  # noise can put an estimate of a tiny KL below 0
        for step in kl
        if step in judged and math.isfinite(kl[step]) and math.isfinite(judged[step])
    }


def mean_points(runs: Sequence[Points]) -> Points:
    """Mean distance and gold over the runs, of the steps that all of them have."""
    if not runs:
        return {}
    common = sorted(set.intersection(*(set(run) for run in runs)))
    return {step: _mean([run[step] for run in runs]) for step in common}


def draw(entries: Sequence[dict[str, Any]], runs: Path, path: Path) -> bool:
    """Write the plot as PNG; False, and no file, where no run has been judged. Seeds of one setting are averaged."""
    groups: dict[str, list[Points]] = defaultdict(list)
    for entry in entries:
        found = points(runs / entry["run"])
        if found:
            settings = [f"{key} {value}" for key, value in entry["settings"].items() if key != "seed"]
            groups[", ".join(settings) or "all seeds"].append(found)
    if not groups:
        return False
    from matplotlib import colormaps, rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = colormaps["tab10"].colors if len(groups) <= 10 else colormaps["viridis"].resampled(len(groups)).colors  # type: ignore[attr-defined]
    with rc_context(_STYLE):
        figure = Figure(figsize=(6, 4), layout="constrained", dpi=150)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_xlabel("distance from SFT: √KL, √nats per answer")
        axes.set_ylabel("judge's mean score on held-out prompts (gold)")
        for (label, of_seeds), colour in zip(groups.items(), colours, strict=False):
            if len(of_seeds) > 1:
                label += f" (mean of {len(of_seeds)} seeds)"
                for one in of_seeds:
                    axes.plot(*zip(*_in_order(one), strict=True), color=colour, linewidth=0.7, alpha=0.5)
            axes.plot(*zip(*_in_order(mean_points(of_seeds)), strict=True), color=colour, marker="o", label=label)
        axes.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
    return True


def _in_order(found: Points) -> list[tuple[float, float]]:
    return [found[step] for step in sorted(found)]


def _mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    distances, golds = zip(*pairs, strict=True)
    return sum(distances) / len(pairs), sum(golds) / len(pairs)
