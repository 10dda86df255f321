"""Load prompts and demonstrations from the built-in set, a file or the hub, and split them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lowrank_rlhf.config.schema import DataConfig
from lowrank_rlhf.data.loading import Located, load
from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.data.turns import prompt_key
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.run.records import Demonstration, Prompt


class Splits(NamedTuple):
    """Prompts of a run by use, each list in seeded order."""

    training: list[Prompt]
    validation: list[Prompt]
    """Held-out prompts for the evaluations during training."""
    test: list[Prompt]
    """Held-out prompts for the final evaluation: the validation prompts if held-out prompts are not divided."""

    @property
    def held_out(self) -> list[Prompt]:
        """Prompts kept out of all training."""
        return [*self.validation, *self.test] if self.divided else self.test

    @property
    def divided(self) -> bool:
        """True if no prompt is in both validation and test."""
        return self.validation != self.test


@dataclass(frozen=True)
class PromptData:
    """Prompts and demonstrations after the split."""

    training: list[Prompt]
    held_out: list[Prompt]
    demonstrations: list[Demonstration]
    """Demonstrations of training prompts, in the same order."""
    preferred: bool
    """True if the demonstrations are the best of several answers."""
    notes: list[str]
    """Sentences about rows read and dropped."""
    places: dict[str, str]
    """File and line of each prompt by its id, in the file's order."""
    fields: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Columns of each prompt's row by the prompt's id."""
    validation: frozenset[str] = frozenset()
    """Ids of the held-out prompts for validation; empty if held-out prompts are not divided."""

    def splits(self, divided: bool = True) -> Splits:
        """Return the prompts by use; with `divided=False` all held-out prompts serve validation and test."""
        if not (divided and self.validation):
            return Splits(self.training, self.held_out, self.held_out)
        validation = [prompt for prompt in self.held_out if prompt.id in self.validation]
        return Splits(
            self.training, validation, [prompt for prompt in self.held_out if prompt.id not in self.validation]
        )

    @property
    def training_notes(self) -> list[str]:
        """Sentences about the training data."""
        prompts, shown = counted(len(self.training), "training prompt"), f"{len(self.demonstrations):,}"
        preferred = ["The demonstrations are the preferred answers."] if self.preferred and self.demonstrations else []
        return [*preferred, f"{prompts}, {shown} of them with a response."]


@dataclass(frozen=True)
class _PromptEntry:
    where: str
    prompt: Prompt
    response: str | None
    fields: Mapping[str, object]


def load_prompts(config: DataConfig, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Return training prompts and held-out prompts, each in seeded order.

    Prompts without a demonstration are held out first.
    """
    data = load_prompt_data(config, seed)
    return data.training, data.held_out


def load_prompt_data(config: DataConfig, seed: int, setting: str = "data.format", imitated: bool = True) -> PromptData:
    """Load `data.prompts`, remove duplicates and split. Raises `UserError` with the place of an invalid row.

    `setting` is the key or option of `data.format` in messages; `imitated` is False if no stage reads the responses.
    """
    loaded = load(config.prompts, setting, config.format, columns=config.columns, imitated=imitated)
    loaded.refuse_bad(config.skip_bad_rows)
    every = [_entry(located) for located in loaded.located]
    entries = _without_duplicates(every)
    _check_ids(entries)
    _check_number(config, len(entries))
    places = {entry.prompt.id: entry.where for entry in entries}
    random.Random(seed).shuffle(entries)
    # A stable sort: prompts without a demonstration first, in shuffled order, so that sft keeps the demonstrations.
    candidates = sorted(entries, key=lambda entry: entry.response is not None)
    chosen = {entry.prompt.id for entry in candidates[: config.held_out]}
    training = [entry for entry in entries if entry.prompt.id not in chosen]
    demonstrations = [
        Demonstration(prompt=entry.prompt, response=entry.response) for entry in training if entry.response is not None
    ]
    held_out = [entry.prompt.model_copy(update={"held_out": True}) for entry in entries if entry.prompt.id in chosen]
    notes = list(loaded.notes)
    if len(entries) < len(every):
        notes.append(f"Left out {counted(len(every) - len(entries), 'row')} whose prompt another row has too.")
    return PromptData(
        [entry.prompt for entry in training],
        held_out,
        demonstrations,
        loaded.format.ordered,
        notes,
        places,
        {entry.prompt.id: entry.fields for entry in entries},
        frozenset(prompt.id for prompt in held_out[: config.validation_prompts]),
    )


def _entry(located: Located) -> _PromptEntry:
    row, example = located
    name = f"p{row.number:05d}" if example.id is None else example.id
    return _PromptEntry(row.where, Prompt(id=name, messages=example.prompt), example.imitated, row.fields)


def _without_duplicates(entries: list[_PromptEntry]) -> list[_PromptEntry]:
    """Return one entry per prompt, at the position of its first: the first with a response, else the first."""
    kept: dict[tuple[tuple[str, str], ...], _PromptEntry] = {}
    for entry in entries:
        key = prompt_key(entry.prompt.messages)
        first = kept.setdefault(key, entry)
        if first.response is None and entry.response is not None:
            kept[key] = entry
    return list(kept.values())


def _check_ids(entries: list[_PromptEntry]) -> None:
    seen: dict[str, _PromptEntry] = {}
    for entry in entries:
        other = seen.setdefault(entry.prompt.id, entry)
        if other is not entry:
            text = "{where}: the id {id!r} is already used in {other}. Change one"
            raise UserError(Fault("id_twice", text, where=entry.where, id=entry.prompt.id, other=other.where))


def _check_number(config: DataConfig, prompts: int) -> None:
    if prompts < config.held_out:
        raise UserError(
            f"{config.prompts}: only {prompts} different prompt(s), but data.held_out is {config.held_out}. "
            "Add prompts or lower data.held_out"
        )
    if prompts == config.held_out:
        raise UserError(
            f"{config.prompts}: all {prompts} prompts are held out and none is left to train on. "
            "Add prompts or lower data.held_out"
        )
