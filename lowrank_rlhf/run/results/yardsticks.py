"""Results of the yardsticks, part of the result of `evaluate`."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from lowrank_rlhf.run.results.parts import Interval, Result

YardstickId = Literal["sft_sampled", "sft_greedy", "best_of_n", "policy_sampled", "policy_greedy", "base_greedy"]


class YardstickScore(Result):
    """Judge's verdict on the answers of one yardstick; no win rate for SFT's sampled answers themselves."""

    judge: str
    """Name of the judge, or `reward model`."""
    mean_score: float | None = None
    """None if the judge's scores compare within one call only."""
    win_rate: float | None = None
    """Against SFT's sampled answer to the same prompt; ties count half."""
    win_rate_interval: Interval | None = None


class Yardstick(Result):
    """Answers to compare the policy with."""

    id: YardstickId
    scores: tuple[YardstickScore, ...]


class Yardsticks(Result):
    """Yardsticks on the first test prompts."""

    prompts: NonNegativeInt
    n: PositiveInt
    """Answers that best-of-n chooses from; its KL is nearest to the policy's."""
    best_of_n_kl: float
    """KL of best-of-n, nats per answer."""
    capped: bool
    """True if the policy's KL would need a larger n."""
    rows: tuple[Yardstick, ...]
