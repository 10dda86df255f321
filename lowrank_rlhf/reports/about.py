"""What a run was: model, data, who ranked, training, date and machine, in one line of the report."""

from collections.abc import Iterator

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.reports.format import judge_in_words, weight_key
from lowrank_rlhf.reports.locale import Locale
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_json
from lowrank_rlhf.run.progress import duration, memory
from lowrank_rlhf.run.results.rounds import stages_in


def about_run(run_dir: RunDir, texts: Locale) -> str:
    """Return the parts that the run's folder knows, separated by dots; empty for a run without settings."""
    try:
        config = load_config(run_dir.run / "config.yaml")
    except (OSError, UserError):
        return ""
    return " · ".join([*_settings(config, texts), *_history(run_dir, texts)])


def _settings(config: Config, texts: Locale) -> Iterator[str]:
    model = config.model
    yield texts("about.model", source=model.source, quantization=model.quantization)
    yield texts("about.data", prompts=config.data.prompts, held_out=config.data.held_out)
    ranked = config.ranking_judge
    yield (
        texts("about.judge", judge=judge_in_words(ranked, texts))
        if ranked
        else texts(f"about.{config.rank.source}", source=config.rank.dataset or "")
    )
    algorithm = config.align.algorithm
    weight = config.ppo.kl_coef if algorithm == "ppo" else config.align.beta
    key = weight_key(algorithm)
    yield texts("about.training", algorithm=algorithm.upper(), weight=f"{key} {weight:g}", rank=config.lora.rank)


def _history(run_dir: RunDir, texts: Locale) -> Iterator[str]:
    marks = [mark for stage in stages_in(run_dir.run) if (mark := run_dir.mark(stage))]
    if dates := sorted(mark.finished_at for mark in marks if mark.finished_at):
        yield dates[-1][:10]
    machine = read_json(run_dir.run / "env.json") or {}
    if "platform" in machine:
        yield texts("about.machine", platform=machine["platform"], cores=machine.get("cpu_count"))
    if marks:
        peak = max(mark.peak_memory_bytes for mark in marks)
        yield texts("about.cost", time=duration(sum(mark.seconds for mark in marks)), memory=memory(peak))
