"""Language model as judge of one answer: a grade from 0 to 1 by a rubric, for rankings and for rewards."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from lowrank_rlhf.errors import Stopped, UserError
from lowrank_rlhf.preferences.judges.first_token import TOKENS, expected_grade, in_words
from lowrank_rlhf.preferences.judges.llm_client import ChatClient, Reply
from lowrank_rlhf.preferences.judges.loading import ENDPOINT, JudgeSteps, unwatched
from lowrank_rlhf.preferences.judges.questions import grade_question, last_line, question_hash
from lowrank_rlhf.run.files import append_line, read_lines
from lowrank_rlhf.run.records import Prompt, Sample

HIGHEST = 10
MIDDLE = 0.5
"""Grade of an unreadable reply with `rank.endpoint.unreadable: tie`."""
_GRADE = re.compile(r"(?:(?:score|grade|rating|评分|分数)\s*[:：]?\s*)?(\d+(?:\.\d+)?)(?:\s*/\s*10|\s*分)?")


class Grader:
    """Model at `rank.endpoint` with a rubric. Every grade is saved before the next question."""

    def __init__(self, client: ChatClient, rubric: str, key: str, grades: Path) -> None:
        """Read the saved grades; `key` is the config section with the rubric, which is recorded with each grade."""
        self.client, self._rubric, self._key, self._path = client, rubric, key, grades
        self._known: dict[str, float | None] = {}  # None: an unreadable reply
        self.asked = self.cached = self.unreadable = 0
        """Grades requested for this key, in this and earlier processes; those returned again; unreadable ones."""
        for line in read_lines(grades):
            with suppress(ValueError, LookupError, TypeError):  # a line truncated by a kill
                row = json.loads(line)
                self._known[row["question"]] = None if row["grade"] is None else float(row["grade"])
                self.asked += row.get("reward") == key
        self._before = frozenset(filter(self._is_known, self._known))

    def is_known(self, prompt: Prompt, sample: Sample) -> bool:
        """Return True for an answer whose grade needs no request."""
        return self._is_known(self._question(prompt, sample)[1])

    def was_known(self, prompt: Prompt, sample: Sample) -> bool:
        """Return True for an answer that an earlier process had graded."""
        return self._question(prompt, sample)[1] in self._before

    def grade(self, prompt: Prompt, sample: Sample) -> float:
        """Return the grade of an answer, 0 to 1.

        Raises `UserError` for an unreadable reply unless those count as ties, and the errors of `ChatClient.ask`.
        """
        message, question = self._question(prompt, sample)
        if self._is_known(question):
            self.cached += 1
        else:
            grade = self._ask(message)
            append_line(self._path, {"reward": self._key, "question": question, "grade": grade})
            self._known[question] = grade
            self.asked += 1
        known = self._known[question]
        self.unreadable += known is None
        return MIDDLE if known is None else known

    def _is_known(self, question: str) -> bool:
        lenient = self.client.settings.unreadable == "tie"
        return question in self._known and (lenient or self._known[question] is not None)

    def _question(self, prompt: Prompt, sample: Sample) -> tuple[str, str]:
        """Return the question and its hash."""
        settings = self.client.settings
        message = grade_question(settings, self._rubric, prompt.conversation, sample.text)
        return message, question_hash(settings, message)

    def _ask(self, message: str) -> float | None:
        """Return the grade, or None for an unreadable reply, a tie."""
        grade, reply = self.client.ask_for(message, read_grade, expected_grade)
        if grade is not None or self.client.settings.unreadable == "tie":
            return grade
        raise UserError(
            f"{self._problem(reply)} Ask for that in `{self._key}.rubric`, use another model, or set "
            "`rank.endpoint.unreadable: tie`. All grades so far are saved"
        )

    def _problem(self, reply: Reply) -> str:
        if reply.first_token is not None:
            tokens = self.client.clean(in_words(reply.first_token), 120)
            return f"no digit is among the {TOKENS} most probable first tokens of the reply: {tokens}."
        cut = " It was truncated: raise `rank.endpoint.max_tokens`." if reply.cut else ""
        text = self.client.clean(reply.text, 120)
        return f"the last line of the reply is not a number from 0 to {HIGHEST}: “{text}”.{cut}"


class GradingJudge:
    """Judge at `rank.endpoint` that grades each answer alone."""

    absolute: ClassVar[bool] = True
    unit: ClassVar[str] = "grades"

    def __init__(self, client: ChatClient, grades: Path) -> None:
        self.name = f"{ENDPOINT}:{client.settings.model}"
        self._grader = Grader(client, client.settings.rubric, "rank.endpoint", grades)
        self._answers = 0

    def steps(self, prompt: Prompt, samples: Sequence[Sample]) -> JudgeSteps:
        """Return one step for each answer."""
        return JudgeSteps(len(samples), sum(self._grader.was_known(prompt, sample) for sample in samples))

    def score(self, prompt: Prompt, samples: Sequence[Sample], advance: Callable[..., None] = unwatched) -> list[float]:
        """Return the grade of each answer, 0 to 1; equal texts are graded once. Raises as `Grader.grade` does."""
        grader, scores = self._grader, []
        for sample in samples:
            fresh = not grader.was_known(prompt, sample)  # cached ones count as done from the start
            try:
                scores.append(grader.grade(prompt, sample))
            except Stopped:
                raise
            except UserError as error:
                raise UserError(f"judge {self.name!r}, prompt {prompt.id!r}: {error}") from error
            self._answers += 1
            advance(int(fresh), requests=grader.client.requests, cached=grader.cached)
        return scores

    def summary(self) -> dict[str, float]:
        """Return counts of requests, answers graded, unreadable replies."""
        requests, unreadable = self._grader.client.requests, self._grader.unreadable
        return {"requests": requests, "answers": self._answers, "unreadable_replies": unreadable}


def read_grade(reply: str) -> float | None:
    """Return the number on the reply's last line divided by 10, or None if there is none from 0 to 10 alone."""
    found = _GRADE.fullmatch(last_line(reply))
    return float(found[1]) / HIGHEST if found and float(found[1]) <= HIGHEST else None
