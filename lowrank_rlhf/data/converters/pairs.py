"""Convert rows with a chosen and a rejected answer."""

from collections.abc import Callable, Sequence

from lowrank_rlhf.data.converters.prompts import in_context, instruction_of, prompt_of
from lowrank_rlhf.data.examples import Example, Undecided
from lowrank_rlhf.data.readers.rows import Row, kind, row_error, text_field
from lowrank_rlhf.data.turns import (
    Turns,
    answer_text,
    check_same_prompt,
    conversation,
    ends_with_user,
    split_answer,
    transcript,
)

PAIR = ("chosen", "rejected")
Convert = Callable[[Row], Example]


def after(prompt: str, keys: Sequence[str] = PAIR) -> Convert:
    """Return the converter of rows with a prompt (text or turns) and two answers under `keys`, the better one first."""
    return lambda row: _with_answers(row, prompt_of(row, prompt), keys)


def after_instruction(keys: Sequence[str] = PAIR) -> Convert:
    """Return the converter of rows with Alpaca's instruction and input, and two answers under `keys`."""
    return lambda row: _with_answers(row, instruction_of(row), keys)


def after_conversation(key: str) -> Convert:
    """Return the converter of rows with turns that end with the user, and two answers."""

    def convert(row: Row) -> Example:
        turns = ends_with_user(row, f'"{key}"', conversation(row, f'"{key}"', row.fields[key]))
        return _with_answers(row, in_context(row, turns), PAIR)

    return convert


def answered_conversation(rejected: str) -> Convert:
    """Return the converter of conversations whose last answer is better than the one under `rejected`."""

    def convert(row: Row) -> Example:
        prompt, better = split_answer(row, '"messages"', conversation(row, '"messages"', row.fields["messages"]))
        prompt = in_context(row, prompt)
        return pair(prompt, [text_field(row, '"messages"', better), answer_text(row, rejected, prompt)])

    return convert


def openai(row: Row) -> Example:
    """Convert OpenAI's preferences: the conversation is inside `input`."""
    asked = row.fields["input"]
    if not isinstance(asked, dict):
        raise row_error(row, "no_messages", '"input" must be an object with messages, not {kind}', kind=kind(asked))
    if asked.get("tools"):
        raise row_error(row, "input_tools", "input.tools is not supported. Delete the row")
    turns = conversation(row, "input.messages", asked.get("messages"))
    prompt = ends_with_user(row, "input.messages", turns)
    return _with_answers(row, prompt, ("preferred_output", "non_preferred_output"))


def implicit(row: Row) -> Example:
    """Convert a row of chosen and rejected, both conversations."""
    chosen, rejected = (split_answer(row, f'"{key}"', conversation(row, f'"{key}"', row.fields[key])) for key in PAIR)
    return _with_shared_prompt(row, chosen, rejected)


def transcripts(row: Row) -> Example:
    """Convert a row of chosen and rejected, both HH-RLHF transcripts."""
    chosen, rejected = (split_answer(row, f'"{key}"', transcript(row, f'"{key}"', row.fields[key])) for key in PAIR)
    return _with_shared_prompt(row, chosen, rejected)


def pair(prompt: Turns, answers: Sequence[str]) -> Example:
    """Return the example of two answers, the better one first."""
    same: Undecided | None = "same answer" if answers[0] == answers[1] else None
    return Example(prompt=prompt, answers=tuple(answers), tiers=((0,), (1,)), undecided=same)


def _with_answers(row: Row, prompt: Turns, keys: Sequence[str]) -> Example:
    return pair(prompt, [answer_text(row, key, prompt) for key in keys])


def _with_shared_prompt(row: Row, chosen: tuple[Turns, str], rejected: tuple[Turns, str]) -> Example:
    check_same_prompt(row, chosen[0], rejected[0])
    answers = [text_field(row, f'"{key}"', side[1]) for key, side in zip(PAIR, (chosen, rejected), strict=True)]
    return pair(in_context(row, chosen[0]), answers)
