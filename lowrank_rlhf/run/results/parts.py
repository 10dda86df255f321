"""Parts of the stages' results: the base of all, and the records that describe a reward model's accuracy."""

from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt

Interval = tuple[FiniteFloat | None, FiniteFloat | None]
"""95 % bootstrap interval; a bound is None where it cannot be estimated."""


class Result(BaseModel):
    """Base of all results: immutable; unknown keys are kept, so that a rewritten mark loses nothing."""

    model_config = ConfigDict(frozen=True, extra="allow")


class FileSum(Result):
    """Size and checksum of a finished file."""

    bytes: NonNegativeInt
    sha256: str


class RowsSum(Result):
    """Number and checksum of a finished stage's lines in a log."""

    rows: NonNegativeInt
    sha256: str


class ReliabilityRow(Result):
    """Predicted probability and accuracy of the pairs with a confidence between `low` and `high`."""

    low: float
    high: float
    count: NonNegativeInt
    probability: float
    accuracy: float


class RoundAccuracy(Result):
    """Accuracy of a reward model on held-out comparisons of one round's answers."""

    round: int
    pairs: NonNegativeInt
    accuracy: float
    interval: Interval
    before: float | None = None
    """Accuracy of the last round's reward model on the same pairs; None for answers that it was trained for."""


class WithoutPrompt(Result):
    """Accuracy on held-out pairs with replaced prompts, and its difference to that with their own; paired by prompt."""

    accuracy: float
    interval: Interval
    lost: float
    lost_interval: Interval


class PromptAudit(Result):
    """Accuracy of the reward model on some held-out pairs: with their own, empty, and exchanged prompts."""

    prompts: NonNegativeInt
    pairs: NonNegativeInt
    accuracy: float
    emptied: WithoutPrompt
    shuffled: WithoutPrompt | None = None
