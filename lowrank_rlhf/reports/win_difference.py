"""Difference of the win rates of two runs, each of its own policy against its own SFT model, with its interval."""

import math
from collections.abc import Mapping
from itertools import groupby

from lowrank_rlhf.evaluation.answer_pair import REWARDS
from lowrank_rlhf.maths.statistics import Interval, paired_difference, wins
from lowrank_rlhf.reports.answers import Row
from lowrank_rlhf.reports.render import Rows
from lowrank_rlhf.run.results import EvaluateResult

_BOOTSTRAP_SAMPLES = 10_000


def win_difference(
    first: EvaluateResult, first_rows: Rows, other: EvaluateResult, other_rows: Rows
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


def _prompt_wins(rows: Rows) -> Mapping[str, float]:
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
    """Return 1, 0 or, for a tie, 0.5: the verdict of the judge that ranked, else of the reward model's scores."""
    key = "judge" if "judge_policy" in row or "judge_prefers" in row else "score"
    if preferred := row.get(f"{key}_prefers"):
        return {"policy": 1.0, "sft": 0.0}.get(preferred, 0.5)
    policy, sft = row.get(f"{key}_policy"), row.get(f"{key}_sft")
    return None if policy is None or sft is None else float(wins([policy], [sft])[0])
