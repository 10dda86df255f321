"""`chat`: chat with a run's models and see the reward model's score of each answer."""

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lowrank_rlhf.commands.common import JsonOption, RunArgument, RunsOption, run_folder
from lowrank_rlhf.commands.terminal.chat_lines import answer_json, serve
from lowrank_rlhf.commands.terminal.chat_loop import Conversation, Settings, talk
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import Stopped, UserError
from lowrank_rlhf.evaluation.speakers import MAIN, speakers
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.session import Session
from lowrank_rlhf.sources.model_shape import find_shape

if TYPE_CHECKING:
    from lowrank_rlhf.evaluation.chat import ChatAnswer, ChatModels


def chat(
    run: RunArgument,
    runs: RunsOption = Path("runs"),
    speaks: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Model that answers: base, sft, policy, policy-last, round-1, step-40 (the policy at that step). "
            "Several with commas; `all`: base, sft and policy in turn. Default: the run's latest.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 picks the most probable token. Default: chat.temperature.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the most probable tokens of this share. Default: chat.top_p.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens per answer. Default: sample.max_new_tokens.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sampling. Default: the run's seed.")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Answer this prompt and exit.")] = None,
    as_json: JsonOption = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Read and write JSON lines, for programs; see chat_lines.py.")
    ] = False,
) -> None:
    """Chat with a run's models: base, SFT model, policies.

    Each answer comes with the reward model's score: 0 is the average SFT answer, 1 is one standard deviation above it.
    Answers go to stdout, everything else to stderr. If stdin is not a terminal, each line is a question. Ctrl-C stops
    an answer, twice quits; /help lists the commands.

    \b
    Examples:
      python -m lowrank_rlhf chat quickstart
      python -m lowrank_rlhf chat quickstart --as all --temperature 0
      python -m lowrank_rlhf chat quickstart --prompt "How do I boil an egg?" --json
    """
    if as_json and prompt is None:
        raise UserError("--json requires --prompt")
    if lines and prompt is not None:
        raise UserError("--lines reads questions from stdin; remove --prompt")
    run_dir = RunDir(run_folder(run, runs)).newest
    config = load_config(run_dir.run / "config.yaml")
    settings = _settings(config, run_dir, speaks, temperature, top_p, max_new_tokens, seed)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an answer may have characters that the encoding lacks
    try:
        models = _open(config, run_dir)
        if lines:
            serve(models, settings)
        elif prompt is None:
            talk(Conversation(models, settings))
        else:
            _answer_once(Conversation(models, settings), prompt, as_json)
    except KeyboardInterrupt:
        raise Stopped("Stopped.") from None


def _settings(
    config: Config,
    run_dir: RunDir,
    speaks: str | None,
    temperature: float | None,
    top_p: float | None,
    max_new_tokens: int | None,
    seed: int | None,
) -> Settings:
    voices = list(speakers(run_dir.run))
    speaks = speaks or [name for name in MAIN if name in voices][-1]
    if speaks != "all" and (absent := [name for name in speaks.split(",") if name not in voices]):
        raise UserError(f"--as: {run_dir.run} has no model `{absent[0]}`; it has {', '.join(voices)}")
    tokens = config.sample.max_new_tokens if max_new_tokens is None else max_new_tokens
    shape = find_shape(config.model)
    context = max(config.model.max_length, (shape and shape.positions) or 0)
    if tokens >= context:
        raise UserError(
            f"--max-new-tokens: must be less than the context of this run's model, {context} tokens, to leave room for "
            f"the question; got {tokens}"
        )
    if temperature is not None and not (temperature == 0 or 1e-6 <= temperature <= 1e6):
        raise UserError("--temperature: must be a finite number of at least 0, and from 1e-6 to 1e6 unless it is 0")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError("--top-p: must be above 0 and at most 1")
    return Settings(
        voices=voices,
        speaks=speaks,
        temperature=config.chat_temperature if temperature is None else temperature,
        max_new_tokens=tokens,
        max_prompt_tokens=context - tokens,
        seed=config.seed if seed is None else seed,
        top_p=config.chat.top_p if top_p is None else top_p,
    )


def _open(config: Config, run_dir: RunDir) -> "ChatModels":
    run_dir.check_outputs("adapters/sft", "adapters/policy", "adapters/reward")
    with Progress(Console(stderr=True)) as progress:
        session = Session(config, run_dir, progress, StopRequest())
        from lowrank_rlhf.evaluation.chat import ChatModels

        return ChatModels(session.load_roles(), run_dir)


def _answer_once(conversation: Conversation, prompt: str, as_json: bool) -> None:
    if not prompt.strip():
        raise UserError("--prompt: must not be empty")
    answers = conversation.ask(prompt, show=not as_json, labels=len(conversation.settings.answering) > 1)
    if not answers:
        raise UserError("--prompt: too long; not answered")
    if any(answer.stopped for answer in answers):
        raise Stopped("Stopped.")
    if as_json:
        print(json.dumps(_as_json(conversation.settings, prompt, answers), indent=2))


def _as_json(settings: Settings, prompt: str, answers: "list[ChatAnswer]") -> dict[str, Any]:
    return {
        "prompt": prompt,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
        "answers": [answer_json(answer) for answer in answers],
    }
