"""Prompts and demonstrations, from the built-in set or from a JSONL file, and their split."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lowrank_rlhf.config.schema import DataConfig
from lowrank_rlhf.data.jsonfile import Row, kind, read_rows, same_text_key, text_field
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.records import Demonstration, Message, Prompt

BUILTIN = Path(__file__).parent / "builtin"
EXAMPLE = '{"prompt": "..."}'
KEYS = ("prompt", "messages", "response", "id")
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class _Entry:
    where: str
    prompt: Prompt
    response: str | None

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        return tuple((message.role, same_text_key(message.content)) for message in self.prompt.messages)


def load_prompts(config: DataConfig, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts and held-out prompts, each in seeded order.

    Held out are prompts without a demonstration, as long as there are enough of them.
    """
    training, held_out = _split(config, seed)
    return (
        [entry.prompt for entry in training],
        [entry.prompt.model_copy(update={"held_out": True}) for entry in held_out],
    )


def load_demonstrations(config: DataConfig, seed: int) -> list[Demonstration]:
    """The training prompts that come with a response, in the order of `load_prompts`."""
    training, _ = _split(config, seed)
    return [
        Demonstration(prompt=entry.prompt, response=entry.response) for entry in training if entry.response is not None
    ]


def _split(config: DataConfig, seed: int) -> tuple[list[_Entry], list[_Entry]]:
    entries = _without_duplicates([_entry(row) for row in read_rows(_path(config.prompts), EXAMPLE)])
    _check_ids(entries)
    _check_number(config, len(entries))
    random.Random(seed).shuffle(entries)
    # A stable sort: those without a demonstration first, in shuffled order, so demonstrations stay with sft.
    candidates = sorted(entries, key=lambda entry: entry.response is not None)
    chosen = {entry.prompt.id for entry in candidates[: config.held_out]}
    return (
        [entry for entry in entries if entry.prompt.id not in chosen],
        [entry for entry in entries if entry.prompt.id in chosen],
    )


def _path(source: str) -> Path:
    scheme, colon, name = source.partition(":")
    if not colon or scheme != "builtin":
        return Path(source)
    names = sorted(path.stem for path in BUILTIN.glob("*.jsonl"))
    if name not in names:
        raise UserError(f"data.prompts: no built-in set is called {name!r}; there is: {', '.join(names)}")
    return BUILTIN / f"{name}.jsonl"


def _entry(row: Row) -> _Entry:
    unknown = [key for key in row.fields if key not in KEYS]
    if unknown:
        raise UserError(f'{row.where}: unknown key "{unknown[0]}"; a row may have {", ".join(KEYS)}')
    if ("prompt" in row.fields) == ("messages" in row.fields):
        found = "both" if "prompt" in row.fields else "neither"
        raise UserError(f'{row.where}: a row needs either "prompt" or "messages"; this one has {found}')
    if "prompt" in row.fields:
        messages = [Message(role="user", content=text_field(row, '"prompt"', row.fields["prompt"]))]
    else:
        messages = _messages(row)
    response = row.fields.get("response")
    if response is not None:
        response = text_field(row, '"response"', response)
    if messages[-1].role == "assistant":
        if response is not None:
            raise UserError(f'{row.where}: "messages" ends with the assistant and "response" is there too; keep one')
        response = messages.pop().content
    if not messages or messages[-1].role != "user":
        raise UserError(f'{row.where}: "messages" must end with the user, or with the user and the assistant\'s answer')
    name = row.fields.get("id")
    name = f"p{row.number:05d}" if name is None else text_field(row, '"id"', name)
    return _Entry(row.where, Prompt(id=name, messages=tuple(messages)), response)


def _messages(row: Row) -> list[Message]:
    turns = row.fields["messages"]
    if not isinstance(turns, list):
        raise UserError(f'{row.where}: "messages" must be a list, not {kind(turns)}')
    if not turns:
        raise UserError(f'{row.where}: "messages" is empty; it needs at least one turn of the user')
    return [_message(row, f"messages[{index}]", turn) for index, turn in enumerate(turns)]


def _message(row: Row, name: str, turn: object) -> Message:
    if not isinstance(turn, dict):
        raise UserError(f"{row.where}: {name} must be an object with role and content, not {kind(turn)}")
    if set(turn) != {"role", "content"}:
        raise UserError(f"{row.where}: {name} must have role and content only, but has {', '.join(turn) or 'nothing'}")
    if turn["role"] not in get_args(Role):
        raise UserError(f"{row.where}: {name}.role is {turn['role']!r}; it must be one of {', '.join(get_args(Role))}")
    return Message(role=turn["role"], content=text_field(row, f"{name}.content", turn["content"]))


def _without_duplicates(entries: list[_Entry]) -> list[_Entry]:
    """One entry for each prompt: the first with a response, else the first, in the place of the first."""
    kept: dict[tuple[tuple[str, str], ...], _Entry] = {}
    for entry in entries:
        first = kept.setdefault(entry.key, entry)
        if first.response is None and entry.response is not None:
            kept[entry.key] = entry
    return list(kept.values())


def _check_ids(entries: list[_Entry]) -> None:
    seen: dict[str, _Entry] = {}
    for entry in entries:
        other = seen.setdefault(entry.prompt.id, entry)
        if other is not entry:
            raise UserError(f"{entry.where}: the id {entry.prompt.id!r} is already that of {other.where}; change one")


def _check_number(config: DataConfig, prompts: int) -> None:
    if not prompts:
        raise UserError(f"{config.prompts}: no prompts in it; write one object like {EXAMPLE} on each line")
    if prompts < config.held_out:
        raise UserError(
            f"{config.prompts}: only {prompts} different prompt(s), but data.held_out is {config.held_out}; "
            "add prompts or lower data.held_out"
        )
    if prompts == config.held_out:
        raise UserError(
            f"{config.prompts}: all {prompts} prompts are held out and none is left to train on; "
            "add prompts or lower data.held_out"
        )
