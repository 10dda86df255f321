"""`evaluate`: any adapter against any other, and the reward model on any comparisons."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lowrank_rlhf.commands.common import JsonOption, RunArgument, RunsOption, echo, run_folder
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import DataConfig, FormatName
from lowrank_rlhf.data.comparisons import ComparisonData, load_comparisons
from lowrank_rlhf.data.prompts import load_prompt_data
from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.data.turns import prompt_key
from lowrank_rlhf.errors import Stopped, UserError
from lowrank_rlhf.evaluation.answer_pair import COMMAND_SIDES
from lowrank_rlhf.evaluation.compared_models import Match, compared_model, run_adapter
from lowrank_rlhf.evaluation.run_judges import open_judge
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.preferences.judges.loading import ENDPOINT, Judge
from lowrank_rlhf.reports.evaluation_text import evaluation_text
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import json_text, sha256, write_atomic, write_json_atomic
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Prompt, read_jsonl
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import STAGES

ADAPTER_STAGES = {
    output.removeprefix("adapters/"): stage.name
    for stage in STAGES
    for output in stage.writes
    if output.startswith("adapters/")
}
"""Stage that writes each adapter."""
ACCURACY_FIGURES = (
    "accuracy",
    "accuracy_interval",
    "longer_wins",
    "longer_wins_interval",
    "ece",
    "length_correlation",
)
MAY_CHANGE = ("model.", "sample.", "rank.endpoint.", "evaluate.", "data.skip_bad_rows=")
"""Settings that neither decide which prompts are held out nor what the run's adapters are."""


def evaluate(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of model, sample, rank.endpoint or evaluate, or data.skip_bad_rows, to change.",
        ),
    ] = None,
    runs: RunsOption = Path("runs"),
    left: Annotated[
        str | None, typer.Option(metavar="MODEL", help="base, sft, policy, policy-last, or an adapter's folder [sft].")
    ] = None,
    right: Annotated[str | None, typer.Option(metavar="MODEL", help="Model to compare it with [policy].")] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Prompts in any format of data.prompts [the held-out ones].")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Use the first N prompts only.")] = None,
    samples: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Answers of each model to each prompt [1].")
    ] = None,
    judge: Annotated[str | None, typer.Option(metavar="JUDGE", help="Any value of rank.judge [the run's].")] = None,
    comparisons: Annotated[
        str | None, typer.Option(metavar="FILE", help="Measure the reward model's accuracy on these comparisons.")
    ] = None,
    format_name: Annotated[
        FormatName | None, typer.Option("--format", help="Format of FILE, if its rows do not show it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", min=0, help="Seed of sampling and intervals [the run's].")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Save all figures and answers, and the text as FILE.txt.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two adapters, or test a run's reward model.

    Both models answer the same prompts with the run's sampling settings; the judge decides which answer is better, or
    the reward model if there is no judge. Win rates are the right model's, with 95 % bootstrap intervals over
    prompts, as judged and as if all answers were equally long (Dubois et al. 2024). With --comparisons alone only the
    reward model is tested. The run itself is not changed.

    \b
    Examples:
      python -m lowrank_rlhf evaluate quickstart
      python -m lowrank_rlhf evaluate quickstart --left base --right sft --limit 32
      python -m lowrank_rlhf evaluate quickstart --right ../other/adapters/policy --prompts my.jsonl --samples 4
      python -m lowrank_rlhf evaluate quickstart --judge plain-language --out plain.json
      python -m lowrank_rlhf evaluate quickstart model.max_length=512 --comparisons pairs.json --json
    """
    _check_target(out)
    run_dir = RunDir(run_folder(run, runs))
    config = load_config(run_dir.path / "config.yaml", _allowed(overrides or [], judge))
    only_accuracy = comparisons is not None and {left, right, prompts, limit, samples, judge} == {None}
    seed = config.seed if seed is None else seed
    try:
        with Progress(Console(stderr=True)) as progress:
            # The stop request is never armed: there is no work to save, and the first Ctrl-C ends it at once.
            session = Session(config, run_dir, progress, StopRequest())
            data = _comparisons(session, comparisons, format_name) if comparisons else None
            result = {"schema": 1, "run": str(run_dir.path), "base": config.model.source, "seed": seed}
            result |= {"match": None, "accuracy": None}
            if not only_accuracy:
                chosen = _prompts(session, prompts, format_name)[:limit]
                baseline = compared_model(run_dir, left or "sft", ADAPTER_STAGES)
                candidate = compared_model(run_dir, right or "policy", ADAPTER_STAGES)
                notes = _known(session, chosen) if prompts else []
                match = Match(baseline, candidate, chosen, samples or 1, seed, _judge(session, judge))
                result["match"] = {"prompts_from": prompts or "held out by the run", **_played(session, match, notes)}
            if data:
                bootstrap = derive_seed(config.seed if only_accuracy else seed, "bootstrap")
                result["accuracy"] = {"file": comparisons, **_accuracy(session, data, bootstrap)}
    except KeyboardInterrupt:
        raise Stopped("Stopped; nothing was written.") from None
    _show(result, out, as_json)


def _allowed(overrides: list[str], judge: str | None) -> list[str]:
    """Return the settings to change; refuse those that would change which prompts are held out."""
    wrong = [override for override in overrides if not override.startswith(MAY_CHANGE)]
    if wrong:
        *sections, last = (key[:-1] for key in MAY_CHANGE)
        raise UserError(f'"{wrong[0]}": only settings of {", ".join(sections)}, and {last}, can change here')
    return [*overrides, f"evaluate.second_judge={ENDPOINT}"] if judge == ENDPOINT else overrides


def _check_target(out: Path | None) -> None:
    """Check before hours of work that the result can be written."""
    if out is None:
        return
    if out.suffix != ".json":
        raise UserError(f"--out {out}: name a file that ends in .json; the text goes beside it, into the same name.txt")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"--out {out}: cannot be written")


def _comparisons(session: Session, source: str, format_name: FormatName | None) -> ComparisonData:
    run_adapter(session.run_dir, "reward", ADAPTER_STAGES["reward"])
    data = load_comparisons(source, format_name, session.config.data.skip_bad_rows)
    learnt = session.config.rank.dataset
    if learnt and (learnt == source or _same_file(Path(learnt), Path(source))):
        note = "The run's reward model learnt from most of these: the accuracy on its held-out ones is in the report."
        return replace(data, notes=[note, *data.notes])
    return data


def _same_file(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and sha256(one) == sha256(other)


def _prompts(session: Session, source: str | None, format_name: FormatName | None) -> list[Prompt]:
    if source is None:
        held_out = session.prompts[1]
        if not held_out:
            raise UserError("this run has no held-out prompts (data.held_out is 0); set --prompts FILE")
        return held_out
    skipped = session.config.data.skip_bad_rows
    data = load_prompt_data(
        DataConfig(prompts=source, format=format_name, held_out=0, skip_bad_rows=skipped), session.config.seed
    )
    for note in data.notes:
        session.progress.say(f"  {note}")
    return data.training


def _known(session: Session, prompts: Sequence[Prompt]) -> list[str]:
    """Return a note if the run trained on some of these prompts, or if that is unknown."""
    ranked = session.run_dir.artifact("prompts.jsonl")
    try:
        training = [*session.prompts[0], *(read_jsonl(ranked, Prompt) if ranked.is_file() else ())]
    except UserError as error:
        return [f"whether the run trained on these prompts is not known: {str(error).splitlines()[0]}"]
    keys = {prompt_key(prompt.messages) for prompt in training}
    count = sum(prompt_key(prompt.messages) in keys for prompt in prompts)
    if not count:
        return []
    return [f"the run trained on {count} of these {counted(len(prompts), 'prompt')}; new ones may fare worse"]


def _judge(session: Session, name: str | None) -> Judge | None:
    """Open the given judge, or the run's; None if the reward model decides."""
    rank = session.config.rank
    name = name or (rank.judge if rank.source == "judge" else None)
    if name:
        return open_judge(name, rank, session.run_dir.path, session.progress, session.stop)
    if not session.run_dir.artifact("adapters/reward").is_dir():
        raise UserError("no judge: this run has no reward model yet; set --judge")
    return None


def _played(session: Session, match: Match, notes: Sequence[str]) -> dict[str, Any]:
    """Return figures, notes and answers of the match as JSON."""
    from lowrank_rlhf.evaluation.match import run_match
    from lowrank_rlhf.evaluation.reward_metrics import load_reward_model

    folder = session.run_dir.artifact("adapters/reward")
    scale = load_reward_model(session.load_roles(), folder) if folder.is_dir() else None
    result = run_match(session.load_roles(), match, scale, session.config, session.progress, session.stop)
    return {
        "left": match.left.name,
        "right": match.right.name,
        **result.figures.json(COMMAND_SIDES),
        "notes": [*notes, *result.notes],
        "answers": [pair.row(COMMAND_SIDES, lengths=True) for pair in result.pairs],
    }


def _accuracy(session: Session, data: ComparisonData, seed: int) -> dict[str, Any]:
    """Return the reward model's accuracy on every comparison that fits `model.max_length`, as JSON."""
    from lowrank_rlhf.evaluation import reward_metrics
    from lowrank_rlhf.training.reward_data import make_groups

    config = session.config
    scale = reward_metrics.load_reward_model(session.load_roles(), session.run_dir.artifact("adapters/reward"))
    pairs = [pair for ranking in data.rankings for pair in compare(ranking)]
    groups, note = make_groups(
        session.load_roles().base, session.config.model.max_length, data.prompts, data.answers, pairs, data.rankings
    )
    if not groups:
        raise UserError(
            f"no prompt of the comparisons fits model.max_length {config.model.max_length}; "
            "add model.max_length=... to the command"
        )
    scores = reward_metrics.score_groups(session.load_roles(), groups, scale.pooling, session.progress)
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


def _show(result: dict[str, Any], out: Path | None, as_json: bool) -> None:
    text = evaluation_text(result)
    if out:
        try:
            write_json_atomic(out, result)
            write_atomic(out.with_suffix(".txt"), text)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    sys.stdout.write(json_text(result) if as_json else text)
    if out and not as_json:
        echo(f"\nSaved as {out}, and this text as {out.with_suffix('.txt')}")
