"""Judges: programs that score the answers to a prompt in place of people."""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.judges.annotator import CHINESE, ENGLISH, Embed, SimulatedAnnotator, Vectors
from lowrank_rlhf.preferences.judges.builtin import BUILT_IN, Scores
from lowrank_rlhf.run.records import Prompt, Sample

ENDPOINT = "endpoint"
"""Config name of the judge in `llm_judge.py`, which also requires the settings of `rank.endpoint`."""


KIND_ANNOTATOR, KIND_ANNOTATOR_ZH = "simulated-kind-annotator", "simulated-kind-annotator-zh"
"""Config names of the judges in `annotator.py`, which read sentence embeddings: the English and the Chinese one."""
_LANGUAGES = {KIND_ANNOTATOR: ENGLISH, KIND_ANNOTATOR_ZH: CHINESE}
SIMULATED = ("simulated-annotator", *_LANGUAGES)
"""Names of the judges that imitate a person."""


class JudgeSteps(NamedTuple):
    """Steps for the answers to a prompt; `done`: those done by an earlier process."""

    total: int
    done: int


def unwatched(_count: int = 1, **_figures: float) -> None:
    """Ignore progress: default for a bar's `advance`."""


class Judge(Protocol):
    """Program that ranks and evaluates answers."""

    @property
    def name(self) -> str:
        """Recorded as the annotator."""

    @property
    def absolute(self) -> bool:
        """True if scores are comparable between calls, False if only within one call."""

    @property
    def unit(self) -> str:
        """Name of a step in a progress bar."""

    def steps(self, prompt: Prompt, samples: Sequence[Sample]) -> JudgeSteps:
        """Return the number of steps of `score`."""

    def score(self, prompt: Prompt, samples: Sequence[Sample], advance: Callable[..., None] = unwatched) -> list[float]:
        """Return one finite score per answer, higher is better; `advance` is a bar's. Raises `UserError`."""

    def summary(self) -> dict[str, float]:
        """Return figures about the judge itself, over all calls so far."""


@dataclass(frozen=True)
class LocalJudge:
    """Built-in judge or user's function. Its scores count as absolute and are validated."""

    name: str
    function: Scores
    absolute: ClassVar[bool] = True
    unit: ClassVar[str] = "prompts"

    def steps(self, _prompt: Prompt, _samples: Sequence[Sample]) -> JudgeSteps:
        """Return one step per call."""
        return JudgeSteps(1, 0)

    def score(self, prompt: Prompt, samples: Sequence[Sample], advance: Callable[..., None] = unwatched) -> list[float]:
        """Return the function's scores. Raises `UserError` with judge and prompt if they are not valid scores."""
        where = f"judge {self.name!r}, prompt {prompt.id!r}"
        try:
            scores = [float(score) for score in self.function(prompt, samples)]
        except Exception as error:  # a user's function may do anything
            raise UserError(f"{where}: {type(error).__name__}: {error}") from error
        if len(scores) != len(samples):
            raise UserError(f"{where}: {len(scores)} scores for {len(samples)} answers")
        if not all(map(math.isfinite, scores)):
            raise UserError(f"{where}: a score is not a finite number: {scores}")
        advance(1)
        return scores

    def summary(self) -> dict[str, float]:
        """Return no figures."""
        return {}


def load_judge(name: str, embed: Embed | None = None) -> LocalJudge:
    """Return a built-in judge by name, or a user's `module:function`; `embed` is for those that read embeddings.

    A user's function takes the prompt's text (the whole conversation if it has several turns) and a list of answer
    texts, and returns a number for each answer; its module may be in the current folder. Raises `UserError` if the
    judge cannot be loaded.
    """
    if name in BUILT_IN:
        return LocalJudge(name, BUILT_IN[name])
    if name in _LANGUAGES:
        return LocalJudge(name, SimulatedAnnotator(embed or _no_embeddings, _LANGUAGES[name]))
    if ":" not in name:
        names = (*BUILT_IN, *_LANGUAGES, ENDPOINT)
        raise UserError(
            f"unknown judge {name!r}; expected {', '.join(names)}, or your own `module:function`."
            f"{suggestion(name, names)}"
        )
    function = import_function(name, f"judge {name!r}")
    return LocalJudge(name, lambda prompt, samples: function(prompt.conversation, [sample.text for sample in samples]))


def _no_embeddings(_texts: Sequence[str]) -> Vectors:
    raise RuntimeError("a judge that reads sentence embeddings: load_judge needs `embed` for scores")


def import_function(name: str, place: str) -> Callable[..., Any]:
    """Import a user's `module:function`; its module may be in the current folder.

    Raises `UserError` that begins with `place`.
    """
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # at the end: a file must not shadow a library of the same name
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing a user's module may raise anything, and exit
        raise UserError(
            f"{place}: cannot import {module_name!r} ({type(error).__name__}: {error})"
            f"; searched {here} and the installed packages"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        problem = "is not defined" if function is None else "is not a function"
        raise UserError(f"{place}: {module_name}.{function_name} {problem}")
    found: Callable[..., Any] = function
    return found
