"""Training that breaks down: NaN and infinities stop a stage with an explanation, and enter no weight."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_ppo import make_config as make_ppo_config
from test_ppo import rollout_of, start
from tiny import make_roles, snapshot
from tiny_finished import finished_run
from tiny_run import make_config, make_context, save_sft, separable, write_prompts, write_ranked
from torch import Tensor

from lowrank_rlhf.errors import StageFailed
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.stepping import NotFinite, clipped_step
from lowrank_rlhf.ppo.update import Optimizers, update
from lowrank_rlhf.stages import ppo, reward, sft
from lowrank_rlhf.stages.compare import Contest
from lowrank_rlhf.stages.context import Context
from lowrank_rlhf.stages.ppo_state import State

ADVICE = r"Lower [^;]*learning_rate.*compute_dtype: float32.*--redo "
bad = pytest.mark.parametrize("value", [math.nan, math.inf])


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Role, int, float], list[dict[str, Tensor]]]:
    """`spoil(role, backward, value)`: that many backwards into the role's training its loss is multiplied by `value`.

    The list then holds the role's weights as they were just before.
    """

    def plan(role: Role, number: int, value: float) -> list[dict[str, Tensor]]:
        backward, count, before = Roles.backward, [0], []

        def spoilt(roles: Roles, loss: Tensor) -> None:
            if roles.acting is role:
                count[0] += 1
                if count[0] == number:
                    before.append(snapshot(roles, role))
                    loss = loss * value
            backward(roles, loss)

        monkeypatch.setattr(Roles, "backward", spoilt)
        return before

    return plan


def unmoved(roles: Roles, role: Role, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(now, before[name]) for name, now in roles.named_parameters(role).items())


# --- The step itself


@bad
def test_a_step_is_made_only_with_finite_numbers(value: float) -> None:
    weight, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight, other], lr=1.0)
    weight.grad, other.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    with pytest.raises(NotFinite, match=f"the policy's loss is {value}"):
        clipped_step(optimizer, "policy", value, 1e9)
    other.grad = torch.tensor([value])
    with pytest.raises(NotFinite, match=f"the critic's gradient norm is {value}"):
        clipped_step(optimizer, "critic", 1.0, 1e9)
    assert (weight.tolist(), other.tolist()) == ([1.0, 1.0], [1.0])


def test_gradients_are_clipped_together() -> None:
    weight, other = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight, other], lr=1.0)
    weight.grad, other.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clipped_step(optimizer, "policy", 1.0, 0.5) == 5  # the norm before
    torch.testing.assert_close(torch.stack([weight[0], other[0]]), torch.tensor([0.7, 0.6]))


# --- The stages


def test_sft_stops_before_a_nan_enters_a_weight(tiny_folder, tmp_path, monkeypatch) -> None:
    """The third gradient is spoilt, in one number of one tensor; two steps are in the metrics and saved."""
    data = write_prompts(tmp_path / "prompts.jsonl")
    context = make_context(make_config(tiny_folder(), data, sft__save_every=1), tmp_path)
    seen: list[dict[str, Tensor]] = []
    real = sft._Watcher.on_pre_optimizer_step

    def spoilt(watcher: Any, *args: Any, **rest: Any) -> None:
        seen.append(snapshot(context.roles, Role.POLICY))
        if len(seen) == 3:
            context.roles.parameters(Role.POLICY)[-1].grad[0, 0] = math.nan
        real(watcher, *args, **rest)

    monkeypatch.setattr(sft._Watcher, "on_pre_optimizer_step", spoilt)
    with pytest.raises(StageFailed, match=rf"sft: step 3: the gradient's norm is nan\. .*{ADVICE}sft"):
        sft.run(context)
    assert unmoved(context.roles, Role.POLICY, seen[2])
    assert not unmoved(context.roles, Role.POLICY, seen[1])
    assert [row["step"] for row in context.metrics.read("sft")] == [1, 2]
    assert [path.name for path in context.work("sft").glob("step-*")] == ["step-000002"]
    assert context.roles.acting is None
    assert "forward" not in context.base.model.__dict__


@bad
def test_the_reward_stage_stops(tiny_folder, tmp_path, spoil, value) -> None:
    context = make_context(make_config(tiny_folder(), model__micro_batch_tokens=10_000), tmp_path)
    save_sft(context)
    write_ranked(context, *separable(10))
    before = spoil(Role.REWARD, 3, value)
    with pytest.raises(StageFailed, match=rf"reward: step 3: the reward model's gradient norm is .*{ADVICE}reward"):
        reward.run(context)
    assert unmoved(context.roles, Role.REWARD, before[0])
    assert [row["step"] for row in context.metrics.read("reward")] == [1, 2]


@bad
@pytest.mark.parametrize("role", [Role.POLICY, Role.CRITIC])
def test_an_update_stops(tiny_base, spoil, role, value) -> None:
    roles, config = start(make_roles(tiny_base())), make_ppo_config(epochs=3)
    before = spoil(role, 2, value)
    with pytest.raises(NotFinite, match=f"the {role.name.lower()}'s gradient norm is (nan|inf)"):
        update(roles, Optimizers.create(roles, config), rollout_of(roles, config), config, 0.9, seed=3)
    assert unmoved(roles, role, before[0])


def test_a_nan_ratio_is_no_ratio_of_one(tiny_base) -> None:
    """Old log-probabilities of one answer are NaN: neither a maximum nor a comparison may drop it."""
    roles, config = start(make_roles(tiny_base())), make_ppo_config()
    rollout = rollout_of(roles, config)
    old = rollout.logprobs.clone()
    old[3][rollout.batch.response[3]] = math.nan
    with pytest.raises(NotFinite, match="the policy's loss is nan"):
        update(roles, Optimizers.create(roles, config), replace(rollout, logprobs=old), config, 0.9, seed=3)


def test_a_claim_does_not_hold_for_nan() -> None:
    state = State()
    with pytest.raises(StageFailed, match="it is off by nan"):
        ppo._claim(state, "KL(policy || SFT) is 0 at step 0", math.nan, 1e-4)
    assert [claim["holds"] for claim in state.claims] == [False]


@pytest.fixture
def ready(tiny_folder, tmp_path) -> Context:
    """A context in which ppo can begin."""
    return finished_run(tiny_folder(), tmp_path, adapters=("sft", "reward"))


def test_ppo_stops_with_step_and_advice(ready, spoil) -> None:
    before = spoil(Role.CRITIC, 2, math.nan)
    expected = rf"ppo: step 2: the critic's gradient norm is nan\. .*{ADVICE}ppo"
    with pytest.raises(StageFailed, match=expected):
        ppo.run(ready)
    assert unmoved(ready.roles, Role.CRITIC, before[0])
    assert [row["step"] for row in ready.metrics.read("ppo")] == [0, 1]


def test_a_policy_whose_objective_is_nan_is_not_kept(ready, monkeypatch) -> None:
    monkeypatch.setattr(Contest, "figures", lambda *_: {"score": math.nan, "kl": 0.0, "objective": math.nan})
    with pytest.raises(StageFailed, match="ppo: step 0: the objective on held-out prompts is nan"):
        ppo.run(ready)
    assert not (ready.work("ppo") / "best").exists()
