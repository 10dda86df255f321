"""Records passed from stage to stage, one JSON object per line."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, model_validator

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run import fault_points


class Record(BaseModel):
    """Base of all records: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Prompt(Record):
    """Conversation before the assistant's next turn."""

    id: str
    messages: tuple[Message, ...]
    held_out: bool = False

    @property
    def text(self) -> str:
        """Text of the last message, the user's or a tool's result."""
        return self.messages[-1].content

    @property
    def conversation(self) -> str:
        """Prompt as text for judges and people: a single message alone, several turns with role and colon."""
        if len(self.messages) == 1:
            return self.text
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.messages)


class Demonstration(Record):
    """Prompt with a demonstration answer: a training row of the sft stage."""

    prompt: Prompt
    response: str


class Sample(Record):
    """One answer to one prompt. `tokens` is None if the text was not sampled by this package."""

    id: str
    prompt_id: str
    text: str
    finished: bool = True
    """True if the answer ends with the end-of-turn token."""
    tokens: tuple[int, ...] | None = None
    """Token ids of the response, including the end-of-turn token if there is one."""


class Ranking(Record):
    """Ranking of the answers to one prompt by one annotator: tiers of sample ids, best first; a tier contains ties.

    Answers omitted by the annotator are in no tier and yield no comparison.
    """

    prompt_id: str
    tiers: tuple[tuple[str, ...], ...]
    annotator: str
    seconds: FiniteFloat | None = None
    flags: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    """Sample ids in the order shown."""
    partial: bool = False
    """True if only the best answers were chosen: the last tier is the unordered rest."""
    written: str | None = None
    """Better answer written by the annotator."""
    guidelines: str | None = None
    """Version of the guidelines that the annotator was shown."""
    unread: tuple[str, ...] = ()
    """Sample ids of long answers that the annotator never scrolled to the end; empty if it was not observed."""

    @property
    def named_tiers(self) -> tuple[tuple[str, ...], ...]:
        """Tiers that the annotator chose; answers of one tier are equally good."""
        return self.tiers[:-1] if self.partial else self.tiers

    @model_validator(mode="after")
    def _each_answer_once(self) -> "Ranking":
        ranked = [sample for tier in self.tiers for sample in tier]
        if not all(self.tiers):
            raise ValueError("a tier is empty")
        if len(ranked) != len(set(ranked)):
            raise ValueError("an answer appears twice")
        if self.partial and len(self.tiers) < 2:
            raise ValueError("a partial ranking needs a tier above the unordered rest")
        return self


class Comparison(Record):
    """Pair of answers, one preferred to the other. `tier_gap` is the distance of their tiers (1 = adjacent)."""

    prompt_id: str
    chosen: str
    rejected: str
    annotator: str
    tier_gap: int = 1
    decision: bool = False
    """True if it is from the owner's decision and not from an annotator's ranking."""
    replaced: bool = False
    """True if a decision replaces it: nothing is learned from it, and it shows how reliable its annotator is."""


class Score(Record):
    """Reward of one ranked answer: the raw output of the reward head, before shift and scale."""

    sample_id: str
    prompt_id: str
    score: float
    held_out: bool
    """True if the reward model was not trained on this prompt."""


class RolloutAnswer(Record):
    """Answer of one of PPO's rollouts, with figures of each of its tokens as the update used them."""

    prompt_id: str
    prompt: str
    finished: bool
    score: FiniteFloat
    """Of the reward model or the sum of the rewards, before clipping and `ppo.missing_eos`."""
    pieces: tuple[str, ...]
    """Text of each token, special tokens included: together the answer. A character of several tokens is in the first
    one's."""
    logprobs: tuple[FiniteFloat, ...]
    """Log-probability of each token under the policy that sampled it, nats."""
    ref_logprobs: tuple[FiniteFloat, ...]
    """The same under the SFT model."""
    values: tuple[FiniteFloat, ...]
    """The critic's value of the state before each token."""
    advantages: tuple[FiniteFloat, ...]
    rewards: tuple[FiniteFloat, ...]
    """Minus the KL penalty of each token, plus the shaped score at the last."""

    @model_validator(mode="after")
    def _figures_of_each_token(self) -> "RolloutAnswer":
        figures = (self.logprobs, self.ref_logprobs, self.values, self.advantages, self.rewards)
        if {len(values) for values in figures} != {len(self.pieces)}:
            raise ValueError("the figures are not as many as the tokens")
        return self


R = TypeVar("R", bound=Record)


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write one record per line, UTF-8, replacing the file."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
        fault_points.point(f"{path.name}: not all written")
    fault_points.point(f"{path.name}: written")


def read_jsonl(path: Path, record: type[R]) -> Iterator[R]:
    """Yield the records of a file written by this package. Raises `UserError` with file and line."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield record.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "the line"
                raise UserError(f"{path}:{number}: {where}: {first['msg']}") from None
