"""How good a reward model is on comparisons that it has not seen."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from lowrank_rlhf.maths.statistics import clustered_bootstrap, expected_calibration_error, pearson, reliability
from lowrank_rlhf.stages.reward_data import Group

GOOD = "better than chance, and than preferring the longer answer"


def held_out_figures(groups: Sequence[Group], scores: Sequence[Tensor], samples: int, seed: int) -> dict[str, Any]:
    """Accuracy with its interval over prompts, the length baseline, calibration, margins and length correlation."""
    margins, longer, prompts = [], [], []
    for group, of_group in zip(groups, scores, strict=True):
        for better, worse, _ in group.pairs:
            margins.append(float(of_group[better] - of_group[worse]))
            longer.append(_share(group.lengths[better] - group.lengths[worse]))
            prompts.append(group.prompt_id)
    right = [_share(margin) for margin in margins]
    confident = [1 / (1 + math.exp(-min(abs(margin), 700))) for margin in margins]
    lengths = [length for group in groups for length in group.lengths]
    return {
        "pairs_held_out": len(margins),
        "prompts_held_out": len(groups),
        "accuracy": sum(right) / len(right),
        "accuracy_interval": clustered_bootstrap(right, prompts, samples, seed),
        "longer_wins": sum(longer) / len(longer),
        "longer_wins_interval": clustered_bootstrap(longer, prompts, samples, seed),
        "ece": expected_calibration_error(confident, right),
        "reliability": [asdict(bar) for bar in reliability(confident, right)],
        "margins": margins,
        "length_correlation": pearson([float(score) for of_group in scores for score in of_group], lengths),
    }


def verdict(figures: dict[str, Any]) -> str | None:
    """Why this reward model is not worth optimising against, or None."""
    if figures["accuracy_interval"][0] <= 0.5:
        return "the reward model is not shown to be better than chance on held-out comparisons"
    if figures["accuracy"] <= figures["longer_wins"]:
        return "the reward model is no better than preferring the longer answer"
    return None


def in_words(figures: dict[str, Any], weak: str | None) -> str:
    """The held-out accuracy beside the length baseline, for the terminal."""

    def share(name: str) -> str:
        low, high = figures[f"{name}_interval"]
        return f"{100 * figures[name]:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"

    return (
        f"of {figures['pairs_held_out']} held-out pairs of {figures['prompts_held_out']} prompts the reward model gets "
        f"{share('accuracy')} right, and preferring the longer answer {share('longer_wins')}: {weak or GOOD}"
    )


def _share(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)
