"""Settings of one's own rewards: what the policy is trained on beside, or instead of, the reward model."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from lowrank_rlhf.config.endpoint import checked_template
from lowrank_rlhf.config.section import Conflict, Count, Section

MODEL, ENDPOINT = "model", "endpoint"
"""Sources of the reward model's score, and of a language model's grades."""
RULES = ("length", "overlong", "pattern", "json", "banned", "exact")
"""Sources that are rules of this package."""
_READ: dict[str, tuple[str, ...]] = {
    MODEL: (),
    "length": ("minimum", "maximum", "unit"),
    "overlong": ("maximum", "buffer", "unit"),
    "pattern": ("pattern",),
    "json": ("keys",),
    "banned": ("phrases",),
    "exact": ("column", "pattern"),
    ENDPOINT: ("rubric", "max_requests"),
}
_NEEDED = {"overlong": "buffer", "pattern": "pattern", "banned": "phrases", "exact": "column"}
_OF_FUNCTION = ("timeout_seconds",)
_ALL = ("weight", "clip", "normalize")


def weighted_sum(rewards: "Mapping[str, RewardTerm]") -> str:
    """Return the sum as text, such as `model + 0.5 brief - 2 banned`."""
    parts = []
    for name, term in rewards.items():
        factor = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} "
        sign = "-" if term.weight < 0 else "+"
        parts += [sign, f"{factor}{name}"]
    return " ".join(parts).removeprefix("+ ")


def with_reward_model(rewards: Any) -> bool:
    """Return True for `ppo.rewards`, as read from a file, with the reward model: none at all means it alone."""
    if not isinstance(rewards, dict) or not rewards:
        return True
    return any(isinstance(term, dict) and term.get("source") == MODEL for term in rewards.values())


class RewardTerm(Section):
    """One term of the sum that the policy is trained on; `NAME` is your name for it, of its curve too."""

    source: str
    """`model` is the reward model. Rules: `length` (1 within `minimum` and `maximum`; outside, the ratio of length
    and bound, below 1), `overlong` (0 up to `buffer` below `maximum`, then falling to -1 there), `pattern` (1 if the
    regular expression is found), `json` (1 if the answer is JSON), `banned` (1 without any of the `phrases`), `exact`
    (1 if the answer equals the `column` of its prompt's row). `endpoint` is the language model at `rank.endpoint`,
    which grades each answer by a `rubric` from 0 to 1. `module:function` is your own function of a list of prompts
    and a list of answers that returns a number for each answer."""
    weight: float = 1.0
    """Factor in the sum; below 0 the term is a penalty."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Clip the score to plus or minus this, after `normalize` and before `weight`."""
    normalize: bool = False
    """Shift and scale the score by its mean and standard deviation on the SFT model's answers to the validation
    prompts. For `model`, set `ppo.normalize_score`."""
    minimum: Count | None = None
    """With `length`: fewest `unit`."""
    maximum: Count | None = None
    """With `length` and `overlong`: most `unit`."""
    buffer: Count | None = None
    """With `overlong`: number of `unit` below `maximum` over which the score falls from 0 to -1 (soft overlong
    punishment in DAPO, Yu et al. 2025, eq. 13)."""
    unit: Literal["tokens", "words", "characters"] = "tokens"
    """With `length` and `overlong`: unit of the bounds. Tokens are the model's, with the end of the turn."""
    pattern: str | None = None
    """With `pattern`: regular expression of Python's `re`, searched in the answer (`\\?$`: ends with a question mark).
    With `exact`: the answer is what its last match captures in the first group (`Answer: (.*)`)."""
    keys: list[str] = Field(default=[])
    """With `json`: the answer must be an object with these keys."""
    phrases: list[str] = Field(default=[])
    """With `banned`: phrases that an answer must not contain, in capitals or small letters."""
    column: str | None = None
    """With `exact`: column of `data.prompts` with the right answer. Capitals, outer space and a final full stop do not
    matter, and numbers are compared as numbers (1,000.0 equals 1000)."""
    rubric: str = "english"
    """With `endpoint`: `english`, `chinese`, or your own question with `{prompt}` and `{answer}` that asks for a last
    line with a number from 0 to 10, which is divided by 10; with `rank.endpoint.verdict: logprobs`, for one digit from
    0 to 9 at once. `rank.endpoint.template` and `rank.endpoint.rubric` are not used."""
    max_requests: Count | None = None
    """With `endpoint`: most answers to have graded in the run; then it stops. A rollout of 64 answers may cost 64."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """With `module:function`: most seconds for one call, with all answers of a rollout or evaluation."""

    @property
    def is_function(self) -> bool:
        """True for a user's `module:function`."""
        return ":" in self.source

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source not in _READ and not re.fullmatch(r"[^:\s]+:[^:\s]+", source):
            raise ValueError(f"must be {', '.join(_READ)} or your own module:function, not {json.dumps(source)}")
        return source

    @field_validator("rubric")
    @classmethod
    def _placeholders(cls, rubric: str) -> str:
        return checked_template(rubric, ("prompt", "answer"))

    @field_validator("pattern")
    @classmethod
    def _regular(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    def conflicts(self) -> Iterator[Conflict]:
        """Yield missing settings of the source, and settings that it ignores."""
        read = _OF_FUNCTION if self.is_function else _READ[self.source]
        for name, field in type(self).model_fields.items():
            if name not in ("source", *_ALL, *read) and getattr(self, name) != field.default:
                yield Conflict((name, "source"), f"{name} has no effect with `source: {self.source}`; remove it")
        if (needed := _NEEDED.get(self.source)) and not getattr(self, needed):
            yield Conflict(("source", needed), f"`source: {self.source}` requires `{needed}`")
        if self.source == "exact" and self.pattern and not re.compile(self.pattern).groups:
            yield Conflict(
                ("pattern", "source"), "pattern must have a group, such as `Answer: (.*)`, with `source: exact`"
            )
        yield from self._length_conflicts()
        if self.source == MODEL and self.normalize:
            yield Conflict(("normalize", "source"), "normalize has no effect on the model; set ppo.normalize_score")

    def _length_conflicts(self) -> Iterator[Conflict]:
        if self.source == "overlong" and self.buffer and (self.maximum or 0) < self.buffer:
            yield Conflict(
                ("maximum", "buffer"), f"`source: overlong` requires `maximum` of at least buffer ({self.buffer})"
            )
        if self.source != "length":
            return
        if self.minimum is None and self.maximum is None:
            yield Conflict(("source", "minimum", "maximum"), "`source: length` requires `minimum` or `maximum`")
        if self.minimum and self.maximum and self.minimum > self.maximum:
            text = f"minimum ({self.minimum}) must be at most maximum ({self.maximum})"
            yield Conflict(("minimum", "maximum"), text)
