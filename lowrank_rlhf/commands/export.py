"""`export`: a run's models for the world outside."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from lowrank_rlhf.commands.common import JsonOption, RunArgument, RunsOption, echo, run_folder
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest, memory
from lowrank_rlhf.session import Session


def export(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; must be new, or empty.")],
    runs: RunsOption = Path("runs"),
    what: Annotated[
        Literal["merged", "adapters", "reward", "prompts"],
        typer.Option(
            help="`merged`: one plain 16-bit model. `adapters`: the PEFT folders. `reward`: a sequence classifier. "
            "`prompts`: the prompts as Parquet."
        ),
    ] = "merged",
    role: Annotated[
        Literal["policy", "sft"] | None, typer.Option(help="Whose adapter is merged; policy by default.")
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16"] | None, typer.Option(help="Number format of the weights; bfloat16 by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a trained model as a folder, with a model card.

    The folder appears whole or not at all, and nothing is overwritten. After `merged` and `reward` the folder is
    loaded again by transformers alone, and the difference to the run's own output goes into the card.

    \b
    Examples:
      python -m lowrank_rlhf export quickstart my-model
      python -m lowrank_rlhf export quickstart my-sft --role sft --dtype float16
      python -m lowrank_rlhf export quickstart my-adapters --what adapters
      python -m lowrank_rlhf export quickstart my-reward --what reward --json
      python -m lowrank_rlhf export quickstart my-prompts --what prompts
    """
    _check_options(what, role, dtype)
    run_dir = RunDir(run_folder(run, runs))
    config = load_config(run_dir.path / "config.yaml")
    with StopRequest() as stop, Progress(Console(stderr=True)) as progress:
        summary = _export(run_dir, config, what, role or "policy", dtype or "bfloat16", folder, progress, stop)
    if as_json:
        print(json.dumps({"folder": str(folder)} | summary, indent=2))
        return
    for line in _in_words(summary, folder):
        echo(line)


def _check_options(what: str, role: str | None, dtype: str | None) -> None:
    if role and what != "merged":
        raise UserError(f"--role: goes with --what merged only, not with {what}")
    if dtype and what in ("adapters", "prompts"):
        raise UserError(f"--dtype: {what} are copied as they are; it goes with --what merged and reward")


def _export(
    run_dir: RunDir,
    config: Config,
    what: str,
    role: str,
    dtype: str,
    folder: Path,
    progress: Progress,
    stop: StopRequest,
) -> dict[str, Any]:
    from lowrank_rlhf.export import export as exports

    if what == "adapters":
        return exports.export_adapters(run_dir, config, folder)
    session = Session(config, run_dir, progress, stop)
    if what == "prompts":
        return exports.export_prompts(config, *session.prompts, folder)
    exports.check_export(run_dir, "reward" if what == "reward" else role, folder)
    prompts = exports.first_prompts(run_dir, lambda: session.prompts[0])
    roles = session.load_roles()
    if what == "reward":
        return exports.export_reward(roles, run_dir, config, prompts, dtype, folder, progress, stop)
    return exports.export_merged(roles, run_dir, config, prompts, role, dtype, folder, progress, stop)


def _in_words(summary: dict[str, Any], folder: Path) -> list[str]:
    card = "; README.md is its card" if "README.md" in summary["files"] else ""
    lines = [f"wrote {folder}: {memory(summary['bytes'])} in {len(summary['files'])} files{card}"]
    if found := summary.get("difference"):
        lines.append(
            f"against the run's own output, on {found['tokens']} tokens of answers to {found['prompts']} prompts: "
            f"log-probabilities differ by {found['mean_logprob']:.2g} nats on average and {found['max_logprob']:.2g} "
            f"at most, KL {found['kl_per_token']:.2g} nats per token, "
            f"the most probable token is the same at {100 * found['same_best']:.1f} %"
        )
    if summary.get("unmeasured"):
        lines.append(f"the difference to the run's own output was not measured: {summary['unmeasured']}")
    if (gap := summary.get("max_score_difference")) is not None:
        lines.append(f"scores differ from the run's by {gap:.2g} deviations at most")
    if summary.get("pooling") == "mean":
        lines.append(
            "NOTE: this reward model's score is a mean over the answer's tokens, which the class's own output is not; "
            "the card shows the lines that read it right"
        )
    return lines
