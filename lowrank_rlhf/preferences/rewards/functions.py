"""Users' reward functions, called with a time limit; whatever they return is checked."""

import math
import time
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any, NamedTuple

from lowrank_rlhf.errors import RewardFailed
from lowrank_rlhf.run.records import Prompt, Sample

Function = Callable[[list[str], list[str]], Sequence[float]]
"""Prompts and answers, one per prompt -> a score of each."""
_POLL = 0.2  # seconds between two checks of the stop request


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
            found = self._call(prompts, samples)
        except _Raised as error:
            raise self._failed(self._culprit(prompts, samples), f"raised {error}", "Correct it") from error.cause
        try:
            scores = list(found)
        except TypeError:
            problem = f"returned {_shown(found)} instead of a list of scores"
            raise self._failed(_where(prompts), problem, "Return a number for each answer") from None
        if len(scores) != len(samples):
            problem = f"returned {len(scores)} scores for {len(samples)} answers"
            raise self._failed(_where(prompts), problem, "Return a number for each answer")
        return [self._number(score, prompt) for score, prompt in zip(scores, prompts, strict=True)]

    def _number(self, score: Any, prompt: Prompt) -> float:
        try:
            number = math.nan if isinstance(score, str | bytes) else float(score)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # torch raises RuntimeError for several numbers
            number = math.nan
        if not math.isfinite(number):
            problem = f"returned {_shown(score)}, which is not a finite number"
            raise self._failed(f"for prompt {prompt.id!r}", problem, "Return a number for each answer")
        return number

    def _call(self, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> Any:
        """Call the function in a thread. A thread cannot be ended; it ends with the process, which the error ends."""
        asked, answers = [prompt.conversation for prompt in prompts], [sample.text for sample in samples]
        outcome: list[Any] = []
        raised: list[BaseException] = []

        def call() -> None:
            try:
                outcome.append(self.function(asked, answers))
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
            raise _Raised(raised[0])
        return outcome[0]

    def _culprit(self, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> str:
        """Name the first prompt whose answer alone makes the function raise."""
        for prompt, sample in zip(prompts, samples, strict=True):
            try:
                self._call([prompt], [sample])
            except _Raised:
                return f"for prompt {prompt.id!r}"
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
