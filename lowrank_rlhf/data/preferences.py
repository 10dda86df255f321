"""Convert rows with ranked answers to examples: pairs, transcripts, ranked lists, and PandaLM's votes."""

import math
from collections import Counter
from collections.abc import Sequence

from lowrank_rlhf.data.examples import Example, Undecided
from lowrank_rlhf.data.readers.rows import Row, any_text_field, kind, list_field, listed, text_field
from lowrank_rlhf.data.turns import (
    Turns,
    check_same_prompt,
    conversation,
    prompt_turns,
    split_answer,
    transcript,
    without_prompt,
)
from lowrank_rlhf.errors import UserError

PAIR = ("chosen", "rejected")
ORDERS = ("ranking", "ranks", "scores")
VOTES = ("annotator1", "annotator2", "annotator3")


def explicit(row: Row) -> Example:
    """Convert a row of prompt, chosen and rejected."""
    prompt = prompt_turns(row, '"prompt"', row.fields["prompt"])
    answers = []
    for key in PAIR:
        name, value = f'"{key}"', row.fields[key]
        if isinstance(value, list):
            value = without_prompt(row, name, conversation(row, name, value), prompt)
        answers.append(text_field(row, name, value))
    return _pair(prompt, answers)


def implicit(row: Row) -> Example:
    """Convert a row of chosen and rejected, both conversations."""
    chosen, rejected = (split_answer(row, f'"{key}"', conversation(row, f'"{key}"', row.fields[key])) for key in PAIR)
    return _with_shared_prompt(row, chosen, rejected)


def transcripts(row: Row) -> Example:
    """Convert a row of chosen and rejected, both HH-RLHF transcripts."""
    chosen, rejected = (split_answer(row, f'"{key}"', transcript(row, f'"{key}"', row.fields[key])) for key in PAIR)
    return _with_shared_prompt(row, chosen, rejected)


def _with_shared_prompt(row: Row, chosen: tuple[Turns, str], rejected: tuple[Turns, str]) -> Example:
    check_same_prompt(row, chosen[0], rejected[0])
    return _pair(
        chosen[0], [text_field(row, f'"{key}"', side[1]) for key, side in zip(PAIR, (chosen, rejected), strict=True)]
    )


def _pair(prompt: Turns, answers: Sequence[str]) -> Example:
    same: Undecided | None = "same answer" if answers[0] == answers[1] else None
    return Example(prompt=prompt, answers=tuple(answers), tiers=((0,), (1,)), undecided=same)


def ranked(row: Row) -> Example:
    """Convert a row of prompt and responses with ranking, ranks or scores."""
    prompt = prompt_turns(row, '"prompt"', row.fields["prompt"])
    values = list_field(row, '"responses"', row.fields["responses"])
    answers = [any_text_field(row, f"responses[{i}]", value) for i, value in enumerate(values)]
    given = [key for key in ORDERS if row.fields.get(key) is not None]
    if len(given) != 1:
        raise UserError(f"{row.where}: expected one of {listed(ORDERS)}, got {listed(given)}")
    order = list_field(row, f'"{given[0]}"', row.fields[given[0]])
    if given[0] == "ranking":
        tiers = _tiers_of_ranking(row, order, len(answers))
    else:
        tiers = _tiers_of_numbers(row, given[0], order, len(answers), best_first=given[0] == "ranks")
    tiers = _each_text_once(row, answers, tiers)
    undecided: Undecided | None = None if len(tiers) > 1 else "tie"
    return Example(prompt=prompt, answers=tuple(answers), tiers=tiers, undecided=undecided)


def _tiers_of_ranking(row: Row, order: Sequence[object], count: int) -> tuple[tuple[int, ...], ...]:
    tiers = [list(item) if isinstance(item, list) else [item] for item in order]
    places = [place for tier in tiers for place in tier]
    for place in places:
        if type(place) is not int or not 0 <= place < count:
            raise UserError(
                f'{row.where}: "ranking" contains {place!r}. Expected positions in "responses", from 0 to {count - 1}'
            )
    if len(set(places)) < len(places):
        raise UserError(f'{row.where}: "ranking" contains a response twice')
    return tuple(tuple(tier) for tier in tiers if tier)


def _tiers_of_numbers(
    row: Row, name: str, numbers: Sequence[object], count: int, best_first: bool
) -> tuple[tuple[int, ...], ...]:
    if len(numbers) != count:
        raise UserError(f'{row.where}: {len(numbers)} "{name}" for {count} responses')
    by_number: dict[float, list[int]] = {}
    for index, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise UserError(f"{row.where}: {name}[{index}] must be a finite number, not {kind(number)}")
        by_number.setdefault(number, []).append(index)
    return tuple(tuple(by_number[number]) for number in sorted(by_number, reverse=not best_first))


def _each_text_once(row: Row, answers: Sequence[str], tiers: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Keep one of a tier's equal answers (sampled answers may be equal); in two tiers they are a contradiction."""
    tier_of: dict[str, int] = {}
    kept = []
    for number, tier in enumerate(tiers):
        first = [place for place in tier if tier_of.setdefault(answers[place], number) == number]
        if len(first) < len(tier):
            raise UserError(f"{row.where}: the same response has two ranks. Give equal responses the same rank")
        kept.append(tuple({answers[place]: place for place in reversed(tier)}.values())[::-1])
    return tuple(kept)


def instruction(row: Row) -> str:
    """Return the instruction, followed by the input if there is one."""
    parts = [
        any_text_field(row, f'"{name}"', row.fields[name])
        for name in ("instruction", "input")
        if row.fields.get(name) is not None
    ]
    return text_field(row, '"instruction" with "input"', "\n\n".join(part for part in parts if part.strip()))


def pandalm(row: Row) -> Example:
    """Convert two answers with three votes; two equal votes decide."""
    prompt = prompt_turns(row, '"instruction"', instruction(row))
    votes = Counter(_vote(row, name) for name in VOTES)
    # Six rows of PandaLM's own file have the boolean true instead of an answer; the text is lost.
    if any(isinstance(row.fields[name], bool) for name in ("response1", "response2")):
        return Example(prompt=prompt, undecided="not text")
    answers = tuple(any_text_field(row, f'"{name}"', row.fields[name]) for name in ("response1", "response2"))
    undecided: Undecided | None = None
    if answers[0] == answers[1]:
        undecided = "same answer"
    elif max(votes[1], votes[2]) < 2:
        undecided = "no majority"
    tiers = ((0,), (1,)) if votes[1] > votes[2] else ((1,), (0,))
    return Example(prompt=prompt, answers=answers, tiers=tiers, annotator="majority-of-3", undecided=undecided)


def _vote(row: Row, name: str) -> int:
    value = row.fields[name]
    if value in ("0", "1", "2"):  # a CSV cell
        return int(value)
    if type(value) is not int or value not in (0, 1, 2):
        raise UserError(f'{row.where}: "{name}" is {value!r}. It must be 1 or 2 for the better answer, or 0 for a tie')
    return value
