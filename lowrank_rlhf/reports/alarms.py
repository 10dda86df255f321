"""Alarms about a run, from its metrics and results: rules with a limit, a source and advice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from lowrank_rlhf.config.ppo import APPROXIMATE_KL_LIMIT
from lowrank_rlhf.reports.evaluation_alarms import (
    REPEATED,
    AlarmFinding,
    Evidence,
    falling_variety,
    favoured_words,
    length_explains,
    miscalibrated,
    overoptimisation,
    repeated_words,
    same_openers,
    second_judge,
    within_spread,
)
from lowrank_rlhf.reports.format import Metrics, algorithm, finite_series, number, percent, weight_key
from lowrank_rlhf.reports.locale import ENGLISH, Locale, Phrase, Text
from lowrank_rlhf.run.results import Claim, Results

AlarmId = Literal[
    "failed_self_check",
    "weak_reward",
    "negative_kl",
    "first_ratio",
    "clip_fraction",
    "approximate_kl",
    "weak_critic",
    "unfinished_answers",
    "overoptimisation",
    "within_spread",
    "entropy_collapse",
    "far_from_sft",
    "length_growth",
    "same_openers",
    "repeated_words",
    "falling_variety",
    "favoured_words",
    "second_judge",
    "length_explains",
    "miscalibrated",
]

ANSWERS = "answers"
"""The answers of the policy, as the place where an alarm's cause is seen."""

# Drifts compare the means of the first and the last steps: the mean of one rollout is too noisy for a limit of 5 %.
_WINDOW = 5


@dataclass(frozen=True)
class Alarm:
    """Violated rule with the figures for its text."""

    id: AlarmId
    values: Mapping[str, Text]
    source: str = ""
    """Publication behind the rule; empty where the rule is a definition of this package."""
    seen_in: str = ""
    """Id of the curve that shows it, or `ANSWERS`; empty where neither does."""
    step: int | None = None
    """Step of PPO at which it shows, the first one of several; None where it concerns the whole run."""

    def title(self, texts: Locale) -> str:
        """Return the alarm in one sentence."""
        return texts(f"alarm.{self.id}.title")

    def text(self, texts: Locale) -> str:
        """Return the measurement and the advice."""
        return texts.render(Phrase(f"alarm.{self.id}.text", self.values))


@dataclass(frozen=True)
class Rule:
    """Check of an alarm with its limit; the check returns its finding, or None if all is well."""

    id: AlarmId
    check: Callable[[Evidence, float], AlarmFinding | None]
    limit: float = 0.0
    source: str = ""
    seen_in: str = ""


def find_alarms(metrics: Metrics, results: Results, made_by: str | None = None) -> list[Alarm]:
    """Return the alarms of a run.

    Args:
        metrics: the rows of metrics.jsonl.
        results: the results of the finished stages.
        made_by: the algorithm that trains the policy, for a run whose stage `ppo` is not finished.
    """
    evidence = Evidence(metrics, results, weight_key(made_by or algorithm(results)))
    found = [(rule, rule.check(evidence, rule.limit)) for rule in RULES]
    return _failed_self_checks(results) + [
        Alarm(rule.id, finding.values, rule.source, finding.seen_in or rule.seen_in, finding.step)
        for rule, finding in found
        if finding is not None
    ]


def _failed_self_checks(results: Results) -> list[Alarm]:
    return [
        Alarm("failed_self_check", {"stage": stage, "check": check_phrase(claim), "figure": number(claim.figure)})
        for stage, result in results.by_stage().items()
        for claim in result.claims
        if not claim.holds
    ]


def check_phrase(claim: Claim) -> Text:
    """Return the self-check as a sentence; one of version 0.1 has no id and keeps its own."""
    key = f"check.{claim.id}"
    return Phrase(key) if key in ENGLISH.texts else claim.claim


def _exceeded(metrics: Metrics, key: str, limit: float) -> AlarmFinding | None:
    """Return where a PPO metric exceeded its limit: the number of steps, the first one and the peak."""
    values = finite_series(metrics, "ppo", key)
    over = {step: value for step, value in values.items() if value > limit}
    if not over:
        return None
    figures = {
        "limit": f"{limit:g}",
        "count": str(len(over)),
        "all": str(len(values)),
        "step": str(min(over)),
        "peak": f"{max(over.values()):.3g}",
    }
    return AlarmFinding(figures, step=min(over))


def _above(key: str) -> Callable[[Evidence, float], AlarmFinding | None]:
    return lambda evidence, limit: _exceeded(evidence.metrics, key, limit)


def _ends(metrics: Metrics, key: str) -> tuple[float, float] | None:
    """Return a PPO metric's means over the first and the last steps, at most half of the steps each."""
    values = list(finite_series(metrics, "ppo", key).values())
    window = min(_WINDOW, len(values) // 2)
    return (sum(values[:window]) / window, sum(values[-window:]) / window) if window else None


def _weak_reward(evidence: Evidence, _: float) -> AlarmFinding | None:
    """Apply the reward stage's own verdict: PPO can only learn what the reward model knows."""
    reward = evidence.results.reward
    weakness = reward and reward_weakness(evidence.results)
    return AlarmFinding({"weakness": weakness}) if weakness else None


def reward_weakness(results: Results) -> Text | None:
    """Return why the reward model is weak, as a sentence without its full stop; None for a good one or none."""
    reward = results.reward
    if reward is None:
        return None
    if reward.weakness:
        return Phrase(f"weakness.{reward.weakness}", {"rule": length_rule(reward.longer_wins)})
    return f"{reward.weak[0].upper()}{reward.weak[1:]}" if reward.weak else None  # version 0.1 kept the sentence only


def length_rule(longer_wins: float | None) -> Phrase:
    """Return the better rule by length alone: prefer the longer or the shorter answer."""
    return Phrase("rule.longer" if longer_wins is None or longer_wins >= 0.5 else "rule.shorter")


def _negative_kl(evidence: Evidence, count: float) -> AlarmFinding | None:
    """Look for `count` consecutive steps with a negative KL estimate: chance alone makes some."""
    values, window = list(finite_series(evidence.metrics, "ppo", "objective/kl").items()), round(count)
    for start in range(len(values) - window + 1):
        if all(value < 0 for _, value in values[start : start + window]):
            return AlarmFinding({"count": str(window), "step": str(values[start][0])}, step=values[start][0])
    return None


def _approximate_kl(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Check the KL after the last optimizer step on each rollout; version 0.1 has only the mean before the steps."""
    key = "policy/final_approxkl"
    known = finite_series(evidence.metrics, "ppo", key)
    return _exceeded(evidence.metrics, key if known else "policy/approxkl", limit)


def _weak_critic(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Check the median over the second half of the steps: one rollout's explained variance is noisy."""
    values = list(finite_series(evidence.metrics, "ppo", "value/explained_variance").values())
    half = values[len(values) // 2 :]
    if len(half) < _WINDOW or median(half) >= limit:
        return None
    return AlarmFinding({"explained": f"{median(half):.2f}", "limit": f"{limit:g}"})


def _length_growth(evidence: Evidence, limit: float) -> AlarmFinding | None:
    """Compare with SFT's sampled answers, or with PPO's first steps if there are none."""
    ends, sample = _ends(evidence.metrics, "response/length_mean"), evidence.results.sample
    if ends is None:
        return None
    before = sample.tokens / sample.answers if sample and sample.answers and sample.tokens else ends[0]
    if ends[1] <= limit * before:
        return None
    return AlarmFinding({"before": f"{before:.3g}", "after": f"{ends[1]:.3g}", "limit": f"{limit:g}"})


def _unfinished_answers(evidence: Evidence, limit: float) -> AlarmFinding | None:
    ends = _ends(evidence.metrics, "response/eos_rate")
    if ends is None or ends[1] >= limit:
        return None
    return AlarmFinding({"before": percent(ends[0]), "after": percent(ends[1])})


def _entropy_collapse(evidence: Evidence, limit: float) -> AlarmFinding | None:
    ends = _ends(evidence.metrics, "objective/entropy")
    if ends is None or ends[1] >= limit * ends[0]:
        return None
    figures = {"before": f"{ends[0]:.3g}", "after": f"{ends[1]:.3g}", "limit": percent(limit)}
    return AlarmFinding({**figures, "weight": evidence.weight})


def _far_from_sft(evidence: Evidence, limit: float) -> AlarmFinding | None:
    for key, where in (("objective/kl", "where.training"), ("eval/kl", "where.evaluation")):
        if found := _exceeded(evidence.metrics, key, limit):
            return AlarmFinding({**found.values, "where": Phrase(where), "weight": evidence.weight}, found.step)
    return None


_PPO_DETAILS = "Huang et al. 2022, The 37 Implementation Details of PPO"
_RLHF_DETAILS = "Huang et al. 2024, arXiv 2403.17031"
_OVEROPTIMISATION = "Gao et al. 2022, arXiv 2210.10760"
_ENSEMBLES = "Coste et al. 2023, arXiv 2310.02743"
_NEGATIVE_KL = "TRL 0.11, Training FAQ: What is the concern with negative KL divergence?"
_LENGTH = "Singhal et al. 2023, arXiv 2310.03716"
_DISTINCT = "Li et al. 2016, arXiv 1510.03055"
_ENTROPY = "Yu et al. 2025, arXiv 2503.14476"
_WORDS = "Juzek and Ward 2024, arXiv 2412.11385"
_HACKING = "Skalse et al. 2022, arXiv 2209.13085"
_LENGTH_CONTROL = "Dubois et al. 2024, arXiv 2404.04475"
_CALIBRATION = "Guo et al. 2017, arXiv 1706.04599"

RULES = (
    Rule("weak_reward", _weak_reward, seen_in="reward_accuracy"),
    Rule("negative_kl", _negative_kl, limit=10, source=_NEGATIVE_KL, seen_in="kl"),
    Rule("first_ratio", _above("policy/first_ratio_error"), limit=0.001, source=_PPO_DETAILS),
    Rule("clip_fraction", _above("policy/clipfrac"), limit=0.2, source=_PPO_DETAILS, seen_in="clip_fraction"),
    Rule("approximate_kl", _approximate_kl, limit=APPROXIMATE_KL_LIMIT, source=_PPO_DETAILS),
    Rule("weak_critic", _weak_critic, limit=0.1),
    Rule("unfinished_answers", _unfinished_answers, limit=0.95, source=_RLHF_DETAILS, seen_in=ANSWERS),
    Rule("second_judge", second_judge, limit=0.5, source=_HACKING, seen_in=ANSWERS),
    Rule("overoptimisation", overoptimisation, limit=0.05, source=_OVEROPTIMISATION),
    Rule("within_spread", within_spread, limit=1.0, source=_ENSEMBLES, seen_in="score_spread"),
    Rule("entropy_collapse", _entropy_collapse, limit=0.3, source=_ENTROPY, seen_in="entropy"),
    # Small reward models are exploited from 13 to 45 nats on.
    Rule("far_from_sft", _far_from_sft, limit=30, source=_OVEROPTIMISATION, seen_in="kl"),
    Rule("length_growth", _length_growth, limit=1.5, source=_LENGTH, seen_in="length"),
    Rule("length_explains", length_explains, limit=0.5, source=_LENGTH_CONTROL),
    Rule("favoured_words", favoured_words, limit=0.25, source=_WORDS, seen_in=ANSWERS),
    Rule("same_openers", same_openers, limit=0.3, seen_in=ANSWERS),
    Rule("repeated_words", repeated_words, limit=REPEATED, source=_DISTINCT, seen_in=ANSWERS),
    Rule("falling_variety", falling_variety, limit=0.95, source=_DISTINCT, seen_in=ANSWERS),
    Rule("miscalibrated", miscalibrated, limit=0.1, source=_CALIBRATION),
)
"""The rules, in the order in which their alarms are shown."""
