"""Tests for `evaluate`: the reward model on comparisons and RewardBench, all models on published benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_rlhf.commands.file_format import FORMAT, FileFormat, same_file
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.comparisons import ComparisonData, load_comparisons
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.benchmarks.kept_values import KeptValues
from lowrank_rlhf.evaluation.benchmarks.rows import BenchmarkData, read_reward_bench
from lowrank_rlhf.evaluation.compared_models import run_adapter
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.pipeline.report import rewrite_report
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import SCHEMA, now, write_json_atomic
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.results.benchmarks import (
    ADAPTERS,
    HARNESS_FILE,
    HARNESS_VALUES,
    REWARD_BENCH_FILES,
    REWARD_BENCH_SCORES,
    HarnessResult,
    adapter_sums,
    read_harness_result,
)

if TYPE_CHECKING:
    from lowrank_rlhf.models.roles import Roles

_RATES = ("accuracy", "longer_wins", "over_length")
ACCURACY_FIGURES = (*_RATES, *(f"{name}_interval" for name in _RATES), "ece", "length_correlation")


@dataclass(frozen=True)
class ModelTests:
    """Data that a run's reward model is tested on, and benchmarks of all its models."""

    run_dir: RunDir
    config: Config
    file: str | None
    """File of the comparisons."""
    comparisons: ComparisonData | None
    reward_bench: BenchmarkData | None
    tasks: dict[str, int | None]
    """Rows to measure of each task of lm-evaluation-harness, None for all."""

    def results(self, load_roles: Callable[[], "Roles"], seed: int, progress: Progress) -> dict[str, Any]:
        """Return `accuracy`, `reward_bench` and `benchmarks` as JSON, None for what was not asked for.

        `seed` is the one from which the bootstrap's is derived.
        """
        seed = derive_seed(seed, "bootstrap")
        found: dict[str, Any] = {"accuracy": None, "reward_bench": None, "benchmarks": None}
        reward = self.run_dir.artifact("adapters/reward")
        if self.comparisons:
            figures = _accuracy(load_roles(), self.config, self.comparisons, reward, seed, progress)
            found["accuracy"] = {"file": self.file, **figures}
        if self.reward_bench:
            found["reward_bench"] = self._reward_bench(load_roles(), self.reward_bench, reward, seed, progress)
        if self.tasks:
            found["benchmarks"] = self._benchmarks(load_roles(), progress)
        return found

    def _reward_bench(
        self, roles: "Roles", data: BenchmarkData, reward: Path, seed: int, progress: Progress
    ) -> dict[str, Any]:
        """Return the scores as JSON, and save them in the run folder and in its report."""
        from lowrank_rlhf.evaluation.benchmarks.reward_bench import measure_reward_bench

        kept = KeptValues(self.run_dir.artifact(REWARD_BENCH_SCORES))
        record = measure_reward_bench(roles, reward, data, self.config, kept, seed, progress).model_dump(mode="json")
        self._save(REWARD_BENCH_FILES[data.benchmark], record, progress)
        return record

    def _benchmarks(self, roles: "Roles", progress: Progress) -> dict[str, Any]:
        """Return the figures as JSON, and save them with those of other tasks on the same adapters."""
        from lowrank_rlhf.evaluation.benchmarks.harness import measure_benchmarks

        kept = KeptValues(self.run_dir.artifact(HARNESS_VALUES))
        models = {"base": None, **{name.removeprefix("adapters/"): self.run_dir.artifact(name) for name in ADAPTERS}}
        figures = measure_benchmarks(roles, models, self.tasks, self.config, kept, progress)
        if earlier := read_harness_result(self.run_dir):
            tasks = {figure.task for figure in figures}
            figures = [*(figure for figure in earlier.figures if figure.task not in tasks), *figures]
        result = HarnessResult(adapters=adapter_sums(self.run_dir), figures=tuple(figures))
        record = result.model_dump(mode="json")
        self._save(HARNESS_FILE, record, progress)
        return record

    def _save(self, name: str, record: dict[str, Any], progress: Progress) -> None:
        path = self.run_dir.artifact(name)
        write_json_atomic(path, {"schema": SCHEMA, "measured_at": now(), **record})
        rewrite_report(self.run_dir)
        progress.say(f"  saved as {path}, and in the report")


def read_tests(
    run_dir: RunDir,
    config: Config,
    comparisons: str | None,
    form: FileFormat,
    reward_bench: str | None,
    benchmark: str | None,
) -> ModelTests:
    """Read the data before the model is loaded. Raises `UserError` if it is invalid, or an adapter is missing."""
    if benchmark:
        for name in ("sft", "policy"):
            run_adapter(run_dir, name, "sft" if name == "sft" else "ppo")
    if comparisons or reward_bench:
        run_adapter(run_dir, "reward", "reward")
    return ModelTests(
        run_dir,
        config,
        comparisons,
        _comparisons(config, comparisons, form) if comparisons else None,
        read_reward_bench(reward_bench) if reward_bench else None,
        parse_tasks(benchmark) if benchmark else {},
    )


def parse_tasks(text: str) -> dict[str, int | None]:
    """Return the rows to measure of each task, None for all: `ifeval,mmlu:200`. Raises `UserError`."""
    found: dict[str, int | None] = {}
    for part in text.split(","):
        name, colon, count = part.strip().rpartition(":")
        if not colon:
            name, count = count, ""
        if not name or (colon and not (count.isdigit() and int(count))):
            raise UserError(f'--benchmark: "{part}" is not a task, or task:N with N rows. Such as ifeval,mmlu:200')
        found[name] = int(count) if colon else None
    return found


def _comparisons(config: Config, source: str, form: FileFormat) -> ComparisonData:
    """Read comparisons for the reward model, with a note if the run's own were among them."""
    trained_on = config.rank.dataset
    form = form.or_of(config.rank, source)
    data = load_comparisons(source, form.name, config.data.skip_bad_rows, form.columns, FORMAT)
    if trained_on and same_file(trained_on, source):
        note = "The run's reward model was trained on most of these; the report has its accuracy on held-out ones."
        return replace(data, notes=[note, *data.notes])
    return data


def _accuracy(
    roles: "Roles", config: Config, data: ComparisonData, reward: Path, seed: int, progress: Progress
) -> dict[str, Any]:
    """Return the reward model's accuracy on every comparison that fits `model.max_length`, as JSON."""
    from lowrank_rlhf.evaluation import reward_metrics
    from lowrank_rlhf.training.reward_data import make_groups

    scale = reward_metrics.load_reward_model(roles, reward)
    pairs = [pair for ranking in data.rankings for pair in compare(ranking)]
    groups, note = make_groups(roles.base, config.model.max_length, data.prompts, data.answers, pairs, data.rankings)
    if not groups:
        raise UserError(
            f"no prompt of the comparisons fits model.max_length={config.model.max_length}; "
            "add a larger model.max_length=... to the command"
        )
    by_member = reward_metrics.score_groups(roles, groups, replace(scale, ensemble=None), progress)  # (K,) or (K, M)
    scores = list(map(scale.ensemble.combined, by_member)) if scale.ensemble else by_member
    members = reward_metrics.member_accuracies(groups, by_member) if scale.ensemble else ()
    figures = reward_metrics.held_out_accuracy(groups, scores, config.evaluate.bootstrap_samples, seed)
    weak = reward_metrics.weakness(figures)
    return {
        "comparisons": figures.pairs_held_out,
        "prompts": figures.prompts_held_out,
        "ties": data.ties,
        "too_long": len(pairs) - figures.pairs_held_out,
        **{name: getattr(figures, name) for name in ACCURACY_FIGURES},
        "member_accuracies": members,
        "verdict": weak and reward_metrics.weakness_in_words(weak, figures),
        "notes": [*data.notes, *([note] if note else [])],
    }
