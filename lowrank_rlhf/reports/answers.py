"""Answers of evaluated runs: the examples of a report, greedy ones first, and the difference of two runs' win rates."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from lowrank_rlhf.evaluation.answer_pair import REWARDS
from lowrank_rlhf.maths.statistics import Interval, paired_difference, wins
from lowrank_rlhf.reports.format import number
from lowrank_rlhf.reports.locale import Locale
from lowrank_rlhf.run.results import EvaluateResult

Row = Mapping[str, Any]
"""A row of eval.jsonl."""
_BOOTSTRAP_SAMPLES = 10_000


class ShownAnswer(NamedTuple):
    """One model's answer to a prompt."""

    decoding: str
    """`greedy` or `sampled` in the reader's language; empty where there is one answer only."""
    text: str
    scores: str
    """Scores in words."""


def first_answers(rows: Sequence[Row]) -> list[Row]:
    """Return the first pair of answers to each prompt."""
    return list({row.get("prompt_id", row["prompt"]): row for row in reversed(rows)}.values())[::-1]


def has_greedy(row: Row) -> bool:
    """Return True if the row has greedy answers of both models: the first rows of runs since version 0.2."""
    return "greedy_sft" in row and "greedy_policy" in row


def shown_answers(row: Row, side: str, texts: Locale) -> list[ShownAnswer]:
    """Return the answers of one side (`sft` or `policy`): the greedy one, if the row has it, then the sampled one."""
    if not has_greedy(row):
        return [ShownAnswer("", str(row[side]), scores(row, side, texts))]
    return [
        ShownAnswer(texts(f"decoding.{decoding}"), str(row[key]), scores(row, key, texts))
        for decoding, key in (("greedy", f"greedy_{side}"), ("sampled", side))
    ]


def scores(row: Row, side: str, texts: Locale) -> str:
    """Return the scores of one answer of a row, such as `sft` or `greedy_sft`, and which judges prefer it.

    Judges that only compare have compared the sampled answers of both models.
    """
    parts = []
    for key in ("judge", "second", "score"):
        name, value, preferred = texts(f"scores.{key}"), row.get(f"{key}_{side}"), row.get(f"{key}_prefers")
        if value is not None:
            parts.append(texts("scores.value", name=name, value=number(value)))
        elif preferred == side or (preferred == "tie" and side in ("sft", "policy")):
            outcome = texts("scores.tie" if preferred == "tie" else "scores.preferred")
            parts.append(texts("scores.outcome", name=name, outcome=outcome))
    return " · ".join(parts)


def win_difference(
    first: EvaluateResult, first_rows: Sequence[Row], other: EvaluateResult, other_rows: Sequence[Row]
) -> tuple[float, Interval] | None:
    """Return the other run's win rate less the first one's, and its 95 % interval over prompts.

    Paired over the test prompts if both runs have the same ones, so that their difficulty cancels, else by the square
    root of the two intervals' squares (Newcombe 1998, method 10). None if a figure is missing, and if the judges
    differ, as the reward models of two runs do.
    """
    if first.judge != other.judge or first.judge in (None, REWARDS) or first.win_rate is None or other.win_rate is None:
        return None
    won, lost = _prompt_wins(other_rows), _prompt_wins(first_rows)
    if won and won.keys() == lost.keys():
        prompts = sorted(won)
        one, two = ([by_prompt[prompt] for prompt in prompts] for by_prompt in (won, lost))
        return paired_difference(one, two, prompts, _BOOTSTRAP_SAMPLES, seed=0)
    of_first, of_other = _ends(first), _ends(other)
    if of_first is None or of_other is None:
        return None
    difference = other.win_rate - first.win_rate
    below = math.hypot(other.win_rate - of_other.low, of_first.high - first.win_rate)
    above = math.hypot(of_other.high - other.win_rate, first.win_rate - of_first.low)
    return difference, Interval(difference - below, difference + above)


def _ends(result: EvaluateResult) -> Interval | None:
    low, high = result.win_rate_interval or (None, None)
    return None if low is None or high is None else Interval(low, high)


def _prompt_wins(rows: Sequence[Row]) -> Mapping[str, float]:
    """Return the policy's mean win over the answers to each prompt; empty where a row has no verdict."""
    found = {}
    for prompt, group in groupby(sorted(rows, key=_prompt), key=_prompt):
        verdicts = [_win(row) for row in group]
        known = [win for win in verdicts if win is not None]
        if len(known) < len(verdicts):
            return {}
        found[prompt] = math.fsum(known) / len(known)
    return found


def _prompt(row: Row) -> str:
    return str(row["prompt"])


def _win(row: Row) -> float | None:
    """Return 1, 0 or, for a tie, 0.5: the verdict of the judge that ranked."""
    if preferred := row.get("judge_prefers"):
        return {"policy": 1.0, "sft": 0.0}.get(preferred, 0.5)
    policy, sft = row.get("judge_policy"), row.get("judge_sft")
    return None if policy is None or sft is None else float(wins([policy], [sft])[0])
