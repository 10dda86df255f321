"""Interface of the alternatives to PPO: training data, TRL's trainer for a range of steps, figures from its log."""

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import Trainer

from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.training.trl_bridge import Generate, TrlBridge
from lowrank_rlhf.training.trl_loop import FiniteGuard


class Task(Protocol):
    """Algorithm with its training data, in the order of the steps."""

    steps: int
    """Optimizer steps of the stage."""
    width: int
    """Padded tokens of the longest row of a batch: an answer with its prompt, or a pair of them."""
    claim: str
    """Text of the self-check that `first_error` measures."""
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
        """Build TRL's trainer for a range of steps from the loop's settings and further arguments."""

    def figures(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Return the last step's figures from TRL's log, under the names of PPO's metrics."""

    def first_error(self, logs: Mapping[str, float]) -> float | None:
        """Return the first step's error in a figure whose value is known while policy and reference are both SFT.

        None if the log does not contain the figure.
        """

    def batch(self) -> Sequences:
        """Return the last step's training batch."""
