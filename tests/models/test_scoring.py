"""Law 8 of the roles: extra padding, row order and micro-batch size change no result beyond rounding."""

import pytest
import torch
from tiny import gradients, make_batch, make_roles
from torch import nn

from lowrank_rlhf.maths.sequences import Sequences, micro_batches
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_features, score_logprobs, score_tokens

each_quantization = pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
each_role = pytest.mark.parametrize("role", Role)
each_way = pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])


@each_quantization
@each_role
@each_way
def test_padding_order_and_micro_batches_change_nothing(tiny_base, quantization, checkpointing, role) -> None:
    roles, batch = make_roles(tiny_base(quantization, checkpointing)), make_batch()
    score = score_tokens if role.has_head else lambda *args: score_logprobs(*args, 0.8).logprobs
    whole = score(roles, role, batch)
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(score(roles, role, batch.rows(order))[:, : whole.shape[1]], whole[order])
    wide = Sequences(*(nn.functional.pad(t, (0, 5)) for t in (batch.ids, batch.attention, batch.response)))
    torch.testing.assert_close(score(roles, role, wide)[:, :-5], whole)
    wide.ids[~wide.attention] = 77  # what stands in the padding means nothing
    torch.testing.assert_close(score(roles, role, wide)[:, :-5], whole)
    config = roles.base.config.model_copy(update={"micro_batch_tokens": 20})
    object.__setattr__(roles.base, "config", config)
    assert len(micro_batches(batch.lengths(), 20)) == 4
    torch.testing.assert_close(score(roles, role, batch), whole)


@each_quantization
@each_role
@each_way
def test_gradients_of_micro_batches_add_up(tiny_base, quantization, checkpointing, role) -> None:
    roles, batch = make_roles(tiny_base(quantization, checkpointing)), make_batch()
    whole = gradients(roles, role, batch)
    parts = [gradients(roles, role, batch.rows(index)) for index in micro_batches(batch.lengths(), 20)]
    for name, gradient in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), gradient, rtol=1e-4, atol=2e-5)


def test_features_are_what_the_head_reads(tiny_base) -> None:
    roles, batch, rows = make_roles(tiny_base()), make_batch(), []
    for pooling, expected in (("last", [8, 8, 13, 4, 16]), ("mean", None)):
        features = score_features(roles, Role.REWARD, batch, pooling, rows.append)
        scores = score_tokens(roles, Role.REWARD, batch)
        if expected:
            read = scores[range(5), expected]
        else:
            read = torch.stack([scores[i][batch.response[i]].mean() for i in range(5)])
        torch.testing.assert_close(features @ roles.heads[Role.REWARD].weight[0], read, rtol=1e-4, atol=1e-5)
    assert sum(rows) == 10
