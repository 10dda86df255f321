"""One browser's conversations with a run's models."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Answers = dict[str, dict[str, Any]]
"""Answers to one question by voice, with the fields of `chat --lines`: `text`, `tokens`, ..., or `error` and `kind`."""


@dataclass
class ChatSession:
    """Questions to the models of one run and their answers so far."""

    run: str = ""
    turns: list[tuple[str, Answers]] = field(default_factory=list)
    hidden: tuple[str, ...] = ()
    """Voices behind A and B until the vote."""
    system: str = ""
    """System prompt of the conversation."""
    attempt: int = 0
    """Number of times that the last question was asked again."""
    editing: bool = False
    """True if the next question replaces the last one."""
    asked_at: float = 0.0

    def next(self, run: str, hidden: tuple[str, ...], system: str) -> "ChatSession":
        """Return the session for the next question.

        It is a new one for another run, for another system prompt and for every blind question.
        """
        same = not hidden and not self.hidden and (self.run, self.system) == (run, system)
        turns = list(self.turns) if same else []
        return ChatSession(run=run, turns=turns, hidden=hidden, system=system, asked_at=time.monotonic())

    def without_last(self) -> "ChatSession":
        """Return the session before its last question."""
        return replace(self, turns=self.turns[:-1], editing=False)

    def messages(self, voice: str) -> list[dict[str, str]]:
        """Return the model's own conversation so far."""
        messages = []
        for question, answers in self.turns:
            if text := answers.get(voice, {}).get("text"):
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        return messages

    def ended(self) -> "ChatSession":
        """Return the session with its unfinished answers marked as stopped."""
        stopped = {"tokens": 0, "finished": False, "stopped": True, "score": None}
        turns = [
            (asked, {voice: stopped | said if "error" not in said else said for voice, said in answers.items()})
            for asked, answers in self.turns
        ]
        return replace(self, turns=turns)

    @property
    def voices(self) -> list[str]:
        """Models that have answered, in order."""
        return list(dict.fromkeys(voice for _, answers in self.turns for voice in answers))


def system_message(text: str) -> list[dict[str, str]]:
    """Return a system prompt as the beginning of a conversation; nothing without one."""
    return [{"role": "system", "content": text}] if text.strip() else []


def blind_pair(voices: Sequence[str]) -> tuple[str, ...]:
    """Return the two models that were trained longest, in random order."""
    return tuple(random.SystemRandom().sample(list(voices[-2:]), 2))


def add_message(answer: dict[str, Any], message: dict[str, Any]) -> None:
    """Add a message of `chat --lines` to an answer."""
    if "piece" in message:
        answer["text"] += message["piece"]
    elif "error" in message:
        answer["error"], answer["kind"] = message["error"], message["kind"]
    else:
        answer.update(message["answer"], dropped=message["dropped"])


def complete(answers: Answers) -> bool:
    """Return True if every model has answered to the end."""
    return all("tokens" in answer for answer in answers.values())
