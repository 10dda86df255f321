"""The time to go is told from the stages that are done and the work that is left."""

import json

import pytest
from tiny_run import make_config, make_context

from lowrank_rlhf.data.prompts import load_demonstrations
from lowrank_rlhf.stages.work import seconds_to_go, work


@pytest.fixture
def context(tmp_path):
    config = make_config(tmp_path, data__held_out=20, sample__prompts=10, ppo__steps=4, ppo__batch_size=8)
    return make_context(config, tmp_path)


def test_work_by_hand(context) -> None:
    assert len(load_demonstrations(context.config.data, 1)) == 240
    assert work("sft", context) == 240 * 2 * 3
    assert work("sample", context) == 10 * 3 * 2
    assert work("rank", context) == 0
    assert work("reward", context) == 30 * (1 + 2 * 3)
    assert work("ppo", context) == 4 * 8 * (2 + 4 + 2 * 3 * 1) + 3 * 3 * 6  # 3 evaluations of 3 prompts
    assert work("evaluate", context) == 20 * 8


def test_ranked_answers_are_counted_where_they_are(context) -> None:
    path = context.run_dir.path / "answers.jsonl"
    path.write_text("".join(json.dumps({"id": i}) + "\n" for i in range(7)))
    assert work("reward", context) == 7 * 7


def test_an_adapter_from_elsewhere_costs_no_sft(tmp_path) -> None:
    config = make_config(tmp_path, sft__source="base")
    assert work("sft", make_context(config, tmp_path)) == 0


def test_seconds_to_go(context) -> None:
    assert seconds_to_go({}, ["sft", "sample"], context) is None
    assert seconds_to_go({"rank": 5.0}, ["reward"], context) is None  # no model ran: no pace
    # 60 units took 30 s, so the 210 units of reward take 105.
    assert seconds_to_go({"sample": 30.0, "rank": 9.0}, ["reward"], context) == pytest.approx(105)
    assert seconds_to_go({"sample": 30.0, "sft": 0.0}, ["rank"], context) is None  # nothing left that takes time
    assert seconds_to_go({"sample": 30.0}, [], context) is None
