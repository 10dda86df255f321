"""Tests of a run's reward model for `evaluate`: its accuracy on any comparisons, and RewardBench."""

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
from lowrank_rlhf.pipeline.report import rewrite_report
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import SCHEMA, now, write_json_atomic
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.results.benchmarks import REWARD_BENCH_FILES, REWARD_BENCH_SCORES

if TYPE_CHECKING:
    from lowrank_rlhf.models.roles import Roles

_RATES = ("accuracy", "longer_wins", "over_length")
ACCURACY_FIGURES = (*_RATES, *(f"{name}_interval" for name in _RATES), "ece", "length_correlation")


@dataclass(frozen=True)
class RewardTests:
    """Data that a run's reward model is tested on."""

    run_dir: RunDir
    config: Config
    file: str | None
    """File of the comparisons."""
    comparisons: ComparisonData | None
    benchmark: BenchmarkData | None

    def results(self, load_roles: Callable[[], "Roles"], seed: int, progress: Progress) -> dict[str, Any]:
        """Return `accuracy` and `reward_bench` as JSON, None where there is no data; `seed` is the bootstrap's."""
        found: dict[str, Any] = {"accuracy": None, "reward_bench": None}
        reward = self.run_dir.artifact("adapters/reward")
        if self.comparisons:
            figures = _accuracy(load_roles(), self.config, self.comparisons, reward, seed, progress)
            found["accuracy"] = {"file": self.file, **figures}
        if self.benchmark:
            found["reward_bench"] = self._reward_bench(load_roles(), self.benchmark, reward, seed, progress)
        return found

    def _reward_bench(
        self, roles: "Roles", data: BenchmarkData, reward: Path, seed: int, progress: Progress
    ) -> dict[str, Any]:
        """Return the scores as JSON, and save them in the run folder and in its report."""
        from lowrank_rlhf.evaluation.benchmarks.reward_bench import measure_reward_bench

        kept = KeptValues(self.run_dir.artifact(REWARD_BENCH_SCORES))
        record = measure_reward_bench(roles, reward, data, self.config, kept, seed, progress).model_dump(mode="json")
        path = self.run_dir.artifact(REWARD_BENCH_FILES[data.benchmark])
        write_json_atomic(path, {"schema": SCHEMA, "measured_at": now(), **record})
        rewrite_report(self.run_dir)
        progress.say(f"  saved as {path}, and in the report")
        return record


def read_reward_tests(
    run_dir: RunDir, config: Config, comparisons: str | None, form: FileFormat, reward_bench: str | None
) -> RewardTests:
    """Read the data before the model is loaded. Raises `UserError` if it is invalid, or the run has no reward model."""
    if comparisons or reward_bench:
        run_adapter(run_dir, "reward", "reward")
    return RewardTests(
        run_dir,
        config,
        comparisons,
        _comparisons(config, comparisons, form) if comparisons else None,
        read_reward_bench(reward_bench) if reward_bench else None,
    )


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
    scores = reward_metrics.score_groups(roles, groups, scale, progress)
    figures = reward_metrics.held_out_accuracy(groups, scores, config.evaluate.bootstrap_samples, seed)
    weak = reward_metrics.weakness(figures)
    return {
        "comparisons": figures.pairs_held_out,
        "prompts": figures.prompts_held_out,
        "ties": data.ties,
        "too_long": len(pairs) - figures.pairs_held_out,
        **{name: getattr(figures, name) for name in ACCURACY_FIGURES},
        "verdict": weak and reward_metrics.weakness_in_words(weak, figures),
        "notes": [*data.notes, *([note] if note else [])],
    }
