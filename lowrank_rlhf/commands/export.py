"""`export` and `push`: a run's models as folders for other programs, and on the Hugging Face hub."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from rich.console import Console

from lowrank_rlhf.commands.common import JsonOption, RunArgument, RunsOption, echo, run_folder
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.export.gguf_file import Type, check_tools
from lowrank_rlhf.export.push import list_upload, send
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest, memory
from lowrank_rlhf.session import Session


def export(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; must be new or empty.")],
    runs: RunsOption = Path("runs"),
    what: Annotated[
        Literal["merged", "gguf", "adapters", "reward", "prompts"],
        typer.Option(
            help="`merged`: one 16-bit model. `gguf`: one file for llama.cpp and Ollama. `adapters`: PEFT folders. "
            "`reward`: a sequence classifier. `prompts`: the prompts as Parquet."
        ),
    ] = "merged",
    role: Annotated[Literal["policy", "sft"] | None, typer.Option(help="Adapter to merge. Default: policy.")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16"] | None, typer.Option(help="Number format of the weights. Default: bfloat16.")
    ] = None,
    kind: Annotated[
        Literal["f16", "q8_0", "q4_k_m", "lora"] | None,
        typer.Option(
            "--type",
            help="Number format of a GGUF file, or `lora`: the adapter alone, for a base that is a GGUF file. "
            "Default: q8_0.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a trained model as a folder, with a model card.

    The folder appears only when it is complete, and nothing is overwritten. `merged` and `reward` are then loaded with
    transformers alone, and the difference from the run's own output is written into the card. `gguf` is converted by
    llama.cpp, which then answers 16 prompts from the file: exit code 1 if its log-probabilities differ from the run's
    by more than the bound on the card. It requires pip install "lowrank_rlhf[gguf]".

    \b
    Examples:
      python -m lowrank_rlhf export quickstart my-model
      python -m lowrank_rlhf export quickstart my-sft --role sft --dtype float16
      python -m lowrank_rlhf export quickstart my-gguf --what gguf --type q4_k_m
      python -m lowrank_rlhf export quickstart my-adapters --what adapters
      python -m lowrank_rlhf export quickstart my-reward --what reward --json
      python -m lowrank_rlhf export quickstart my-prompts --what prompts
    """
    _check_options(what, role, dtype, kind)
    run_dir = RunDir(run_folder(run, runs)).newest
    config = load_config(run_dir.run / "config.yaml")
    with StopRequest() as stop, Progress(Console(stderr=True)) as progress:
        options = _Options(what, role or "policy", dtype or "bfloat16", kind or "q8_0")
        summary = _export(run_dir, config, options, folder, progress, stop)
    if as_json:
        print(json.dumps({"folder": str(folder)} | summary, indent=2))
    else:
        for line in _describe(summary, folder):
            echo(line)
    if (found := summary.get("gguf_check")) and not found["passed"]:
        raise typer.Exit(int(ExitCode.FAILED))


class _Options(NamedTuple):
    what: str
    role: str
    dtype: str
    kind: Type


def _check_options(what: str, role: str | None, dtype: str | None, kind: str | None) -> None:
    if role and what not in ("merged", "gguf"):
        raise UserError(f"--role: requires --what merged or gguf, got --what {what}")
    if dtype and what in ("adapters", "prompts"):
        raise UserError(f"--dtype: requires --what merged or reward; {what} are copied unchanged")
    if dtype and what == "gguf":
        raise UserError("--dtype: requires --what merged or reward. Use --type for a GGUF file")
    if kind and what != "gguf":
        raise UserError(f"--type: requires --what gguf, got --what {what}")


def _export(
    run_dir: RunDir,
    config: Config,
    options: _Options,
    folder: Path,
    progress: Progress,
    stop: StopRequest,
) -> dict[str, Any]:
    from lowrank_rlhf.export import export as exports
    from lowrank_rlhf.export import gguf_export

    what, role, dtype, kind = options
    if what == "adapters":
        return exports.export_adapters(run_dir, config, folder)
    session = Session(config, run_dir, progress, stop)
    if what == "prompts":
        return exports.export_prompts(config, session.prompts, folder)
    if what == "gguf":
        check_tools(kind)
        gguf_export.check_lora(config.model, kind)
    exports.check_export(run_dir, "reward" if what == "reward" else role, folder)
    prompts = exports.first_prompts(run_dir, lambda: session.prompts.training)
    roles = session.load_roles()
    if what == "reward":
        return exports.export_reward(roles, run_dir, config, prompts, dtype, folder, progress, stop)
    if what == "gguf":
        return gguf_export.export_gguf(roles, run_dir, config, prompts, role, kind, folder, progress, stop)
    return exports.export_merged(roles, run_dir, config, prompts, role, dtype, folder, progress, stop)


def _describe(summary: dict[str, Any], folder: Path) -> list[str]:
    card = "; README.md is the model card" if "README.md" in summary["files"] else ""
    lines = [f"wrote {folder}: {memory(summary['bytes'])} in {len(summary['files'])} files{card}"]
    if found := summary.get("difference"):
        lines.append(
            f"difference from the run's own output, on {found['tokens']} tokens of answers to {found['prompts']} "
            f"prompts: log-probabilities {found['mean_logprob']:.2g} nats on average and {found['max_logprob']:.2g} at "
            f"most, KL {found['kl_per_token']:.2g} nats per token, "
            f"the most probable token is the same at {100 * found['same_best']:.1f} %"
        )
    if found := summary.get("gguf_check"):
        lines += _describe_check(found)
    if summary.get("unmeasured"):
        lines.append(f"the difference from the run's own output was not measured: {summary['unmeasured']}")
    if (gap := summary.get("max_score_difference")) is not None:
        lines.append(f"scores differ from the run's by {gap:.2g} standard deviations at most")
    if summary.get("pooling") == "mean":
        lines.append(
            "NOTE: this reward model's score is the mean over the answer's tokens, but the class outputs the last "
            "token's; the card has the code that computes the mean"
        )
    return lines


def _describe_check(found: dict[str, Any]) -> list[str]:
    figures = (
        f"llama.cpp against the run's own model, on {found['prompts']} prompts: {found['same_prompt_tokens']} with the "
        f"run's tokens, {found['same_answers']} with the same greedy answer; on {found['tokens']} tokens of these "
        f"answers the most probable token is the same at {100 * found['same_best']:.1f} %, and log-probabilities "
        f"differ by {found['mean_logprob']:.2g} nats on average and {found['max_logprob']:.2g} at most"
    )
    if found["passed"]:
        return [figures]
    bound = f"all prompts with the run's tokens, at most {found['bound']:g} nats on average"
    return [figures, f"FAILED: not within the bound ({bound}). Use another --type, or --what merged"]


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder written by `export`.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Created on the hub if it does not exist.")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it the files are only listed.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make the repository public. Default: private.")] = False,
) -> None:
    """Upload an export to the Hugging Face hub (--yes), or list it.

    Only files that `export` writes are uploaded. Log in first (`hf auth login`, or set HF_TOKEN): huggingface_hub reads
    the token, and it is never printed or saved here. To use a mirror, set HF_ENDPOINT.

    \b
    Examples:
      python -m lowrank_rlhf push my-model anna/my-model
      python -m lowrank_rlhf push my-model anna/my-model --yes
      python -m lowrank_rlhf push my-model anna/my-model --yes --public
    """
    if repository.count("/") != 1:
        raise UserError(f"{repository}: must be OWNER/NAME")
    upload = list_upload(folder)
    width = max(map(len, upload.files))
    for name in upload.files:
        echo(f"  {name:<{width}}  {memory((folder / name).stat().st_size)}")
    for name in upload.left_out:
        echo(f"  {name}: not uploaded: `export` does not write such a file")
    to = f"{'public' if public else 'private'} repository {repository}"
    if yes:
        echo(f"uploaded to the {to}: {send(upload, repository, public)}")
    else:
        echo(f"{memory(upload.size)} to upload to the {to}. Nothing was uploaded. Check README.md, then add --yes")
