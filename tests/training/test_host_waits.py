"""Waits for the device: on a graphics card each one leaves it idle until Python has caught up."""

from dataclasses import replace

import pytest
import torch
from tiny import make_roles
from tiny_ppo import PROMPTS, SAMPLING, SCALE, make_ppo_config, start

from benchmarks.operations import HostWaits, attention_of_gpus
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.training.ppo_update import Optimizers, update
from lowrank_rlhf.training.rollout import collect


def without_end(tiny_base) -> Roles:
    """Return roles whose answers have their full length."""
    roles = start(make_roles(tiny_base()))
    roles.base.__dict__["eos"] = -1
    return roles


def test_a_decoding_step_waits_once(tiny_base) -> None:
    """Beside one in transformers, which looks at the mask; a recorded step has none of it."""
    roles, counts = without_end(tiny_base), []
    for length in (4, 7):
        with HostWaits() as waits:
            sample_answers(roles, Role.POLICY, PROMPTS, SAMPLING.model_copy(update={"max_new_tokens": length}), 0)
        del waits.by_name["__bool__"]
        counts.append(waits.by_name)
    assert counts == [{"tolist": 4 + 1}, {"tolist": 7 + 1}]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_no_micro_batch_waits(tiny_base, pooling) -> None:
    """An update waits once an optimizer step and once at its end; the order of each epoch is one on the CPU.

    Beside one in each forward of transformers, which looks for several sequences in a row.
    """
    scale, config = replace(SCALE, pooling=pooling), make_ppo_config(epochs=2, minibatches=2)
    for tokens, parts in ((1000, 2), (20, 8)):
        roles = without_end(tiny_base)
        roles.base.limits.tokens = tokens
        sgd = (torch.optim.SGD(roles.parameters(role), lr=0.1) for role in (Role.POLICY, Role.CRITIC))
        with attention_of_gpus(roles):
            with HostWaits() as collecting:
                rollout = collect(roles, PROMPTS, config, SAMPLING, scale, 0.05, 0)
            with HostWaits() as updating:
                update(roles, Optimizers(*sgd), rollout, config, scale, 0.9, 0)
        for waits in (collecting, updating):
            del waits.by_name["__bool__"]
        assert sum(map(len, rollout.cut)) == parts
        # the answers and the figures, whose lengths are those of lists
        assert collecting.by_name == {"tolist": SAMPLING.max_new_tokens + 2, "__float__": 2}
        assert updating.by_name == {"tolist": 2 + 2 * 2 * 2, "__float__": 1}
