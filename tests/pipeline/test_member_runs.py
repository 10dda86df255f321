"""Runs with several reward members: stopped and resumed, in two rounds, and with every algorithm."""

from typing import Any

import pytest
from marks import done
from tiny_run import make_config, write_prompts

from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.step_log import StepLog

SETTINGS = {
    "quantization": "none",
    "reward__members": 3,
    "reward__combine": "mean_minus_std",
    "reward__fit_head_first": True,
    "rank__judge": "plain-language",
    "ppo__steps": 2,
    "ppo__evaluate_every": 1,
    "evaluate__yardstick_prompts": 0,
}
MADE = (
    "adapters/reward",
    "adapters/policy",
    "adapters/policy-last",
    "scores.jsonl",
    "eval.jsonl",
    "watched.jsonl",
    "rollouts.jsonl",
)


def go(config, runs) -> RunDir:
    return pipeline.run(config, runs, progress=Progress.silent())


def spreads(run_dir: RunDir, key: str) -> list[float]:
    return [row[key] for row in run_dir.metrics.read("ppo") if key in row]


def test_stopped_in_two_rounds_it_ends_with_the_same_weights(tiny_folder, tmp_path, monkeypatch) -> None:
    config = make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), rounds=2, **SETTINGS)
    whole = go(config, tmp_path / "whole")
    requests: list[StopRequest] = []
    left = [("reward", 2), ("ppo", 1)] * 2  # in each round
    append = StepLog.append

    def new(group: ProcessGroup | None) -> StopRequest:
        requests.append(StopRequest(group))
        return requests[-1]

    def append_and_stop(log: StepLog, stage: str, step: int, **figures: Any) -> None:
        append(log, stage, step, **figures)
        if left and (stage, step) == left[0]:
            left.pop(0)
            requests[-1].requested = True

    monkeypatch.setattr(pipeline, "StopRequest", new)
    monkeypatch.setattr(StepLog, "append", append_and_stop)
    for text in ("reward is saved at step 2", "ppo is saved") * 2:
        with pytest.raises(Stopped, match=text):
            go(config, tmp_path / "parts")
    parts = go(config, tmp_path / "parts")
    for number in (1, 2):
        one, other = whole.round(number), parts.round(number)
        assert one.hashes([*MADE, "adapters/critic"]) == other.hashes([*MADE, "adapters/critic"])
        assert spreads(one, "score_spread") == spreads(other, "score_spread") != []
        assert len(spreads(one, "eval/score_spread")) == 3
        assert len(done(one, "reward")["summary"]["member_accuracies"]) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"align__algorithm": "rloo", "align__batch_size": 4, "align__answers_per_prompt": 2, "align__steps": 2},
        {"align__algorithm": "grpo", "align__batch_size": 4, "align__answers_per_prompt": 2, "align__steps": 2},
        {"align__algorithm": "dpo"},
        {"ppo__rewards": {"judged": {"source": "model", "weight": 2}, "short": {"source": "length", "maximum": 3}}},
        {"ppo__contrastive": True},
    ],
    ids=["rloo", "grpo", "dpo", "own rewards", "contrastive"],
)
def test_every_algorithm_logs_the_spread(tiny_folder, tmp_path, changes) -> None:
    config = make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), **SETTINGS, **changes)
    run_dir = go(config, tmp_path)
    assert min(spreads(run_dir, "eval/score_spread")) > 0
    sampled = spreads(run_dir, "score_spread")
    assert len(sampled) == (0 if changes.get("align__algorithm") == "dpo" else 2)
