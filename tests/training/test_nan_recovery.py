"""NaN and infinities in training change no weight: their steps are skipped, rolled back, then the stage ends."""

import json
import math
import re
from collections.abc import Callable, Container
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import make_roles, snapshot
from tiny_finished import finished_run
from tiny_ppo import SCALE, make_ppo_config, rollout_of, start
from tiny_run import make_config, make_session, save_sft, separable, write_prompts, write_ranked
from torch import Tensor

from lowrank_rlhf.errors import Diverged, ExitCode, ModelNotFinite, StageFailed, Stopped
from lowrank_rlhf.evaluation import policy_evaluation
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import read_tensors
from lowrank_rlhf.run.checkpoints import latest_checkpoint
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import ppo, reward, sft
from lowrank_rlhf.training import rollout
from lowrank_rlhf.training.optimizer_step import NotFinite, clip_gradients, finite_step
from lowrank_rlhf.training.policy_checkpoints import PolicyState
from lowrank_rlhf.training.ppo_update import Optimizers, OptimizerSteps, update
from lowrank_rlhf.training.rollout import Rollout
from lowrank_rlhf.training.self_checks import require
from lowrank_rlhf.training.trl_loop import FiniteGuard

ADVICE = r"Lower [^;]*learning_rate.*compute_dtype: float32.*--redo "
bad = pytest.mark.parametrize("value", [math.nan, math.inf])


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Tensor]]]:
    """`spoil(role, {2, 3}, value)`: multiply the role's loss by `value` in its second and third backward.

    The list then holds the role's weights as they were just before each of them.
    """

    def plan(role: Role, numbers: Container[int], value: float = math.nan) -> list[dict[str, Tensor]]:
        backward, count, before = Roles.backward, [0], []

        def spoilt(roles: Roles, loss: Tensor) -> None:
            if roles.acting is role:
                count[0] += 1
                if count[0] in numbers:
                    before.append(snapshot(roles, role))
                    loss = loss * value
            backward(roles, loss)

        monkeypatch.setattr(Roles, "backward", spoilt)
        return before

    return plan


@pytest.fixture
def spoil_sft(monkeypatch: pytest.MonkeyPatch) -> Callable[[Container[int]], list[dict[str, Tensor]]]:
    """The same for sft, in one number of one gradient; the list contains the weights before every step."""

    def plan(numbers: Container[int]) -> list[dict[str, Tensor]]:
        seen: list[dict[str, Tensor]] = []
        real = FiniteGuard.on_pre_optimizer_step

        def spoilt(finite: FiniteGuard, *args: Any, **rest: Any) -> None:
            roles = finite.roles
            seen.append(snapshot(roles, Role.POLICY))
            if len(seen) in numbers:
                roles.parameters(Role.POLICY)[-1].grad[0, 0] = math.nan
            real(finite, *args, **rest)

        monkeypatch.setattr(FiniteGuard, "on_pre_optimizer_step", spoilt)
        return seen

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
        finite_step(optimizer, "policy", value, float(clip_gradients(optimizer, 1e9)))
    other.grad = torch.tensor([value])
    with pytest.raises(NotFinite, match=f"the critic's gradient norm is {value}"):
        finite_step(optimizer, "critic", 1.0, float(clip_gradients(optimizer, 1e9)))
    assert (weight.tolist(), other.tolist()) == ([1.0, 1.0], [1.0])


def test_gradients_are_clipped_together() -> None:
    weight, other = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight, other], lr=1.0)
    weight.grad, other.grad = torch.tensor([3.0]), torch.tensor([4.0])
    norm = clip_gradients(optimizer, 0.5)
    assert norm == 5  # before
    finite_step(optimizer, "policy", 1.0, float(norm))
    torch.testing.assert_close(torch.stack([weight[0], other[0]]), torch.tensor([0.7, 0.6]))


# --- The stages: one bad step


def skips(session: Session, stage: str) -> list[tuple[int, float]]:
    """(step, skipped) of each step that trains, in the order of the log."""
    return [(row["step"], row["skipped"]) for row in session.metrics.read(stage) if "skipped" in row]


def finite(session: Session, role: Role) -> bool:
    return all(bool(weight.isfinite().all()) for weight in session.load_roles().parameters(role))


@pytest.fixture
def sft_context(tiny_folder, tmp_path) -> Session:
    """Five steps, one forward in each."""
    data = write_prompts(tmp_path / "prompts.jsonl")
    return make_session(make_config(tiny_folder(), data, "none", sft__save_every=1), tmp_path)


@pytest.fixture
def reward_context(tiny_folder, tmp_path) -> Session:
    """Seven steps, one backward in each."""
    changes = {"model__micro_batch_tokens": 10_000, "reward__save_every": 1}
    session = make_session(make_config(tiny_folder(), None, "none", **changes), tmp_path)
    save_sft(session)
    write_ranked(session, *separable(10))
    return session


@pytest.fixture
def make_ppo(tiny_folder, tmp_path) -> Callable[..., Session]:
    """Four steps, one backward of each role in each epoch."""
    settings = {"quantization": "none", "model__micro_batch_tokens": 10_000, "ppo__save_every": 1}
    settings |= {"ppo__evaluate_every": 10, "ppo__evaluate_prompts": 1}
    return lambda **changes: finished_run(tiny_folder(), tmp_path, adapters=("sft", "reward"), **settings, **changes)


@pytest.fixture
def ppo_context(make_ppo) -> Session:
    """One epoch."""
    return make_ppo()


def test_sft_skips_a_step_whose_gradient_is_nan(sft_context, spoil_sft) -> None:
    seen = spoil_sft({3})
    sft.run(sft_context)
    assert skips(sft_context, "sft") == [(1, 0), (2, 0), (3, 1), (4, 0), (5, 0)]
    assert [same(*pair) for pair in pairwise(seen)] == [False, False, True, False]
    rows = list(sft_context.metrics.read("sft"))
    assert rows[2].keys() == {"stage", "step", "skipped"}
    assert all(row["loss"] > 0.1 for row in rows if not row["skipped"])  # nothing of the NaN stays in TRL's sums
    assert finite(sft_context, Role.POLICY)
    assert sft_context.load_roles().acting is None
    assert "forward" not in sft_context.load_roles().base.model.__dict__


def test_sft_skips_a_step_whose_loss_is_nan_though_its_gradient_is_not(sft_context, spoil_sft) -> None:
    seen, calls = spoil_sft(()), []

    def spoilt(_: Any, __: Any, output: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            output.loss = output.loss + math.nan

    sft_context.load_roles().base.model.register_forward_hook(spoilt)
    sft.run(sft_context)
    assert skips(sft_context, "sft") == [(1, 0), (2, 1), (3, 0), (4, 0), (5, 0)]
    assert [same(*pair) for pair in pairwise(seen)] == [False, True, False, False]


@bad
def test_the_reward_stage_skips_a_step(reward_context, spoil, value) -> None:
    before = spoil(Role.REWARD, {3, 4}, value)
    reward.run(reward_context)
    assert [skipped for _, skipped in skips(reward_context, "reward")] == [0, 0, 1, 1, 0, 0, 0]
    assert same(*before)
    assert finite(reward_context, Role.REWARD)


@bad
@pytest.mark.parametrize("role", [Role.POLICY, Role.CRITIC])
def test_an_update_skips_a_turn(tiny_base, spoil, role, value) -> None:
    roles, config, steps = start(make_roles(tiny_base())), make_ppo_config(epochs=3), OptimizerSteps()
    rollout = rollout_of(roles, config)
    before = spoil(role, {2, 3}, value)
    figures = update(roles, Optimizers.create(roles, config), rollout, config, SCALE, 0.9, 3, True, steps)
    assert same(*before)
    assert unmoved(roles, role, before[1])
    assert (figures["skipped"], steps.skipped, steps.done) == (2, 2, 6)
    assert not steps.role_skipped
    assert re.fullmatch(rf"the {role.name.lower()}'s gradient norm is (nan|inf)", steps.problem or "")
    assert all(math.isfinite(figure) for figure in figures.values())


@pytest.mark.parametrize("role", [Role.POLICY, Role.CRITIC])
def test_an_update_is_lost_where_a_role_makes_no_turn(tiny_base, spoil, role) -> None:
    roles, config, steps = start(make_roles(tiny_base())), make_ppo_config(epochs=2), OptimizerSteps()
    rollout = rollout_of(roles, config)
    spoil(role, {1, 2})
    update(roles, Optimizers.create(roles, config), rollout, config, SCALE, 0.9, 3, True, steps)
    assert (steps.skipped, steps.done, steps.role_skipped) == (2, 4, True)


def test_an_update_of_the_critic_alone_is_not_lost(tiny_base) -> None:
    roles, config, steps = start(make_roles(tiny_base())), make_ppo_config(), OptimizerSteps()
    update(roles, Optimizers.create(roles, config), rollout_of(roles, config), config, SCALE, 0.9, 3, False, steps)
    assert (steps.skipped, steps.done, steps.role_skipped) == (0, 1, False)


def test_a_nan_ratio_is_no_ratio_of_one(tiny_base) -> None:
    """Old log-probabilities of one answer are NaN: neither a maximum nor a comparison may drop it."""
    roles, config, steps = start(make_roles(tiny_base())), make_ppo_config(), OptimizerSteps()
    rollout = rollout_of(roles, config)
    old = rollout.logprobs.clone()
    old[3][rollout.batch.response[3]] = math.nan
    spoilt = replace(rollout, logprobs=old)
    before = snapshot(roles, Role.POLICY)
    figures = update(roles, Optimizers.create(roles, config), spoilt, config, SCALE, 0.9, 3, True, steps)
    assert steps.problem == "the policy's loss is nan"
    assert unmoved(roles, Role.POLICY, before)
    assert "policy/first_ratio_error" not in figures


def test_a_claim_does_not_hold_for_nan() -> None:
    state = PolicyState()
    with pytest.raises(StageFailed, match="it is off by nan"):
        require(state.claims, "kl_is_zero", "KL is 0", math.nan, 1e-4)
    assert [claim.holds for claim in state.claims] == [False]


@bad
@pytest.mark.parametrize("name", ["scores", "logprobs", "ref_logprobs", "values", "advantages", "returns"])
def test_one_number_of_a_rollout_that_is_not_finite_is_seen(tiny_base, name, value) -> None:
    roles, config = start(make_roles(tiny_base())), make_ppo_config()
    rollout = rollout_of(roles, config)
    assert rollout.problem() is None
    getattr(rollout, name)[-1] = value
    assert rollout.problem() == f"the rollout's {name} are not all finite"


def test_ppo_skips_a_step_whose_rollout_is_not_finite(ppo_context, monkeypatch) -> None:
    """In the first step, so that the second makes both self-checks."""
    collect, count = ppo.collect, []

    def spoilt(*args: Any) -> Rollout:
        count.append(1)
        rollout = collect(*args)
        return replace(rollout, scores=rollout.scores * math.nan) if len(count) == 1 else rollout

    monkeypatch.setattr(ppo, "collect", spoilt)
    summary = ppo.run(ppo_context)
    assert skips(ppo_context, "ppo") == [(1, 1), (2, 0), (3, 0), (4, 0)]
    assert [claim.holds for claim in summary.claims] == [True] * 4
    events = (ppo_context.run_dir.path / "events.jsonl").read_text()
    assert "the rollout's scores are not all finite" in events


def events_of(session: Session, kind: str) -> list[dict[str, Any]]:
    lines = (session.run_dir.path / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def test_a_step_of_ppo_that_lost_some_turns_is_made(make_ppo, spoil, monkeypatch) -> None:
    """One of the critic's two optimizer steps is skipped in each of the first three steps: no roll-back."""
    session = make_ppo(ppo__epochs=2)
    said = list[str]()
    monkeypatch.setattr(session.progress, "say", said.append)
    spoil(Role.CRITIC, {1, 4, 5})
    ppo.run(session)
    assert skips(session, "ppo") == [(1, 1), (2, 1), (3, 1), (4, 0)]
    assert [event["what"] for event in events_of(session, "skipped")] == ["1 of 4 optimizer steps are skipped"] * 3
    assert events_of(session, "rolled back") == []
    assert "  ppo: step 2: the critic's gradient norm is nan; 1 of 4 optimizer steps are skipped" in said
    assert not [line for line in said if "the step is skipped" in line or "in a row" in line]


def test_what_a_lost_step_of_ppo_left_out_is_told_truly(make_ppo, spoil) -> None:
    """The policy's optimizer steps were completed."""
    session = make_ppo(ppo__epochs=2)
    spoil(Role.CRITIC, {3, 4})
    ppo.run(session)
    (event,) = events_of(session, "skipped")
    assert (event["step"], event["what"]) == (2, "2 of 4 optimizer steps are skipped")


@bad
@pytest.mark.parametrize("what", ["scores", "log-probabilities"])
def test_a_policy_is_not_kept_by_an_objective_that_hides_nan(make_ppo, monkeypatch, value, what) -> None:
    """The score of an unfinished answer is replaced, and an infinite one clipped: the objective alone looks finite."""
    session = make_ppo(ppo__missing_eos="replace")
    scored, measured = rollout.reward_scores, policy_evaluation.divergence
    if what == "scores":
        monkeypatch.setattr(rollout, "reward_scores", lambda *args: scored(*args) + value)
        whose = "reward model"
    else:
        whose = "reference"

        def broken(*args: Any) -> Any:
            found = measured(*args)
            return replace(found, reference=found.reference + value)

        monkeypatch.setattr(policy_evaluation, "divergence", broken)
    expected = rf"ppo: step 0: on validation prompts the {whose}'s {what} of 1 of 1 answers are NaN or infinite \(pr"
    with pytest.raises(Diverged, match=expected) as raised:
        ppo.run(session)
    assert raised.value.exit_code == ExitCode.NOT_FINITE
    assert not (session.work("ppo") / "best").exists()


# --- The stages: three in a row


def test_sft_is_rolled_back_once_and_goes_on_at_half_the_rate(sft_context, spoil_sft) -> None:
    """Steps 2 to 4 fail the first time: back to after step 1, the only good checkpoint."""
    seen = spoil_sft({2, 3, 4})
    sft.run(sft_context)
    assert skips(sft_context, "sft") == [(step, 0) for step in range(1, 6)]
    assert all(same(seen[1], weights) for weights in seen[2:5])  # the fifth is step 2 again
    assert not same(seen[4], seen[5])
    rates = [row["learning_rate"] for row in sft_context.metrics.read("sft")]
    whole = [0.01 * sft._rate(step, 5, sft_context.config.sft.warmup_fraction) for step in range(5)]
    assert rates == pytest.approx([whole[0], *(rate / 2 for rate in whole[1:])], abs=1e-12)


def test_the_reward_stage_is_rolled_back_once(reward_context, spoil) -> None:
    before = spoil(Role.REWARD, {3, 4, 5})
    reward.run(reward_context)
    assert [skipped for _, skipped in skips(reward_context, "reward")] == [0] * 7
    assert same(before[0], before[2])
    assert json.loads((reward_context.work("reward") / "step-000007/breakdowns.json").read_text())["rate"] == 0.5
    assert [event["step"] for event in events_of(reward_context, "skipped")] == [3, 4, 5]
    assert [event["step"] for event in events_of(reward_context, "rolled back")] == [5]


def test_ppo_is_rolled_back_once(ppo_context, spoil) -> None:
    before = spoil(Role.CRITIC, {2, 3, 4})
    ppo.run(ppo_context)
    assert skips(ppo_context, "ppo") == [(step, 0) for step in range(1, 5)]
    assert same(before[0], before[2])
    state = json.loads((ppo_context.work("ppo") / "step-000004/state.json").read_text())
    assert state["recovery"] == {"in_a_row": 0, "rate": 0.5}


@pytest.mark.parametrize("times", [1, 2])
def test_ppo_is_rolled_back_once_if_the_policy_cannot_sample(ppo_context, monkeypatch, times) -> None:
    """In the third step; at half the learning rate it may be able to. The second time the error is raised."""
    collect, count = ppo.collect, []

    def broken(*args: Any) -> Rollout:
        count.append(1)
        if 3 <= len(count) < 3 + times:
            raise ModelNotFinite("sampling: logits of 1 of 8 answers are NaN or infinite")
        return collect(*args)

    monkeypatch.setattr(ppo, "collect", broken)
    if times == 2:
        with pytest.raises(ModelNotFinite, match="sampling"):
            ppo.run(ppo_context)
    else:
        ppo.run(ppo_context)
        state = json.loads((ppo_context.work("ppo") / "step-000004/state.json").read_text())
        assert state["recovery"] == {"in_a_row": 0, "rate": 0.5}
    assert [event["step"] for event in events_of(ppo_context, "rolled back")] == [3]


LEARNS = {"sft": Role.POLICY, "reward": Role.REWARD, "ppo": Role.CRITIC}


@pytest.mark.parametrize("stage", LEARNS)
def test_the_second_time_it_is_given_up_and_the_batch_kept(request, spoil, spoil_sft, stage) -> None:
    """Every step from the second on fails; resuming fails too, because the rate is not lowered again."""
    session, module = request.getfixturevalue(f"{stage}_context"), {"sft": sft, "reward": reward, "ppo": ppo}[stage]
    before = spoil_sft(range(2, 99)) if stage == "sft" else spoil(LEARNS[stage], range(2, 99))
    with pytest.raises(
        Diverged, match=rf"{stage}: step 4: .* is nan, .*also at half the learning rate.*{ADVICE}{stage}"
    ) as told:
        module.run(session)
    assert told.value.exit_code == 7
    assert unmoved(session.load_roles(), LEARNS[stage], before[-1])
    folder = session.run_dir.path / "not-finite" / stage
    assert str(folder) in str(told.value)
    texts, tensors = json.loads((folder / "texts.json").read_text())["rows"], read_tensors(folder / "batch.safetensors")
    assert len(texts) == len(tensors["ids"]) == {"sft": 4, "reward": 8, "ppo": 4}[stage]
    assert all("question" in row["prompt"] and row["response"] for row in texts)
    assert ("advantages" in tensors) is (stage == "ppo")
    count = len(before)
    with pytest.raises(Diverged):
        module.run(session)
    assert len(before) == count + 3


# --- A stop between them


def stop_once_after(session: Session, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Request a stop when that step is logged."""
    append, asked = session.metrics.append, list[int]()

    def append_and_stop(stage: str, step: int, **figures: float) -> None:
        append(stage, step, **figures)
        if step == last and not asked:
            asked.append(step)
            session.stop.requested = True

    monkeypatch.setattr(session.metrics, "append", append_and_stop)


@pytest.mark.parametrize("stage", LEARNS)
def test_a_stop_among_skipped_steps_makes_no_checkpoint_of_them(request, monkeypatch, spoil, spoil_sft, stage) -> None:
    """Steps 2 and 3 fail, and step 4 after resuming: back to after step 1, the last good weights."""
    session, module = request.getfixturevalue(f"{stage}_context"), {"sft": sft, "reward": reward, "ppo": ppo}[stage]
    before = spoil_sft(range(2, 7)) if stage == "sft" else spoil(LEARNS[stage], range(2, 7))
    stop_once_after(session, 3, monkeypatch)
    with pytest.raises(Stopped, match=f"{stage} keeps its last checkpoint, from before the skipped steps"):
        module.run(session)
    found = latest_checkpoint(session.work(stage))
    assert found
    assert found[0] == 1
    session.stop.requested = False
    module.run(session)
    assert [event["step"] for event in events_of(session, "skipped")] == [2, 3, 2, 3, 4]
    assert [event["step"] for event in events_of(session, "rolled back")] == [4]
    assert not any(skipped for _, skipped in skips(session, stage))
    seen = before[1:6] if stage == "sft" else before
    assert len(seen) == 5
    assert all(same(seen[0], weights) for weights in seen[1:])


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)
