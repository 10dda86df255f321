"""Values of a critic that starts as the reward model: the score of the response so far."""

from dataclasses import replace
from math import log

import pytest
import torch
from tiny import make_roles
from tiny_ppo import PROMPTS, SAMPLING, make_ppo_config, start
from torch import Tensor

from lowrank_rlhf.maths.masking import pool, running_pool
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.training.ppo_update import Optimizers, update
from lowrank_rlhf.training.rollout import PRIOR_TOKENS, RewardScale, collect, token_values

OUTPUTS = torch.tensor([[9.0, 9.0, 2.0, 4.0, 9.0], [9.0, 1.0, 3.0, 8.0, 7.0]])
RESPONSE = torch.tensor([[False, False, True, True, False], [False, True, True, True, False]])


def test_the_running_mean_is_over_the_response_so_far() -> None:
    expected = [[0.0, 0.0, 2.0, 3.0, 0.0], [0.0, 1.0, 2.0, 4.0, 0.0]]
    assert running_pool(OUTPUTS, RESPONSE, "mean").tolist() == expected
    assert torch.equal(running_pool(OUTPUTS, RESPONSE, "last"), OUTPUTS)
    with pytest.raises(ValueError, match="unknown pooling"):
        running_pool(OUTPUTS, RESPONSE, "max")


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_at_the_last_token_running_pooling_is_the_reward_models(pooling) -> None:
    last = torch.tensor([3, 3])
    found = running_pool(OUTPUTS, RESPONSE, pooling)[torch.arange(2), last]
    torch.testing.assert_close(found, pool(OUTPUTS, RESPONSE, pooling))


def test_values_are_scores_of_the_response_so_far_by_hand() -> None:
    """Scores are (mean - 1) / 2 less the prompt's baseline, which weighs as much as four tokens."""
    baseline, config = torch.tensor([0.25, -0.5]), make_ppo_config(critic_head="reward")
    assert PRIOR_TOKENS == 4
    found = token_values(OUTPUTS, RESPONSE, baseline, config, RewardScale("mean", 1.0, 2.0))
    first = [0.0, 0.0, 0.0, (0.5 - 0.25) * 1 / 5, 0.0]
    second = [0.0, 0.0, (0.0 + 0.5) * 1 / 5, (0.5 + 0.5) * 2 / 6, 0.0]
    torch.testing.assert_close(found, torch.tensor([first, second]))
    found = token_values(OUTPUTS, RESPONSE, baseline, config, RewardScale("mean", 1.0, 2.0, length=3.0))
    second[3] = ((2 + 3 * log(2) - 1) / 2 + 0.5) * 2 / 6
    torch.testing.assert_close(found, torch.tensor([first, second]))
    found = token_values(OUTPUTS, RESPONSE, baseline, config, RewardScale("last", 1.0, 2.0))
    first, second = [0.0, 0.0, 4.0 - 0.25, 0.5 - 0.25, 0.0], [0.0, 4.0 + 0.5, 0.0 + 0.5, 1.0 + 0.5, 0.0]
    torch.testing.assert_close(found, torch.tensor([first, second]))


@pytest.mark.parametrize("weight", [-1.0, 0.5])
def test_values_have_the_reward_models_weight_in_the_sum(weight) -> None:
    rewards = {"brief": {"source": "length", "maximum": 3}, "judged": {"source": "model", "weight": weight}}
    config, scale = make_ppo_config(critic_head="reward", rewards=rewards), RewardScale("last", 1.0, 2.0)
    found = token_values(OUTPUTS, RESPONSE, torch.zeros(2), config, scale)
    expected = [[0.0, 0.0, 4.0, 0.5, 0.0], [0.0, 4.0, 0.0, 1.0, 0.0]]
    torch.testing.assert_close(found, weight * torch.tensor(expected))


def test_a_critic_from_zero_reads_its_outputs_as_values() -> None:
    config, scale = make_ppo_config(critic_head="zero"), RewardScale("mean", 1.0, 2.0)
    found = token_values(OUTPUTS, RESPONSE, torch.tensor([5.0, 5.0]), config, scale)
    assert found.tolist() == [[0.0, 0.0, 9.0, 2.0, 0.0], [0.0, 9.0, 1.0, 3.0, 0.0]]


def naive_values(roles: Roles, rollout, baseline: Tensor, scale: RewardScale) -> dict[tuple[int, int], Tensor]:
    """Value of each response token, by (row, position), with plain loops over the hidden states of the whole model."""
    batch, found = rollout.batch, {}
    out = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long(), output_hidden_states=True)
    outputs = out.hidden_states[-1].float() @ roles.heads[Role.CRITIC].weight[0]
    for row in range(len(batch)):
        for n, t in enumerate(batch.response[row].nonzero().squeeze(-1).tolist()):
            so_far = outputs[row, t - n : t]
            score = (so_far.mean() - scale.mean) / scale.std - baseline[row] if n else outputs.new_zeros(())
            found[row, t] = score * n / (n + 4)
    return found


def test_values_and_the_critics_gradient_are_those_of_a_naive_implementation(tiny_base) -> None:
    roles, scale = start(make_roles(tiny_base())), RewardScale("mean", mean=0.3, std=1.7)
    roles.copy(Role.REWARD, Role.CRITIC)
    config = make_ppo_config(critic_head="reward", max_grad_norm=1e9, value_coef=0.37, value_clip_range=1e9)
    baseline = torch.linspace(-1, 1, 8)
    rollout = collect(roles, PROMPTS, config, SAMPLING, scale, 0.3, 1, baseline)
    with roles.acting_as(Role.CRITIC, train=True):
        values = naive_values(roles, rollout, baseline, scale)
        loss = torch.stack([0.5 * (value - rollout.returns[at]) ** 2 for at, value in values.items()]).mean()
        roles.backward(0.37 * loss)
    for at, value in values.items():
        assert float(rollout.values[at]) == pytest.approx(float(value.detach()), abs=1e-5)
    assert max(abs(float(value.detach())) for value in values.values()) > 0.1
    expected = {name: parameter.grad.clone() for name, parameter in roles.named_parameters(Role.CRITIC).items()}
    optimizer = torch.optim.SGD(roles.parameters(Role.CRITIC), lr=0.0)
    optimizers = replace(Optimizers.create(roles, config), critic=optimizer)
    figures = update(roles, optimizers, rollout, config, scale, 0.9, seed=3, train_policy=False)
    assert figures["value/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in roles.named_parameters(Role.CRITIC).items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * max(1.0, largest))


def test_an_untrained_critic_scores_a_whole_response_as_the_reward_model(tiny_base) -> None:
    """The last value, before the last token, is near the score; here the score is of the tokens before it."""
    roles, scale = start(make_roles(tiny_base())), RewardScale("mean", mean=0.3, std=1.7)
    roles.copy(Role.REWARD, Role.CRITIC)
    config = make_ppo_config(critic_head="reward")
    rollout = collect(roles, PROMPTS, config, SAMPLING, scale, 0.0, 1)
    batch = rollout.batch
    for row in range(len(batch)):
        tokens = batch.response[row].nonzero().squeeze(-1)
        shorter = batch.response[row].clone()
        shorter[tokens[-1]] = False
        n = len(tokens) - 1
        with torch.no_grad(), roles.acting_as(Role.REWARD):
            outputs = roles.scores(batch.rows([row]))[0]
        score = (outputs[shorter[: len(outputs)]].mean() - scale.mean) / scale.std
        assert float(rollout.values[row, tokens[-1]]) == pytest.approx(float(score) * n / (n + 4), abs=1e-5)
