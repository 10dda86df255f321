"""What an alternative to PPO has to bring: its data, TRL's trainer for some of its steps, and what its log means."""

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import Trainer

from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.training.trl_bridge import Generate, Loan
from lowrank_rlhf.training.trl_loop import FiniteSteps


class Task(Protocol):
    """An algorithm with what it learns from, in the order of all its steps."""

    steps: int
    """Optimiser steps of the whole stage."""
    width: int
    """Padded tokens of the longest row of a batch: an answer with its prompt, or a pair of them."""
    claim: str
    """What `first` shows, in words."""
    tolerance: float
    """How large `first` may be: for rounding."""

    def begin(self, step: int) -> None:
        """The step after that many is about to begin."""

    @property
    def generate(self) -> Generate | None:
        """The policy's answers to a step's prompts; None where the algorithm samples none."""

    def trainer(self, loan: Loan, finite: FiniteSteps, settings: dict[str, Any], steps: range, **rest: Any) -> Trainer:
        """TRL's trainer for those of the steps, with the loop's settings and the `rest` of its arguments."""

    def figures(self, logs: Mapping[str, float]) -> dict[str, float]:
        """The figures of the step that ran, from TRL's log, under the names that they have in PPO's metrics."""

    def first(self, logs: Mapping[str, float]) -> float | None:
        """By how much the log of the first step is off from what it says if TRL's reference is SFT; None says nothing.

        Until that step the policy is SFT, too.
        """

    def batch(self) -> Sequences:
        """What the step that ran learnt from."""
