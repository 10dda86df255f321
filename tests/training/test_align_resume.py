"""Policies trained by DPO, RLOO or GRPO: stopped or killed anywhere and resumed, bit-identical."""

from pathlib import Path
from typing import Any

import pytest
from marks import done
from tiny_aligned import SETTINGS, Ready

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import CannotFit, Stopped
from lowrank_rlhf.models import batch_limits
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.training.trl_loop import AtomicAdamW, FiniteGuard

ADAPTERS = ("adapters/policy", "adapters/policy-last", "watched.jsonl")
MORE = {"ppo__save_every": 3, "align__warmup_steps": 1}


class Killed(BaseException):
    """Like SIGKILL: nothing is saved."""


@pytest.fixture(scope="module")
def ready(tiny_folder, tmp_path_factory) -> Ready:
    return Ready(tiny_folder(), tmp_path_factory.mktemp("ready"))


@pytest.fixture(scope="module")
def whole(ready, tmp_path_factory) -> dict[str, RunDir]:
    """Uninterrupted runs of each algorithm."""
    found = {}
    for algorithm in SETTINGS:
        runs = ready.runs(tmp_path_factory.mktemp(algorithm))
        found[algorithm] = go(ready.config(algorithm, **MORE), runs)
    return found


def go(config: Config, runs: Path) -> RunDir:
    return pipeline.run(config, runs, until="ppo", progress=Progress.silent())


def rows(run_dir: RunDir) -> list[dict[str, Any]]:
    """Metrics without times and throughput."""
    found = run_dir.metrics.read("ppo")
    return [{key: value for key, value in row.items() if not key.startswith(("time/", "tokens_per"))} for row in found]


def assert_alike(run_dir: RunDir, other: RunDir) -> None:
    assert run_dir.hashes(ADAPTERS) == other.hashes(ADAPTERS)
    assert rows(run_dir) == rows(other)
    summaries = [{**(done(each, "ppo") or {})["summary"], "seconds_per_step": 0} for each in (run_dir, other)]
    assert summaries[0] == summaries[1]


def test_the_runs_do_something(whole) -> None:
    kept = {name: run_dir.hashes(["adapters/policy-last"])["adapters/policy-last"] for name, run_dir in whole.items()}
    assert len(set(kept.values())) == 3


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_stopped_at_any_forward(ready, whole, tmp_path, monkeypatch, algorithm) -> None:
    """Each attempt is stopped some forwards later than the one before: in steps, rollouts and evaluations."""
    runs, polls, said = ready.runs(tmp_path), [0], []

    class AfterSomePolls(StopRequest):
        def check(self, saved: str) -> None:
            polls[0] -= 1
            self.requested = polls[0] <= 0
            super().check(saved)

    monkeypatch.setattr(pipeline, "StopRequest", AfterSomePolls)
    for attempt in range(1, 40):
        polls[0] = 12 + 9 * attempt
        try:
            run_dir = go(ready.config(algorithm, **MORE), runs)
            break
        except Stopped as stop:
            said.append(str(stop))
    assert len(said) >= 4
    assert {text for text in said if "ppo is saved at step" in text}
    assert_alike(run_dir, whole[algorithm])


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_killed_after_any_row(ready, whole, tmp_path, monkeypatch, algorithm) -> None:
    """After every row of a step, an evaluation or its answers: no row is missing or repeated."""
    runs, append, killed = ready.runs(tmp_path), StepLog.append, set()

    def append_and_die(log: StepLog, stage: str, step: int, **figures: Any) -> None:
        append(log, stage, step, **figures)
        place = step, "eval/kl" in figures
        if stage == "ppo" and place not in killed:
            killed.add(place)
            raise Killed

    monkeypatch.setattr(StepLog, "append", append_and_die)
    for _ in range(14):
        try:
            run_dir = go(ready.config(algorithm, **MORE), runs)
            break
        except Killed:
            continue
    places = {(row["step"], "eval/kl" in row) for row in rows(whole[algorithm])}
    assert killed == places | {(0, False)}  # the first of the answers for people to read
    assert_alike(run_dir, whole[algorithm])


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_out_of_memory_it_goes_on_with_smaller_micro_batches(ready, whole, tmp_path, monkeypatch, algorithm) -> None:
    """Once, in the third step: no step is lost, and the steps before it stay the same."""
    runs, begun, begin = ready.runs(tmp_path), [], FiniteGuard.on_pre_optimizer_step

    def refuse(finite: FiniteGuard, *args: Any, **rest: Any) -> None:
        begun.append(1)
        if len(begun) == 3:
            raise MemoryError("none left")
        begin(finite, *args, **rest)

    monkeypatch.setattr(FiniteGuard, "on_pre_optimizer_step", refuse)
    monkeypatch.setattr(batch_limits, "release_freed_memory", lambda: None)
    run_dir = go(ready.config(algorithm, **MORE), runs)
    assert "micro-batches of 50 tokens" in (run_dir.path / "events.jsonl").read_text()
    found, expected = ([row["policy/loss"] for row in rows(each) if "policy/loss" in row] for each in (
        run_dir, whole[algorithm]))  # fmt: skip
    assert found[:2] == expected[:2]
    assert found == pytest.approx(expected, abs=2e-3)


def test_a_step_of_the_optimiser_that_has_no_memory_ends_the_stage(ready, tmp_path, monkeypatch) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(AtomicAdamW.__mro__[1], "step", step)
    with pytest.raises(CannotFit, match="out of memory in the optimizer's step"):
        go(ready.config("dpo", **MORE), ready.runs(tmp_path))
