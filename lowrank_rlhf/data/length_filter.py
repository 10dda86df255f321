"""Find rows that do not fit the model's context, before a run computes. Imports no torch."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.comparisons import ComparisonData
from lowrank_rlhf.data.control_tokens import check_control_tokens, check_rendering, check_thoughts
from lowrank_rlhf.data.prompts import PromptData
from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.pairs import ordered_pairs
from lowrank_rlhf.run.records import Demonstration, Prompt
from lowrank_rlhf.sources.chat_template import ChatTemplate
from lowrank_rlhf.sources.control_tokens import ControlTokens
from lowrank_rlhf.sources.tokenizer import local_tokenizer

_SHOWN = 5
SHORTEST_ANSWER = 2
"""Tokens of an answer that the reward stage still reads: one, and the one that ends it."""
_AT_ONCE = 500
"""Rows whose responses are tokenized in one call; their ids are not kept."""
_FIX = "Raise model.max_length, shorten them, or leave them out: data.skip_too_long=true"


@dataclass(frozen=True)
class TextReader:
    """Functions that tokenize texts as the model reads them, with its chat template and control tokens."""

    prompt: Callable[[Prompt], int]
    """Number of tokens of a prompt up to the beginning of the answer."""
    responses: Callable[[Sequence[str]], Sequence[Sequence[int]]]
    """Token ids of each response, with the one that ends it."""
    template: ChatTemplate
    control_tokens: ControlTokens


def check_lengths(
    prompts: PromptData | None, comparisons: ComparisonData | None, config: Config, stages: Collection[str]
) -> list[str]:
    """Return the notes that the run would print, if the tokenizer is on this machine; fetch and load nothing.

    `stages` are those that have not run. Raises the `UserError` that the run would.
    """
    tokenizer = local_tokenizer(config.model)
    if tokenizer is None:
        return []
    reader = TextReader(
        prompt=lambda prompt: tokenizer.prompts([prompt.messages])[0],
        responses=tokenizer.answer_ids,
        template=tokenizer.template,
        control_tokens=tokenizer.control_tokens,
    )
    nothing = PromptData([], [], [], preferred=False, notes=[], places={})  # of a data set on the hub
    return fitting_data(prompts or nothing, comparisons, reader, config, stages)[1]


def fitting_data(
    prompts: PromptData,
    comparisons: ComparisonData | None,
    reader: TextReader,
    config: Config,
    stages: Collection[str],
) -> tuple[PromptData, list[str]]:
    """Return the prompts that fit the model, and notes on everything escaped or left out.

    `stages` are those that have not run: responses that none of them reads are not checked. Raises `UserError` for
    prompts with control tokens or rejected by the template, for responses whose thoughts would follow an empty think
    block, and as `fitting` and `check_comparisons` do.
    """
    tokens = reader.control_tokens
    notes = check_control_tokens(prompts, comparisons, tokens, config)
    check_rendering(prompts, comparisons, reader.template, tokens, config)
    found = fitting(prompts, reader, config)
    imitated = found.demonstrations if config.trains_on_demonstrations and "sft" in stages else []
    compared = comparisons if "reward" in stages else None
    check_thoughts(imitated, found.places, compared, reader.template, config)
    skipped = check_comparisons(compared, reader, config) if compared else []
    return found, [*notes, *found.notes[len(prompts.notes) :], *skipped]


def check_comparisons(comparisons: ComparisonData, reader: TextReader, config: Config) -> list[str]:
    """Return a note on comparisons whose answers are equal after the cut to `model.max_length`.

    Raises `UserError` if fewer than two prompts leave room for an answer, or keep a comparison: the reward stage needs
    two.
    """
    limit = config.model.max_length
    longest = {prompt.id: limit - reader.prompt(prompt) for prompt in comparisons.prompts}
    readable = [ranking for ranking in comparisons.rankings if longest[ranking.prompt_id] >= SHORTEST_ANSWER]
    if len({ranking.prompt_id for ranking in readable}) < 2:
        raise UserError(
            f"rank.dataset: no two of its {len(comparisons.prompts):,} prompts leave room for an answer within "
            f"model.max_length {limit}. Raise it"
        )
    texts = {answer.id: answer.text for answer in comparisons.answers}
    compared, pairs, same = set[str](), 0, 0
    for start in range(0, len(readable), _AT_ONCE):
        rankings = readable[start : start + _AT_ONCE]
        named = list({answer for ranking in rankings for tier in ranking.tiers for answer in tier})
        ids = dict(zip(named, reader.responses([texts[name] for name in named]), strict=True))
        for ranking in rankings:
            room = longest[ranking.prompt_id]
            equal = [equal_after_cut(ids[one], ids[other], room) for one, other, _ in ordered_pairs(ranking.tiers)]
            pairs, same = pairs + len(equal), same + sum(equal)
            if not all(equal):
                compared.add(ranking.prompt_id)
    found = f"{same:,} of {counted(pairs, 'comparison')}"
    if len(compared) < 2:
        raise UserError(
            f"rank.dataset: in {found} the answers are equal after the cut to model.max_length {limit}. "
            f"{counted(len(compared), 'prompt')} left to compare; stage reward requires 2. Raise model.max_length"
        )
    return [f"Left out {found}: the answers are equal after the cut to model.max_length {limit}."] if same else []


def equal_after_cut(answer: Sequence[int], other: Sequence[int], longest: int) -> bool:
    """Return True if two answers have the same first `longest` tokens: the reward stage reads no more of them."""
    return list(answer[:longest]) == list(other[:longest])


def fitting(data: PromptData, reader: TextReader, config: Config) -> PromptData:
    """Return the data without rows that are too long, with a note, and with the demonstrations that SFT uses.

    Only rows that the run's stages use are checked. Raises `UserError` with the rows that are too long unless
    `data.skip_too_long` is set, and if none would be left.
    """
    prompts = _long_prompts(data, reader, config)
    demonstrations, responses = _demonstrations(data, reader, config, prompts)
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
    answers = config.sample.max_new_tokens if sampling & set(config.active_stages) else 0
    return config.model.max_length - answers


def _long_prompts(data: PromptData, reader: TextReader, config: Config) -> dict[str, str]:
    """Return ids of prompts without room for an answer, with the reason; none if no stage samples."""
    room = room_for_prompts(config)
    long: dict[str, str] = {}
    if room == config.model.max_length:
        return long
    for prompt in [*data.training, *data.held_out]:
        tokens = reader.prompt(prompt)
        if tokens > room:
            long[prompt.id] = f"{tokens} tokens, and sample.max_new_tokens leaves {room}"
    return long


def _demonstrations(
    data: PromptData, reader: TextReader, config: Config, long_prompts: dict[str, str]
) -> tuple[list[Demonstration], dict[str, str]]:
    """Return the demonstrations that SFT uses, and the prompt ids of those that are too long, with the reason."""
    readable = [entry for entry in data.demonstrations if entry.prompt.id not in long_prompts]
    if not config.trains_on_demonstrations:
        return readable, {}
    taken: list[Demonstration] = []
    long: dict[str, str] = {}
    for entry, response in zip(readable, _response_ids(readable, reader), strict=True):
        if len(taken) == config.sft.examples:
            break
        tokens = reader.prompt(entry.prompt) + len(response)
        if tokens <= config.model.max_length:
            taken.append(entry)
        else:
            long[entry.prompt.id] = f"{tokens} tokens with its response"
    return taken, long


def _response_ids(demonstrations: Sequence[Demonstration], reader: TextReader) -> Iterator[Sequence[int]]:
    for start in range(0, len(demonstrations), _AT_ONCE):
        yield from reader.responses([entry.response for entry in demonstrations[start : start + _AT_ONCE]])


def _refusal(limit: str, long: dict[str, str], data: PromptData) -> str:
    names = [name for name in data.places if name in long]
    lines = [f"{data.places[name]} ({name}): {long[name]}" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        lines.append(f"and {len(names) - _SHOWN:,} more")
    return "\n".join([f"data.prompts: {limit}:", *(f"  {line}" for line in lines), _FIX])
