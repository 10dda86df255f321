"""Amounts of a plan's data, assumed for data that is not downloaded yet, so that there are figures before."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.readers.hub import SCHEME, from_cache, parse_source
from lowrank_rlhf.data.readers.sources import read_rows
from lowrank_rlhf.data.requirements import check_data, check_local_data
from lowrank_rlhf.data.run_data import RunData, data_sources
from lowrank_rlhf.planner.compute_cost import ANSWER_SHARE, Amounts, amounts
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.sources.tokenizer import local_tokenizer

_PUBLISHED = {
    ("trl-lib/tldr", "train"): 116_722,
    ("trl-lib/tldr-preference", "train"): 92_858,
}
"""Rows of the presets' whole splits: Huang et al. 2024 (arXiv 2403.17031), section 3.1."""
_UNKNOWN = 1000
"""Rows of other data sets: a number to scale the time from."""
_FIRST_ROWS = re.compile(r"[\w.-]+\[:(\d+)\]")


@dataclass(frozen=True)
class AssumedRows:
    """Number of rows of a data set that is not downloaded."""

    source: str
    rows: int
    basis: Literal["asked for", "published", "assumed"]


@dataclass(frozen=True)
class PlannedAmounts:
    """Amounts of a plan, and what they rest on."""

    counts: Amounts
    by_tokenizer: bool
    """True if the model's tokenizer measured the lengths; otherwise they are estimated from bytes, or assumed."""
    unread: tuple[AssumedRows, ...] = ()
    """Data sets that are not downloaded; with any, prompts are assumed to be as long as the config allows."""


def planned_amounts(config: Config, run_dir: RunDir, data: RunData, stages: Sequence[str] = ()) -> PlannedAmounts:
    """Return the amounts of the data; without its `downloads` they are assumed if any of it is missing here.

    Raises:
        UserError: The data on this machine is invalid, for `stages` if some are given.
    """
    if not (unread := [assumed_rows(source) for source in data.missing()]):
        measure = local_tokenizer(config.model)
        if stages:
            check_data(data, config, stages)
        return PlannedAmounts(amounts(config, run_dir, data, measure), by_tokenizer=measure is not None)
    if stages:
        check_local_data(config)
    rows = {found.source: found.rows for found in unread}
    rows |= {source: _count(source) for source in data_sources(config) if source not in rows}
    return PlannedAmounts(assumed_amounts(config, rows), by_tokenizer=False, unread=tuple(unread))


def assumed_amounts(config: Config, rows: Mapping[str, int]) -> Amounts:
    """Return amounts from the rows of each data source: prompts that fill `model.max_length`.

    The longest rows are as long as the config allows, so the memory is an upper bound; the mean prompt is half as long.
    """
    compared = rows[config.rank.dataset] if config.rank.dataset else 0
    held_out, answer = config.data.held_out, float(config.sample.max_new_tokens)
    training, longest = max(1, rows[config.data.prompts] - held_out), config.model.max_length - answer
    ranked = min(training, config.sample.prompts or training) * config.sample.answers_per_prompt
    return Amounts(
        training=training,
        validation=config.data.validation_prompts,
        test=held_out - config.data.validation_prompts,
        demonstrations=min(training, config.sft.examples or training) if config.sft.source == "train" else 0,
        answers=2 * compared or ranked,
        prompt_tokens=longest / 2,
        longest_prompt=longest,
        answer_tokens=ANSWER_SHARE * answer,
        longest_demonstration=config.model.max_length,
    )


def assumed_rows(source: str) -> AssumedRows:
    """Return the rows that a source asks for (`train[:8000]`), otherwise published ones, otherwise 1,000."""
    if source.startswith(SCHEME):
        wanted = parse_source(source)
        if first := _FIRST_ROWS.fullmatch(wanted.split):
            return AssumedRows(source, int(first[1]), "asked for")
        if published := _PUBLISHED.get((wanted.name, wanted.split)):
            return AssumedRows(source, published, "published")
    return AssumedRows(source, _UNKNOWN, "assumed")


def _count(source: str) -> int:
    """Count the rows of a source that is on this machine."""
    with from_cache():
        return len(read_rows(source))
