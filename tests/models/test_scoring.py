"""Pooled features of a whole batch, which the head reads."""

import pytest
import torch
from tiny import make_batch, make_roles

from lowrank_rlhf.errors import ExitCode, ModelNotFinite
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import not_finite, require_finite, score_features, score_tokens


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


@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_numbers_that_are_not_finite_have_words_of_their_own(shape) -> None:
    values, prompts = torch.ones(shape), ["a", "a", "b", "c", "d", "e"]
    assert not_finite(Role.REWARD, "scores", values, prompts) is None
    values[[0, 1, 4]] = torch.tensor([torch.nan, torch.inf, -torch.inf]).view(-1, *[1] * (len(shape) - 1))
    expected = "the reward model's scores of 3 of 6 answers are NaN or infinite (prompts a, d)"
    assert not_finite(Role.REWARD, "scores", values, prompts) == expected
    values[:, ...] = torch.nan
    with pytest.raises(
        ModelNotFinite, match=r"the critic's values of 6 of 6 .*\(prompts a, b, c and 2 more\)"
    ) as raised:
        require_finite(Role.CRITIC, "values", values, prompts)
    assert raised.value.exit_code == ExitCode.NOT_FINITE
    assert "Set model.compute_dtype=float32, or check the weights of the model and of its" in str(raised.value)
