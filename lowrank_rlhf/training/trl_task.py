"""Interface of the alternatives to PPO: their data, TRL's trainer for some of the steps, and the meaning of its log."""

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import Trainer

from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.training.trl_bridge import Generate, TrlBridge
from lowrank_rlhf.training.trl_loop import FiniteGuard


class Task(Protocol):
    """Algorithm with its training data, in the order of its steps."""

    steps: int
    """Optimizer steps of the stage."""
    width: int
    """Padded tokens of the longest row of a batch: an answer with its prompt, or a pair of them."""
    claim: str
    """Self-check that `first_error` measures, as a sentence."""
    tolerance: float
    """Largest `first_error` that rounding explains."""

    def begin(self, step: int) -> None:
        """Prepare the step after `step` completed ones."""

    @property
    def generate(self) -> Generate | None:
        """Function that samples the policy's answers; None if the algorithm samples none."""

    def trainer(
        self, bridge: TrlBridge, guard: FiniteGuard, settings: dict[str, Any], steps: range, **rest: Any
    ) -> Trainer:
        """Build TRL's trainer for a range of steps, with the loop's settings and the `rest` of its arguments."""

    def figures(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Return the last step's figures from TRL's log, under the names of PPO's metrics."""

    def first_error(self, logs: Mapping[str, float]) -> float | None:
        """Return the first step's error in a figure that is known if TRL's reference is SFT, as the policy still is.

        None if the log has no such figure.
        """

    def batch(self) -> Sequences:
        """Return the last step's training batch."""
