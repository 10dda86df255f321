"""Verdicts from the probabilities of a reply's first token, which need no readable reply (Liu et al. 2023, G-Eval)."""

import math
from collections.abc import Mapping
from typing import Any

from lowrank_rlhf.preferences.judges.questions import MARKS

TOKENS = 20
"""Most probable tokens to request: the most that OpenAI's API and vLLM return by default."""
LARGEST_DIGIT = 9
"""Best grade. One digit is one token in every tokenizer, which 10 is not."""


def first_token_of(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the probabilities of the most probable first tokens, by text; {} for an empty reply, None without any.

    Raises `LookupError`, `TypeError` or `ValueError` for a choice that is not that of a chat completion.
    """
    content = (choice.get("logprobs") or {}).get("content")
    if not content:  # llama.cpp gives none for the end of the turn alone
        return None if choice["message"]["content"] else {}
    found: dict[str, float] = {}
    for entry in content[0]["top_logprobs"]:
        logprob = float(entry["logprob"])
        if math.isnan(logprob):
            raise ValueError("not a log-probability")
        text = str(entry["token"])
        found[text] = found.get(text, 0.0) + math.exp(min(logprob, 0.0))
    return found or None


def probability_of_first(tokens: Mapping[str, float]) -> float | None:
    """Return P(A) / (P(A) + P(B)), or None if neither is among the tokens.

    Of a label that is not among them only the largest possible probability is known: the smallest listed one, or what
    all listed ones leave of 1.
    """
    a, b = _of_labels(tokens, "ab")
    if not a and not b:
        return None
    most = max(0.0, min(*tokens.values(), 1 - math.fsum(tokens.values())))
    a, b = a or most, b or most
    return a / (a + b)


def expected_grade(tokens: Mapping[str, float]) -> float | None:
    """Return the mean digit by the tokens' probabilities, divided by 9, or None if no digit is among them."""
    digits = _of_labels(tokens, "0123456789")
    total = math.fsum(digits)
    if not total:
        return None
    return math.fsum(digit * share for digit, share in enumerate(digits)) / total / LARGEST_DIGIT


def in_words(tokens: Mapping[str, float]) -> str:
    """Return the three most probable tokens for a message."""
    first = sorted(tokens.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"“{token}” {share:.0%}" for token, share in first) or "the reply is empty"


def _of_labels(tokens: Mapping[str, float], labels: str) -> list[float]:
    """Return the probability of each label: the sum over its tokens with spaces or marks, in either case."""
    plain = [(token.strip(MARKS).lower(), share) for token, share in tokens.items()]
    return [math.fsum(share for text, share in plain if text == label) for label in labels]
