"""Prompts of rows: text or turns of one key, after the row's system message and earlier rounds."""

from lowrank_rlhf.data.readers.rows import (
    Row,
    any_text_field,
    is_empty,
    kind,
    list_field,
    listed,
    row_error,
    text_field,
)
from lowrank_rlhf.data.turns import Turns, conversation, prompt_turns
from lowrank_rlhf.run.records import Message

SYSTEM = ("system", "system_prompt")
CONTEXT = (*SYSTEM, "history")
"""Keys of every format with one prompt: a system message, and rounds before the prompt."""


def prompt_of(row: Row, key: str) -> Turns:
    """Return the prompt under `key`, text or turns, after system message and history."""
    turns = prompt_turns(row, f'"{key}"', row.fields[key])
    if key in CONTEXT:  # SHP's prompt is called history
        row = row._replace(fields={name: value for name, value in row.fields.items() if name != key})
    return in_context(row, turns)


def instruction_of(row: Row) -> Turns:
    """Return Alpaca's prompt, the instruction followed by the input if there is one, in its context."""
    parts = [
        any_text_field(row, f'"{name}"', row.fields[name])
        for name in ("instruction", "input")
        if row.fields.get(name) is not None
    ]
    text = text_field(row, '"instruction" with "input"', "\n\n".join(part for part in parts if part.strip()))
    return in_context(row, prompt_turns(row, '"instruction"', text))


def in_context(row: Row, turns: Turns) -> Turns:
    """Return the turns after the row's system message and history, if it has them."""
    system = _system(row)
    if system and turns[0].role == "system":
        if turns[0] != system:
            raise row_error(row, "two_systems", '"system" differs from the system turn of the conversation. Keep one')
        turns = turns[1:]
    return (*([system] if system else []), *_history(row), *turns)


def _system(row: Row) -> Message | None:
    given = [key for key in SYSTEM if not is_empty(row.fields.get(key))]
    if len(given) > 1:
        raise row_error(row, "both_present", "{keys} are both present. Keep one", keys=listed(given))
    if not given:
        return None
    text = any_text_field(row, f'"{given[0]}"', row.fields[given[0]])
    return Message(role="system", content=text) if text.strip() else None


def _history(row: Row) -> list[Message]:
    """Return the earlier rounds: pairs of question and answer (LLaMA-Factory, ms-swift), or a list of turns."""
    value = row.fields.get("history")
    if is_empty(value):
        return []
    rounds = list_field(row, '"history"', value)
    if all(isinstance(turn, dict) for turn in rounds):
        return conversation(row, '"history"', rounds)
    turns = []
    for index, pair in enumerate(rounds):
        if not isinstance(pair, list) or len(pair) != 2:
            raise row_error(
                row,
                "no_round",
                "history[{index}] must be a list of question and answer, not {kind}",
                index=index,
                kind=kind(pair),
            )
        question, answer = (text_field(row, f"history[{index}]", text) for text in pair)
        turns += [Message(role="user", content=question), Message(role="assistant", content=answer)]
    return turns
