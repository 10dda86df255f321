"""Amounts of a plan's data, assumed where the hub cannot be reached, so that there are figures before a download."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.readers.hub import SCHEME, parse_source
from lowrank_rlhf.data.requirements import check_data
from lowrank_rlhf.data.run_data import RunData, hub_sources
from lowrank_rlhf.errors import HubUnreachable
from lowrank_rlhf.planner.compute_cost import ANSWER_SHARE, Amounts, amounts
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.sources.tokenizer import local_tokenizer

_ROWS = {
    ("trl-lib/tldr", "train"): 116_722,
    ("trl-lib/tldr-preference", "train"): 92_858,
}
"""Published rows of the presets' whole splits: Huang et al. 2024 (arXiv 2403.17031), section 3.1."""
_FIRST_ROWS = re.compile(r"[\w.-]+\[:(\d+)\]")


@dataclass(frozen=True)
class PlannedAmounts:
    """Amounts of a plan, and what they rest on."""

    counts: Amounts
    by_tokenizer: bool
    """True if the model's tokenizer measured the lengths; otherwise they are estimated from bytes, or assumed."""
    unread: tuple[str, ...] = ()
    """Hub sources that could not be read: rows as published, the longest that the config allows."""


def planned_amounts(config: Config, run_dir: RunDir, data: RunData, stages: Sequence[str] = ()) -> PlannedAmounts:
    """Return the amounts of the data, assumed if the hub cannot be reached.

    Raises:
        UserError: The data is invalid, for `stages` if some are given.
    """
    measure = local_tokenizer(config.model)
    try:
        if stages:
            check_data(data, config, stages)
        return PlannedAmounts(amounts(config, run_dir, data, measure), by_tokenizer=measure is not None)
    except HubUnreachable:
        counts = assumed_amounts(config)
        if counts is None:
            raise
        return PlannedAmounts(counts, by_tokenizer=False, unread=tuple(hub_sources(config)))


def assumed_amounts(config: Config) -> Amounts | None:
    """Return amounts without reading data: prompts that fill `model.max_length`; None if a number of rows is unknown.

    The longest rows are as long as the config allows, so the memory is an upper bound; the mean prompt is half as long.
    """
    rows = known_rows(config.data.prompts)
    compared = known_rows(config.rank.dataset) if config.rank.dataset else 0
    if rows is None or compared is None:
        return None
    held_out, answer = config.data.held_out, float(config.sample.max_new_tokens)
    training, longest = max(1, rows - held_out), config.model.max_length - answer
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


def known_rows(source: str) -> int | None:
    """Return the rows of a hub source: those that it asks for (`train[:8000]`), or published ones; None if unknown."""
    if not source.startswith(SCHEME):
        return None
    wanted = parse_source(source)
    first = _FIRST_ROWS.fullmatch(wanted.split)
    return int(first[1]) if first else _ROWS.get((wanted.name, wanted.split))
