"""PPO's two halves on tiny random models: `collect` and `update`, against hand values and a naive implementation."""

from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import DEVICE, make_roles, snapshot
from tiny_ppo import PROMPTS, SAMPLING, SCALE, make_ppo_config, rollout_of, start
from tiny_run import limit_tokens
from torch import Tensor

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.maths.advantages import explained_variance
from lowrank_rlhf.maths.kl import adapt_kl_coef
from lowrank_rlhf.maths.sequences import cut_minibatches
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.training import ppo_update as update_module
from lowrank_rlhf.training.ppo_update import Optimizers, OptimizerSteps, update
from lowrank_rlhf.training.rollout import (
    RewardScale,
    Rollout,
    collect,
    reward_scores,
    shape_scores,
    values_before_tokens,
)

both = pytest.mark.parametrize("quantization", ["none", "nf4"])


def moved(roles: Roles, role: Role, before: dict[str, Tensor]) -> bool:
    return not all(torch.equal(now, before[name]) for name, now in roles.named_parameters(role).items())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_adam_is_one_operation_for_all_weights_on_cuda(device) -> None:
    """On a CPU its rounding would change published runs, for less than a hundredth of an update."""
    base = SimpleNamespace(device=torch.device(device))
    optimizers = Optimizers.create(SimpleNamespace(base=base, parameters=lambda _: [torch.zeros(1)]), make_ppo_config())
    fused = [optimizer.param_groups[0]["fused"] for optimizer in optimizers.of_roles.values()]
    assert fused == [device == "cuda"] * 2


# --- Formulas by hand


def test_values_are_read_one_token_earlier() -> None:
    """Two prompt tokens, then three of a response; and one prompt token, a response of two, two of padding."""
    head = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]])
    response = torch.tensor([[False, False, True, True, True], [False, True, True, False, False]])
    expected = [[0.0, 0.0, 2.0, 3.0, 4.0], [0.0, 6.0, 7.0, 0.0, 0.0]]
    assert values_before_tokens(head, response).tolist() == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"missing_eos": "keep"}, [5.0, 5.0, -5.0, 0.5]),
        ({"missing_eos": "replace", "missing_eos_score": -1.0}, [5.0, -1.0, -5.0, -1.0]),
        ({"missing_eos": "penalty", "missing_eos_score": -2.0}, [5.0, 3.0, -5.0, -1.5]),
        ({"missing_eos": "keep", "score_clip": 2.0}, [2.0, 2.0, -2.0, 0.5]),
        ({"missing_eos": "keep", "score_clip": None}, [7.0, 6.0, -9.0, 0.5]),
    ],
)
def test_scores_of_unfinished_answers_and_clipping(settings, expected) -> None:
    scores, finished = torch.tensor([7.0, 6.0, -9.0, 0.5]), torch.tensor([True, False, True, False])
    assert shape_scores(scores, finished, make_ppo_config(**settings)).tolist() == expected


def test_explained_variance() -> None:
    response = torch.tensor([[True, True, False], [True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 99.0], [3.0, 4.0, 99.0]])
    assert explained_variance(returns, returns, response) == 1
    assert explained_variance(torch.full((2, 3), 2.5), returns, response) == 0
    assert explained_variance(-returns, returns, response) == -3  # Var(2 r) = 4 Var(r)
    assert explained_variance(returns / 2, returns, response) == 0.75


def test_adaptive_kl() -> None:
    assert adapt_kl_coef(0.1, 6.6, 6.0, 100, 10) == pytest.approx(0.1 * 1.01)
    assert adapt_kl_coef(0.1, 60.0, 6.0, 100, 10) == pytest.approx(0.1 * 1.02)
    assert adapt_kl_coef(0.1, 0.0, 6.0, 100, 10) == pytest.approx(0.1 * 0.98)


# --- collect


@both
def test_a_rollout(tiny_base, quantization) -> None:
    roles = start(make_roles(tiny_base(quantization)))
    config = make_ppo_config(missing_eos="penalty", whiten_advantages=False, gamma=0.9)
    rollout = rollout_of(roles, config)
    batch, shape = rollout.batch, rollout.batch.ids.shape
    for row, (prompt, response) in enumerate(zip(PROMPTS, rollout.responses, strict=True)):
        assert batch.ids[row][batch.attention[row]].tolist() == [*prompt, *response.tokens]
        assert batch.ids[row][batch.response[row]].tolist() == list(response.tokens)
    for tensor in (rollout.logprobs, rollout.ref_logprobs, rollout.values, rollout.advantages, rollout.returns):
        assert tensor.shape == shape
        assert (tensor[~batch.response] == 0).all()
        assert tensor.isfinite().all()
        assert not tensor.requires_grad
    assert (rollout.logprobs[batch.response] < 0).all()
    # KL is 0 exactly at the first step, and the rewards are then the shaped scores alone.
    assert torch.equal(rollout.logprobs, rollout.ref_logprobs)
    assert rollout.kl.tolist() == [0.0] * 8
    assert rollout.figures["objective/kl"] == 0
    shaped = shape_scores(rollout.scores, torch.tensor([r.finished for r in rollout.responses], device=DEVICE), config)
    for row in range(8):
        values = rollout.values[row][batch.response[row]].tolist()
        running, expected = 0.0, []
        for t in reversed(range(len(values))):
            following = values[t + 1] if t + 1 < len(values) else 0.0
            reward = float(shaped[row]) if t + 1 == len(values) else 0.0
            running = reward + 0.9 * following - values[t] + 0.9 * config.gae_lambda * running
            expected.insert(0, running)
        torch.testing.assert_close(rollout.advantages[row][batch.response[row]], torch.tensor(expected, device=DEVICE))
    torch.testing.assert_close(rollout.returns, rollout.advantages + rollout.values)
    assert rollout.figures["objective/scores"] == pytest.approx(float(rollout.scores.mean()))
    with roles.acting_as(Role.REWARD):
        last = batch.attention.sum(-1) - 1
        raw = roles.scores(batch)[torch.arange(8), last]
    torch.testing.assert_close(rollout.scores, (raw - 0.3) / 1.7)
    with roles.acting_as(Role.CRITIC):
        before_tokens = roles.scores(batch)[:, :-1][batch.response[:, 1:]]
    torch.testing.assert_close(rollout.values[batch.response], before_tokens)


def test_the_kl_penalty_and_whitening(tiny_base) -> None:
    """With different reference and policy: penalty in the rewards, nats per response, advantages of variance 1."""
    roles = make_roles(tiny_base())
    config = make_ppo_config(kl_coef=0.3, gae_lambda=1.0, whiten_advantages=False, missing_eos="keep")
    rollout = rollout_of(roles, config)
    kl = rollout.logprobs - rollout.ref_logprobs
    assert kl.abs().max() > 0.1
    torch.testing.assert_close(rollout.kl, kl.sum(-1))
    first = rollout.batch.response.int().argmax(-1)
    # With lambda = gamma = 1 the return of the first token is everything that is still to come.
    expected = shape_scores(rollout.scores, torch.ones(8, dtype=torch.bool, device=DEVICE), config) - 0.3 * rollout.kl
    torch.testing.assert_close(rollout.returns[torch.arange(8), first], expected)
    assert rollout.figures["objective/rlhf_reward"] == pytest.approx(float(expected.mean()))
    whitened = rollout_of(roles, make_ppo_config(kl_coef=0.3, gae_lambda=1.0, missing_eos="keep"))
    real = whitened.advantages[whitened.batch.response]
    assert float(real.mean()) == pytest.approx(0, abs=1e-6)
    assert float(real.var()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(whitened.returns, rollout.returns)
    ratio = (rollout.ref_logprobs - rollout.logprobs).double().cpu().numpy()
    k3 = (np.exp(ratio) - 1 - ratio).sum(-1).mean()
    assert rollout.figures["objective/kl_k3"] == pytest.approx(k3, rel=1e-4)
    assert abs(rollout.figures["objective/kl_k3"] - rollout.figures["objective/kl"]) > 0.05


def test_the_objective_is_what_is_maximised(tiny_base) -> None:
    """Scores are clipped, and lowered for unfinished answers, before the mean; a baseline changes no optimum."""
    roles = make_roles(tiny_base())
    config = make_ppo_config(kl_coef=0.3, score_clip=0.2, missing_eos="penalty", missing_eos_score=-2.0)
    first = rollout_of(roles, config)
    roles.base.__dict__["eos"] = first.responses[0].tokens[2]  # so that some answers end
    rollout = rollout_of(roles, config)
    finished = [response.finished for response in rollout.responses]
    assert 0 < sum(finished) < 8
    assert rollout.figures["response/eos_rate"] == sum(finished) / 8
    rows = zip(rollout.scores.tolist(), finished, rollout.kl.tolist(), strict=True)
    expected = [max(-0.2, min(0.2, score)) - (0 if ends else 2) - 0.3 * kl for score, ends, kl in rows]
    assert rollout.figures["objective/rlhf_reward"] == pytest.approx(sum(expected) / 8, rel=1e-5)
    raw = float((rollout.scores - 0.3 * rollout.kl).mean())
    assert abs(rollout.figures["objective/rlhf_reward"] - raw) > 0.1
    lower = collect(roles, PROMPTS, config, SAMPLING, SCALE, 0.3, 1, torch.linspace(1, 2, 8))
    assert lower.figures["objective/rlhf_reward"] == rollout.figures["objective/rlhf_reward"]


def test_the_entropy_is_that_of_the_response_tokens(tiny_base) -> None:
    """From all logits; prompts of different lengths leave rows with different padding."""
    roles = start(make_roles(tiny_base()))
    rollout = rollout_of(roles, make_ppo_config())
    batch = rollout.batch
    with roles.acting_as(Role.POLICY):
        logits = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits.double() / 0.9
    probabilities = logits.softmax(-1)[:, :-1][batch.response[:, 1:]]  # (N, V)
    expected = float(-(probabilities * probabilities.log()).sum(-1).mean())
    assert rollout.figures["objective/entropy"] == pytest.approx(expected, rel=1e-5)


def test_a_baseline_is_taken_from_the_shaped_scores(tiny_base) -> None:
    roles, config = (
        start(make_roles(tiny_base())),
        make_ppo_config(gae_lambda=1.0, whiten_advantages=False, score_clip=0.5),
    )
    baseline = torch.linspace(-1, 1, 8, device=DEVICE)
    plain = rollout_of(roles, config)
    found = collect(roles, PROMPTS, config, SAMPLING, SCALE, config.kl_coef, 1, baseline)
    assert found.responses == plain.responses
    assert torch.equal(found.scores, plain.scores)
    # With lambda = gamma = 1 it is in the return of every token.
    lower = torch.where(plain.batch.response, baseline[:, None], 0.0)
    torch.testing.assert_close(found.returns, plain.returns - lower)


def test_a_rollout_follows_from_its_seed(tiny_base) -> None:
    roles, config = start(make_roles(tiny_base())), make_ppo_config()
    one, same, other = (rollout_of(roles, config, seed) for seed in (1, 1, 2))
    assert one.responses == same.responses
    assert torch.equal(one.advantages, same.advantages)
    assert one.responses != other.responses


def test_the_reward_model_itself_scores_rollouts(tiny_base) -> None:
    roles, config = start(make_roles(tiny_base())), make_ppo_config()
    rollout = rollout_of(roles, config)
    torch.testing.assert_close(rollout.scores, reward_scores(roles, rollout.batch, SCALE))
    raw = reward_scores(roles, rollout.batch, RewardScale(SCALE.pooling, 0.0, 1.0))
    torch.testing.assert_close(rollout.scores, (raw - SCALE.mean) / SCALE.std)


# --- update


@both
def test_an_update_moves_policy_and_critic_and_nothing_else(tiny_base, quantization) -> None:
    roles = start(make_roles(tiny_base(quantization)))
    before, base = {role: snapshot(roles, role) for role in Role}, roles.base.checksum()
    config = make_ppo_config(epochs=2, minibatches=2)
    figures = update(roles, Optimizers.create(roles, config), rollout_of(roles, config), config, SCALE, 0.9, seed=3)
    assert {role for role in Role if moved(roles, role, before[role])} == {Role.POLICY, Role.CRITIC}
    assert roles.base.checksum() == base
    assert figures["policy/first_ratio_error"] == 0
    assert figures["value/loss"] > 0


@both
@pytest.mark.parametrize(
    ("dtype", "minibatches", "tokens"),
    [("float32", 1, 768), ("float32", 4, 40), ("bfloat16", 1, 768), ("bfloat16", 4, 40)],
)
def test_the_first_ratio_is_exactly_one(tiny_base, quantization, dtype, minibatches, tokens) -> None:
    """The same forward on the same micro-batches, so the same bits; nothing is clipped."""
    roles = start(make_roles(tiny_base(quantization, compute_dtype=dtype)))
    limit_tokens(roles.base, tokens)
    config = make_ppo_config(minibatches=minibatches, learning_rate=1e-9)
    figures = update(roles, Optimizers.create(roles, config), rollout_of(roles, config), config, SCALE, 0.9, seed=3)
    assert figures["policy/first_ratio_error"] == 0
    assert figures["policy/clipfrac"] == 0
    if minibatches == 1:
        assert figures["policy/ratio"] == pytest.approx(1, abs=1e-6)
        assert figures["policy/approxkl"] == 0


def test_a_temperature_that_was_not_sampled_with_shows_in_the_first_ratio(tiny_base) -> None:
    roles, config = start(make_roles(tiny_base())), make_ppo_config()
    figures = update(roles, Optimizers.create(roles, config), rollout_of(roles, config), config, SCALE, 1.0, seed=3)
    assert figures["policy/first_ratio_error"] > 0.01


def test_warming_up_the_critic_leaves_the_policy_alone(tiny_base) -> None:
    roles, config = start(make_roles(tiny_base())), make_ppo_config(epochs=2)
    before = {role: snapshot(roles, role) for role in (Role.POLICY, Role.CRITIC)}
    optimizers = Optimizers.create(roles, config)
    figures = update(roles, optimizers, rollout_of(roles, config), config, SCALE, 0.9, seed=3, train_policy=False)
    assert not moved(roles, Role.POLICY, before[Role.POLICY])
    assert moved(roles, Role.CRITIC, before[Role.CRITIC])
    assert not optimizers.policy.state
    assert not any(name.startswith("policy/") for name in figures)


def test_minibatches_cover_each_row_once_in_every_epoch(tiny_base, monkeypatch) -> None:
    roles, config = start(make_roles(tiny_base())), make_ppo_config(epochs=3, minibatches=4)
    seen: dict[str, list[list[int]]] = {"_policy_step": [], "_critic_step": []}
    for name, rows in seen.items():
        real = getattr(update_module, name)
        monkeypatch.setattr(
            update_module, name, lambda *args, real=real, rows=rows: rows.append([*chain(*args[3])]) or real(*args)
        )
    update(roles, Optimizers.create(roles, config), rollout_of(roles, config), config, SCALE, 0.9, seed=3)
    for rows in seen.values():
        assert [len(part) for part in rows] == [2] * 12
        for epoch in range(3):
            assert sorted(row for part in rows[4 * epoch : 4 * epoch + 4] for row in part) == list(range(8))
    assert seen["_policy_step"] == seen["_critic_step"]
    assert seen["_policy_step"][:4] != seen["_policy_step"][4:8]


def update_with(roles: Roles, rollout: Rollout, **settings) -> tuple[dict[str, float], OptimizerSteps]:
    """Run one update of roles at the weights of `start`; return its figures and the figures of each step."""
    config, steps = make_ppo_config(learning_rate=0.01, **settings), OptimizerSteps()
    return update(roles, Optimizers.create(roles, config), rollout, config, SCALE, 0.9, 3, True, steps), steps


@both
@pytest.mark.parametrize("tokens", [768, 40])
def test_target_kl_is_compared_before_the_step_and_stops_the_policy_only(tiny_base, quantization, tokens) -> None:
    """The first pass is at KL 0 and trains; the second is not, and neither it nor a later one moves the policy."""
    ends: dict[object, dict[Role, dict[str, Tensor]]] = {}
    for name, settings in {
        "one pass": {"epochs": 1},
        "all passes": {"epochs": 6},
        "never reached": {"epochs": 6, "target_kl": 1e9},
        "reached": {"epochs": 6, "target_kl": 1e-5},
    }.items():
        roles = start(make_roles(tiny_base(quantization)))
        limit_tokens(roles.base, tokens)
        figures, steps = update_with(roles, rollout_of(roles, make_ppo_config()), **settings)
        ends[name] = {role: snapshot(roles, role) for role in (Role.POLICY, Role.CRITIC)}
        assert figures["policy/optimizer_steps"] == {"one pass": 1, "reached": 1}.get(name, 6)
        assert len(steps.figures["value/loss"]) == settings["epochs"]
        assert len(steps.figures["policy/approxkl"]) == {"one pass": 1, "reached": 2}.get(name, 6)
        assert steps.done == 2 * settings["epochs"]
        assert steps.skipped == 0
    assert steps.figures["policy/approxkl"][1] > 1e-5
    assert figures["policy/final_approxkl"] == pytest.approx(steps.figures["policy/approxkl"][1], rel=1e-4)
    assert all(parameter.grad is None for parameter in roles.parameters(Role.POLICY))
    for role, same in ((Role.POLICY, "one pass"), (Role.CRITIC, "all passes")):
        for key, value in ends[same][role].items():
            assert torch.equal(ends["reached"][role][key], value), key
            assert torch.equal(ends["never reached"][role][key], ends["all passes"][role][key]), key


def test_target_kl_is_compared_with_each_minibatch(tiny_base) -> None:
    """Within a pass too: the first of four minibatches that is further than the target is the last one looked at."""
    roles = start(make_roles(tiny_base()))
    before, rollout = snapshot(roles, Role.POLICY), rollout_of(roles, make_ppo_config(minibatches=4))
    _, free = update_with(roles, rollout, minibatches=4)
    kl = free.figures["policy/approxkl"]
    assert kl[0] == 0 < kl[1] < kl[2]
    for name, parameter in roles.named_parameters(Role.POLICY).items():
        parameter.data.copy_(before[name])
    figures, steps = update_with(roles, rollout, minibatches=4, target_kl=(kl[1] + kl[2]) / 2)
    assert steps.figures["policy/approxkl"] == kl[:3]
    assert steps.figures["policy/optimizer_steps"] == [1, 1, 0]
    assert len(steps.figures["policy/grad_norm"]) == 2
    assert figures["policy/optimizer_steps"] == 2


def test_the_final_approximate_kl_is_that_of_the_trained_policy(tiny_base) -> None:
    """Over all rows, by the definition of k3 in numpy on all logits; its time counts as the policy's."""
    roles = start(make_roles(tiny_base()))
    rollout = rollout_of(roles, make_ppo_config(minibatches=2))
    figures, steps = update_with(roles, rollout, minibatches=2)
    batch = rollout.batch
    with roles.acting_as(Role.POLICY), torch.no_grad():
        logits = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits.double() / 0.9
    found = logits.log_softmax(-1)[:, :-1].gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    apart = (found - rollout.logprobs[:, 1:].double())[batch.response[:, 1:]].cpu().numpy()
    assert figures["policy/final_approxkl"] == pytest.approx(np.mean(np.exp(apart) - 1 - apart), rel=1e-3)
    assert figures["policy/final_approxkl"] > max(steps.figures["policy/approxkl"])
    assert len(steps.figures["time/policy_update"]) == 3  # two steps and this forward


def test_there_is_no_final_approximate_kl_without_a_step_of_the_policy(tiny_base) -> None:
    roles, config = start(make_roles(tiny_base())), make_ppo_config()
    rollout = rollout_of(roles, config)
    alone = update(roles, Optimizers.create(roles, config), rollout, config, SCALE, 0.9, 3, train_policy=False)
    apart = replace(rollout, logprobs=torch.where(rollout.batch.response, rollout.logprobs - 1, 0.0))
    stopped, _ = update_with(roles, apart, target_kl=0.1)
    assert stopped["policy/optimizer_steps"] == 0
    assert not any("final" in name for name in [*alone, *stopped])


@pytest.mark.parametrize(("warmup", "shares"), [(0, (1, 0.75, 0.5, 0.25)), (2, (1 / 3, 0.75 * 2 / 3, 0.5, 0.25))])
def test_rates_rise_in_the_warmup_and_decay_linearly(tiny_base, warmup, shares) -> None:
    roles = make_roles(tiny_base())
    config = make_ppo_config(steps=4, learning_rate=0.1, critic_learning_rate=0.2, warmup_steps=warmup)
    optimizers, rates = Optimizers.create(roles, config), []
    for step in range(4):
        optimizers.schedule(config, step)
        rates.append((optimizers.policy.param_groups[0]["lr"], optimizers.critic.param_groups[0]["lr"]))
    assert rates == [pytest.approx((0.1 * share, 0.2 * share)) for share in shares]


def naive_policy_loss(roles: Roles, rollout: Rollout, temperature: float, clip: float) -> Tensor:
    """PPO's policy loss by all logits, without chunks or micro-batches, token by token."""
    batch, terms = rollout.batch, []
    logits = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits / temperature
    every = logits.log_softmax(-1)
    for row in range(len(batch)):
        for t in batch.response[row].nonzero().squeeze(-1).tolist():
            ratio = torch.exp(every[row, t - 1, batch.ids[row, t]] - rollout.logprobs[row, t])
            advantage = rollout.advantages[row, t]
            terms.append(-torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage))
    return torch.stack(terms).mean()


@both
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_the_gradient_is_that_of_a_naive_implementation(tiny_base, quantization, checkpointing) -> None:
    """The size of the micro-batches does not change it. The ratios differ from 1, so that some are clipped."""
    roles = start(make_roles(tiny_base(quantization, checkpointing)))
    config = make_ppo_config(max_grad_norm=1e9)
    rollout = rollout_of(roles, config)
    noise = 0.3 * torch.randn(rollout.logprobs.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    rollout = replace(rollout, logprobs=torch.where(rollout.batch.response, rollout.logprobs + noise, 0.0))
    with roles.acting_as(Role.POLICY, train=True):
        roles.backward(naive_policy_loss(roles, rollout, 0.9, config.clip_range))
    expected = {name: parameter.grad.clone() for name, parameter in roles.named_parameters(Role.POLICY).items()}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for tokens in (768, 40, 1):
        rollout = replace(rollout, cut=cut_minibatches(rollout.batch.lengths(), 1, tokens))
        optimizer = torch.optim.SGD(roles.parameters(Role.POLICY), lr=0.0)
        optimizers = replace(Optimizers.create(roles, config), policy=optimizer)
        figures = update(roles, optimizers, rollout, config, SCALE, 0.9, seed=3)
        for name, parameter in roles.named_parameters(Role.POLICY).items():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * max(1.0, largest))
        assert 0.1 < figures["policy/clipfrac"] < 0.9


def naive_value_loss(roles: Roles, rollout: Rollout, clip: float) -> tuple[Tensor, float]:
    """PPO's value loss token by token, and the share of tokens whose clipped error is the larger one.

    transformers' own last hidden states: no lower states, no micro-batches; a token's value is read at the one before.
    """
    batch, terms, clipped = rollout.batch, [], 0
    out = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long(), output_hidden_states=True)
    head = roles.heads[Role.CRITIC].weight[0]
    for row in range(len(batch)):
        for t in batch.response[row].nonzero().squeeze(-1).tolist():
            value = (out.hidden_states[-1][row, t - 1].float() * head).sum()
            old, target = float(rollout.values[row, t]), float(rollout.returns[row, t])
            near = value.clamp(old - clip, old + clip)
            plain, limited = (value - target) ** 2, (near - target) ** 2
            clipped += bool(limited > plain)
            terms.append(0.5 * (limited if limited > plain else plain))
    return torch.stack(terms).mean(), clipped / len(terms)


def critic_rollout(roles: Roles, config: PpoConfig) -> Rollout:
    """A rollout with old values around the critic's, some beyond the clipping range on both sides."""
    rollout = rollout_of(roles, config)
    noise = 0.3 * torch.randn(rollout.values.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return replace(rollout, values=torch.where(rollout.batch.response, rollout.values + noise, 0.0))


@both
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_the_critics_gradient_is_that_of_a_naive_implementation(tiny_base, quantization, checkpointing) -> None:
    """Weighted by `value_coef`, adapter and head; the size of the micro-batches doesn't change it."""
    roles = start(make_roles(tiny_base(quantization, checkpointing)))
    config = make_ppo_config(max_grad_norm=1e9, value_coef=0.37, value_clip_range=0.15)
    rollout = critic_rollout(roles, config)
    with roles.acting_as(Role.CRITIC, train=True):
        loss, clipped = naive_value_loss(roles, rollout, 0.15)
        roles.backward(0.37 * loss)
    assert 0.1 < clipped < 0.9
    expected = {name: parameter.grad.clone() for name, parameter in roles.named_parameters(Role.CRITIC).items()}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    norm = float(torch.cat([gradient.flatten() for gradient in expected.values()]).norm())
    for tokens in (768, 40, 1):
        rollout = replace(rollout, cut=cut_minibatches(rollout.batch.lengths(), 1, tokens))
        optimizer = torch.optim.SGD(roles.parameters(Role.CRITIC), lr=0.0)
        optimizers = replace(Optimizers.create(roles, config), critic=optimizer)
        figures = update(roles, optimizers, rollout, config, SCALE, 0.9, seed=3, train_policy=False)
        for name, parameter in roles.named_parameters(Role.CRITIC).items():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * max(1.0, largest))
        assert figures["value/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert figures["value/grad_norm"] == pytest.approx(norm, rel=1e-4)


@both
@pytest.mark.parametrize(("tokens", "high"), [(768, None), (40, None), (768, 0.3)])
def test_the_figures_of_a_moved_policy(tiny_base, quantization, tokens, high) -> None:
    """The policy has moved since the rollout; log-probabilities from all logits, figures from numpy."""
    roles = start(make_roles(tiny_base(quantization)))
    config, upper = make_ppo_config(clip_range=0.1, clip_high=high), high or 0.1
    rollout = rollout_of(roles, config)
    rollout = replace(rollout, cut=cut_minibatches(rollout.batch.lengths(), 1, tokens))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in roles.parameters(Role.POLICY):
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator).to(DEVICE)
    batch, real = rollout.batch, rollout.batch.response.cpu().numpy()
    with roles.acting_as(Role.POLICY):
        logits = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits.double() / 0.9
    found = logits.log_softmax(-1)[:, :-1].gather(-1, batch.ids[:, 1:, None]).squeeze(-1).cpu().numpy()
    difference = (np.pad(found, ((0, 0), (1, 0))) - rollout.logprobs.double().cpu().numpy())[real]
    ratio, advantages = np.exp(difference), rollout.advantages.double().cpu().numpy()[real]
    losses = np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 0.9, 1 + upper))
    optimizers = replace(
        Optimizers.create(roles, config), policy=torch.optim.SGD(roles.parameters(Role.POLICY), lr=0.0)
    )
    figures = update(roles, optimizers, rollout, config, SCALE, 0.9, seed=3)
    clipped = np.mean((ratio < 0.9) | (ratio > 1 + upper))
    assert 0.1 < clipped < 0.9
    assert figures["policy/clipfrac"] == pytest.approx(clipped, abs=1e-6)
    assert figures["policy/ratio"] == pytest.approx(ratio.mean(), rel=1e-5)
    assert figures["policy/approxkl"] == pytest.approx(np.mean(ratio - 1 - difference), rel=1e-3)
    assert figures["policy/loss"] == pytest.approx(losses.mean(), rel=1e-3, abs=1e-5)
    assert figures["policy/first_ratio_error"] == pytest.approx(np.abs(ratio - 1).max(), rel=1e-4)
