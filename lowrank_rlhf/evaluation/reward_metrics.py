"""How good a reward model is on comparisons that it has not seen."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from lowrank_rlhf.maths.statistics import clustered_bootstrap, expected_calibration_error, pearson, reliability
from lowrank_rlhf.training.reward_data import Group


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


def length_rule(figures: dict[str, Any]) -> tuple[str, float, tuple[float, float]]:
    """The better of the two rules that look at length only, `longer` or `shorter`, its accuracy, and the interval."""
    share, (low, high) = figures["longer_wins"], figures["longer_wins_interval"]
    return ("longer", share, (low, high)) if share >= 0.5 else ("shorter", 1 - share, (1 - high, 1 - low))


def verdict(figures: dict[str, Any]) -> str | None:
    """Why this reward model is not worth optimising against, or None."""
    if figures["accuracy_interval"][0] <= 0.5:
        return "the reward model is not shown to be better than chance on held-out comparisons"
    rule, by_length, _ = length_rule(figures)
    if figures["accuracy"] <= by_length:
        return f"the reward model is no better than preferring the {rule} answer"
    return None


def good(figures: dict[str, Any]) -> str:
    """What is said of a reward model that has no other verdict."""
    return f"better than chance, and than preferring the {length_rule(figures)[0]} answer"


def in_words(figures: dict[str, Any], weak: str | None) -> str:
    """The held-out accuracy beside the better rule by length, for the terminal."""

    def percent(share: float, interval: tuple[float, float]) -> str:
        low, high = interval
        return f"{100 * share:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"

    rule, by_length, interval = length_rule(figures)
    return (
        f"of {figures['pairs_held_out']} held-out pairs of {figures['prompts_held_out']} prompts the reward model gets "
        f"{percent(figures['accuracy'], figures['accuracy_interval'])} right, and preferring the {rule} answer "
        f"{percent(by_length, interval)}: {weak or good(figures)}"
    )


def _share(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)
