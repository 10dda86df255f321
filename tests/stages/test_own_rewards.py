"""`ppo.rewards` in PPO, RLOO and GRPO: beside the reward model, and instead of it."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import serving, texts
from marks import done
from tiny import snapshot
from tiny_finished import finished_run
from tiny_run import make_config, write_prompts

from lowrank_rlhf.errors import RewardFailed
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import read_tensors
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.preflight import problems
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import align, ppo
from lowrank_rlhf.training.rollout import Rollout, reward_scores

SOURCE = """
calls = []
fail_at = None

def letters(prompts, answers):
    calls.append((prompts, answers))
    if len(calls) == fail_at:
        raise ValueError("the tenth one")
    return [len(answer) / 10 for answer in answers]
"""
RULE = {"source": "length", "maximum": 3}
MODEL = {"source": "model", "weight": 0.5}
ALGORITHMS = {
    "ppo": {},
    "rloo": {"align__steps": 4, "align__answers_per_prompt": 3, "align__batch_size": 6, "align__learning_rate": 1e-2},
    "grpo": {"align__steps": 4, "align__answers_per_prompt": 3, "align__batch_size": 6, "align__learning_rate": 1e-2},
}


@pytest.fixture
def own(tmp_path, monkeypatch, request) -> Any:
    """The user's module, in the current folder; its name is this test's own."""
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return __import__(name)


@pytest.fixture
def make(tiny_folder, tmp_path) -> Callable[..., Session]:
    return lambda **changes: finished_run(
        tiny_folder(), tmp_path, adapters=("sft", "reward"), quantization="none", **changes
    )


def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    seen: list[Rollout] = []
    collect = ppo.collect

    def watch(*args: Any) -> Rollout:
        seen.append(collect(*args))
        return seen[-1]

    monkeypatch.setattr(ppo, "collect", watch)
    return seen


def test_the_reward_model_in_the_list_is_the_reward_model_alone(make) -> None:
    """Bit for bit, and but for its own curve in every figure."""
    weights, rows = [], []
    for rewards in ({}, {"judged": {"source": "model"}}):
        session = make(ppo__rewards=rewards)
        ppo.run(session)
        weights.append(snapshot(session.load_roles(), Role.POLICY))
        rows.append(
            [
                {key: value for key, value in row.items() if not key.startswith(("time", "tokens_per", "ts"))}
                for row in session.metrics.read("ppo")
            ]
        )
        session.metrics.truncate("ppo", -1)
        shutil.rmtree(session.work("ppo"))
    assert weights[0].keys() == weights[1].keys()
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
    for plain, listed in zip(*rows, strict=True):
        own = {key: value for key, value in listed.items() if "reward/judged" in key}
        assert set(own.values()) == {plain.get("objective/scores", plain.get("eval/score"))}
        assert {key: value for key, value in listed.items() if key not in own} == plain


def test_the_score_is_the_weighted_sum(make, monkeypatch, own) -> None:
    """0.5 x model + 2 x clip(rule - mean over SFT's answers) - function, by hand from the answers' texts."""
    seen = rollouts(monkeypatch)
    rewards = {
        "judged": MODEL,
        "short": {**RULE, "weight": 2, "normalize": True, "clip": 0.8},
        "letters": {"source": f"{own.__name__}:letters", "weight": -1},
    }
    session = make(ppo__rewards=rewards, ppo__steps=1)
    result = ppo.run(session)
    roles, (rollout,) = session.load_roles(), seen
    texts = [roles.base.decode(response.tokens) for response in rollout.responses]
    used = {reward.name: reward for reward in result.rewards}
    assert list(used) == ["judged", "short", "letters"]
    short = [min(1.0, 3 / len(response.tokens)) for response in rollout.responses]
    normalised = [(score - used["short"].mean) / used["short"].std for score in short]
    scale = ppo.load_roles(roles, session.run_dir, session.config)
    judged = reward_scores(roles, rollout.batch, scale).tolist()
    clipped = [max(-0.8, min(0.8, brief)) for brief in normalised]
    expected = [0.5 * a + 2 * b - len(text) / 10 for a, b, text in zip(judged, clipped, texts, strict=True)]
    torch.testing.assert_close(rollout.scores, torch.tensor(expected))
    assert rollout.figures["reward/short"] == pytest.approx(sum(short) / len(short))
    (row,) = [row for row in session.metrics.read("ppo") if "objective/scores" in row]
    assert row["reward/letters"] == pytest.approx(sum(map(len, texts)) / 10 / len(texts))
    watched = list(session.run_dir.watched.read("ppo"))
    assert watched
    assert all(row["reward/letters"] == pytest.approx(len(row["answer"]) / 10) for row in watched)


def test_normalised_by_sft_s_answers_to_the_validation_prompts(make, own) -> None:
    rewards = {"letters": {"source": f"{own.__name__}:letters", "normalize": True}, "judged": MODEL}
    result = ppo.run(make(ppo__rewards=rewards, ppo__steps=1))
    answers = own.calls[0][1]  # SFT's: nothing else is sampled before
    lengths = torch.tensor([len(answer) / 10 for answer in answers], dtype=torch.float64)
    (letters, _) = result.rewards
    assert letters.mean == pytest.approx(float(lengths.mean()), rel=1e-6)
    assert letters.std == pytest.approx(float(lengths.std(correction=0)), rel=1e-6)
    assert own.calls[0] == own.calls[1]  # the untrained policy's answers are SFT's


@pytest.mark.parametrize(("algorithm", "stage"), [("ppo", ppo), ("rloo", align)])
def test_a_resumed_run_keeps_the_scale_of_its_rewards(make, own, monkeypatch, algorithm, stage) -> None:
    rewards = {"letters": {"source": f"{own.__name__}:letters", "normalize": True}, "judged": MODEL}
    session = make(ppo__rewards=rewards, ppo__steps=1, align__algorithm=algorithm, **ALGORITHMS[algorithm])
    first = stage.run(session).rewards
    monkeypatch.setattr(own, "letters", lambda _, answers: [3.0 + 7 * len(answer) for answer in answers])
    assert stage.run(session).rewards == first
    shutil.rmtree(session.work("ppo"))  # as --redo does
    session.metrics.truncate("ppo", -1)
    assert stage.run(session).rewards[0].mean == pytest.approx(3 + 70 * first[0].mean)


@pytest.mark.parametrize(("algorithm", "stage"), [("ppo", ppo), ("rloo", align)])
@pytest.mark.parametrize(("settings", "warned"), [({"weight": -100}, True), ({"weight": -100, "clip": 0.02}, False),
                                                  ({"normalize": True}, False)])  # fmt: skip
def test_scores_beyond_the_clip_are_a_warning(make, own, monkeypatch, algorithm, stage, settings, warned) -> None:
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda _, text: said.append(text))
    rewards = {"letters": {"source": f"{own.__name__}:letters"} | settings}
    session = make(ppo__rewards=rewards, ppo__steps=1, align__algorithm=algorithm, **ALGORITHMS[algorithm])
    stage.run(session)
    beyond = sum(10 * len(answer) > 5 for answer in own.calls[0][1])
    path = session.run_dir.path / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = [event["problem"] for event in events if event["kind"] == "warning"]
    assert len(found) == warned
    if warned:
        share = f"{beyond / len(own.calls[0][1]):.0%} of the scores"
        assert found[0].startswith(f"{share} of SFT's answers are beyond ppo.score_clip (5)")
        assert "`normalize: true`" in found[0]
        assert f"  ppo: {found[0]}" in said


def run(config: Any, runs: Path) -> RunDir:
    return pipeline.run(config, runs, progress=Progress.silent())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_a_reward_model(tiny_folder, tmp_path, own, algorithm) -> None:
    """Three stages; a failure of the function ends the run with a sentence, and it resumes to the same weights."""
    rewards = {"letters": {"source": f"{own.__name__}:letters", "weight": -1}, "short": RULE}
    config = make_config(
        tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), quantization="none", align__algorithm=algorithm,
        ppo__rewards=rewards, **ALGORITHMS[algorithm],
    )  # fmt: skip
    assert problems(config) == []
    whole = run(config, tmp_path / "whole")
    assert [status.stage.name for status in pipeline.plan(config, whole)] == ["sft", "ppo", "evaluate"]
    assert {status.state for status in pipeline.plan(config, whole)} == {"done"}
    assert not whole.artifact("adapters/reward").exists()
    assert whole.artifact("adapters/critic").exists() == (algorithm == "ppo")
    mark = done(whole, "ppo")["summary"]
    assert all(claim["holds"] for claim in mark["claims"])
    assert [(reward["name"], reward["source"]) for reward in mark["rewards"]] == [
        ("letters", f"{own.__name__}:letters"),
        ("short", "length"),
    ]
    for prompts, answers in own.calls:
        assert len(prompts) == len(answers)
        assert all(prompt.startswith("question ") for prompt in prompts)
    own.fail_at, calls = 6, len(own.calls)
    own.calls.clear()
    with pytest.raises(
        RewardFailed, match=r"^ppo\.rewards\.letters: own_\d+:letters raised ValueError: the tenth one, "
    ):
        run(config, tmp_path / "broken")
    saved = [path.name for path in (tmp_path / "broken/tiny/work/ppo").glob("step-*")]
    assert max(saved) == "step-000003"  # the function fails in the fourth
    own.fail_at = None
    broken = run(config, tmp_path / "broken")
    assert calls > 6
    both = [read_tensors(found.artifact("adapters/policy-last/adapter_model.safetensors")) for found in (whole, broken)]
    assert all(tensor.equal(both[1][name]) for name, tensor in both[0].items())
    figures = [
        [(row["step"], row.get("objective/scores"), row.get("eval/reward/short")) for row in found.metrics.read("ppo")]
        for found in (whole, broken)
    ]
    assert figures[0] == figures[1]
    rows = [json.loads(line) for line in whole.artifact("eval.jsonl").read_text().splitlines()]
    for row in rows:
        for side in ("sft", "policy"):
            assert row[f"reward_letters_{side}"] == pytest.approx(len(row[side]) / 10)
            total = row[f"reward_short_{side}"] - row[f"reward_letters_{side}"]
            assert row[f"score_{side}"] == pytest.approx(total, abs=1e-5)
    evaluated = done(whole, "evaluate")["summary"]
    assert evaluated["judge"] == "rewards"
    assert [row["judge"] for row in evaluated["table"][1:4]] == ["rewards", "letters", "short"]
    report = whole.artifact("report.md").read_text(encoding="utf-8")
    assert "the sum of the rewards preferred" in report
    assert "| letters | " in report
    html = whole.artifact("report.html").read_text(encoding="utf-8")
    assert "Reward “letters”" in html
    assert "reward model" not in report.replace("reward model’s", "")


def test_a_language_model_grades_and_its_budget_can_be_raised(tiny_folder, tmp_path, monkeypatch) -> None:
    """The stage stops once the budget is spent, and resumes without asking anything twice."""
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with serving(lambda question: f"{min(10, len(texts(question)[1]))}/10") as server:
        rewards = {"graded": {"source": "endpoint", "max_requests": 6}}
        config = make_config(
            tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), quantization="none", ppo__rewards=rewards,
            ppo__steps=2, rank__endpoint={"url": server.url, "model": "grader"}, evaluate__yardstick_prompts=0,
        )  # fmt: skip
        assert problems(config) == []
        match = r"^ppo\.rewards\.graded, prompt 'p\d\d': the budget is spent: 6 answers are graded\. Raise ppo\.rewards"
        with pytest.raises(RewardFailed, match=match):
            run(config, tmp_path / "runs")
        assert len(server.asked) == 6
        terms = {"graded": config.ppo.rewards["graded"].model_copy(update={"max_requests": None})}
        run_dir = run(
            config.model_copy(update={"ppo": config.ppo.model_copy(update={"rewards": terms})}), tmp_path / "runs"
        )
        assert len(server.asked) == len(set(server.asked))
    rows = [json.loads(line) for line in run_dir.artifact("eval.jsonl").read_text().splitlines()]
    assert all(row["score_policy"] == pytest.approx(min(10, len(row["policy"])) / 10) for row in rows)


def test_rloo_scores_each_answer_with_its_own_prompt(tiny_folder, tmp_path, own) -> None:
    config = make_config(
        tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), quantization="none", align__algorithm="rloo",
        ppo__rewards={"letters": {"source": f"{own.__name__}:letters"}}, **ALGORITHMS["rloo"],
    )  # fmt: skip
    run_dir = run(config, tmp_path / "runs")
    in_training = [prompts for prompts, _ in own.calls if len(prompts) == 6]
    assert len(in_training) == 4
    for prompts in in_training:  # shuffled by TRL: three answers to each of two prompts
        assert sorted(prompts.count(prompt) for prompt in set(prompts)) == [3, 3]
    steps = [row["reward/letters"] for row in run_dir.metrics.read("ppo") if "objective/scores" in row]
    means = [sum(map(len, answers)) / 60 for prompts, answers in own.calls if len(prompts) == 6]
    assert steps == pytest.approx(means)


def test_right_answers_come_from_a_column(tiny_folder, tmp_path) -> None:
    path = write_prompts(tmp_path / "prompts.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps(row | {'right': number})}\n" for number, row in enumerate(rows)))
    rewards = {"correct": {"source": "exact", "column": "right", "pattern": r"(\d+)"}}
    config = make_config(tiny_folder(), path, quantization="none", ppo__rewards=rewards, ppo__steps=1)
    run_dir = run(config, tmp_path / "runs")
    for line in run_dir.artifact("eval.jsonl").read_text().splitlines():
        row = json.loads(line)
        number = int(row["prompt_id"].removeprefix("p"))
        found = "".join(c if c in "0123456789" else " " for c in row["policy"]).split()
        assert row["reward_correct_policy"] == float(bool(found) and float(found[-1]) == number)
