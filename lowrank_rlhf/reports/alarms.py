"""Signs that a run went wrong, read from its metrics, each with what to do. Thresholds: FACTS section 5."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from lowrank_rlhf.reports.format import DISTINCT, OPENER, Metrics, Summaries, algorithm, gold, percent, series

# Drifts compare the mean of the last steps with that of the first: one rollout's mean is too noisy for a limit of 5 %.
_WINDOW = 5


def _ppo(metrics: Metrics, key: str) -> tuple[list[int], list[float]]:
    """A PPO metric without its gaps."""
    steps, values = series(metrics, "ppo", key)
    known = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    return [step for step, _ in known], [value for _, value in known]


def _ends(metrics: Metrics, key: str) -> tuple[float, float] | None:
    """Means over the first and the last steps (at most half of all each)."""
    _, values = _ppo(metrics, key)
    window = min(_WINDOW, len(values) // 2)
    return (sum(values[:window]) / window, sum(values[-window:]) / window) if window else None


def _exceeded(metrics: Metrics, key: str, limit: float) -> str | None:
    """Where a metric exceeded its limit, in words."""
    steps, values = _ppo(metrics, key)
    over = [(step, value) for step, value in zip(steps, values, strict=True) if value > limit]
    if not over:
        return None
    return f"above {limit:g} in {len(over)} of {len(steps)} steps, first at step {over[0][0]}, at most " + (
        f"{max(value for _, value in over):.3g}"
    )


def negative_kl(metrics: Metrics) -> str | None:
    """Sampled and scored distributions differ where the mean of log p - log q stays below zero."""
    steps, values = _ppo(metrics, "objective/kl")
    for start in range(len(values) - 9):
        if all(value < 0 for value in values[start : start + 10]):
            return (
                f"The KL was negative in ten steps running (from step {steps[start]}). A true KL cannot be: the "
                "answers were not sampled from the distribution that is scored. Check temperature, top-p and padding."
            )
    return None


def first_ratio(metrics: Metrics) -> str | None:
    """Before a step's first update the policy's probabilities are the rollout's."""
    where = _exceeded(metrics, "policy/first_ratio_error", 0.001)
    return where and (
        f"The first probability ratio's distance from 1 was {where}: old and new log-probabilities are computed "
        "differently. Look for dropout, another number format or another temperature."
    )


def clip_fraction(metrics: Metrics) -> str | None:
    """Too many tokens outside the trust region."""
    where = _exceeded(metrics, "policy/clipfrac", 0.2)
    return (
        where and f"The clipped share of tokens was {where}. Updates are too large: lower the policy's learning rate."
    )


def approximate_kl(metrics: Metrics) -> str | None:
    """An update moves too far from the policy that sampled."""
    where = _exceeded(metrics, "policy/approxkl", 0.02)
    return where and (
        f"The approximate KL within a step was {where}. Use fewer epochs per rollout, a lower learning rate, or "
        "`ppo.target_kl`, which ends a rollout's passes early."
    )


def overoptimisation(metrics: Metrics, weight: str) -> str | None:
    """Goodhart: the judge falls in three evaluations running while the reward model's score rises."""
    key, judge = gold(metrics)
    proxy, judged = (dict(zip(*_ppo(metrics, name), strict=True)) for name in ("eval/score", key))
    steps = [step for step in judged if step in proxy]
    for window in zip(steps, steps[1:], steps[2:], steps[3:], strict=False):
        falls = all(judged[later] < judged[earlier] for earlier, later in pairwise(window))
        if falls and proxy[window[-1]] > proxy[window[0]]:
            return (
                f"From step {window[0]} to {window[-1]} the {judge}'s score fell three times running while the reward "
                f"model's rose: the policy exploits the reward model. Stop near step {window[0]}, raise `{weight}`, "
                "or rank more answers, the policy's among them."
            )
    return None


def longer_answers(metrics: Metrics, summaries: Summaries) -> str | None:
    """Length is the commonest thing that a reward model rewards by mistake.

    SFT's own length is that of the answers to rank; without them PPO's first steps stand for it.
    """
    ends, sample = _ends(metrics, "response/length_mean"), summaries.get("sample", {})
    if ends is None:
        return None
    before = sample["tokens"] / sample["answers"] if sample.get("answers") else ends[0]
    if ends[1] <= 1.5 * before:
        return None
    return (
        f"Answers grew from {before:.3g} to {ends[1]:.3g} tokens, more than 1.5 times. Part of the gain may be length "
        "alone: compare with how often the longer answer wins, and read the answers below."
    )


def unfinished_answers(metrics: Metrics) -> str | None:
    """Answers that run into the limit instead of ending."""
    ends = _ends(metrics, "response/eos_rate")
    if ends is None or ends[1] >= 0.95:
        return None
    return (
        f"Only {percent(ends[1])} of the last answers end by themselves ({percent(ends[0])} of the first). Keep "
        "`ppo.missing_eos: replace`, lower its score, or allow longer answers."
    )


def same_openers(summaries: Summaries) -> str | None:
    """A policy that found a phrase to please its judge puts it at the start of every answer."""
    row = _compared(summaries, OPENER)
    if row is None or row["policy"] <= 0.3:
        return None
    return (
        f"{percent(row['policy'])} of the aligned model's answers open with the same two words ({row['note']}; SFT's "
        f"commonest opener: {percent(row['sft'])}). It may have found a phrase that pleases: read the answers below."
    )


def repeated_words(summaries: Summaries, weight: str) -> str | None:
    """Fewer different word pairs than SFT writes: stock phrases, or answers that go round in circles."""
    row = _compared(summaries, DISTINCT)
    if row is None or row["policy"] >= 0.8 * row["sft"]:
        return None
    return (
        f"The share of different word pairs fell from {row['sft']:.2f} to {row['policy']:.2f}, below 0.8 of SFT's: the "
        f"answers repeat themselves or each other. Raise `{weight}` or train for fewer steps."
    )


def _compared(summaries: Summaries, figure: str) -> Mapping[str, Any] | None:
    """A row of the table of before and after."""
    return next((row for row in summaries.get("evaluate", {}).get("table", ()) if row["figure"] == figure), None)


def entropy_collapse(metrics: Metrics, weight: str) -> str | None:
    """The policy says the same thing over and over."""
    ends = _ends(metrics, "objective/entropy")
    if ends is None or ends[1] >= 0.3 * ends[0]:
        return None
    return (
        f"The entropy fell from {ends[0]:.3g} to {ends[1]:.3g} nats per token, below 30 %: answers become alike. Raise "
        f"`{weight}` or take an earlier checkpoint."
    )


def far_from_sft(metrics: Metrics, weight: str) -> str | None:
    """Small reward models are exploited at 13 to 45 nats (Gao et al. 2022)."""
    for key, name in (("objective/kl", "training"), ("eval/kl", "evaluation")):
        where = _exceeded(metrics, key, 30)
        if where:
            return (
                f"The KL per answer in {name} was {where}. So far from SFT the reward model's score means little: "
                f"raise `{weight}` or train for fewer steps."
            )
    return None


def weak_reward(summaries: Summaries) -> str | None:
    """PPO against a reward model that knows nothing, or only length, teaches nothing else; the stage itself says so."""
    weak = summaries.get("reward", {}).get("weak")
    return weak and f"{weak[0].upper()}{weak[1:]}. Rank more answers, or answers that differ more."


def broken_claims(summaries: Summaries) -> list[str]:
    """Every claim of a stage that did not hold."""
    return [
        f"Stage {stage}: “{claim['claim']}” did not hold ({claim['figure']}). Don't rely on this run: report a bug."
        for stage, summary in summaries.items()
        for claim in summary.get("claims", ())
        if not claim["holds"]
    ]


_CHECKS: tuple[Callable[[Metrics], str | None], ...] = (
    negative_kl,
    first_ratio,
    clip_fraction,
    approximate_kl,
    unfinished_answers,
)
_TOO_FAR: tuple[Callable[[Metrics, str], str | None], ...] = (overoptimisation, entropy_collapse, far_from_sft)
"""What more weight on staying near SFT mends; they are told the key that sets it."""


def named_alarms(metrics: Metrics, summaries: Summaries, made_by: str | None = None) -> list[tuple[str, str]]:
    """What looks wrong in a run and what to do about it: the check's name and its text; empty where nothing does.

    metrics are the rows of metrics.jsonl, summaries those of the finished stages by name. `made_by` is the algorithm
    in capitals, where the stage that names it may not be finished.
    """
    weight = "ppo.kl_coef" if (made_by or algorithm(summaries)) == "PPO" else "align.beta"
    found = [
        ("weak_reward", weak_reward(summaries)),
        *((check.__name__, check(metrics)) for check in _CHECKS),
        *((check.__name__, check(metrics, weight)) for check in _TOO_FAR),
        ("longer_answers", longer_answers(metrics, summaries)),
        ("same_openers", same_openers(summaries)),
        ("repeated_words", repeated_words(summaries, weight)),
    ]
    broken = [("broken_claims", text) for text in broken_claims(summaries)]
    return broken + [(name, text) for name, text in found if text]


def alarms(metrics: Metrics, summaries: Summaries) -> list[str]:
    """The texts of `named_alarms`."""
    return [text for _, text in named_alarms(metrics, summaries)]
