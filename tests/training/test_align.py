"""DPO, RLOO and GRPO by TRL on the run's roles: only the policy moves, and its reference is SFT."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import done
from tiny import bfloat16_works, snapshot
from tiny_aligned import SETTINGS, Ready, with_sft
from torch import Tensor
from torch.nn.functional import logsigmoid

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import Diverged, StaleRun, Stopped
from lowrank_rlhf.maths.masking import masked_sum
from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import Scored, score_logprobs
from lowrank_rlhf.models.storage import read_tensors
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import align
from lowrank_rlhf.training import rloo_grpo
from lowrank_rlhf.training.dpo import DpoTask
from lowrank_rlhf.training.policy_roles import load_roles
from lowrank_rlhf.training.reward_data import read_groups
from lowrank_rlhf.training.rloo_grpo import OnlineTask

ALGORITHMS = tuple(SETTINGS)
KL_IS_0 = "KL(policy || SFT) is 0 at step 0"


@pytest.fixture(scope="session")
def ready(tiny_folder, tmp_path_factory) -> Ready:
    return Ready(tiny_folder(), tmp_path_factory.mktemp("ready"))


@pytest.fixture
def make(ready, tmp_path) -> Callable[..., Session]:
    return lambda algorithm, **changes: ready.session(tmp_path, algorithm, **changes)


def go(config: Config, runs: Path, **more: Any) -> RunDir:
    return pipeline.run(config, runs, progress=Progress.silent(), **more)


def dpo_task(session: Session) -> DpoTask:
    groups, _ = read_groups(session.load_roles().base, session.run_dir, session.config.model.max_length)
    return DpoTask(session.load_roles(), groups, session.config.align, session.config.seed)


def answer_sums(session: Session, role: Role, batch: Sequences) -> Tensor:
    """Log-probabilities of whole answers by this package, (B,)."""
    found = score_logprobs(session.load_roles(), role, batch, session.config.sample.temperature).logprobs
    return masked_sum(found, batch.response)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_with_it_is_whole(ready, tmp_path, algorithm) -> None:
    runs, config = ready.runs(tmp_path), ready.config(algorithm)
    run_dir = go(config, runs)
    mark = done(run_dir, "ppo")
    assert mark
    claims = {claim["claim"]: claim for claim in mark["summary"]["claims"]}
    assert all(claim["holds"] for claim in claims.values()), claims
    assert len(claims) == 4
    assert claims[KL_IS_0]["figure"] < 1e-6
    assert claims[f"{algorithm.upper()} moved no weight of the roles that it does not train"]["figure"] == (
        "REFERENCE, REWARD"
    )
    assert sorted(path.name for path in (run_dir.path / "adapters").iterdir()) == [
        "policy",
        "policy-last",
        "reward",
        "sft",
    ]
    sft, policy = (read_tensors(run_dir.artifact(f"adapters/{name}") / "adapter_model.safetensors") for name in
                   ("sft", "policy-last"))  # fmt: skip
    assert {tensor.dtype for tensor in policy.values()} == {torch.float32}  # TRL would have made them bfloat16
    assert all(not sft[name].equal(policy[name]) for name in sft if "lora_B" in name)
    rows = list(run_dir.metrics.read("ppo"))
    evaluated = [row["step"] for row in rows if "eval/kl" in row]
    steps = mark["summary"]["steps"]
    assert evaluated == [step for step in range(steps + 1) if step % 2 == 0 or step == steps]
    assert [row["step"] for row in rows if "policy/loss" in row] == list(range(1, steps + 1))
    assert algorithm.upper() in (run_dir.path / "report.md").read_text(encoding="utf-8")
    assert all(standing.state == "done" for standing in pipeline.plan(config, run_dir))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_the_policy_moves_and_the_reference_is_sft(make, algorithm) -> None:
    session = make(algorithm)
    base = session.load_roles().base.checksum()
    align.run(session)
    assert session.load_roles().base.checksum() == base
    path = session.run_dir.artifact("adapters/sft/adapter_model.safetensors")
    sft = read_tensors(path)
    reference = snapshot(session.load_roles(), Role.REFERENCE)
    assert reference.keys() == sft.keys()
    assert all(reference[name].equal(sft[name]) for name in sft)
    reward = read_tensors(session.run_dir.artifact("adapters/reward/adapter_model.safetensors"))
    assert all(tensor.equal(reward[name]) for name, tensor in snapshot(session.load_roles(), Role.REWARD).items())
    assert not any(parameter.requires_grad for parameter in session.load_roles().peft.parameters())
    assert "forward" not in vars(session.load_roles().base.model)
    assert not {"set_adapter", "add_adapter", "generate"} & set(vars(session.load_roles().peft))


def test_the_loss_of_dpo_is_the_formula_s_against_sft(make, monkeypatch) -> None:
    """-log sigmoid(beta ((log p/p_sft)(better) - (log p/p_sft)(worse))), from this package's own log-probabilities."""
    session = make("dpo", align__beta=0.3)
    begin, expected = DpoTask.begin, {}

    def look(task: DpoTask, step: int) -> None:
        begin(task, step)
        batch = task.batch()
        expected[step] = batch, snapshot(session.load_roles(), Role.POLICY)

    monkeypatch.setattr(DpoTask, "begin", look)
    align.run(session)
    losses = {row["step"]: row["policy/loss"] for row in session.metrics.read("ppo") if "policy/loss" in row}
    assert losses[1] == pytest.approx(math.log(2), abs=1e-6)
    found = []
    for batch, weights in expected.values():
        with torch.no_grad():
            for name, parameter in session.load_roles().named_parameters(Role.POLICY).items():
                parameter.copy_(weights[name])
        policy, reference = (answer_sums(session, role, batch) for role in (Role.POLICY, Role.REFERENCE))
        better, worse = (policy - reference).chunk(2)
        found.append(float(-logsigmoid(0.3 * (better - worse)).mean()))
    assert list(losses.values()) == pytest.approx(found, abs=2e-5)
    assert max(abs(loss - math.log(2)) for loss in found) > 0.05  # the reference is no copy of the moving policy


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_the_kl_is_that_of_the_answers_against_sft(make, monkeypatch, algorithm) -> None:
    session = make(algorithm, model__micro_batch_tokens=1000, sample__temperature=0.7)
    rewards, expected = OnlineTask._rewards, []

    def look(task: OnlineTask, *rest: Any) -> list[float]:
        batch = task.batch()
        temperature = session.config.sample.temperature
        policy, reference = (
            score_logprobs(session.load_roles(), role, batch, temperature).logprobs
            for role in (Role.POLICY, Role.REFERENCE)
        )
        apart = policy - reference
        kl = apart if algorithm == "rloo" else (-apart).exp() + apart - 1
        expected.append(float(masked_sum(kl, batch.response).mean()))
        return rewards(task, *rest)

    monkeypatch.setattr(OnlineTask, "_rewards", look)
    align.run(session)
    found = [row["objective/kl"] for row in session.metrics.read("ppo") if "objective/kl" in row]
    assert found == pytest.approx(expected, abs=2e-5)
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert max(map(abs, found)) > 0.01


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_where_evaluations_part_the_training_it_stays_the_same(ready, tmp_path, algorithm) -> None:
    """Adam's moments and the learning rate carry over from one trainer to the next."""
    weights = []
    for every in (2, 100):
        session = ready.session(tmp_path / str(every), algorithm, ppo__evaluate_every=every)
        align.run(session)
        weights.append(snapshot(session.load_roles(), Role.POLICY))
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_the_scores_are_ppo_s_own(make, monkeypatch) -> None:
    """Normalised, clipped, and replaced where an answer does not end."""
    session = make("rloo", ppo__missing_eos="replace", ppo__missing_eos_score=-3.0, ppo__score_clip=0.4)
    seen: list[list[float]] = []
    rewards = OnlineTask._rewards

    def look(task: OnlineTask, answers: list[list[int]], *rest: Any) -> list[float]:
        ended = [*answers[0][:-1], session.load_roles().base.eos]  # of a random model no answer ends
        seen.append(rewards(task, [ended, *answers[1:]], *rest))
        return seen[-1]

    monkeypatch.setattr(OnlineTask, "_rewards", look)
    align.run(session)
    values = [value for step in seen for value in step]
    assert len(values) == 5 * 6
    assert [value != -3.0 for value in values] == [True, *[False] * 5] * 5
    assert all(value == -3.0 or abs(value) <= 0.4001 for value in values)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_trl_reads_the_prompts_as_we_do(make, monkeypatch, algorithm) -> None:
    session = make(algorithm)
    generate, sample, seen, sampled = OnlineTask.generate, rloo_grpo.sample_answers, [], []
    monkeypatch.setattr(OnlineTask, "generate", lambda task, prompts: seen.append(prompts) or generate(task, prompts))

    def look(roles: Any, role: Role, prompts: list[list[int]], *rest: Any, **more: Any) -> Any:
        if more:  # not an evaluation's
            sampled.extend(prompts)
        return sample(roles, role, prompts, *rest, **more)

    monkeypatch.setattr(rloo_grpo, "sample_answers", look)
    align.run(session)
    task = OnlineTask(
        session.load_roles(),
        session.prompts[0],
        session.config,
        load_roles(session.load_roles(), session.run_dir, session.config),
    )
    rows = [row["tokens"] for row in task.rows for _ in range(3)]
    assert [prompt for step in seen for prompt in step] == rows
    assert len(rows) == 5 * 6
    assert sampled == rows[::3]  # each prompt of a step once, for its three answers


def test_dpo_learns_from_every_ordered_pair_and_no_tie(make) -> None:
    session = make("dpo")
    task = dpo_task(session)
    pairs = [json.loads(line) for line in session.run_dir.artifact("comparisons.jsonl").read_text().splitlines()]
    ranked = [json.loads(line) for line in session.run_dir.artifact("rankings.jsonl").read_text().splitlines()]
    tiers = [[len(tier) for tier in row["tiers"]] for row in ranked]
    ordered = sum(first * second for sizes in tiers for i, first in enumerate(sizes) for second in sizes[i + 1 :])
    assert len(pairs) == ordered
    assert task.steps == math.ceil(2 * ordered / 6)
    answers = {row["id"]: row for row in map(json.loads, session.run_dir.artifact("answers.jsonl").open())}
    expected = {
        (tuple(answers[pair["chosen"]]["tokens"]), tuple(answers[pair["rejected"]]["tokens"])) for pair in pairs
    }
    found = {(tuple(better), tuple(worse)) for _, better, worse in task.pairs}
    assert found == expected
    rows = task.batch()  # TRL's loss prefers the first half to the second
    assert rows.ids.shape[0] == 2 * 6
    for row, (prompt, *_) in enumerate(task.pairs[:6] * 2):
        assert rows.ids[row][rows.response[row]].tolist() == task.pairs[row % 6][1 + row // 6]
        assert rows.ids[row].tolist()[: len(prompt)] == prompt


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_score_that_is_nan_skips_the_step(make, monkeypatch, algorithm) -> None:
    """TRL alone would drop the answer silently."""
    session, scores, weights = make(algorithm), rloo_grpo.score_responses, []

    def spoilt(*args: Any) -> Scored:
        weights.append(snapshot(session.load_roles(), Role.POLICY))
        found = scores(*args)
        third = torch.arange(len(found.total)) == 2
        return found._replace(total=found.total.where(~third, math.nan)) if len(weights) == 2 else found

    monkeypatch.setattr(rloo_grpo, "score_responses", spoilt)
    align.run(session)
    skipped = {row["step"]: row["skipped"] for row in session.metrics.read("ppo") if "skipped" in row}
    assert skipped == {1: 0.0, 2: 1.0, 3: 0.0, 4: 0.0, 5: 0.0}
    same = [all(old[name].equal(new[name]) for name in old) for old, new in pairwise(weights)]
    assert same == [False, True, False, False]
    assert "the reward model's scores are not all finite" in (session.run_dir.path / "events.jsonl").read_text()


def test_a_stop_among_skipped_steps_makes_no_checkpoint_of_them(make, monkeypatch) -> None:
    """Step 3 is skipped, and a stop comes in step 4; after resuming 3 to 5 are skipped: back to the checkpoint at 2."""
    session, scores, weights = make("rloo"), rloo_grpo.score_responses, []

    def spoilt(*args: Any) -> Scored:
        weights.append(snapshot(session.load_roles(), Role.POLICY))
        session.stop.requested = len(weights) == 4
        found = scores(*args)
        return found._replace(total=found.total * math.nan) if 3 <= len(weights) <= 7 else found

    monkeypatch.setattr(rloo_grpo, "score_responses", spoilt)
    with pytest.raises(Stopped, match="ppo keeps its last checkpoint, from before the skipped steps"):
        align.run(session)
    session.stop.requested = False
    align.run(session)
    assert not any(row.get("skipped") for row in session.metrics.read("ppo"))
    events = [json.loads(line) for line in (session.run_dir.path / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "rolled back"] == [5]
    assert all(weights[2][name].equal(later[name]) for later in weights[3:8] for name in later)


def test_scores_that_stay_nan_end_the_stage(make, monkeypatch) -> None:
    """Three in a row roll back, three more end the stage, and the batch is saved."""
    session = make("grpo")

    def spoilt(scored: Scored) -> Scored:
        return scored._replace(total=scored.total * math.nan)

    scores = rloo_grpo.score_responses
    monkeypatch.setattr(rloo_grpo, "score_responses", lambda *args: spoilt(scores(*args)))
    with pytest.raises(Diverged, match=r"also at half the learning rate.*Lower align\.learning_rate, or"):
        align.run(session)
    assert (session.run_dir.path / "not-finite" / "ppo" / "batch.safetensors").is_file()
    sft = read_tensors(session.run_dir.artifact("adapters/sft/adapter_model.safetensors"))
    assert all(sft[name].equal(weight) for name, weight in snapshot(session.load_roles(), Role.POLICY).items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_in_bfloat16_its_claims_hold_too(make, algorithm) -> None:
    """GRPO's first figure compares forwards of different micro-batches: only up to rounding."""
    if not bfloat16_works():
        pytest.skip("this machine's CPU announces bfloat16 and dies of it")
    session = make(algorithm, model__compute_dtype="bfloat16")
    claims = align.run(session).claims
    assert [claim.holds for claim in claims] == [True] * 4
    assert {weight.dtype for weight in session.load_roles().parameters(Role.POLICY)} == {torch.float32}


def test_another_algorithm_is_another_stage(ready, tmp_path) -> None:
    """A run of PPO is refused for DPO, naming the setting that differs; when redone, PPO's critic is deleted."""
    runs = ready.runs(tmp_path)
    run_dir = go(ready.config("ppo", ppo__steps=1), runs)
    assert run_dir.artifact("adapters/critic").is_dir()
    mark = json.loads((run_dir.path / "done" / "ppo.json").read_text())
    settings = mark["fingerprint"]["settings"]
    mark["fingerprint"]["settings"] = {key: settings[key] for key in settings if not key.startswith("align.")}
    (run_dir.path / "done" / "ppo.json").write_text(json.dumps(mark))  # as a version without the section wrote it
    assert done(go(ready.config("ppo", ppo__steps=1), runs), "ppo") == mark
    with pytest.raises(StaleRun, match=r'align\.algorithm: .* -> "dpo"'):
        go(ready.config("dpo", ppo__steps=1), runs)
    go(ready.config("dpo", ppo__steps=1), runs, redo=["ppo"])
    assert not run_dir.artifact("adapters/critic").exists()
    with pytest.raises(StaleRun, match=r'align\.algorithm: "dpo" -> "ppo"'):
        go(ready.config("ppo", ppo__steps=1), runs)


def test_it_is_named_where_the_stage_is_told(ready, tmp_path) -> None:
    for algorithm in ("ppo", *SETTINGS):
        standing = pipeline.plan(ready.config(algorithm), RunDir(tmp_path))[4]
        assert standing.stage.name == "ppo"
        assert standing.stage.does == f"train the policy with {algorithm.upper()}"


def test_the_reference_is_not_the_bare_base(make) -> None:
    """The project's first law: the KL's reference contains SFT."""
    session = with_sft(make("dpo"))
    batch = dpo_task(session).batch()
    reference = answer_sums(session, Role.REFERENCE, batch)
    session.load_roles().reset(Role.POLICY, torch.Generator().manual_seed(0))  # a fresh adapter changes nothing
    assert float((answer_sums(session, Role.POLICY, batch) - reference).abs().max()) > 0.1
