"""Pooled features of a whole batch, which the head reads."""

import torch
from tiny import make_batch, make_roles

from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_features, score_tokens


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
