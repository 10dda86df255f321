"""Supported data formats: their keys, and the functions that convert a row to an example."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowrank_rlhf.config.schema import FormatName
from lowrank_rlhf.data import preferences
from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.readers.rows import Row, listed, text_field
from lowrank_rlhf.data.turns import conversation, ends_with_user, is_transcript, prompt_turns, split_answer
from lowrank_rlhf.errors import UserError

Fields = dict[str, Any]
RESPONSES = ("response", "completion")


@dataclass(frozen=True)
class Format:
    """Format of a row."""

    name: FormatName
    what: str
    """Description for the documentation."""
    keys: tuple[str, ...]
    """Required keys."""
    optional: tuple[str, ...]
    """Optional keys; every other key is ignored and listed in the notes."""
    convert: Callable[[Row], Example]
    example: str
    """Example row, as JSON."""
    fits: Callable[[Fields], bool] | None = None
    """Further condition on a row with these keys."""
    requirement: str = ""
    """The condition in words."""
    ordered: bool = False
    """True if rows contain ranked answers, so that files can be used as comparisons."""
    keeps_positions: bool = False
    """True if the answers are in the order in which the annotators saw them."""

    def reads(self, fields: Fields) -> bool:
        """Return True if the fields look like this format; `convert` checks their values."""
        return all(key in fields for key in self.keys) and (self.fits is None or self.fits(fields))


def _prompt_completion(row: Row) -> Example:
    return Example(
        prompt=prompt_turns(row, '"prompt"', row.fields["prompt"]), response=_response(row), id=_identifier(row)
    )


def _messages(row: Row) -> Example:
    turns = conversation(row, '"messages"', row.fields["messages"])
    response = _response(row)
    if turns[-1].role != "assistant":
        return Example(prompt=ends_with_user(row, '"messages"', turns), response=response, id=_identifier(row))
    if response is not None:
        raise UserError(f'{row.where}: "messages" ends with the assistant and "response" is present too. Keep one')
    prompt, answer = split_answer(row, '"messages"', turns)
    answer = text_field(row, f"messages[{len(turns) - 1}].content", answer)
    return Example(prompt=prompt, response=answer, id=_identifier(row))


def _response(row: Row) -> str | None:
    """Return the response to imitate, if any: text, or a list with a single turn of the assistant."""
    given = [key for key in RESPONSES if row.fields.get(key) is not None]
    if len(given) > 1:
        raise UserError(f"{row.where}: {listed(given)} are both present. Keep one")
    if not given:
        return None
    name, value = f'"{given[0]}"', row.fields[given[0]]
    if isinstance(value, list):
        turns = conversation(row, name, value)
        if [turn.role for turn in turns] != ["assistant"]:
            raise UserError(f"{row.where}: {name} must be one turn of the assistant")
        value = turns[0].content
    return text_field(row, name, value)


def _identifier(row: Row) -> str | None:
    value = row.fields.get("id")
    if value is None:
        return None
    return str(value) if type(value) is int else text_field(row, '"id"', value)


def _alpaca(row: Row) -> Example:
    instruction = preferences.instruction(row)
    prompt = prompt_turns(row, '"instruction"', instruction)
    return Example(prompt=prompt, response=text_field(row, '"output"', row.fields["output"]))


def _sharegpt(row: Row) -> Example:
    turns = conversation(row, '"conversations"', row.fields["conversations"])
    if turns[-1].role != "assistant":
        return Example(prompt=ends_with_user(row, '"conversations"', turns))
    prompt, answer = split_answer(row, '"conversations"', turns)
    return Example(prompt=prompt, response=text_field(row, f"conversations[{len(turns) - 1}]", answer))


def _no_label(fields: Fields) -> bool:
    """Return False for TRL's unpaired preferences (a true-or-false label): half of them are bad examples."""
    return not isinstance(fields.get("label"), bool)


FORMATS = (
    Format(
        "prompt-completion",
        "TRL's prompt-only and prompt-completion: a prompt (text, or turns that end with the user), "
        "optionally with a response.",
        keys=("prompt",),
        optional=(*RESPONSES, "id"),
        convert=_prompt_completion,
        fits=_no_label,
        example='{"prompt": "Why do cats purr?", "completion": "Mostly because they are content."}',
    ),
    Format(
        "messages",
        "TRL's messages: a conversation that ends with the user (a prompt) or with the assistant (a demonstration).",
        keys=("messages",),
        optional=(*RESPONSES, "id"),
        convert=_messages,
        example='{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
    ),
    Format(
        "preference",
        "TRL's preferences with an explicit prompt; chosen and rejected are text, the assistant's turn, or "
        "the prompt's turns followed by that turn.",
        keys=("prompt", "chosen", "rejected"),
        optional=(),
        convert=preferences.explicit,
        example='{"prompt": "Greet me.", "chosen": "Good morning!", "rejected": "No."}',
        ordered=True,
    ),
    Format(
        "implicit-preference",
        "TRL's preferences without a prompt: two conversations that are the same up to their last answers.",
        keys=("chosen", "rejected"),
        optional=(),
        convert=preferences.implicit,
        fits=lambda fields: isinstance(fields["chosen"], list) and isinstance(fields["rejected"], list),
        requirement=", both lists of turns",
        example='{"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], '
        '"rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}]}',
        ordered=True,
    ),
    Format(
        "hh-rlhf",
        "Anthropic's transcripts: two texts of turns that are the same up to their last answers.",
        keys=("chosen", "rejected"),
        optional=(),
        convert=preferences.transcripts,
        fits=lambda fields: is_transcript(fields["chosen"]) and is_transcript(fields["rejected"]),
        requirement=', both transcripts ("Human: ...")',
        example=r'{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}',
        ordered=True,
    ),
    Format(
        "alpaca",
        "Alpaca's demonstrations; a non-empty input is appended to the instruction.",
        keys=("instruction", "output"),
        optional=("input",),
        convert=_alpaca,
        example='{"instruction": "Translate into French.", "input": "Good morning", "output": "Bonjour"}',
    ),
    Format(
        "sharegpt",
        "ShareGPT's conversations; `from` is human, gpt or system.",
        keys=("conversations",),
        optional=(),
        convert=_sharegpt,
        example='{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
    ),
    Format(
        "ranked",
        "K answers to a prompt with one of: `ranking` (positions in `responses` from 0, best first; a nested list "
        "for ties), `ranks` (one number each, 1 is best) or `scores` (one each, higher is better).",
        keys=("prompt", "responses"),
        optional=preferences.ORDERS,
        convert=preferences.ranked,
        fits=lambda fields: any(key in fields for key in preferences.ORDERS),
        requirement=f", and one of {listed(preferences.ORDERS)}",
        example='{"prompt": "Greet me.", "responses": ["No.", "Good morning!", "Hi."], "ranking": [1, 2, 0]}',
        ordered=True,
        keeps_positions=True,
    ),
    Format(
        "pandalm",
        "PandaLM's test set: two answers and three votes (1, 2, or 0 for a tie); two equal votes decide.",
        keys=("instruction", "response1", "response2", *preferences.VOTES),
        optional=("input",),
        convert=preferences.pandalm,
        example='{"instruction": "Greet me.", "input": "", "response1": "Hi.", "response2": "No.", "annotator1": 1, '
        '"annotator2": 1, "annotator3": 0}',
        ordered=True,
        keeps_positions=True,
    ),
)
BY_NAME = {entry.name: entry for entry in FORMATS}
