"""Prompts and demonstrations for which the model has room: told before anything is computed. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.prompts import PromptData
from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.records import Demonstration, Prompt
from lowrank_rlhf.sources.tokenizer import local_tokenizer

_SHOWN = 5
_MEND = "Raise model.max_length, or shorten them; or leave them out: data.skip_too_long=true"


@dataclass(frozen=True)
class TokenCounter:
    """How many tokens the model reads."""

    prompt: Callable[[Prompt], int]
    """Of a prompt, up to where the answer begins."""
    response: Callable[[str], int]
    """Of a response, with the token that ends it."""


def check_lengths(data: RunData, config: Config) -> None:
    """Raise `UserError` as the run will, if the tokenizer is on this machine already; nothing is fetched or loaded."""
    tokenizer = local_tokenizer(config.model)
    if tokenizer:
        count = TokenCounter(
            prompt=lambda prompt: tokenizer.prompts([prompt.messages])[0],
            response=lambda text: tokenizer.answers([text])[0],
        )
        fitting(data.prompts, count, config)


def fitting(data: PromptData, count: TokenCounter, config: Config) -> PromptData:
    """The data without what is too long, with a note on it; demonstrations as many as SFT takes.

    Only what the run's stages use is looked at. Raises `UserError` that names the too long ones, unless
    `data.skip_too_long` is set; and where none would be left.
    """
    prompts = _long_prompts(data, count, config)
    demonstrations, responses = _demonstrations(data, count, config, prompts)
    kept = replace(
        data,
        training=[prompt for prompt in data.training if prompt.id not in prompts],
        held_out=[prompt for prompt in data.held_out if prompt.id not in prompts],
        demonstrations=demonstrations,
    )
    if not prompts and not responses:
        return kept
    found = ((len(prompts), "prompt"), (len(responses), "response"))
    limit = f"{' and '.join(counted(*pair) for pair in found if pair[0])} too long for model.max_length"
    if not config.data.skip_too_long:
        raise UserError(_refusal(f"{limit} {config.model.max_length}", prompts | responses, data))
    if not kept.training or (data.held_out and not kept.held_out):
        whose = "held-out" if kept.training else "training"
        raise UserError(f"data.skip_too_long: leaves no {whose} prompt: {limit} {config.model.max_length}; raise it")
    left = f"{counted(len(kept.training), 'training prompt')} and {len(kept.held_out):,} held out"
    return replace(kept, notes=[*data.notes, f"Left out {limit} {config.model.max_length}; {left} are left."])


def room_for_prompts(config: Config) -> int:
    """Tokens that a prompt may have: the longest answer is to fit after it, where any stage samples answers."""
    sampling = {"ppo", "evaluate"} if config.rank.source == "dataset" else {"sample", "ppo", "evaluate"}
    answers = config.sample.max_new_tokens if sampling & set(config.stages) else 0
    return config.model.max_length - answers


def _long_prompts(data: PromptData, count: TokenCounter, config: Config) -> dict[str, str]:
    """Ids of the prompts that leave no room for an answer, and why; none where no stage samples."""
    room = room_for_prompts(config)
    long: dict[str, str] = {}
    if room == config.model.max_length:
        return long
    for prompt in [*data.training, *data.held_out]:
        tokens = count.prompt(prompt)
        if tokens > room:
            long[prompt.id] = f"{tokens} tokens, and sample.max_new_tokens leaves {room}"
    return long


def _demonstrations(
    data: PromptData, count: TokenCounter, config: Config, long_prompts: dict[str, str]
) -> tuple[list[Demonstration], dict[str, str]]:
    """Those that SFT takes, and the prompts' ids of those with too long a response, and why."""
    readable = [entry for entry in data.demonstrations if entry.prompt.id not in long_prompts]
    if "sft" not in config.stages or config.sft.source != "train":
        return readable, {}
    taken: list[Demonstration] = []
    long: dict[str, str] = {}
    for entry in readable:
        if len(taken) == config.sft.examples:
            break
        tokens = count.prompt(entry.prompt) + count.response(entry.response)
        if tokens <= config.model.max_length:
            taken.append(entry)
        else:
            long[entry.prompt.id] = f"{tokens} tokens with its response"
    return taken, long


def _refusal(limit: str, long: dict[str, str], data: PromptData) -> str:
    names = [name for name in data.places if name in long]
    lines = [f"{data.places[name]} ({name}): {long[name]}" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        lines.append(f"and {len(names) - _SHOWN:,} more")
    return "\n".join([f"data.prompts: {limit}:", *(f"  {line}" for line in lines), _MEND])
