"""Stopped or killed inside sft, reward and ppo, and started again: the same weights to the last bit."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from marks import done
from tiny import bfloat16_works
from tiny_run import STAGES, WORDS, make_config, make_session, write_prompts

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.evaluation.sampling import AnswerLog, answer_prompts
from lowrank_rlhf.models import generation
from lowrank_rlhf.models.generation import Response
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.stages.sft import training_rows

ADAPTERS = ("adapters/sft", "adapters/reward", "adapters/policy", "adapters/policy-last", "adapters/critic")
ANSWERS = ("samples.jsonl", "eval.jsonl", "watched.jsonl", "rollouts.jsonl")
# Several optimiser steps, a moving KL weight, everything that a checkpoint must carry.
SETTINGS = {
    "reward__fit_head_first": True,
    "ppo__epochs": 2,
    "ppo__minibatches": 2,
    "ppo__kl_controller": "adaptive",
    "ppo__kl_horizon": 8,
    "ppo__critic_warmup_steps": 1,
    "rank__judge": "plain-language",
    "model__micro_batch_tokens": 120,
}


class Killed(BaseException):
    """As SIGKILL: nobody gets to save anything."""


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[tuple[str, int], Any]], None]:
    """`at({("sft", 2): "stop"})`: when that step is logged, ask for a stop, or die; once for each."""
    requests: list[StopRequest] = []
    append = StepLog.append

    def new(group: ProcessGroup | None) -> StopRequest:
        requests.append(StopRequest(group))
        return requests[-1]

    def plan(events: dict[tuple[str, int], str]) -> None:
        def append_and_act(log: StepLog, stage: str, step: int, **figures: Any) -> None:
            append(log, stage, step, **figures)
            what = events.pop((stage, step), None)
            if what == "kill":
                raise Killed
            if what == "stop":
                requests[-1].requested = True

        monkeypatch.setattr(StepLog, "append", append_and_act)

    monkeypatch.setattr(pipeline, "StopRequest", new)
    return plan


def go(config: Config, runs: Path) -> RunDir:
    return pipeline.run(config, runs, progress=Progress.silent())


def metrics(run_dir: RunDir) -> list[dict[str, Any]]:
    """The metrics without times and pace, in order within each stage."""
    found = StepLog(run_dir.path / "metrics.jsonl").read()
    return [{key: value for key, value in row.items() if not key.startswith(("time/", "tokens_per"))} for row in found]


def results(run_dir: RunDir) -> dict[str, dict[str, Any]]:
    """The stages' results as in their done marks, with the self-checks and the roles that they name, without times."""
    timed = ("seconds_per_step", "tokens_per_second", "message")
    found = {stage: done(run_dir, stage)["summary"] for stage in STAGES}
    return {stage: {key: value for key, value in row.items() if key not in timed} for stage, row in found.items()}


@pytest.fixture(scope="session")
def uninterrupted(tiny_folder, tmp_path_factory) -> tuple[Config, RunDir]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = make_config(tiny_folder(), write_prompts(folder / "prompts.jsonl"), **SETTINGS)
    return config, go(config, folder)


def test_ending_after_each_stage_changes_nothing(uninterrupted, tmp_path) -> None:
    config, whole = uninterrupted
    for name in STAGES:
        run_dir = pipeline.run(config, tmp_path, until=name, progress=Progress.silent())
        assert [stage for stage in STAGES if done(run_dir, stage)][-1] == name
    assert run_dir.hashes(ADAPTERS) == whole.hashes(ADAPTERS)
    assert run_dir.hashes(ANSWERS) == whole.hashes(ANSWERS)
    assert metrics(run_dir) == metrics(whole)


def test_stopping_and_going_on_ends_with_the_same_weights(uninterrupted, at, tmp_path) -> None:
    config, whole = uninterrupted
    stopped_at = [("sft", 1), ("sft", 3), ("sample", 0), ("reward", 2), ("ppo", 1), ("ppo", 3)]
    events = dict.fromkeys(stopped_at, "stop")
    at(events)
    stops = []
    while True:
        try:
            run_dir = go(config, tmp_path)
            break
        except Stopped as stop:
            stops.append(str(stop))
    assert not events
    expected = ["sft is saved at step 1", "sft is saved at step 3", "12 of 24 answers are saved"]
    expected += ["reward is saved at step 2", "ppo is saved at step 1", "ppo is saved at step 3"]
    assert [words in text for words, text in zip(expected, stops, strict=True)] == [True] * 6
    assert run_dir.hashes(ADAPTERS) == whole.hashes(ADAPTERS)
    assert metrics(run_dir) == metrics(whole)
    assert run_dir.hashes(ANSWERS) == whole.hashes(ANSWERS)
    assert results(run_dir) == results(whole)


def test_stopped_at_any_forward_it_goes_on_to_the_same_weights(uninterrupted, monkeypatch, tmp_path) -> None:
    """Each attempt is stopped, four polls later than the one before: in every stage, anywhere in it."""
    config, whole = uninterrupted
    polls, said, stages = [0], [], set()

    class AfterSomePolls(StopRequest):
        def check(self, saved: str) -> None:
            polls[0] -= 1
            self.requested = polls[0] <= 0
            super().check(saved)

    monkeypatch.setattr(pipeline, "StopRequest", AfterSomePolls)
    monkeypatch.setattr(RunDir, "event", lambda _, kind, **more: stages.add((kind, more.get("stage"))))
    for attempt in range(1, 60):
        polls[0] = 5 + 4 * attempt
        try:
            run_dir = go(config, tmp_path)
            break
        except Stopped as stop:
            said.append(str(stop))
    assert run_dir.hashes(ADAPTERS) == whole.hashes(ADAPTERS)
    assert run_dir.hashes(ANSWERS) == whole.hashes(ANSWERS)
    assert metrics(run_dir) == metrics(whole)
    assert results(run_dir) == results(whole)
    assert {("ended early", name) for name in ("sft", "sample", "reward", "ppo", "evaluate")} <= stages
    kinds = {match[1] for text in said if (match := re.search(r"(\w+) is saved (inside|at) step", text))}
    assert kinds == {"sft", "reward", "ppo"}
    assert any("inside step" in text for text in said)


def test_in_bfloat16_it_goes_on_alike(tiny_folder, at, tmp_path) -> None:
    """Stopped in each stage that trains; adapters and optimisers are float32 there too, and come back bit by bit."""
    if not bfloat16_works():
        pytest.skip("this machine's CPU announces bfloat16 and dies of it")
    changes = {"model__compute_dtype": "bfloat16", "stages": ("sft", "sample", "rank", "reward", "ppo")}
    data = write_prompts(tmp_path / "prompts.jsonl")
    config = make_config(tiny_folder(), data, **SETTINGS, **changes, ppo__steps=2)
    whole = go(config, tmp_path / "whole")
    events = {("sft", 1): "stop", ("reward", 2): "stop", ("ppo", 1): "stop"}
    at(events)
    for _ in range(3):
        with pytest.raises(Stopped):
            go(config, tmp_path / "parts")
    parts = go(config, tmp_path / "parts")
    assert not events
    assert parts.hashes(ADAPTERS) == whole.hashes(ADAPTERS)
    assert metrics(parts) == metrics(whole)


def test_killed_it_goes_on_from_the_last_checkpoint(uninterrupted, at, tmp_path) -> None:
    """Steps done since are done again, and come out the same; their rows are not in the metrics twice."""
    config, whole = uninterrupted
    sections = ("sft", "reward", "ppo")
    often = config.model_copy(
        update={name: getattr(config, name).model_copy(update={"save_every": 2}) for name in sections}
    )
    killed_at = [("sft", 3), ("sample", 0), *(("reward", step) for step in (1, 3, 4)), *(("ppo", n) for n in range(4))]
    events = dict.fromkeys(killed_at, "kill")
    at(events)
    for _ in killed_at:
        with pytest.raises(Killed):
            go(often, tmp_path)
    run_dir = go(often, tmp_path)
    assert not events
    assert results(run_dir) == results(whole)
    assert run_dir.hashes(ADAPTERS) == whole.hashes(ADAPTERS)
    assert run_dir.hashes(ANSWERS) == whole.hashes(ANSWERS)
    assert metrics(run_dir) == metrics(whole)


def test_batches_of_answers_are_sampled_once_and_a_torn_one_again(uninterrupted, monkeypatch, at, tmp_path) -> None:
    config, whole = uninterrupted
    at({("sample", 4): "kill"})  # both batches are on disk
    with pytest.raises(Killed):
        go(config, tmp_path)
    kept = tmp_path / config.name / "work" / "sample" / "batches.jsonl"
    first, second = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(first + second[:40])
    asked: list[int] = []
    decode = generation._decode_sharded

    def counted(roles: Any, prompts: list[Any], *rest: Any) -> Any:
        asked.append(len(prompts))
        return decode(roles, prompts, *rest)

    monkeypatch.setattr(generation, "_decode_sharded", counted)
    run_dir = pipeline.run(config, tmp_path, until="sample", progress=Progress.silent())
    assert asked == [4]
    assert run_dir.hashes(["samples.jsonl"]) == whole.hashes(["samples.jsonl"])
    figures = [done(one, "sample")["summary"] for one in (run_dir, whole)]
    assert figures[0] | {"tokens_per_second": 0} == figures[1] | {"tokens_per_second": 0}


def test_a_batch_after_a_lost_one_is_not_taken_for_it(tmp_path) -> None:
    """Batches of two prompts each, of which the second is lost; then it is sampled again."""
    log = StepLog(tmp_path / "batches.jsonl")
    log.append("sample", 0, new=[[[5, 2]], [[6, 9]]])
    log.append("sample", 4, new=[[[7, 2]], [[8, 2]]])
    first, second = [[Response((5, 2), True)], [Response((6, 9), False)]], [[Response((3, 2), True)]] * 2
    answers = AnswerLog(log, "sample", eos=2)
    assert answers.groups == first
    answers.add(second)
    assert AnswerLog(log, "sample", eos=2).groups == first + second


def test_a_stop_between_batches_is_obeyed_by_a_model_that_does_not_poll(tiny_folder, tmp_path) -> None:
    """A session's model asks at every forward, so that this check decides nothing there."""
    session = make_session(make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl")), tmp_path)
    roles, sampling = session.load_roles(), session.config.sample
    roles.poll = lambda: None
    session.stop.requested = True
    with pytest.raises(Stopped, match="everything before this stage is saved"):
        answer_prompts(roles, Role.POLICY, session.prompts.test, sampling, 0, stop=session.stop)


def test_killed_at_the_end_of_a_stage(uninterrupted, monkeypatch, tmp_path) -> None:
    """Between its last step and its done-mark, when its outputs stand in the work folder already."""
    config, whole = uninterrupted
    finish, stages = RunDir.finish, ["reward", "ppo"]

    def die_once(run_dir: RunDir, stage: str, *rest: Any) -> None:
        if stage in stages:
            stages.remove(stage)
            raise Killed
        finish(run_dir, stage, *rest)

    monkeypatch.setattr(RunDir, "finish", die_once)
    for _ in range(2):
        with pytest.raises(Killed):
            go(config, tmp_path)
    run_dir = go(config, tmp_path)
    assert not stages
    assert run_dir.hashes(ADAPTERS) == whole.hashes(ADAPTERS)
    assert results(run_dir) == results(whole)


def test_self_checks_name_the_roles_that_the_stage_does_not_train(uninterrupted) -> None:
    _, whole = uninterrupted
    for stage, roles in {"reward": "POLICY, REFERENCE", "ppo": "REFERENCE, REWARD"}.items():
        claims = {claim["id"]: claim["figure"] for claim in results(whole)[stage]["claims"]}
        assert claims["other_roles_unchanged"] == roles


def test_a_stop_in_the_last_step_of_sft_loses_nothing(tiny_folder, at, tmp_path) -> None:
    config = make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), stages=("sft",))
    at({("sft", 5): "stop"})
    assert done(go(config, tmp_path), "sft")


def test_uneven_demonstrations_resume_alike(tiny_folder, at, tmp_path) -> None:
    """The longest one comes first: what is left after it is narrower, but must be cut into micro-batches as before."""
    path = tmp_path / "prompts.jsonl"
    changes = {"sft__epochs": 1, "model__micro_batch_tokens": 130, "model__max_length": 100, "stages": ("sft",)}
    for long in range(17):  # make one of those long that the seed puts into the first batch
        responses = [WORDS[n % 9] + " kind" * 12 * (n == long) for n in range(17)]
        rows = [{"prompt": f"question {n}", "response": response} for n, response in enumerate(responses)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        config = make_config(tiny_folder(), path, **changes)
        if _first_batch_has_the_longest(config, tmp_path):
            break
    whole = go(config, tmp_path / "whole")
    at({("sft", 1): "stop"})
    with pytest.raises(Stopped):
        go(config, tmp_path / "parts")
    assert go(config, tmp_path / "parts").hashes(ADAPTERS) == whole.hashes(ADAPTERS)


def _first_batch_has_the_longest(config: Config, runs: Path) -> bool:
    session = make_session(config, runs)
    demonstrations, base = session.filter_lengths().demonstrations, session.load_roles().base
    rows = training_rows(demonstrations, base, config.sft.epochs, config.seed)
    widths = [len(row["input_ids"]) for row in rows]
    return widths.index(max(widths)) < config.sft.batch_size
