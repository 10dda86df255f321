"""Users' reward functions, called with a time limit; whatever they return is checked."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any, NamedTuple

from lowrank_rlhf.errors import RewardFailed
from lowrank_rlhf.run.records import Prompt, Sample

Function = Callable[[list[str], list[str]], Sequence[float]]
"""Prompts and answers, one per prompt -> a score of each."""
_POLL = 0.2  # seconds between two checks of the stop request
_CALLS_AFTER_ERROR = 8  # enough to find one answer among 128 by halving
_LARGEST = (2 - 2**-23) * 2.0**127  # of float32, in which scores are added


class OwnFunction(NamedTuple):
    """A user's function as a reward."""

    key: str
    """Config key, for messages: `ppo.rewards.NAME`."""
    source: str
    """`module:function`."""
    function: Function
    timeout_seconds: float
    poll: Callable[[], None]
    """Called while the function runs; it may raise to stop the run."""

    def score(self, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> list[float]:
        """Return a finite score of each answer.

        Raises `RewardFailed` with function and prompt if it raises, takes too long, or returns anything else.
        """
        if not samples:
            return []
        try:
            scores = self._call(prompts, samples)
        except _Raised as error:
            raise self._failed(self._culprit(prompts, samples), f"raised {error}", "Correct it") from error.cause
        if len(scores) != len(samples):
            problem = f"returned {len(scores)} scores for {len(samples)} answers"
            raise self._failed(_where(prompts), problem, "Return a number for each answer")
        return [self._number(score, prompt) for score, prompt in zip(scores, prompts, strict=True)]

    def _number(self, score: Any, prompt: Prompt) -> float:
        try:
            number = math.nan if isinstance(score, str | bytes) else float(score)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # torch raises RuntimeError for several numbers
            number = math.nan
        if not abs(number) <= _LARGEST:  # nor NaN
            problem = f"returned {_shown(score)}, which is not a finite float32 number"
            raise self._failed(f"for prompt {prompt.id!r}", problem, "Return a number for each answer")
        return number

    def _call(self, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> list[Any]:
        """Call the function in a thread. A thread cannot be ended; it ends with the process, which the error ends."""
        asked, answers = [prompt.conversation for prompt in prompts], [sample.text for sample in samples]
        outcome: list[list[Any]] = []
        raised: list[BaseException] = []

        def call() -> None:
            try:
                outcome.append(self._listed(self.function(asked, answers), prompts))  # here a generator runs
            except BaseException as error:
                raised.append(error)

        thread = Thread(target=call, name=self.source, daemon=True)
        deadline = time.monotonic() + self.timeout_seconds
        thread.start()
        while thread.is_alive():
            thread.join(min(_POLL, max(0.0, deadline - time.monotonic())))
            self.poll()
            if thread.is_alive() and time.monotonic() >= deadline:
                problem = f"did not return within {self.timeout_seconds:g} s"
                advice = f"Make it faster, or raise {self.key}.timeout_seconds"
                raise self._failed(_where(prompts), problem, advice)
        if raised:
            raise raised[0] if isinstance(raised[0], RewardFailed) else _Raised(raised[0])
        return outcome[0]

    def _listed(self, found: Any, prompts: Sequence[Prompt]) -> list[Any]:
        try:
            scores = iter(found)
        except TypeError:
            problem = f"returned {_shown(found)} instead of a list of scores"
            raise self._failed(_where(prompts), problem, "Return a number for each answer") from None
        return list(scores)

    def _culprit(self, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> str:
        """Name a prompt whose answer alone makes the function raise, found by halving in a few calls."""
        first, end = 0, len(prompts)
        with suppress(RewardFailed):  # such as too slow a call: the first error matters
            for _ in range(_CALLS_AFTER_ERROR):
                middle = (first + end + 1) // 2
                try:
                    self._call(prompts[first:middle], samples[first:middle])
                    first = middle
                except _Raised:
                    if middle - first == 1:
                        return f"for prompt {prompts[first].id!r}"
                    end = middle
                if first == end:
                    break
        return _where(prompts)

    def _failed(self, where: str, problem: str, advice: str) -> RewardFailed:
        return RewardFailed(
            f"{self.key}: {self.source} {problem}, {where}. {advice}; then the same command resumes the run"
        )


class _Raised(Exception):
    """The function raised `cause`."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}".rstrip(": "))
        self.cause = cause


def _where(prompts: Sequence[Prompt]) -> str:
    if len(prompts) == 1:
        return f"for prompt {prompts[0].id!r}"
    return f"in a call with {len(prompts)} answers, the first to prompt {prompts[0].id!r}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
