"""Checks of the alarms about evaluations and the reward model; `alarms.py` has their limits and sources."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, get_args

from lowrank_rlhf.config.rewards import MODEL
from lowrank_rlhf.evaluation.run_judges import JudgeRole
from lowrank_rlhf.maths.statistics import Fall, fall_from_peak
from lowrank_rlhf.reports.format import Metrics, by_step, finite_series, gold, number, percent
from lowrank_rlhf.reports.locale import Phrase, Text
from lowrank_rlhf.run.results import FigureId, FigureRow, Results
from lowrank_rlhf.run.results.parts import Interval

REPEATED = 0.8
"""Share of SFT's distinct-2 below which answers repeat themselves at any length."""
_LEVEL = 0.01
"""Largest p-value of the tests on wording."""


class AlarmFinding(NamedTuple):
    """What a check found."""

    values: Mapping[str, Text]
    """Figures for the alarm's text."""
    step: int | None = None
    """Step of PPO at which it shows; None where it concerns the whole run."""
    seen_in: str = ""
    """Id of the curve that shows it, where that depends on the run."""


@dataclass(frozen=True)
class Evidence:
    """Data that the rules check."""

    metrics: Metrics
    results: Results
    weight: str
    """Config key of the weight that keeps the policy near SFT."""

    def figure(self, figure: FigureId, judge: str | None = None) -> FigureRow | None:
        """Return the evaluation's row with that id, and of that judge if given; rows of version 0.1 have no id."""
        table = self.results.evaluate.table if self.results.evaluate else ()
        return next((row for row in table if row.id == figure and judge in (None, row.judge)), None)


def second_judge(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Look for a second judge whose win rate is below the limit with its whole interval."""
    evaluate = evidence.results.evaluate
    if evaluate is None or evaluate.second_judge is None:
        return None
    row = evidence.figure("win_rate", evaluate.second_judge)
    if row is None or row.policy is None or not _end(row.interval, 1) < limit:  # nan is no alarm
        return None
    return AlarmFinding(
        {
            "judge": evaluate.second_judge,
            "share": percent(row.policy),
            "low": f"{100 * _end(row.interval, 0):.0f}",
            "high": percent(_end(row.interval, 1)),
        }
    )


def within_spread(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Look for a rise of the reward model's score that is less than the members' standard deviation times the limit.

    Both are means over the validation prompts' answers, by the kept policy, or by the last one if SFT is kept.
    """
    policy = evidence.results.ppo
    if policy is None:
        return None
    named = next((reward.name for reward in policy.rewards if reward.source == MODEL), None)
    scores = finite_series(evidence.metrics, "ppo", f"eval/reward/{named}" if named else "eval/score")
    spreads = finite_series(evidence.metrics, "ppo", "eval/score_spread")
    steps = scores.keys() & spreads.keys()
    step = policy.best_step or max(steps, default=0)
    if not {0, step} <= steps or not step:
        return None
    gain = scores[step] - scores[0]
    if gain >= limit * spreads[step]:
        return None
    values: dict[str, Text] = {
        "step": str(step),
        "gain": number(gain),
        "spread": number(spreads[step]),
        "before": number(spreads[0]),
    }
    return AlarmFinding(values, step)


def overoptimisation(evidence: Evidence, level: float) -> AlarmFinding | None:
    """Look for a judge's score that fell from its peak while the reward model's rose, by a paired test over prompts.

    Runs of earlier versions have no scores by prompt, and no alarm.
    """
    for role in get_args(JudgeRole):
        proxy = finite_series(evidence.metrics, "ppo", "eval/score")
        judged = _scores_by_prompt(evidence.metrics, f"eval/{role}_scores")
        steps = [step for step in sorted(judged) if step in proxy and len(judged[step]) == len(judged[max(judged)])]
        if len(steps) < 2:
            continue
        fall = _fall(tuple(judged[step] for step in steps))
        first, last = steps[fall.peak], steps[-1]
        if fall.p <= level and proxy[last] > proxy[first]:
            values = {"first": str(first), "last": str(last), "drop": number(fall.drop), "p": f"{fall.p:.2g}"}
            advice = Phrase(f"advice.{'stop_earlier' if first else 'keep_sft'}", {**values, "weight": evidence.weight})
            curve = "frontier" if role == gold(evidence.metrics) else "frontier_second"
            return AlarmFinding({**values, "judge": Phrase(f"role.{role}"), "advice": advice}, last, curve)
    return None


def _scores_by_prompt(metrics: Metrics, key: str) -> dict[int, tuple[float, ...]]:
    """Return the scores of each evaluation by step; one with a score that is not finite is left out."""
    return {
        step: tuple(scores)
        for step, scores in by_step(metrics, "ppo", key).items()
        if isinstance(scores, list) and scores and all(isinstance(score, int | float) for score in scores)
    }


@lru_cache(maxsize=64)
def _fall(scores: tuple[tuple[float, ...], ...]) -> Fall:
    """Test for a fall; cached, since the page asks again every few seconds."""
    return fall_from_peak(scores)


def length_explains(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Look for a win rate above the limit that is not shown to be above it at equal length."""
    evaluate = evidence.results.evaluate
    if evaluate is None or evaluate.length_controlled_win_rate is None:
        return None
    if not _end(evaluate.win_rate_interval, 0) > limit >= _end(evaluate.length_controlled_interval, 0):
        return None
    return AlarmFinding(
        {
            "share": percent(evaluate.win_rate),
            "controlled": percent(evaluate.length_controlled_win_rate),
            "low": f"{100 * _end(evaluate.length_controlled_interval, 0):.0f}",
            "high": percent(_end(evaluate.length_controlled_interval, 1)),
        }
    )


def favoured_words(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Look for content words that far more of the policy's answers contain than of SFT's."""
    found = evidence.results.evaluate and evidence.results.evaluate.favoured_words
    if not found or found.p > _LEVEL or found.after - found.before < limit:
        return None
    words = ", ".join(found.words)
    shares = {"sft": percent(found.before), "policy": percent(found.after)}
    return AlarmFinding({"words": words, **shares, "weight": evidence.weight})


def same_openers(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Look for two words that many of the policy's answers begin with."""
    row = evidence.figure("top_opener")
    if row is None or row.policy is None or row.policy <= limit:
        return None
    opener = row.openers[1] if row.openers else ""
    return AlarmFinding({"policy": percent(row.policy), "sft": percent(row.sft), "opener": opener})


def repeated_words(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Look for far fewer distinct word pairs than in SFT's answers."""
    row = evidence.figure("distinct_2")
    if row is None or row.policy is None or row.sft is None or row.policy >= limit * row.sft:
        return None
    return AlarmFinding(
        {"sft": f"{row.sft:.2f}", "policy": f"{row.policy:.2f}", "limit": f"{limit:g}", "weight": evidence.weight}
    )


def falling_variety(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Look for a significant fall of distinct-2 at equal length; silent where `repeated_words` is raised."""
    found = evidence.results.evaluate and evidence.results.evaluate.variety
    if not found or found.p > _LEVEL or found.after >= limit * found.before:
        return None
    if repeated_words(evidence, REPEATED):
        return None
    return AlarmFinding({"sft": f"{found.before:.2f}", "policy": f"{found.after:.2f}", "weight": evidence.weight})


def miscalibrated(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Look for a calibration error above the limit, and above what chance explains in a calibrated model.

    The error of a calibrated model is not 0: its expectation and deviation follow from the bins' counts. Pairs of one
    prompt share answers, so a prompt counts as one pair.
    """
    reward = evidence.results.reward
    if reward is None or reward.ece is None or not reward.reliability or not reward.pairs_held_out:
        return None
    independent = (reward.prompts_held_out or reward.pairs_held_out) / reward.pairs_held_out
    mean = variance = 0.0
    for found in reward.reliability:
        share = found.count / reward.pairs_held_out
        spread = found.probability * (1 - found.probability) / max(1.0, found.count * independent)
        mean += share * math.sqrt(2 / math.pi * spread)  # of |x|, x normal with that variance
        variance += share**2 * (1 - 2 / math.pi) * spread
    chance = mean + 1.96 * math.sqrt(variance)
    if reward.ece <= max(limit, chance):
        return None
    return AlarmFinding({"ece": percent(reward.ece), "limit": percent(limit), "chance": percent(chance)})


def _end(interval: Interval | None, end: int) -> float:
    """Return a bound of an interval; nan, which no comparison holds for, where it is not known."""
    bound = interval[end] if interval else None
    return math.nan if bound is None else bound
