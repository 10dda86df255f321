"""Common representation of a row of any format."""

from dataclasses import dataclass
from typing import Literal

from lowrank_rlhf.maths.pairs import ordered_pairs
from lowrank_rlhf.run.records import Message

Undecided = Literal["no majority", "tie", "not text", "same answer", "other prompt", "alone"]
UNDECIDED: dict[Undecided, str] = {
    "no majority": "in which neither answer had two of the three votes",
    "tie": "in which all answers are tied",
    "not text": "in which an answer is true or false instead of text",
    "same answer": "in which both answers are the same",
    "other prompt": "in which the two conversations differ before the last answer",
    "alone": "with the only rated answer to its prompt",
}


@dataclass(frozen=True)
class Example:
    """Prompt with an optional response to imitate and optional ranked answers."""

    prompt: tuple[Message, ...]
    response: str | None = None
    id: str | None = None
    answers: tuple[str, ...] = ()
    """Answers in the row's order; chosen comes before rejected."""
    tiers: tuple[tuple[int, ...], ...] = ()
    """Indices into `answers`, best first; answers of one tier are tied. Each text occurs once."""
    annotator: str = "dataset"
    rating: float | None = None
    """Rating of the only answer; the answers to one prompt from several rows are then merged to a ranking."""
    undecided: Undecided | None = None
    """Reason for which the answers have no order."""

    @property
    def imitated(self) -> str | None:
        """The response, or the only answer preferred to all others."""
        if self.response is not None or self.undecided or not self.tiers or len(self.tiers[0]) > 1:
            return self.response
        return self.answers[self.tiers[0][0]] if self.answers[self.tiers[0][0]].strip() else None

    @property
    def texts(self) -> tuple[str, ...]:
        """The response, if any, and all answers."""
        return (*([] if self.response is None else [self.response]), *self.answers)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs (better, worse) of strictly ordered answers."""
        if self.undecided:
            return []
        return [(self.answers[better], self.answers[worse]) for better, worse, _ in ordered_pairs(self.tiers)]
