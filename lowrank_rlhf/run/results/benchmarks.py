"""Results of published benchmarks (`benchmarks/*.json`), which a command measures after the run."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_record
from lowrank_rlhf.run.results.parts import Interval, Result

Benchmark = Literal["RewardBench", "RewardBench 2"]
REWARD_BENCH_FILES: dict[Benchmark, str] = {
    "RewardBench": "benchmarks/reward-bench.json",
    "RewardBench 2": "benchmarks/reward-bench-2.json",
}
"""Result of each benchmark, in the folder of the round."""
REWARD_BENCH_SCORES = "benchmarks/reward-bench-scores.jsonl"
"""Scores so far, of both benchmarks."""


HARNESS_FILE, HARNESS_VALUES = "benchmarks/lm-eval.json", "benchmarks/lm-eval-values.jsonl"
ADAPTERS = ("adapters/sft", "adapters/policy")


class RewardBenchScore(Result):
    """Score of a subset, of a section (`subset` is None), or overall (`section` is None too)."""

    section: str | None
    subset: str | None
    rows: NonNegativeInt
    score: float
    interval: Interval


class RewardBenchResult(Result):
    """Reward model's scores on RewardBench or RewardBench 2."""

    benchmark: Benchmark
    file: str
    reward_model: str
    """SHA-256 of the reward adapter's files."""
    max_length: PositiveInt
    rows: NonNegativeInt
    left_out: NonNegativeInt
    """Rows whose prompt exceeds `max_length`, and rows of Ties whose other row is missing."""
    cut: NonNegativeInt
    """Answers cut to `max_length`."""
    scores: tuple[RewardBenchScore, ...]


class HarnessValue(Result):
    """Metric of one model; no interval where the metric is no share of rows and has no standard error."""

    value: float
    interval: Interval | None = None


class HarnessFigure(Result):
    """Metric of a task of lm-evaluation-harness."""

    task: str
    metric: str
    rows: NonNegativeInt
    max_length: PositiveInt
    values: dict[str, HarnessValue]
    """By model: `base`, `sft` and `policy`."""


class HarnessResult(Result):
    """Figures of all tasks measured on the same adapters."""

    adapters: dict[str, str]
    """SHA-256 of the files of `sft` and `policy`."""
    figures: tuple[HarnessFigure, ...]


def read_harness_result(run_dir: RunDir) -> HarnessResult | None:
    """Return the result of this round's adapters, if there is one."""
    record = read_record(run_dir.artifact(HARNESS_FILE), HarnessResult)
    if record is None:
        return None
    result = HarnessResult.model_validate(record)
    return result if result.adapters == adapter_sums(run_dir) else None


def adapter_sums(run_dir: RunDir) -> dict[str, str]:
    """Return the SHA-256 of the files of `sft` and `policy`, as far as they exist."""
    return {name.removeprefix("adapters/"): value for name, value in run_dir.hashes(ADAPTERS).items()}


def read_reward_bench_results(run_dir: RunDir) -> list[RewardBenchResult]:
    """Return the results of this round's reward model, without those of an earlier one."""
    current = run_dir.hashes(["adapters/reward"]).get("adapters/reward")
    records = (read_record(run_dir.artifact(name), RewardBenchResult) for name in REWARD_BENCH_FILES.values())
    found = [RewardBenchResult.model_validate(record) for record in records if record]
    return [result for result in found if result.reward_model == current]
