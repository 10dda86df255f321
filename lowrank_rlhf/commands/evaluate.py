"""`evaluate`: compare any two adapters, test the reward model on any comparisons."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lowrank_rlhf.commands.common import JsonOption, RunArgument, RunsOption, echo, run_folder
from lowrank_rlhf.commands.file_format import FORMAT, ColumnsOption, FileFormat, parse_columns, same_file
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config, FormatName
from lowrank_rlhf.data.comparisons import ComparisonData, load_comparisons
from lowrank_rlhf.data.prompts import Splits, load_prompt_data
from lowrank_rlhf.errors import Stopped, UserError
from lowrank_rlhf.evaluation.answer_pair import COMMAND_SIDES
from lowrank_rlhf.evaluation.compared_models import Match, compared_model, run_adapter, training_overlap
from lowrank_rlhf.evaluation.run_judges import open_judge
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.preferences.expand import compare
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
_RATES = ("accuracy", "longer_wins", "over_length")
ACCURACY_FIGURES = (*_RATES, *(f"{name}_interval" for name in _RATES), "ece", "length_correlation")
MAY_CHANGE = ("model.", "sample.", "rank.endpoint.", "evaluate.", "data.skip_bad_rows=")
"""Settings that affect neither the choice of held-out prompts nor the run's adapters."""
REWARD = "adapters/reward"

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
    format_name: FormatOption = None,
    columns: ColumnsOption = None,
    seed: SeedOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two adapters, or test a run's reward model.

    Both models answer the same prompts with the run's sampling settings. The judge, or the reward model if there is no
    judge, decides which answer is better. Win rates are the right model's, with 95 % bootstrap intervals over prompts,
    as judged and adjusted for length (Dubois et al. 2024). With --comparisons alone only the reward model is tested.
    The run itself is not changed.

    \b
    Examples:
      python -m lowrank_rlhf evaluate quickstart
      python -m lowrank_rlhf evaluate quickstart --left base --right sft --limit 32
      python -m lowrank_rlhf evaluate quickstart --right ../other/adapters/policy --prompts my.jsonl --samples 4
      python -m lowrank_rlhf evaluate quickstart --judge plain-language --out plain.json
      python -m lowrank_rlhf evaluate quickstart model.max_length=512 --comparisons pairs.json --json
    """
    _check_target(out)
    run_dir = RunDir(run_folder(run, runs)).newest
    config = load_config(run_dir.run / "config.yaml", _allowed(overrides or [], judge))
    options = MatchOptions(left, right, prompts, limit, samples, judge)
    form = FileFormat(format_name, parse_columns(columns))
    only_accuracy = comparisons is not None and options == MatchOptions()
    seed = config.seed if seed is None else seed
    result: dict[str, Any] = {"schema": 1, "run": str(run_dir.run), "base": config.model.source, "seed": seed}
    result |= {"match": None, "accuracy": None}
    try:
        with Progress(Console(stderr=True)) as progress:
            # The stop request is not armed: there is no work to save, so the first Ctrl-C ends the command.
            session = Session(config, run_dir, progress, StopRequest())
            run_dir.check_outputs(REWARD)
            data = _comparisons(run_dir, config, comparisons, form) if comparisons else None
            if not only_accuracy:
                match, notes = _match(lambda: session.prompts, config, run_dir, options, form, seed, progress)
                result["match"] = {"prompts_from": prompts or "the run's test prompts"}
                result["match"] |= _played(
                    session.load_roles(), match, config, run_dir.artifact(REWARD), progress, notes
                )
            if data:
                bootstrap = derive_seed(config.seed if only_accuracy else seed, "bootstrap")
                figures = _accuracy(session.load_roles(), config, data, run_dir.artifact(REWARD), bootstrap, progress)
                result["accuracy"] = {"file": comparisons, **figures}
    except KeyboardInterrupt:
        raise Stopped("Stopped; nothing was written.") from None
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


def _comparisons(run_dir: RunDir, config: Config, source: str, form: FileFormat) -> ComparisonData:
    """Read comparisons for the reward model. Raises `UserError` if the run has none."""
    run_adapter(run_dir, "reward", ADAPTER_STAGES["reward"])
    trained_on = config.rank.dataset
    form = form.or_of(config.rank, source)
    data = load_comparisons(source, form.name, config.data.skip_bad_rows, form.columns, FORMAT)
    if trained_on and same_file(trained_on, source):
        note = "The run's reward model was trained on most of these; the report has its accuracy on held-out ones."
        return replace(data, notes=[note, *data.notes])
    return data


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
