"""Language model as judge: compares each pair of answers, once in each order.

Models favour the answer shown first (Zheng et al. 2023, "Judging LLM-as-a-Judge", section 3.3). A preference in words
counts only if it survives the swap; the score is then Copeland's: pairs won plus half of those tied. Probabilities of
the first token are averaged over both orders, which cancels a preference for a place (Wang et al. 2023, "Large Language
Models are not Fair Evaluators", section 3.2); the score is then the sum over the pairs.
"""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import ClassVar

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.judges.first_token import TOKENS, in_words, probability_of_first
from lowrank_rlhf.preferences.judges.llm_client import ChatClient, Reply
from lowrank_rlhf.preferences.judges.loading import ENDPOINT, JudgeSteps, unwatched
from lowrank_rlhf.preferences.judges.questions import MARKS, last_line, pair_question, question_hash
from lowrank_rlhf.run.files import append_line, read_lines
from lowrank_rlhf.run.records import Prompt, Sample

UNREADABLE = "unreadable"
_VERDICTS = {"a": "A", "b": "B", "tie": "tie", "平局": "tie"}
_LABEL = re.compile(r"^(?:answer|verdict|回答|答案)\s*[:：]?\s*")


class Verdicts:
    """Verdicts in a file, one JSON line each, written before the next question is asked.

    A verdict is A, B, tie or unreadable, or the probability that the first answer is better.
    """

    def __init__(self, path: Path, keep_unreadable: bool) -> None:
        self._path = path
        self._known: dict[str, str | float] = {}
        for line in read_lines(path):
            with suppress(ValueError, LookupError, TypeError):  # a line truncated by a kill
                row = json.loads(line)
                if _is_verdict(row["verdict"]) or (keep_unreadable and row["verdict"] == UNREADABLE):
                    self._known[row["question"]] = row["verdict"]
        self.before = frozenset(self._known)
        """Questions answered by an earlier process."""

    def get(self, question: str) -> str | float | None:
        """Return the cached verdict on the question with this hash, or None."""
        return self._known.get(question)

    def add(self, question: str, verdict: str | float) -> None:
        """Save a verdict."""
        append_line(self._path, {"question": question, "verdict": verdict})
        self._known[question] = verdict


class EndpointJudge:
    """Judge at `rank.endpoint`. Its scores are comparable only within one call."""

    absolute: ClassVar[bool] = False
    unit: ClassVar[str] = "verdicts"

    def __init__(self, client: ChatClient, verdicts: Path) -> None:
        self._client, self._settings = client, client.settings
        self.name = f"{ENDPOINT}:{self._settings.model}"
        self._verdicts = Verdicts(verdicts, self._settings.unreadable == "tie")
        self._pairs = self._swayed = self._unreadable = self._cached = 0

    def steps(self, prompt: Prompt, samples: Sequence[Sample]) -> JudgeSteps:
        """Return two steps for each pair of different answers."""
        questions = [
            question_hash(self._settings, pair_question(self._settings, prompt.conversation, *order))
            for one, two in combinations(samples, 2)
            if one.text != two.text
            for order in ((one.text, two.text), (two.text, one.text))
        ]
        return JudgeSteps(len(questions), sum(question in self._verdicts.before for question in questions))

    def score(self, prompt: Prompt, samples: Sequence[Sample], advance: Callable[..., None] = unwatched) -> list[float]:
        """Return the sum over the other answers, in 0 to K - 1; equal texts tie without a request.

        A pair counts 1 if won in words, 0.5 if tied, or the probability of being better.

        Raises the errors of `ChatClient.ask`, and `UserError` for an unreadable reply unless those count as ties.
        """
        points = [0.0] * len(samples)
        for (i, one), (j, two) in combinations(enumerate(samples), 2):
            won = 0.5 if one.text == two.text else self._share(prompt, one.text, two.text, advance)
            points[i] += won
            points[j] += 1 - won
        return points

    def summary(self) -> dict[str, float]:
        """Return counts of requests, pairs compared, pairs whose verdict changed with the order, unreadable replies."""
        return {
            "requests": self._client.requests,
            "pairs": self._pairs,
            "changed_with_the_order": self._swayed,
            "unreadable_replies": self._unreadable,
        }

    def _share(self, prompt: Prompt, one: str, two: str, advance: Callable[..., None]) -> float:
        """Return the probability that the first text is better, from both orders; a verdict in words has to agree."""
        straight = self._verdict(prompt, one, two, advance)
        swapped = self._verdict(prompt, two, one, advance)
        self._pairs += 1
        if UNREADABLE in (straight, swapped):
            return 0.5
        first, second = _first_is_better(straight), _first_is_better(swapped)
        changed = _sign(first - 0.5) != _sign(0.5 - second)
        self._swayed += changed
        if changed and self._settings.verdict == "text":
            return 0.5
        return 0.5 + (first - second) / 2  # exactly 0.5 where only the place counts

    def _verdict(self, prompt: Prompt, first: str, second: str, advance: Callable[..., None]) -> str | float:
        message = pair_question(self._settings, prompt.conversation, first, second)
        question = question_hash(self._settings, message)
        verdict = self._verdicts.get(question)
        if verdict is None:
            verdict = self._ask(prompt, message)
            self._verdicts.add(question, verdict)
        else:
            self._cached += 1
        self._unreadable += verdict == UNREADABLE
        fresh = question not in self._verdicts.before  # cached ones count as done from the start
        advance(int(fresh), requests=self._client.requests, cached=self._cached)
        return verdict

    def _ask(self, prompt: Prompt, message: str) -> str | float:
        verdict, reply = self._client.ask_for(message, read_verdict, probability_of_first)
        if verdict is not None:
            return verdict
        if self._settings.unreadable == "tie":
            return UNREADABLE
        raise UserError(
            f"judge {self.name!r}, prompt {prompt.id!r}: {self._problem(reply)} Ask for that in "
            "`rank.endpoint.template`, use another model, or set `rank.endpoint.unreadable: tie`. "
            "All verdicts so far are saved."
        )

    def _problem(self, reply: Reply) -> str:
        if reply.first_token is not None:
            tokens = self._client.clean(in_words(reply.first_token), 120)
            return f"neither A nor B is among the {TOKENS} most probable first tokens of its reply: {tokens}."
        cut = " It was truncated: raise `rank.endpoint.max_tokens`." if reply.cut else ""
        return f"the last line of its reply is not A, B or tie: “{self._client.clean(reply.text, 120)}”.{cut}"


def read_verdict(reply: str) -> str | None:
    """Return `A`, `B` or `tie` if the reply's last line is only that, apart from marks and "Answer:"; else None.

    Only the last line counts, so that a model may reason before it, and text that it quotes has no effect.
    """
    return _VERDICTS.get(_LABEL.sub("", last_line(reply)).strip(MARKS))


def _first_is_better(verdict: str | float) -> float:
    """Return the probability that the first answer is better; words count as certain."""
    return {"A": 1.0, "B": 0.0}.get(verdict, 0.5) if isinstance(verdict, str) else verdict


def _is_verdict(value: str | float) -> bool:
    return value in _VERDICTS.values() or (isinstance(value, float) and 0 <= value <= 1)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
