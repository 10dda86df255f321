"""Find prompts and demonstrations longer than the model's context before a run computes. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.comparisons import ComparisonData
from lowrank_rlhf.data.control_tokens import check_control_tokens, check_rendering
from lowrank_rlhf.data.prompts import PromptData
from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.records import Demonstration, Prompt
from lowrank_rlhf.sources.tokenizer import local_tokenizer

_SHOWN = 5
_SHORTEST_ANSWER = 2
"""Tokens of an answer that the reward stage still reads: one, and the one that ends it."""
_FIX = "Raise model.max_length, shorten them, or leave them out: data.skip_too_long=true"


@dataclass(frozen=True)
class TokenCounter:
    """Functions that count tokens as the model reads them."""

    prompt: Callable[[Prompt], int]
    """Tokens of a prompt up to the beginning of the answer."""
    response: Callable[[str], int]
    """Tokens of a response, with the one that ends it."""


def check_lengths(prompts: PromptData | None, comparisons: ComparisonData | None, config: Config) -> None:
    """Raise the `UserError` that the run would, if the tokenizer is on this machine; fetch and load nothing."""
    tokenizer = local_tokenizer(config.model)
    if tokenizer:
        check_control_tokens(prompts, comparisons, tokenizer.control_tokens, config)
        check_rendering(prompts, comparisons, tokenizer.template, tokenizer.control_tokens, config)
        count = TokenCounter(
            prompt=lambda prompt: tokenizer.prompts([prompt.messages])[0],
            response=lambda text: tokenizer.answers([text])[0],
        )
        if prompts:
            fitting(prompts, count, config)
        check_comparisons(comparisons, count, config)


def check_comparisons(comparisons: ComparisonData | None, count: TokenCounter, config: Config) -> None:
    """Raise `UserError` if fewer than two compared prompts leave room for an answer: the reward stage needs two."""
    if comparisons is None or "reward" not in config.stages:
        return
    room = config.model.max_length - _SHORTEST_ANSWER
    fitting = (prompt for prompt in comparisons.prompts if count.prompt(prompt) <= room)
    if len(list(islice(fitting, 2))) < 2:
        raise UserError(
            f"rank.dataset: no two of its {len(comparisons.prompts):,} prompts leave room for an answer within "
            f"model.max_length {config.model.max_length}. Raise it"
        )


def fitting(data: PromptData, count: TokenCounter, config: Config) -> PromptData:
    """Return the data without rows that are too long, with a note, and with the demonstrations that SFT uses.

    Only rows that the run's stages use are checked. Raises `UserError` with the rows that are too long unless
    `data.skip_too_long` is set, and if none would be left.
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
    uses = ("training", "validation", "test") if data.splits().divided else ("training", "held-out", "held-out")
    for use, before, after in zip(uses, data.splits(), kept.splits(), strict=True):
        if before and not after:
            raise UserError(f"data.skip_too_long: leaves no {use} prompt: {limit} {config.model.max_length}. Raise it")
    left = f"{counted(len(kept.training), 'training prompt')} and {len(kept.held_out):,} held out"
    return replace(kept, notes=[*data.notes, f"Left out {limit} {config.model.max_length}; {left} are left."])


def room_for_prompts(config: Config) -> int:
    """Return the maximum length of a prompt in tokens: if a stage samples, the longest answer must fit after it."""
    sampling = {"ppo", "evaluate"} if config.rank.source == "dataset" else {"sample", "ppo", "evaluate"}
    answers = config.sample.max_new_tokens if sampling & set(config.stages) else 0
    return config.model.max_length - answers


def _long_prompts(data: PromptData, count: TokenCounter, config: Config) -> dict[str, str]:
    """Return ids of prompts without room for an answer, with the reason; none if no stage samples."""
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
    """Return the demonstrations that SFT uses, and the prompt ids of those that are too long, with the reason."""
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
    return "\n".join([f"data.prompts: {limit}:", *(f"  {line}" for line in lines), _FIX])
