"""Prompts as token ids: the longest that fits, and the first too long."""

from types import SimpleNamespace

import pytest

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.records import Message, Prompt
from lowrank_rlhf.training.prompts import encode_prompts, first_fitting

BASE = SimpleNamespace(encode_prompt=lambda prompt: list(range(len(prompt.text))))
PROMPTS = [Prompt(id=text, messages=(Message(role="user", content=text),)) for text in ("abc", "abcd", "ab")]


def test_a_prompt_of_exactly_the_limit_fits() -> None:
    assert encode_prompts(BASE, PROMPTS, 4) == [[0, 1, 2], [0, 1, 2, 3], [0, 1]]
    with pytest.raises(UserError, match="prompt abcd has 4 tokens, but only 3 fit"):
        encode_prompts(BASE, PROMPTS, 3)
    assert first_fitting(BASE, PROMPTS, 3, 5) == [PROMPTS[0], PROMPTS[2]]
    assert first_fitting(BASE, PROMPTS, 4, 2) == PROMPTS[:2]
