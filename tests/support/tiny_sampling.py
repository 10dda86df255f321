"""Answers sampled from tiny models, and the same answers by a naive loop."""

import torch
from tiny import DEVICE, random_tokens

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.models.generation import Response, sample_answers
from lowrank_rlhf.models.roles import Role, Roles

PROMPTS = random_tokens(7, [3, 11, 1, 6, 6])
LENGTH = 12


def sample(roles: Roles, prompts: list[list[int]] = PROMPTS, **settings) -> list[list[Response]]:
    fields = {"max_new_tokens": LENGTH, "temperature": 0.9, "batch_size": 64}
    sampling = SampleConfig(**{name: settings.pop(name, value) for name, value in fields.items()})
    role, seed = settings.pop("role", Role.POLICY), settings.pop("seed", 3)
    return sample_answers(roles, role, prompts, sampling, seed, **settings)


def naive(roles: Roles, prompt: list[int], uniforms: list[float], temperature: float, bonus: float = 0.0) -> Response:
    """One answer by whole forwards through the adapter, and a Python loop that inverts the cumulative sum."""
    tokens: list[int] = []
    for uniform in uniforms:
        ids = torch.tensor([[*prompt, *tokens]], device=DEVICE)
        with roles.acting_as(Role.POLICY):
            logits = roles.peft(input_ids=ids, use_cache=False).logits[0, -1].double()
        logits[2] += bonus
        probabilities = (logits / temperature).softmax(-1).tolist()
        total = 0.0
        for token in range(len(logits)):
            total += probabilities[token]
            if uniform < total:
                break
        tokens.append(token)
        if token == 2:
            return Response(tuple(tokens), finished=True)
    return Response(tuple(tokens), finished=False)
