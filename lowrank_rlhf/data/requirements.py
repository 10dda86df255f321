"""Amounts of data that the stages require, checked before any of them computes. Imports no torch."""

from collections.abc import Collection
from typing import NamedTuple

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.comparisons import ComparisonData
from lowrank_rlhf.data.length_filter import check_lengths
from lowrank_rlhf.data.prompts import PromptData
from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.data.right_answers import right_answers
from lowrank_rlhf.data.run_data import RunData, remote_sources
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.sources.model_shape import find_shape, length_notes

PROMPTS_OF_REWARD = 2
"""Prompts with comparisons: one to train on, and one held out."""


class Checked(NamedTuple):
    """Result of a check that found no error."""

    not_read: list[str]
    """Data sets that are not checked: those on the hub, and those of ModelScope that are not downloaded."""
    notes: list[str]
    """Notes that the run would print about its maximum length and about rows escaped or left out."""


def check_data(data: RunData, config: Config, stages: Collection[str] | None = None) -> None:
    """Read the data, and raise the `UserError` that the run would before its first stage; fetch no model.

    `stages` are those that have not run; all by default.
    """
    _check(data.prompts, data.comparisons, config, config.active_stages if stages is None else stages)


def check_local_data(config: Config) -> Checked:
    """Check the data on this machine as `check_data` does."""
    notes = _check(*RunData(config).on_this_machine(), config, config.active_stages)
    return Checked(remote_sources(config), [*length_notes(config.model, find_shape(config.model)), *notes])


def _check(
    prompts: PromptData | None, comparisons: ComparisonData | None, config: Config, stages: Collection[str]
) -> list[str]:
    check_amounts(prompts, comparisons, config)
    return check_lengths(prompts, comparisons, config, stages)


def check_amounts(prompts: PromptData | None, comparisons: ComparisonData | None, config: Config) -> None:
    """Raise `UserError` if a stage of the config would find too little data; None is not checked."""
    if prompts and config.trains_on_demonstrations and not prompts.demonstrations:
        raise UserError("data.prompts: no training prompt has a `response`. Add responses, or set sft.source: base")
    if prompts:
        right_answers(prompts, config.ppo.rewards)
    if "reward" not in config.active_stages:
        return
    if comparisons:
        compared, where = len({ranking.prompt_id for ranking in comparisons.rankings}), "rank.dataset"
        found = f"{counted(compared, 'prompt')} with comparisons, without those that data.held_out keeps"
    elif prompts is None or config.rank.source == "dataset":
        return
    else:
        compared, where = min(len(prompts.training), config.sample.prompts or len(prompts.training)), "data.prompts"
        found = f"{counted(compared, 'training prompt')} to rank answers to"
    if compared < PROMPTS_OF_REWARD:
        raise UserError(f"{where}: {found}; stage reward requires {PROMPTS_OF_REWARD}. Add prompts")
