"""PPO with a scripted reward raises it, and lowers it with the advantages' sign flipped."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny import DEVICE, make_roles
from tiny_ppo import PROMPTS, SAMPLING, SCALE, make_ppo_config, start
from torch import Tensor

from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.training.ppo_update import Optimizers, update
from lowrank_rlhf.training.rollout import collect

GOOD = torch.arange(3, 150, device=DEVICE)
"""Half of the ordinary tokens: a policy that knows nothing scores about 0."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward is the share of good tokens in the answer, as -2 to 2."""

    def scores(roles, batch, scale) -> Tensor:  # noqa: ARG001 - reward_scores' signature
        good = torch.isin(batch.ids, GOOD) & batch.response
        return (good.sum(-1) / batch.response.sum(-1) - 0.5) * 4

    monkeypatch.setattr("lowrank_rlhf.training.rollout.reward_scores", scores)


def learn(roles: Roles, seed: int, steps: int, of: Callable[[Tensor], Tensor] = lambda advantages: advantages):
    """Mean scores over the steps of PPO, (steps,)."""
    start(roles).new_head(Role.CRITIC, None)
    config = make_ppo_config(
        batch_size=32, epochs=4, learning_rate=0.03, critic_learning_rate=0.01, kl_coef=0.01, missing_eos="keep"
    )
    optimizers, scores = Optimizers.create(roles, config), []
    for step in range(steps):
        rollout = collect(roles, PROMPTS * 4, config, SAMPLING, SCALE, config.kl_coef, seed=1000 * seed + step)
        rollout = replace(rollout, advantages=of(rollout.advantages))
        update(roles, optimizers, rollout, config, SCALE, SAMPLING.temperature, seed=step)
        scores.append(rollout.figures["objective/scores"])
    return torch.tensor(scores)


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(("quantization", "seed"), [("none", 1), ("nf4", 2)])
def test_ppo_raises_a_scripted_reward(tiny_base, quantization, seed) -> None:
    scores = learn(make_roles(tiny_base(quantization)), seed, steps=20)
    rise = float(scores[-5:].mean() - scores[:5].mean())
    print([round(score, 2) for score in scores.tolist()])
    assert rise > 0.6
    assert rise > 3 * float(scores[:5].std())


@pytest.mark.usefixtures("scripted")
def test_with_the_sign_flipped_it_falls(tiny_base) -> None:
    scores = learn(make_roles(tiny_base()), 1, steps=15, of=torch.neg)
    print([round(score, 2) for score in scores.tolist()])
    assert float(scores[-5:].mean() - scores[:5].mean()) < -0.3
