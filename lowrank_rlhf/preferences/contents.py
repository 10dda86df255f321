"""Records of an annotation store and of its files: prompts, answers, saved rankings, skips."""

from collections.abc import Iterable
from dataclasses import dataclass

from lowrank_rlhf.preferences.team.guidelines import Guidelines
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Record, Sample

Text = str | tuple[Message, ...]


class SavedRanking(Record):
    """A ranking as it was saved. A withdrawn one does not count."""

    ranking: Ranking
    withdrawn: bool = False


class Skip(Record):
    """A prompt that an annotator skipped."""

    annotator: str
    prompt_id: str


class AttentionCheck(Record):
    """A prompt with a known order of its answers, best first; rankings of it are never learned from."""

    prompt_id: str
    tiers: tuple[tuple[str, ...], ...]
    source: str | None = None
    """Annotator who gave the order; None for a prompt from a file of checks."""
    active: bool = True
    """False if it is no longer shown."""


class Decision(Record):
    """The owner's order of a prompt, which replaces its annotators' rankings for training."""

    ranking: Ranking


class Pair(Record):
    """A comparison with its texts, which are messages in files where a prompt has several turns."""

    prompt: Text
    chosen: Text
    rejected: Text
    prompt_id: str
    chosen_id: str
    rejected_id: str
    annotator: str
    tier_gap: int = 1
    decision: bool = False
    """True if it is from the owner's decision and not from an annotator's ranking."""


@dataclass(frozen=True)
class Contents:
    """Contents of a store, in its order.

    `history` has all saved rankings, oldest first; `skips` by annotator; `guidelines` all texts shown, oldest first.
    """

    prompts: tuple[Prompt, ...] = ()
    answers: tuple[Sample, ...] = ()
    history: tuple[SavedRanking, ...] = ()
    skips: tuple[Skip, ...] = ()
    guidelines: tuple[Guidelines, ...] = ()
    checks: tuple[AttentionCheck, ...] = ()
    decisions: tuple[Ranking, ...] = ()

    def current(self) -> list[Ranking]:
        """Return the rankings that count: the latest of each annotator and prompt, oldest first, without checks."""
        checks = {check.prompt_id for check in self.checks}
        return [ranking for ranking in current_rankings(self.history) if ranking.prompt_id not in checks]

    def kept(self) -> list[Ranking]:
        """Return the rankings that were not withdrawn, oldest first, without checks; of a prompt ranked twice both."""
        checks = {check.prompt_id for check in self.checks}
        kept = (saved.ranking for saved in self.history if not saved.withdrawn)
        return [ranking for ranking in kept if ranking.prompt_id not in checks]

    def learned(self) -> list[Ranking]:
        """Return the rankings to learn from: the current ones, those of decided prompts replaced by the decisions."""
        kept, checks = {ranking.prompt_id for ranking in self.decisions}, {check.prompt_id for check in self.checks}
        decisions = [ranking for ranking in self.decisions if ranking.prompt_id not in checks]
        return [ranking for ranking in self.current() if ranking.prompt_id not in kept] + decisions


def current_rankings(history: Iterable[SavedRanking]) -> list[Ranking]:
    """Return the latest ranking of each annotator and prompt that was not withdrawn; `history` is oldest first."""
    latest: dict[tuple[str, str], Ranking] = {}
    for saved in history:
        if not saved.withdrawn:
            key = saved.ranking.annotator, saved.ranking.prompt_id
            latest.pop(key, None)  # so that it comes last
            latest[key] = saved.ranking
    return list(latest.values())


def needs_messages(prompts: Iterable[Prompt]) -> bool:
    """Return True if any of the prompts is more than one message of the user."""
    return any(len(prompt.messages) > 1 or prompt.messages[0].role != "user" for prompt in prompts)


def prompt_field(prompt: Prompt, as_messages: bool) -> Text:
    """Return a prompt as text or as messages."""
    return prompt.messages if as_messages else prompt.text


def answer_field(text: str, as_messages: bool) -> Text:
    """Return an answer as text or as one message of the assistant."""
    return (Message(role="assistant", content=text),) if as_messages else text
