"""Counts and lengths of a person's prompts, from which the settings of a run are chosen."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.lengths import Measure
from lowrank_rlhf.data.loading import Loaded
from lowrank_rlhf.data.turns import Turns, prompt_key
from lowrank_rlhf.planner.compute_cost import ByteLengths
from lowrank_rlhf.sources.tokenizer import local_tokenizer

_UNMEASURED = 2
"""Factor on lengths estimated from bytes: the tokens of an unusual language are shorter than the average."""
_ENGLISH = 0.8
"""Share of letters without accents above which a text may be English."""


@dataclass(frozen=True)
class Summary:
    """Counts over the different prompts of a file. Lengths in tokens of the chosen model, template included."""

    lengths: tuple[int, ...]
    """Tokens of each different prompt."""
    demonstrations: int = 0
    """Prompts with a response to imitate."""
    longest_response: int = 0
    longest_demonstration: int = 0
    """Prompt and response together."""
    compared: int = 0
    """Prompts with at least one comparison of two answers."""
    english: bool = True
    """True if the letters of the prompts are those of English, which most built-in judges require."""

    @property
    def prompts(self) -> int:
        """Number of different prompts."""
        return len(self.lengths)


class _Estimate:
    """Lengths without the model's tokenizer, too long rather than too short."""

    unit = ByteLengths.unit

    def prompts(self, prompts: Sequence[Turns]) -> list[int]:
        """Return the estimated tokens of each prompt."""
        return [_UNMEASURED * length for length in ByteLengths().prompts(prompts)]

    def answers(self, texts: Sequence[str]) -> list[int]:
        """Return the estimated tokens of each answer."""
        return [_UNMEASURED * length for length in ByteLengths().answers(texts)]


def summarise(loaded: Loaded, model: ModelConfig) -> Summary:
    """Return the summary of a file for a model. Raises `UserError` for a local model that does not exist."""
    measure: Measure = local_tokenizer(model) or _Estimate()
    examples: dict[object, Example] = {}
    compared = set()
    for _, example in loaded.located:
        key = prompt_key(example.prompt)
        kept = examples.setdefault(key, example)
        if kept.imitated is None and example.imitated is not None:
            examples[key] = example
        if example.pairs:
            compared.add(key)
    lengths = measure.prompts([example.prompt for example in examples.values()])
    imitated = [
        (length, example.imitated)
        for length, example in zip(lengths, examples.values(), strict=True)
        if example.imitated is not None
    ]
    responses = measure.answers([text for _, text in imitated])
    return Summary(
        lengths=tuple(lengths),
        demonstrations=len(imitated),
        longest_response=max(responses, default=0),
        longest_demonstration=max((a + b for (a, _), b in zip(imitated, responses, strict=True)), default=0),
        compared=len(compared),
        english=_is_english([example.prompt for example in examples.values()]),
    )


def _is_english(prompts: Sequence[Turns]) -> bool:
    letters = "".join(re.findall(r"[^\W\d_]", "".join(turn.content for prompt in prompts for turn in prompt)))
    return len(re.findall("[A-Za-z]", letters)) >= _ENGLISH * len(letters)
