"""The ppo stage's own guards: it stops where policy and SFT, or old and new, differ; and it keeps the best policy."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import randomise, snapshot
from tiny_finished import finished_run
from tiny_run import make_config, make_session
from torch import Tensor

from lowrank_rlhf.errors import StageFailed, Stopped
from lowrank_rlhf.evaluation import policy_evaluation
from lowrank_rlhf.evaluation.policy_evaluation import PolicyAnswers, PolicyEvaluation, judge_names, open_followed_judges
from lowrank_rlhf.maths.policy_choice import Evaluated
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import read_tensors, save_role
from lowrank_rlhf.run.checkpoints import checkpoints, save_checkpoint
from lowrank_rlhf.run.files import write_json_atomic
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import ppo
from lowrank_rlhf.training.nan_recovery import NanRecovery
from lowrank_rlhf.training.policy_checkpoints import PolicyCheckpoints, PolicyState
from lowrank_rlhf.training.policy_roles import choose_policy
from lowrank_rlhf.training.ppo_update import Optimizers
from lowrank_rlhf.training.rollout import Rollout

KL_IS_0 = "KL(policy || SFT) is 0 at step 0"
RATIO_IS_1 = "the first minibatch's probability ratio is 1"


@pytest.fixture
def make(tiny_folder, tmp_path) -> Callable[..., Session]:
    """A session in which ppo can begin, with changes to its settings."""
    return lambda **changes: finished_run(tiny_folder(), tmp_path, adapters=("sft", "reward"), **changes)


def change_rollouts(monkeypatch: pytest.MonkeyPatch, change: Callable[[Rollout], Rollout]) -> None:
    collect = ppo.collect
    monkeypatch.setattr(ppo, "collect", lambda *args: change(collect(*args)))


def refused(session: Session, claim: str) -> str:
    """The message of the refusal; nothing has been learnt and nothing is kept."""
    with pytest.raises(StageFailed) as caught:
        ppo.run(session)
    assert str(caught.value).startswith(f"ppo: self-check failed: {claim}; it is off by ")
    assert "env.json" in str(caught.value)
    assert not [row for row in session.metrics.read("ppo") if row["step"]]
    assert not (session.work("ppo") / "best").exists()
    return str(caught.value)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_reference_that_is_not_sft_stops_it(make, monkeypatch, quantization) -> None:
    """One number of the reference's adapter is another than SFT's."""
    copy = Roles.copy

    def careless(roles: Roles, source: Role, target: Role) -> None:
        copy(roles, source, target)
        if target is Role.REFERENCE:
            with torch.no_grad():
                roles.parameters(target)[-1][0, 0] += 1.0

    session = make(quantization=quantization)
    monkeypatch.setattr(Roles, "copy", careless)
    refused(session, KL_IS_0)


def test_differences_that_cancel_within_an_answer_are_seen(make, monkeypatch) -> None:
    """A token likelier by a tenth of a nat and the next as much less likely: the answer's own KL is 0."""

    def shift(rollout: Rollout) -> Rollout:
        reference = rollout.ref_logprobs.clone()
        row = int(rollout.batch.response.sum(-1).argmax())
        first, second = rollout.batch.response[row].nonzero().squeeze(-1)[:2].tolist()
        reference[row, first] += 0.1
        reference[row, second] -= 0.1
        return replace(rollout, ref_logprobs=reference)

    change_rollouts(monkeypatch, shift)
    assert "it is off by 0.1. " in refused(make(), KL_IS_0)


def test_old_log_probabilities_of_another_model_stop_it(make, monkeypatch) -> None:
    """As from generation in another number format: a hundredth of a nat too low at one token."""

    def shift(rollout: Rollout) -> Rollout:
        old = rollout.logprobs.clone()
        old[tuple(rollout.batch.response.nonzero()[0])] -= 0.01
        return replace(rollout, logprobs=old, ref_logprobs=old)

    change_rollouts(monkeypatch, shift)
    assert "it is off by 0.0101. " in refused(make(), RATIO_IS_1)  # exp(0.01) - 1


def test_the_ratio_is_looked_at_when_the_policy_first_learns(make, monkeypatch) -> None:
    """After two steps of warm-up for the critic; the reference is another model by then, and that is no fault."""
    steps: list[int] = []

    def shift(rollout: Rollout) -> Rollout:
        steps.append(1)
        lower = 0.01 * rollout.batch.response if len(steps) > 2 else 0.0
        return replace(rollout, logprobs=rollout.logprobs - lower)

    change_rollouts(monkeypatch, shift)
    session = make(ppo__critic_warmup_steps=2)
    with pytest.raises(StageFailed, match=r"probability ratio is 1; it is off by 0\.01"):
        ppo.run(session)
    assert [row["step"] for row in session.metrics.read("ppo") if row["step"] and "eval/kl" not in row] == [1, 2]


@pytest.mark.parametrize(
    ("source", "second", "expected"),
    [
        ("judge", "sentiment", [("judge", "simulated-annotator"), ("second_judge", "sentiment")]),
        ("judge", "simulated-annotator", [("judge", "simulated-annotator")]),  # one judge, asked once
        ("judge", None, [("judge", "simulated-annotator")]),
        ("judge", "endpoint", [("judge", "simulated-annotator")]),  # an endpoint costs requests
        ("human", "sentiment", [("second_judge", "sentiment")]),
        ("human", None, []),
        ("human", "endpoint", []),
    ],
)
def test_the_judges_that_ppo_is_followed_with(tmp_path, source, second, expected) -> None:
    endpoint = {"url": "http://localhost:9", "model": "judge-1"} if second == "endpoint" else None
    config = make_config(tmp_path, rank__source=source, rank__endpoint=endpoint, evaluate__second_judge=second)
    session = make_session(config, tmp_path)
    judges = open_followed_judges(config, session.run_dir.path, session.progress, session.stop)
    assert [(followed.role, followed.judge.name) for followed in judges] == expected
    assert judge_names(judges) == (*(name for _, name in expected), None, None)[:2]


def test_both_claims_hold_in_an_honest_run(make) -> None:
    session = make(ppo__steps=1)
    randomise(session.load_roles(), Role.REFERENCE, 9)  # other weights than SFT's, as a stage before could leave them
    claims = {claim.claim: claim for claim in ppo.run(session).claims}
    for text in (KL_IS_0, RATIO_IS_1):
        assert (claims[text].figure, claims[text].holds) == (0, True)


def test_a_weight_of_another_role_that_moves_is_told(make, monkeypatch) -> None:
    update = ppo.update

    def careless(roles: Roles, *args: Any) -> dict[str, float]:
        with torch.no_grad():
            roles.parameters(Role.REWARD)[0][0, 0] += 1e-6
        return update(roles, *args)

    monkeypatch.setattr(ppo, "update", careless)
    claim = ppo.run(make(ppo__steps=1)).claims[-1]
    assert (claim.holds, claim.figure) == (False, "REWARD")


# --- What is kept: answers to watch, and the best policy


def test_answers_at_each_evaluation_are_kept(make, monkeypatch) -> None:
    """Three prompts before the first step and after the second and the last; before it they are SFT's."""
    given, answer = [], PolicyEvaluation.answer
    monkeypatch.setattr(PolicyEvaluation, "answer", lambda self: given.append(answer(self)) or given[-1])
    monkeypatch.setattr(policy_evaluation, "WATCHED_PROMPTS", 2)
    session = make(ppo__steps=3, ppo__learning_rate=0.1)
    ppo.run(session)
    rows = list(session.run_dir.watched.read("ppo"))
    held_out = session.prompts.validation
    assert len(held_out) > 2
    assert [(row["step"], row["prompt_id"]) for row in rows] == [(n, p.id) for n in (0, 2, 3) for p in held_out[:2]]
    assert [row["prompt"] for row in rows[:2]] == [prompt.text for prompt in held_out[:2]]
    assert [row["answer"] for row in rows] == [sample.text for answers in given for sample in answers.samples[:2]]
    assert [row["kl"] for row in rows[:2]] == [0, 0]
    assert [row["score"] for row in rows] == [score for answers in given for score in answers.scored.total.tolist()[:2]]
    for role in ("judge", "second_judge"):
        assert [row[role] for row in rows] == [score for answers in given for score in answers.judged[role][:2]]
    metrics = {row["step"]: row for row in session.run_dir.metrics.read("ppo") if "eval/kl" in row}
    sft = given[0].judged  # before the first step the policy is SFT
    for answers, row in zip(given, metrics.values(), strict=True):
        for role, key in (("judge", "win_rate"), ("second_judge", "second_win_rate")):
            scores = answers.judged[role]
            assert row[f"eval/{role}"] == pytest.approx(sum(scores) / 3)
            pairs = list(zip(scores, sft[role], strict=True))
            assert row[f"eval/{key}"] == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / 3)
    assert metrics[0]["eval/win_rate"] == metrics[0]["eval/second_win_rate"] == 0.5
    assert any(row["eval/second_judge"] != row["eval/judge"] for row in metrics.values())
    assert any(row["kl"] for row in rows[2:])


def test_rollout_answers_are_kept_at_the_first_step_and_at_evaluations(make, monkeypatch) -> None:
    """Four of five steps: 1, 2, 4, and the last; as the update saw them, in the order of the rollout's prompts."""
    seen: list[Rollout] = []
    change_rollouts(monkeypatch, lambda rollout: seen.append(rollout) or rollout)
    session = make(ppo__steps=5, ppo__batch_size=5, ppo__learning_rate=0.1)
    ppo.run(session)
    rows = list(session.run_dir.rollouts.read("ppo"))
    assert [row["step"] for row in rows] == [step for step in (1, 2, 4, 5) for _ in range(4)]
    asked = {prompt.id: prompt.text for prompt in session.prompts.training}
    for at, row in enumerate(rows):
        rollout, i = seen[row["step"] - 1], at % 4
        assert row["prompt"] == asked[row["prompt_id"]]
        assert session.load_roles().base.encode_prompt(session_prompt(session, row)) == prompt_ids(rollout, i)
        response = rollout.batch.response[i]
        assert row["advantages"] == pytest.approx(rollout.advantages[i, response].tolist(), rel=1e-5)
        assert row["logprobs"] == pytest.approx(rollout.logprobs[i, response].tolist(), rel=1e-5)
        assert session.load_roles().base.decode(rollout.responses[i].tokens) in "".join(row["pieces"])
    assert all(row["logprobs"] == row["ref_logprobs"] for row in rows[:4])  # the policy is SFT's copy
    assert all(row["logprobs"] != row["ref_logprobs"] for row in rows[4:])


def session_prompt(session: Session, row: dict[str, Any]) -> Prompt:
    return next(prompt for prompt in session.prompts.training if prompt.id == row["prompt_id"])


def prompt_ids(rollout: Rollout, row: int) -> list[int]:
    batch = rollout.batch
    return batch.ids[row][batch.attention[row].bool() & ~batch.response[row]].tolist()


Values = float | list[float]
"""Objective of each of eight answers, or of all."""


def script(
    monkeypatch: pytest.MonkeyPatch, objectives: dict[int, Values], ended: dict[int, list[bool]] | None = None
) -> dict[int, dict[str, Tensor]]:
    """Script the evaluations, in order of steps; the dictionary contains the policy's weights at each of them.

    `ended` says which answers end by themselves where not all do.
    """
    seen: dict[int, dict[str, Tensor]] = {}

    answer = PolicyEvaluation.answer

    def look(evaluation: PolicyEvaluation) -> PolicyAnswers:
        answers = answer(evaluation)  # one that a stop breaks off does not count
        seen[sorted(objectives)[len(seen)]] = snapshot(evaluation.roles, Role.POLICY)
        return answers

    def of_answers(*_: Any) -> Tensor:
        found = objectives[list(seen)[-1]]
        return torch.tensor(found if isinstance(found, list) else [found] * 8, dtype=torch.float64)

    def figures(*_: Any) -> dict[str, float]:
        mean = float(of_answers().mean())
        return {"score": -mean, "kl": 0.0, "objective": mean, "judge": -mean, "eos_rate": 1.0}

    monkeypatch.setattr(PolicyEvaluation, "answer", look)
    monkeypatch.setattr(PolicyEvaluation, "objectives", of_answers)
    monkeypatch.setattr(PolicyEvaluation, "figures", figures)
    monkeypatch.setattr(PolicyAnswers, "ended", property(lambda _: (ended or {}).get(list(seen)[-1], [True] * 8)))
    return seen


def weights(session: Session, name: str) -> dict[str, Tensor]:
    return read_tensors(session.work("ppo") / "adapters" / name / "adapter_model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name].cpu(), other[name].cpu()) for name in one)


UNSURE: list[float] = [-1.0, 1.0] * 4
"""A mean of 0 with a standard error of 0.38."""
HALF_END = [True, False] * 4


@pytest.mark.parametrize(
    ("objectives", "kept"),
    [
        ({0: 9.0, 1: 0.1, 2: 0.5, 3: 0.3, 4: 0.4}, 2),  # the difference is the same on all prompts
        ({0: 9.0, 1: -0.1, 2: -0.5, 3: -0.3, 4: -0.4}, 1),  # the first is the best, though below 0 and below SFT
        ({0: -9.0, 1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}, 4),
        ({0: 0.0, 2: 0.7, 4: 0.7}, 4),  # of two equal ones the last
        ({0: 0.0, 2: [0.3 + noise for noise in UNSURE], 4: 0.0}, 4),  # less than one standard error better
        ({0: 0.0, 2: [0.5 + noise for noise in UNSURE], 4: 0.0}, 2),
    ],
)
def test_the_last_policy_is_kept_unless_an_earlier_one_is_better(make, monkeypatch, objectives, kept) -> None:
    """Compare objectives, and neither score nor judge; SFT itself, step 0, is no candidate."""
    session = make(ppo__evaluate_every=max(1, 4 // (len(objectives) - 1)))
    seen = script(monkeypatch, objectives)
    summary = ppo.run(session)
    assert summary.best_step == kept
    assert same(weights(session, "policy"), seen[kept])
    assert same(weights(session, "policy-last"), seen[4])
    folders = checkpoints(session.work("ppo") / "adapters" / "policy-last")
    assert [step for step, _ in folders] == sorted(seen.keys() - {0, 4})
    assert all(same(weights(session, f"policy-last/{folder.name}"), seen[step]) for step, folder in folders)
    assert not checkpoints(session.work("ppo") / "adapters" / "policy")
    assert not any(same(seen[kept], seen[step]) for step in seen if step != kept)


@pytest.mark.parametrize(
    ("ended", "kept"),
    [
        ({4: HALF_END}, 2),
        ({4: [False] + [True] * 7}, 4),  # one of eight may be chance
        ({2: HALF_END, 4: HALF_END}, 1),
        ({0: HALF_END, 2: HALF_END, 4: HALF_END}, 4),  # no fewer than SFT's
        ({1: HALF_END, 2: HALF_END, 3: HALF_END, 4: HALF_END}, 4),  # all end fewer: the objective decides
    ],
)
def test_a_policy_whose_answers_do_not_end_is_kept_only_if_all_are_like_that(make, monkeypatch, ended, kept) -> None:
    seen = script(monkeypatch, {0: 0.0, 1: 0.2, 2: 0.5, 3: 0.1, 4: 0.6}, ended)
    session = make(ppo__evaluate_every=1)
    assert ppo.run(session).best_step == kept
    assert same(weights(session, "policy"), seen[kept])


def test_while_the_critic_warms_up_the_policy_is_sft_and_no_candidate(make, monkeypatch) -> None:
    session = make(ppo__evaluate_every=1, ppo__critic_warmup_steps=2)
    seen = script(monkeypatch, {0: 9.0, 1: 0.9, 2: 0.8, 3: 0.2, 4: 0.1})
    assert ppo.run(session).best_step == 3
    assert same(seen[0], seen[2])
    assert same(weights(session, "policy"), seen[3])


@pytest.mark.parametrize("algorithm", ["dpo", "rloo", "grpo"])
def test_only_ppo_has_a_critic_to_warm_up(make, algorithm) -> None:
    session, state = make(align__algorithm=algorithm, ppo__critic_warmup_steps=2), PolicyState(step=1, sft_ended=[True])
    choose_policy(session.load_roles(), session.run_dir, state, [0.5], [True], [True], session.config)
    assert (state.kept_step, state.best) == (1, Evaluated(1, [0.5], [True]))


def test_a_checkpoint_of_another_version_is_refused_by_its_missing_pieces(make) -> None:
    """As one from before `best` and `sft_ended` were kept; a piece that is unknown here does no harm."""
    session = make(ppo__steps=1)
    ppo.run(session)
    state = {"schema": 1, **asdict(PolicyState(step=1)), "unknown": 2}
    for missing in ([], ["sft_ended", "best"]):

        def write(folder: Path, missing: list[str] = missing) -> None:
            save_role(session.load_roles(), Role.POLICY, folder / "policy")
            save_role(session.load_roles(), Role.CRITIC, folder / "critic")
            for role in ("policy", "critic"):
                save_file({}, folder / f"{role}-optimizer.safetensors")
            write_json_atomic(folder / "state.json", {key: state[key] for key in state.keys() - missing})

        save_checkpoint(session.work("ppo"), 1, write)
        if not missing:
            optimizers = Optimizers.create(session.load_roles(), session.config.ppo)
            folder = session.work("ppo")
            checkpoints = PolicyCheckpoints(folder, session.load_roles(), optimizers.of_roles, (), kl_coef=0.05)
            assert checkpoints.resume()[0] == PolicyState(step=1)
    rows = list(session.metrics.read("ppo"))
    with pytest.raises(StageFailed) as caught:
        ppo.run(session)
    path = session.work("ppo") / "step-000001" / "state.json"
    assert str(caught.value).startswith(f"ppo: {path}: sft_ended, best not found: ")
    assert str(caught.value).endswith(": --redo ppo")
    assert list(session.metrics.read("ppo")) == rows  # nothing was forgotten


def test_a_checkpoint_of_version_0_1_has_the_mean_of_its_best_policy(make) -> None:
    session = make()
    roles, folder = session.load_roles(), session.work("ppo")
    for role in (Role.POLICY, Role.CRITIC):
        randomise(roles, role, 0)
    optimizers = Optimizers.create(roles, session.config.ppo)
    recovery = {"in_a_row": 0, "rate": 0.5}
    old = {"step": 3, "kl_coef": 0.1, "sft_eos_rate": 0.9, "best_step": 2, "best_objective": 0.25, "claims": []}

    def write(to: Path) -> None:
        for role in (Role.POLICY, Role.CRITIC):
            save_role(roles, role, to / role.name.lower())
            save_file({}, to / f"{role.name.lower()}-optimizer.safetensors")
        save_role(roles, Role.POLICY, to / "best")
        write_json_atomic(to / "state.json", {"schema": 1, **old, "breakdowns": recovery})

    save_checkpoint(folder, 3, write)
    state, _ = PolicyCheckpoints(folder, roles, optimizers.of_roles, (), kl_coef=0.05).resume()
    best, known = Evaluated(2, [0.25], []), NanRecovery(**recovery)
    assert state == PolicyState(step=3, kl_coef=0.1, sft_ended=[], best=best, kept_step=2, recovery=known)
    assert (folder / "best" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("second", "kept"), [(0.5, 2), ([0.5 + 2 * noise for noise in UNSURE], 4)])
def test_the_best_so_far_survives_a_stop(make, monkeypatch, second, kept) -> None:
    """With its objective on each prompt: 0.1 more than the last is a gain in one case, and noise in the other."""
    session = make(ppo__evaluate_every=1)
    seen = script(monkeypatch, {0: 0.0, 1: 0.1, 2: second, 3: 0.3, 4: 0.4})
    append, steps = session.metrics.append, []

    def append_and_stop(stage: str, step: int, **figures: float) -> None:
        append(stage, step, **figures)
        steps.append(step)
        session.stop.requested = step == 3 and steps.count(3) == 1

    monkeypatch.setattr(session.metrics, "append", append_and_stop)
    with pytest.raises(Stopped):
        ppo.run(session)
    saved = json.loads((session.work("ppo") / "step-000002" / "state.json").read_text())  # stopped as 3 was evaluated
    objectives = second if isinstance(second, list) else [second] * 8
    assert saved["best"] == {"step": 2, "objectives": objectives, "ended": [True] * 8}
    assert (saved["kept_step"], saved["sft_ended"]) == (2, [True] * 8)
    session.stop.requested = False
    assert ppo.run(session).best_step == kept
    assert same(weights(session, "policy"), seen[kept])
