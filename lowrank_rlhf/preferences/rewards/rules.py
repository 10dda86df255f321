"""Built-in rules: each scores one answer, most of them with 1 or 0."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lowrank_rlhf.config.rewards import RewardTerm
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.records import Prompt, Sample

Rule = Callable[[Prompt, Sample], float]
"""Prompt and answer -> score."""


def make_rule(term: RewardTerm, right_answers: Mapping[str, str]) -> Rule:
    """Return the rule of a term; `right_answers` by prompt id are those of `exact`."""
    rules: dict[str, Rule] = {
        "length": lambda _, sample: within(_length(sample, term.unit), term.minimum, term.maximum),
        "overlong": lambda _, sample: overlong(_length(sample, term.unit), term.maximum or 0, term.buffer or 1),
        "pattern": lambda _, sample: float(re.search(term.pattern or "", sample.text) is not None),
        "json": lambda _, sample: float(is_json(sample.text, term.keys)),
        "banned": lambda _, sample: float(not contains_any(sample.text, term.phrases)),
        "exact": lambda prompt, sample: float(
            is_answer(sample.text, _right_answer(right_answers, prompt), term.pattern)
        ),
    }
    return rules[term.source]


def within(length: int, minimum: int | None, maximum: int | None) -> float:
    """Return 1 within the bounds; outside, the smaller of length and bound divided by the larger."""
    if minimum is not None and length < minimum:
        return length / minimum
    if maximum is not None and length > maximum:
        return maximum / length
    return 1.0


def overlong(length: int, maximum: int, buffer: int) -> float:
    """Return DAPO's soft punishment of long answers (Yu et al. 2025, arXiv 2503.14476, eq. 13), 0 to -1."""
    return min(0.0, max(-1.0, (maximum - buffer - length) / buffer))


def is_json(text: str, keys: Sequence[str] = ()) -> bool:
    """Return True for one JSON value (no NaN), with `keys` for an object that has them."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(value, dict) and value.keys() >= set(keys))


def contains_any(text: str, phrases: Sequence[str]) -> bool:
    """Return True if the text contains a phrase as whole words, in capitals or small letters."""
    return any(re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) for phrase in phrases)


def is_answer(text: str, right: str, pattern: str | None = None) -> bool:
    """Return True if the text, or what the last match of `pattern` captures in it, is the right answer."""
    if pattern is None:
        return _canonical(text) == _canonical(right)
    found = [match[1] for match in re.finditer(pattern, text)]
    return bool(found) and _canonical(found[-1] or "") == _canonical(right)


def _canonical(text: str) -> str | float:
    plain = " ".join(text.split()).rstrip(".。").strip().casefold()
    if re.fullmatch(r"[-+]?\$?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?", plain):
        return float(plain.replace(",", "").replace("$", ""))
    return plain


def _length(sample: Sample, unit: str) -> int:
    if unit == "tokens":
        return len(sample.tokens or ())
    return len(sample.text.split()) if unit == "words" else len(sample.text)


def _right_answer(right_answers: Mapping[str, str], prompt: Prompt) -> str:
    if prompt.id not in right_answers:
        raise UserError(f"ppo.rewards: no right answer to prompt {prompt.id!r}")
    return right_answers[prompt.id]
