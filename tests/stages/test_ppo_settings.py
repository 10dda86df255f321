"""Settings of PPO that reach the training unchanged: temperature, baselines, the critic's head, orders, whitening."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import DEVICE, randomise
from tiny_finished import finished_run
from tiny_ppo import make_ppo_config
from torch import Tensor

from lowrank_rlhf.evaluation.policy_evaluation import PolicyEvaluation
from lowrank_rlhf.evaluation.sampling import answer_prompts
from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import Scored
from lowrank_rlhf.run.records import Sample, Score, read_jsonl, write_jsonl
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import ppo
from lowrank_rlhf.training import ppo_update
from lowrank_rlhf.training.rollout import RewardScale, Rollout, credit

TEMPERATURE = 0.7


@pytest.fixture
def make(tiny_folder, tmp_path) -> Callable[..., Session]:
    """Return sessions in which ppo can begin, with changes to its settings."""
    settings = {"quantization": "none", "sample__temperature": TEMPERATURE}
    return lambda **changes: finished_run(tiny_folder(), tmp_path, adapters=("sft", "reward"), **settings, **changes)


def watch_collect(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], Rollout]]:
    """Record the arguments of `collect` and what it returns."""
    seen: list[tuple[tuple[Any, ...], Rollout]] = []
    collect = ppo.collect
    monkeypatch.setattr(ppo, "collect", lambda *args: seen.append((args, collect(*args))) or seen[-1][1])
    return seen


def all_logprobs(roles: Roles, role: Role, batch: Sequences, temperature: float) -> Tensor:
    """Return the log-probability of each response token from transformers' own logits: (N,)."""
    with roles.acting_as(role), torch.no_grad():
        logits = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits.double() / temperature
    found = logits.log_softmax(-1)[:, :-1].gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    return found[batch.response[:, 1:]]


def test_rollouts_are_scored_and_trained_at_the_sampling_temperature(make, monkeypatch) -> None:
    """The first step's rollout is SFT's; a ratio at another temperature would end the stage."""
    session, seen = make(ppo__steps=1), watch_collect(monkeypatch)
    claims = {claim.id: claim.figure for claim in ppo.run(session).claims}
    (args, rollout), roles = seen[0], session.load_roles()
    assert args[3].temperature == TEMPERATURE
    for tensor in (rollout.logprobs, rollout.ref_logprobs):
        real = tensor[rollout.batch.response].double()
        torch.testing.assert_close(
            real, all_logprobs(roles, Role.REFERENCE, rollout.batch, TEMPERATURE), atol=1e-4, rtol=0
        )
        assert (real - all_logprobs(roles, Role.REFERENCE, rollout.batch, 1.0)).abs().max() > 0.1
    assert claims["first_ratio_is_one"] == 0


def test_the_kl_of_evaluations_is_at_the_sampling_temperature(make) -> None:
    session = make()
    roles = session.load_roles()
    for seed, role in enumerate((Role.POLICY, Role.REFERENCE, Role.REWARD)):
        randomise(roles, role, seed)
    scale = RewardScale("last", 0.0, 1.0)
    evaluation = PolicyEvaluation.against_sft(roles, session.prompts[1], session.config, scale)
    answers = evaluation.answer()
    reference = answer_prompts(roles, Role.REFERENCE, evaluation.prompts, session.config.sample, evaluation.seed)
    assert evaluation.sft == [sample for (sample,) in reference], "not SFT's own answers"
    assert evaluation.sft != answers.samples
    assert evaluation.sampling.temperature == TEMPERATURE
    sums = {}
    for temperature in (TEMPERATURE, 1.0):
        policy, reference = (
            all_logprobs(roles, role, answers.batch, temperature) for role in (Role.POLICY, Role.REFERENCE)
        )
        lengths = answers.batch.response.sum(-1).tolist()
        sums[temperature] = torch.stack([part.sum() for part in (policy - reference).split(lengths)])
    torch.testing.assert_close(answers.kl.double(), sums[TEMPERATURE], atol=1e-3, rtol=0)
    assert (sums[1.0] - sums[TEMPERATURE]).abs().max() > 0.1


def test_the_objective_is_the_shaped_score_less_the_weighted_kl(make) -> None:
    session = make(ppo__missing_eos="penalty", ppo__missing_eos_score=-1.0, ppo__kl_coef=0.5, ppo__score_clip=None)
    evaluation = PolicyEvaluation.against_sft(
        session.load_roles(), session.prompts[1][:2], session.config, RewardScale("last", 0.0, 1.0)
    )
    samples = [Sample(id=f"{finished}", prompt_id="p", text="x", finished=finished) for finished in (True, False)]
    scores, kl = torch.tensor([2.0, 3.0], device=DEVICE), torch.tensor([0.4, 1.0], device=DEVICE)
    answers = replace(evaluation.answer(), samples=samples, scored=Scored(scores, {}), kl=kl)
    assert evaluation.objectives(answers, session.config.ppo).tolist() == pytest.approx([2.0 - 0.2, 3.0 - 1.0 - 0.5])
    assert evaluation.figures(answers, session.config.ppo)["objective"] == pytest.approx((1.8 + 1.5) / 2)


def test_contrastive_baselines_are_those_of_the_rollouts_prompts(make, monkeypatch) -> None:
    """Each prompt of each rollout comes with the mean score of the ranked answers to it, and no other's."""
    session = make(ppo__contrastive=True, ppo__steps=3, ppo__batch_size=2)
    path = session.run_dir.artifact
    ranked = session.prompts[0][:4]
    samples = [Sample(id=f"{p.id}-{k}", prompt_id=p.id, text="x", tokens=(5, 2)) for p in ranked for k in range(2)]
    scores = [0.1 * number**2 for number in range(len(samples))]
    write_jsonl(path("answers.jsonl"), samples)
    write_jsonl(
        path("scores.jsonl"),
        [
            Score(sample_id=sample.id, prompt_id=sample.prompt_id, score=score, held_out=False)
            for sample, score in zip(samples, scores, strict=True)
        ],
    )
    assert len(list(read_jsonl(path("scores.jsonl"), Score))) == 8
    of_prompt = defaultdict(list)
    for sample, score in zip(samples, scores, strict=True):
        of_prompt[sample.prompt_id].append((score - 0.4) / 1.7)  # `ABOUT_REWARD`'s scale
    encode = session.load_roles().base.encode_prompt
    expected = {tuple(encode(prompt)): sum(of_prompt[prompt.id]) / 2 for prompt in ranked}
    seen = watch_collect(monkeypatch)
    ppo.run(session)
    given = [pair for args, _ in seen for pair in zip(args[1], args[7].tolist(), strict=True)]
    assert len(given) == 6
    assert {tuple(prompt) for prompt, _ in given} == expected.keys()
    for prompt, baseline in given:
        assert baseline == pytest.approx(expected[tuple(prompt)], abs=1e-6)


@pytest.mark.parametrize("controller", ["fixed", "adaptive"])
def test_the_weight_of_the_kl_moves_with_the_adaptive_controller_only(make, controller) -> None:
    """A KL of 0 in the first step is 20 % too low: 8 answers of a horizon of 16 lower the weight by a tenth."""
    settings = {"ppo__batch_size": 8, "ppo__kl_horizon": 16, "ppo__kl_target": 1e6}
    session = make(ppo__kl_controller=controller, ppo__kl_coef=0.5, ppo__steps=3, **settings)
    ppo.run(session)
    found = [row["objective/kl_coef"] for row in session.metrics.read("ppo") if "objective/kl_coef" in row]
    assert found == pytest.approx([0.5, 0.5, 0.5] if controller == "fixed" else [0.5, 0.45, 0.405])


@pytest.mark.parametrize("head", ["reward", "zero"])
def test_the_critic_starts_with_the_configured_head_on_the_reward_adapter(make, head) -> None:
    session = make(ppo__critic_head=head)
    roles = session.load_roles()
    ppo._load_roles(roles, session.run_dir, session.config)
    reward, critic = (roles.heads[role].weight for role in (Role.REWARD, Role.CRITIC))
    assert float(reward.abs().max()) > 0
    assert torch.equal(critic, reward if head == "reward" else torch.zeros_like(reward))
    weights = [
        [weight for name, weight in roles.named_parameters(role).items() if "lora" in name]
        for role in (Role.REWARD, Role.CRITIC)
    ]
    assert len(weights[0]) > 4
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_every_step_takes_its_minibatches_in_an_order_of_its_own(make, monkeypatch) -> None:
    session = make(ppo__minibatches=4)
    orders: list[list[int]] = []
    update, step = ppo.update, ppo_update._policy_step
    monkeypatch.setattr(ppo, "update", lambda *args: orders.append([]) or update(*args))

    def look(*args: Any) -> dict[str, float]:
        orders[-1].append(min(min(part) for part in args[3]))
        return step(*args)

    monkeypatch.setattr(ppo_update, "_policy_step", look)
    ppo.run(session)
    assert [sorted(order) for order in orders] == [[0, 1, 2, 3]] * 4
    assert len({tuple(order) for order in orders}) > 2


def test_every_step_has_prompts_and_random_numbers_of_its_own(make, monkeypatch) -> None:
    """Each prompt comes once before any comes again, and in another order then."""
    session = make(ppo__steps=8, ppo__batch_size=5)
    roles, seen = session.load_roles(), watch_collect(monkeypatch)
    ppo.run(session)
    assert len({args[6] for args, _ in seen}) == 8
    expected = sorted(tuple(roles.base.encode_prompt(prompt)) for prompt in session.prompts.training)
    given = [tuple(prompt) for args, _ in seen for prompt in args[1]]
    count = len(expected)
    assert len(set(expected)) == count
    assert 2 * count <= len(given)
    assert sorted(given[:count]) == sorted(given[count : 2 * count]) == expected
    assert given[:count] != given[count : 2 * count]


def test_whitened_rewards_keep_their_mean() -> None:
    """Rewards of three and two tokens by numpy; with lambda 0 and values of 0 an advantage is a token's reward."""
    response = torch.tensor([[False, True, True, True], [True, True, False, False]], device=DEVICE)
    kl = torch.where(response, torch.tensor([[0.0, 1.0, -2.0, 0.5], [3.0, 1.5, 0.0, 0.0]], device=DEVICE), 0.0)
    scores, values = torch.tensor([4.0, 1.0], device=DEVICE), torch.zeros(2, 4, device=DEVICE)
    settings = {"gae_lambda": 0.0, "whiten_advantages": False}
    rewards = np.array([-0.1, 0.2, 4.0 - 0.05, -0.3, 1.0 - 0.15])
    for whiten, expected in (
        (False, rewards),
        (True, rewards.mean() + (rewards - rewards.mean()) / rewards.std(ddof=1)),
    ):
        config = make_ppo_config(whiten_rewards=whiten, **settings)
        advantages, returns = credit(scores, kl, values, response, config, kl_coef=0.1)
        assert advantages[response].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
        assert torch.equal(returns, advantages)
    assert float(advantages[response].mean()) == pytest.approx(rewards.mean(), abs=1e-5)
