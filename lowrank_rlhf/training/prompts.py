"""Prompts as token ids, in the order in which training takes them."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.run.records import Prompt

if TYPE_CHECKING:
    from lowrank_rlhf.models.base import Base


def max_prompt_tokens(config: Config) -> int:
    """Return the maximum prompt length, in tokens, that leaves space for the longest answer."""
    return config.model.max_length - config.sample.max_new_tokens


def encode_prompts(base: "Base", prompts: Sequence[Prompt], max_tokens: int) -> list[list[int]]:
    """Return the prompts' token ids. Raises `UserError` with the id of a prompt longer than `max_tokens`."""
    encoded = [base.encode_prompt(prompt) for prompt in prompts]
    for prompt, tokens in zip(prompts, encoded, strict=True):
        if len(tokens) > max_tokens:
            raise UserError(
                f"prompt {prompt.id} has {len(tokens)} tokens, but only {max_tokens} fit (model.max_length less "
                "sample.max_new_tokens). Raise model.max_length or shorten the prompt"
            )
    return encoded


def first_fitting(base: "Base", prompts: Iterable[Prompt], max_tokens: int, count: int) -> list[Prompt]:
    """Return the first `count` prompts of at most `max_tokens` tokens."""
    fitting = (prompt for prompt in prompts if len(base.encode_prompt(prompt)) <= max_tokens)
    return list(islice(fitting, count))


def shuffled_order(seed: int, count: int, needed: int) -> list[int]:
    """Return `needed` indices below `count`, one seeded permutation after another."""
    order: list[int] = []
    while len(order) < needed:
        generator = torch.Generator().manual_seed(derive_seed(seed, "ppo", "prompts", len(order)))
        order += torch.randperm(count, generator=generator).tolist()
    return order[:needed]
