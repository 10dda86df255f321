"""What crosses from one stage to the next, as one JSON object per line."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, model_validator

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run import fault_points


class Record(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Record):
    """A conversation that waits for the assistant's next turn."""

    id: str
    messages: tuple[Message, ...]
    held_out: bool = False

    @property
    def text(self) -> str:
        """The last thing that the user said."""
        return self.messages[-1].content

    @property
    def conversation(self) -> str:
        """What a judge and a reader see: the one message as it is, or all turns, each after its role and a colon."""
        if len(self.messages) == 1:
            return self.text
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.messages)


class Demonstration(Record):
    """A prompt with an answer worth imitating: a training row of the sft stage."""

    prompt: Prompt
    response: str


class Sample(Record):
    """One answer to one prompt. `tokens` is None where the text was not sampled from the model here."""

    id: str
    prompt_id: str
    text: str
    finished: bool = True
    """True if the model ended the answer itself, with its end-of-turn token."""
    tokens: tuple[int, ...] | None = None
    """The response's token ids, the end-of-turn token included where there is one."""


class Ranking(Record):
    """One annotator's order of the answers to one prompt: tiers of sample ids, best first; a tier holds ties.

    Answers that the annotator left out appear in no tier, and yield no comparison.
    """

    prompt_id: str
    tiers: tuple[tuple[str, ...], ...]
    annotator: str
    seconds: FiniteFloat | None = None
    flags: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    """Sample ids in the order in which they were shown."""
    partial: bool = False
    """Only the best were named: the last tier is what was left, below the others and in no order of its own."""
    written: str | None = None
    """A better answer, which the annotator wrote."""

    @property
    def named_tiers(self) -> tuple[tuple[str, ...], ...]:
        """The tiers in which the annotator put answers: those of one tier are equally good."""
        return self.tiers[:-1] if self.partial else self.tiers

    @model_validator(mode="after")
    def _each_answer_once(self) -> "Ranking":
        ranked = [sample for tier in self.tiers for sample in tier]
        if not all(self.tiers):
            raise ValueError("a tier is empty")
        if len(ranked) != len(set(ranked)):
            raise ValueError("an answer stands in two places")
        if self.partial and len(self.tiers) < 2:
            raise ValueError("a partial ranking needs a tier above the one with what was left")
        return self


class Comparison(Record):
    """One answer was preferred to another. `tier_gap` counts the tiers between them (1 = neighbours)."""

    prompt_id: str
    chosen: str
    rejected: str
    annotator: str
    tier_gap: int = 1


class Score(Record):
    """What the reward model gives one ranked answer: its head's own number, before any shift or scale."""

    sample_id: str
    prompt_id: str
    score: float
    held_out: bool
    """True if the reward model did not learn from this prompt."""


R = TypeVar("R", bound=Record)


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """One record per line, UTF-8, replacing the file."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
        fault_points.point(f"{path.name}: not all written")
    fault_points.point(f"{path.name}: written")


def read_jsonl(path: Path, record: type[R]) -> Iterator[R]:
    """Records of a file this package wrote. Raises `UserError` that names the file and the line."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield record.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "the line"
                raise UserError(f"{path}:{number}: {where}: {first['msg']}") from None
