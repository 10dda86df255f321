"""Choice of the policy that a run keeps, from its evaluations on the same held-out prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowrank_rlhf.maths.statistics import paired_difference

_BOOTSTRAP_SAMPLES = 10_000


@dataclass(frozen=True)
class Evaluated:
    """Evaluation of a policy on N held-out prompts, one answer to each."""

    step: int
    objectives: list[float]
    """(N,), shaped score less the KL penalty of each answer; in a checkpoint of version 0.1 their mean only."""
    ended: list[bool]
    """(N,), True if the answer ended by itself; empty in a checkpoint of version 0.1."""

    @property
    def mean(self) -> float:
        """Mean objective."""
        return math.fsum(self.objectives) / len(self.objectives)


def choose(best: Evaluated | None, last: Evaluated, sft_ended: Sequence[bool]) -> tuple[Evaluated, Evaluated]:
    """Return the policy to keep after the evaluation `last`, and the best one so far, to pass to the next call.

    A policy *ends fewer answers than SFT* if the 95 % interval of the paired difference of the shares, SFT's less the
    policy's, is above 0 (`ends_fewer`). The best policy is one that does not, if there is any, and among those the one
    with the highest mean objective; of equal ones the earlier. The last policy is kept unless the best one is earlier
    and either

    - the last one ends fewer answers than SFT, and the best one does not, or
    - both or neither do, and the best one's mean objective is more than one standard error of the paired difference
      higher (`standard_error`).

    Training seldom makes a policy worse, and the highest of several noisy means is too high: so an earlier policy has
    to be better by more than noise. Answers without an end enter an objective once, through `ppo.missing_eos`.
    """
    if best is None:
        return last, last
    best_ends, last_ends = (not ends_fewer(policy.ended, sft_ended) for policy in (best, last))
    if best_ends != last_ends:
        return (best, best) if best_ends else (last, last)
    gain = best.mean - last.mean
    kept = best if gain > standard_error(best.objectives, last.objectives) else last
    return kept, best if gain >= 0 else last


def ends_fewer(ended: Sequence[bool], sft_ended: Sequence[bool]) -> bool:
    """Return True if fewer of a policy's answers end by themselves than of SFT's, by more than chance explains.

    (N,), (N,), of the same prompts: the 95 % bootstrap interval of the paired difference is above 0. With 128 prompts
    that takes 4 answers without an end where SFT's all end. False where either is unknown (version 0.1).
    """
    if not ended or not sft_ended:
        return False
    prompts = range(len(ended))
    return paired_difference(sft_ended, ended, prompts, _BOOTSTRAP_SAMPLES, seed=0)[1].low > 0


def standard_error(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the standard error of the mean of first - second, (N,) each, of the same prompts.

    Infinite for one prompt; 0 if one of the two is a mean only (version 0.1), so that any difference decides, as there.
    """
    if len(first) != len(second):
        return 0.0
    if len(first) == 1:
        return math.inf
    return float(np.subtract(first, second).std(ddof=1)) / math.sqrt(len(first))
