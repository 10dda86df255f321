"""Parse conversations into turns: role and content, ShareGPT's from and value, and HH-RLHF's transcripts."""

import re
from collections.abc import Sequence
from typing import Literal

from lowrank_rlhf.data.readers.rows import (
    Row,
    any_text_field,
    is_empty,
    kind,
    list_field,
    row_error,
    same_text_key,
    text_field,
)
from lowrank_rlhf.run.records import Message

Role = Literal["system", "user", "assistant", "tool"]
Turns = tuple[Message, ...]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "tool_response": "tool",
}
SPEAKERS: dict[str, Role] = {**ROLES, "human": "user", "gpt": "assistant", "observation": "tool"}
_CALLS = ("tool_calls", "function_call", "tool_call")
"""Keys and roles of tool calls: templates write them in ways of their own, so that no text stands for them."""
# Keys that may be ignored; others with a value would be lost silently.
_HARMLESS = {"name", "weight", "id", "timestamp", "tool_call_id"}
_THOUGHTS = {"reasoning_content", "reasoning", "thinking"}
_INTO_CONTENT = ". Write thoughts into the text as the model does (such as <think>...</think>), or delete the key"
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_TRANSCRIPT_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def conversation(row: Row, name: str, value: object) -> list[Message]:
    """Parse a list of turns, {role, content} or {from, value}. The last turn of the assistant may be empty."""
    turns = list_field(row, name, value)
    last, bare = len(turns) - 1, name.strip('"')
    return [_turn(row, f"{bare}[{index}]", turn, index == last) for index, turn in enumerate(turns)]


def _turn(row: Row, name: str, turn: object, last: bool) -> Message:
    if not isinstance(turn, dict):
        raise row_error(
            row, "no_turn", "{name} must be an object with role and content, not {kind}", name=name, kind=kind(turn)
        )
    used, roles = (("from", "value"), SPEAKERS) if "from" in turn else (("role", "content"), ROLES)
    who, what = used
    present = {key for key, value in turn.items() if key in used or not is_empty(value)}
    if call := next((key for key in _CALLS if key in (*present, turn.get(who))), None):
        raise row_error(
            row,
            "tool_call",
            "{name} calls a tool ({call}). Only text is supported. Delete the row",
            name=name,
            call=call,
        )
    if not present >= set(used) or present - {*used, *_HARMLESS}:
        has = ", ".join(key for key in turn if key in present) or "nothing"
        way = _INTO_CONTENT if present & _THOUGHTS else ""
        raise row_error(
            row,
            "turn_keys",
            "{name} must have {who} and {what} only, but has {has}{way}",
            name=name,
            who=who,
            what=what,
            has=has,
            way=way,
        )
    role = roles.get(turn[who]) if isinstance(turn[who], str) else None
    if role is None:
        raise row_error(
            row,
            "turn_role",
            "{name}.{who} is {value!r}. It must be one of {roles}",
            name=name,
            who=who,
            value=turn[who],
            roles=", ".join(roles),
        )
    check = any_text_field if last and role == "assistant" else text_field
    return Message(role=role, content=check(row, f"{name}.{what}", _joined(row, f"{name}.{what}", turn[what])))


def check_weight(row: Row, imitated: str) -> None:
    """Raise `UserError` if the answer to imitate is the last turn of a conversation and has another weight than 1."""
    for key, value in row.fields.items():
        turn = value[-1] if isinstance(value, list) and value else value
        if not isinstance(turn, dict) or turn.get("weight") in (None, 1):
            continue
        who, content = (turn.get(name) for name in (("from", "value") if "from" in turn else ("role", "content")))
        if who in ("assistant", "gpt") and str(_joined(row, key, content)).strip() == imitated.strip():
            name = f"{key}[{len(value) - 1}]" if isinstance(value, list) else key
            raise row_error(
                row,
                "turn_weight",
                "{name} has weight {weight!r}, but only responses of weight 1 are supported. "
                "Delete the row, or its weight to train on it",
                name=name,
                weight=turn["weight"],
            )


def _joined(row: Row, name: str, content: object) -> object:
    """Return the text of a list of content parts; other content is returned as it is."""
    if not isinstance(content, list):
        return content
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            what = repr(part["type"]) if isinstance(part, dict) and "type" in part else kind(part)
            raise row_error(
                row,
                "turn_part",
                "{name}[{index}] is {what}. Only text parts are supported",
                name=name,
                index=index,
                what=what,
            )
        texts.append(part["text"])
    return "".join(texts)


def prompt_key(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """Return a key; conversations with equal keys count as the same prompt."""
    return tuple((message.role, same_text_key(message.content)) for message in messages)


def is_transcript(value: object) -> bool:
    """Return True for text that begins with `Human:` or `Assistant:`, like HH-RLHF's transcripts."""
    return isinstance(value, str) and _SPEAKER.match(value) is not None


def transcript(row: Row, name: str, value: object) -> list[Message]:
    r"""Parse HH-RLHF's "\n\nHuman: ... \n\nAssistant: ..." into turns. The last turn of the assistant may be empty."""
    text = text_field(row, name, value)
    before, *parts = _SPEAKER.split(text)
    if before or not parts:
        raise row_error(
            row,
            "no_transcript",
            '{name} must be a transcript that begins with "Human: ..." or "Assistant: ..."',
            name=name,
        )
    turns = [
        Message(role=_TRANSCRIPT_ROLES[speaker], content=text.strip())
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    for number, turn in enumerate(turns, 1):
        if not turn.content and not (number == len(turns) and turn.role == "assistant"):
            raise row_error(
                row,
                "empty_turn",
                "turn {number} of {name} ({role}) is empty. Correct or delete the row",
                number=number,
                name=name,
                role=turn.role,
            )
    return turns


def prompt_turns(row: Row, name: str, value: object) -> Turns:
    """Parse a prompt: text, turns that end with the user, or a transcript that ends with an open `Assistant:`."""
    if isinstance(value, list):
        return ends_with_user(row, name, conversation(row, name, value))
    text = text_field(row, name, value)
    if is_transcript(text) and text.rstrip().endswith("\n\nAssistant:"):
        return ends_with_user(row, name, transcript(row, name, text)[:-1])
    return (Message(role="user", content=text),)


def ends_with_user(row: Row, name: str, turns: Sequence[Message]) -> Turns:
    """Return the turns. Raises `UserError` unless the last one is the user's, or the result of a tool."""
    if not turns or turns[-1].role not in ("user", "tool"):
        raise row_error(
            row,
            "ends_with_user",
            "{name} must end with the user, or with the user and the assistant's answer",
            name=name,
        )
    return tuple(turns)


def split_answer(row: Row, name: str, turns: Sequence[Message]) -> tuple[Turns, str]:
    """Split turns into those before the assistant's last one and that one's text."""
    if turns[-1].role != "assistant":
        raise row_error(
            row,
            "ends_with_assistant",
            "{name} must end with the assistant's answer, but ends with the {role}",
            name=name,
            role=turns[-1].role,
        )
    return ends_with_user(row, name, turns[:-1]), turns[-1].content


def answer_text(row: Row, key: str, prompt: Turns) -> str:
    """Return an answer: text, one turn of the assistant, or the prompt's turns (or transcript) followed by it."""
    name, value = f'"{key}"', row.fields.get(key)
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        value = _after_prompt(row, name, conversation(row, name, value), prompt)
    elif is_transcript(value):
        turns = transcript(row, name, value)
        if _continues(turns, prompt) or is_transcript(row.fields.get("prompt")):
            value = _after_prompt(row, name, turns, prompt)
    return text_field(row, name, value)


def _after_prompt(row: Row, name: str, turns: Sequence[Message], prompt: Turns) -> str:
    if turns[-1].role == "assistant" and (len(turns) == 1 or _continues(turns, prompt)):
        return turns[-1].content
    raise row_error(
        row,
        "answer_turns",
        "{name} must be one turn of the assistant, or the prompt's turns followed by it; it has {count}: {roles}",
        name=name,
        count=len(turns),
        roles=", ".join(turn.role for turn in turns),
    )


def _continues(turns: Sequence[Message], prompt: Turns) -> bool:
    """Return True if the turns are one answer after the prompt, whose first turns (such as the system's) may miss."""
    before, asked = ([(turn.role, turn.content.strip()) for turn in part] for part in (turns[:-1], prompt))
    return bool(before) and turns[-1].role == "assistant" and asked[-len(before) :] == before


def check_same_prompt(row: Row, chosen: Turns, rejected: Turns) -> None:
    """Raise `UserError` with the first turn in which two prompts differ."""
    if chosen == rejected:
        return
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    raise row_error(
        row,
        "prompts_differ",
        '"chosen" and "rejected" differ from turn {number} on. All turns up to the '
        "assistant's last one must be the same",
        number=same + 1,
    )
