"""`evaluate`: compare any two adapters, test the reward model on any comparisons."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lowrank_rlhf.commands.common import JsonOption, RunArgument, RunsOption, echo, run_folder
from lowrank_rlhf.commands.file_format import FORMAT, ColumnsOption, FileFormat, parse_columns
from lowrank_rlhf.commands.model_tests import read_tests
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config, FormatName
from lowrank_rlhf.data.prompts import Splits, load_prompt_data
from lowrank_rlhf.errors import Stopped, UserError
from lowrank_rlhf.evaluation.answer_pair import COMMAND_SIDES
from lowrank_rlhf.evaluation.compared_models import Match, compared_model, training_overlap
from lowrank_rlhf.evaluation.run_judges import open_judge
from lowrank_rlhf.preferences.judges.loading import ENDPOINT, Judge
from lowrank_rlhf.reports.evaluation_text import evaluation_text
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import json_text, write_atomic, write_json_atomic
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import STAGES

if TYPE_CHECKING:
    from lowrank_rlhf.models.roles import Roles

ADAPTER_STAGES = {
    output.removeprefix("adapters/"): stage.name
    for stage in STAGES
    for output in stage.writes
    if output.startswith("adapters/")
}
"""Stage that writes each adapter."""
MAY_CHANGE = ("model.", "sample.", "rank.endpoint.", "evaluate.", "data.skip_bad_rows=")
"""Settings that affect neither the choice of held-out prompts nor the run's adapters."""
REWARD = "adapters/reward"
_RESUMES = "Stopped; the same command resumes the benchmarks."

OVERRIDES_HELP = "Settings of model, sample, rank.endpoint or evaluate, or data.skip_bad_rows, to change."
LeftOption = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="base, sft, policy, policy-last, or an adapter's folder. Default: sft."),
]
RightOption = Annotated[str | None, typer.Option(metavar="MODEL", help="Model to compare it with. Default: policy.")]
PromptsOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Prompts in any format of data.prompts. Default: test prompts.")
]
LimitOption = Annotated[int | None, typer.Option(metavar="N", min=1, help="Use the first N prompts only.")]
SamplesOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Answers of each model to each prompt. Default: the run's.")
]
JudgeOption = Annotated[str | None, typer.Option(metavar="JUDGE", help="Any value of rank.judge. Default: the run's.")]
ComparisonsOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Measure the reward model's accuracy on these comparisons.")
]
RewardBenchOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="Score the reward model on RewardBench or RewardBench 2 rows.")
]
BenchmarkOption = Annotated[
    str | None,
    typer.Option(metavar="TASK[:N],...", help="Benchmarks of lm-evaluation-harness for base, SFT and policy; N rows."),
]
FormatOption = Annotated[FormatName | None, typer.Option("--format", help="Format of FILE, if it cannot be detected.")]
SeedOption = Annotated[
    int | None, typer.Option(metavar="S", min=0, help="Seed of sampling and intervals. Default: the run's.")
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="FILE.json", help="Save all figures and answers, and the text as FILE.txt.")
]


@dataclass(frozen=True)
class MatchOptions:
    """Options of a match between two models; None is an option's default."""

    left: str | None = None
    right: str | None = None
    prompts: str | None = None
    limit: int | None = None
    samples: int | None = None
    judge: str | None = None


def evaluate(
    run: RunArgument,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help=OVERRIDES_HELP)] = None,
    runs: RunsOption = Path("runs"),
    left: LeftOption = None,
    right: RightOption = None,
    prompts: PromptsOption = None,
    limit: LimitOption = None,
    samples: SamplesOption = None,
    judge: JudgeOption = None,
    comparisons: ComparisonsOption = None,
    reward_bench: RewardBenchOption = None,
    benchmark: BenchmarkOption = None,
    format_name: FormatOption = None,
    columns: ColumnsOption = None,
    seed: SeedOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two adapters, or test a run's reward model.

    Both models answer the same prompts with the run's sampling settings. The judge, or the reward model if there is no
    judge, decides which answer is better. Win rates are the right model's, with 95 % bootstrap intervals over prompts,
    as judged and adjusted for length (Dubois et al. 2024). With --comparisons, --reward-bench or --benchmark
    alone there is no such comparison. The latter two save their figures in the run, and in its report.

    \b
    Examples:
      python -m lowrank_rlhf evaluate quickstart
      python -m lowrank_rlhf evaluate quickstart --left base --right sft --limit 32
      python -m lowrank_rlhf evaluate quickstart --right ../other/adapters/policy --prompts my.jsonl --samples 4
      python -m lowrank_rlhf evaluate quickstart --judge plain-language --out plain.json
      python -m lowrank_rlhf evaluate quickstart model.max_length=512 --comparisons pairs.json --json
      python -m lowrank_rlhf evaluate quickstart --reward-bench reward-bench-2.jsonl
      python -m lowrank_rlhf evaluate quickstart --benchmark ifeval,truthfulqa_mc1,mmlu:200
    """
    _check_target(out)
    run_dir = RunDir(run_folder(run, runs)).newest
    config = load_config(run_dir.run / "config.yaml", _allowed(overrides or [], judge))
    options = MatchOptions(left, right, prompts, limit, samples, judge)
    form = FileFormat(format_name, parse_columns(columns))
    published = reward_bench or benchmark
    no_match = bool(comparisons or published) and options == MatchOptions()
    seed = config.seed if seed is None else seed
    result: dict[str, Any] = {"schema": 1, "run": str(run_dir.run), "base": config.model.source, "seed": seed}
    result["match"] = None
    try:
        with Progress(Console(stderr=True)) as progress, run_dir.round(1).lock() if published else nullcontext():
            # The stop request is not armed: there is no work to save, so the first Ctrl-C ends the command.
            session = Session(config, run_dir, progress, StopRequest())
            run_dir.check_outputs(REWARD)
            tests = read_tests(run_dir, config, comparisons, form, reward_bench, benchmark)
            if not no_match:
                match, notes = _match(lambda: session.prompts, config, run_dir, options, form, seed, progress)
                played = _played(session.load_roles(), match, config, run_dir.artifact(REWARD), progress, notes)
                result["match"] = {"prompts_from": prompts or "the run's test prompts", **played}
            result |= tests.results(session.load_roles, config.seed if no_match else seed, progress)
    except KeyboardInterrupt:
        raise Stopped(_RESUMES if published else "Stopped; nothing was written.") from None
    _show(result, out, as_json)


def _match(
    splits: Callable[[], Splits],
    config: Config,
    run_dir: RunDir,
    options: MatchOptions,
    form: FileFormat,
    seed: int,
    progress: Progress,
) -> tuple[Match, list[str]]:
    """Return the match, and notes on its prompts; the run's own prompts are read only where they are needed."""
    if options.prompts:
        prompts = _read_prompts(config, options.prompts, form, progress)
    elif not (prompts := splits().test):
        raise UserError("this run has no held-out prompts (data.held_out is 0); set --prompts FILE")
    prompts = prompts[: options.limit]
    left = compared_model(run_dir, options.left or "sft", ADAPTER_STAGES)
    right = compared_model(run_dir, options.right or "policy", ADAPTER_STAGES)
    notes = []
    if options.prompts:
        notes = training_overlap(lambda: splits().training, run_dir, prompts)
    elif "policy" in (left.name, right.name) and not splits().divided:
        notes = ["the run's policy was selected on these prompts, which flatters it"]
    judge = _judge(options.judge, config, run_dir, progress, StopRequest())
    return Match(left, right, prompts, options.samples or config.evaluate.answers_per_prompt, seed, judge), notes


def _allowed(overrides: list[str], judge: str | None) -> list[str]:
    """Return the overrides, with those that --judge implies. Raises `UserError` for any outside `MAY_CHANGE`."""
    wrong = [override for override in overrides if not override.startswith(MAY_CHANGE)]
    if wrong:
        *sections, last = (key[:-1] for key in MAY_CHANGE)
        raise UserError(f'"{wrong[0]}": only settings of {", ".join(sections)} and {last} can be changed here')
    return [*overrides, f"evaluate.second_judge={ENDPOINT}"] if judge == ENDPOINT else overrides


def _check_target(out: Path | None) -> None:
    """Check that the result can be written, before hours of work. Raises `UserError`."""
    if out is None:
        return
    if out.suffix != ".json":
        raise UserError(f"--out {out}: must end in .json; the text is saved under the same name with .txt")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"--out {out}: cannot be written")


def _read_prompts(config: Config, source: str, form: FileFormat, progress: Progress) -> list[Prompt]:
    form = form.or_of(config.data, source)
    changes = {"prompts": source, "format": form.name, "columns": form.columns, "held_out": 0, "validation": None}
    data = load_prompt_data(config.data.model_copy(update=changes), config.seed, FORMAT, imitated=False)
    for note in data.notes:
        progress.say(f"  {note}")
    return data.training


def _judge(name: str | None, config: Config, run_dir: RunDir, progress: Progress, stop: StopRequest) -> Judge | None:
    """Open the given judge, or the run's; None if the reward model decides."""
    name = name or config.ranking_judge
    if name:
        return open_judge(name, config.rank, run_dir.run, progress, stop)
    if not run_dir.artifact(REWARD).is_dir():
        raise UserError("no judge: this run has no reward model yet; set --judge")
    return None


def _played(
    roles: "Roles", match: Match, config: Config, reward: Path, progress: Progress, notes: Sequence[str]
) -> dict[str, Any]:
    """Return figures, notes and answers of a match as JSON; `reward` is the reward model's folder, if it exists."""
    from lowrank_rlhf.evaluation.match import run_match
    from lowrank_rlhf.evaluation.reward_metrics import load_reward_model

    scale = load_reward_model(roles, reward) if reward.is_dir() else None
    result = run_match(roles, match, scale, config, progress, StopRequest())
    return {
        "left": match.left.name,
        "right": match.right.name,
        **result.figures.json(COMMAND_SIDES),
        "notes": [*notes, *result.notes],
        "answers": [pair.row(COMMAND_SIDES, lengths=True) for pair in result.pairs],
    }


def _show(result: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print the result and save it if asked."""
    text = evaluation_text(result)
    if out:
        try:
            write_json_atomic(out, result)
            write_atomic(out.with_suffix(".txt"), text)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    sys.stdout.write(json_text(result) if as_json else text)
    if out and not as_json:
        echo(f"\nSaved as {out}; this text as {out.with_suffix('.txt')}")
