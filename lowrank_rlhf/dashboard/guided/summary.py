"""Counts and lengths of a person's prompts, from which the settings of a run are chosen."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.data.comparisons import ComparisonData, collect
from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.lengths import Measure
from lowrank_rlhf.data.loading import Loaded
from lowrank_rlhf.data.turns import Turns, prompt_key
from lowrank_rlhf.maths.text import is_east_asian, words
from lowrank_rlhf.planner.compute_cost import ByteLengths
from lowrank_rlhf.sources.tokenizer import local_tokenizer

_UNMEASURED = 2
"""Factor on lengths estimated from bytes: the tokens of an unusual language are shorter than the average."""
_ENGLISH = 0.8
"""Share of words without accents from which a text may be English; each East Asian character counts as a word."""
_MOST = 0.5
"""Share of East Asian characters among the words from which a text is written in them."""


class AnsweredPrompt(NamedTuple):
    """Tokens of a prompt and of an answer to it."""

    prompt: int
    answer: int

    @property
    def whole(self) -> int:
        """Tokens of both."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Summary:
    """Counts over the different prompts of a file. Lengths in tokens of the chosen model, template included."""

    lengths: tuple[int, ...]
    """Tokens of each different prompt."""
    demonstrations: tuple[AnsweredPrompt, ...] = ()
    """Prompts with a response to imitate."""
    compared: tuple[AnsweredPrompt, ...] = ()
    """Prompts with at least one comparison of two answers, each with its longest answer."""
    english: bool = True
    """True if the words of the prompts may be English, which most built-in judges require."""
    chinese: bool = False
    """True if the prompts are Chinese, as one built-in judge requires."""
    east_asian: bool = False
    """True if the prompts are mostly Chinese, Japanese or Korean."""
    tokens_per_character: float | None = None
    """Tokens per East Asian character of such prompts; None for others, and while no tokenizer is local."""

    @property
    def unfamiliar(self) -> bool:
        """Return True if the tokenizer splits the characters of the prompts: its training had few of them."""
        return self.tokens_per_character is not None and self.tokens_per_character > 1

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
    measure = _measure(model)
    examples: dict[object, Example] = {}
    for _, example in loaded.located:
        key = prompt_key(example.prompt)
        kept = examples.setdefault(key, example)
        if kept.imitated is None and example.imitated is not None:
            examples[key] = example
    lengths = measure.prompts([example.prompt for example in examples.values()])
    imitated = [
        (length, example.imitated)
        for length, example in zip(lengths, examples.values(), strict=True)
        if example.imitated is not None
    ]
    responses = measure.answers([text for _, text in imitated])
    compared = replace(loaded, located=[entry for entry in loaded.located if entry.example.pairs])
    texts = ["\n".join(turn.content for turn in example.prompt) for example in examples.values()]
    found = [word for text in texts for word in words(text) if not word.isdigit()]
    east_asian = _share(is_east_asian, found) >= _MOST
    return Summary(
        lengths=tuple(lengths),
        demonstrations=tuple(AnsweredPrompt(one, other) for (one, _), other in zip(imitated, responses, strict=True)),
        compared=compared_pairs(collect(compared), model),
        english=not found or _share(str.isascii, found) >= _ENGLISH,
        chinese=_share(_is_chinese, found) >= _MOST,
        east_asian=east_asian,
        tokens_per_character=_tokens_per_character(texts, model) if east_asian else None,
    )


def compared_pairs(data: ComparisonData, model: ModelConfig) -> tuple[AnsweredPrompt, ...]:
    """Return the tokens of each compared prompt and of the longest answer to it."""
    measure = _measure(model)
    longest: dict[str, int] = {}
    for answer, tokens in zip(data.answers, measure.answers([answer.text for answer in data.answers]), strict=True):
        longest[answer.prompt_id] = max(longest.get(answer.prompt_id, 0), tokens)
    lengths = measure.prompts([prompt.messages for prompt in data.prompts])
    return tuple(
        AnsweredPrompt(length, longest[prompt.id]) for prompt, length in zip(data.prompts, lengths, strict=True)
    )


def _measure(model: ModelConfig) -> Measure:
    return local_tokenizer(model) or _Estimate()


def _share(kind: Callable[[str], bool], found: Sequence[str]) -> float:
    return sum(map(kind, found)) / max(1, len(found))


def _is_chinese(word: str) -> bool:
    return re.fullmatch("[\u4e00-\u9fff]", word) is not None


def _tokens_per_character(texts: Sequence[str], model: ModelConfig) -> float | None:
    """Return the tokens per East Asian character of the texts; None without the model's tokenizer."""
    tokenizer = local_tokenizer(model)
    if tokenizer is None:
        return None
    runs = ["".join(filter(is_east_asian, text)) for text in texts]
    tokens = sum(tokenizer.answers(runs)) - len(runs)  # an answer's count includes the token that ends it
    return tokens / sum(map(len, runs))
