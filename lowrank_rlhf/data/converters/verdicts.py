"""Convert rows with two answers and a verdict on them, in the order in which the annotators saw them."""

import json
from collections import Counter
from collections.abc import Callable, Mapping

from lowrank_rlhf.data.converters.prompts import instruction_of, prompt_of
from lowrank_rlhf.data.examples import Example, Undecided
from lowrank_rlhf.data.readers.rows import Row, any_text_field, listed, number_field, row_error, text_field
from lowrank_rlhf.data.turns import Turns, conversation, split_answer
from lowrank_rlhf.run.records import Message

VOTES = ("annotator1", "annotator2", "annotator3")
ONE_HOT = ("winner_model_a", "winner_model_b", "winner_tie")
WINNERS = {
    **dict.fromkeys(("a", "model_a", "response_a"), 1),
    **dict.fromkeys(("b", "model_b", "response_b"), 2),
    **dict.fromkeys(("tie", "tie (bothbad)", "both_bad"), 0),
}
"""Verdicts in words: 1 or 2 for the better answer, 0 for a tie."""


def two_answers(
    prompt: str, first: str, second: str, verdict: str, meaning: Mapping[str, int]
) -> Callable[[Row], Example]:
    """Return the converter of rows with a prompt, two answers and a verdict, each under its key.

    `meaning` gives 1 or 2, the better answer, or 0, a tie, for each verdict as text.
    """

    def convert(row: Row) -> Example:
        answers = [any_text_field(row, f'"{key}"', row.fields[key]) for key in (first, second)]
        return _decided(prompt_of(row, prompt), answers, _meaning(row, verdict, meaning))

    return convert


def pandalm(row: Row) -> Example:
    """Convert two answers with three votes; two equal votes decide."""
    prompt = instruction_of(row)
    votes = Counter(_meaning(row, name, {"0": 0, "1": 1, "2": 2}) for name in VOTES)
    # Six rows of PandaLM's own file have the boolean true instead of an answer; the text is lost.
    if any(isinstance(row.fields[name], bool) for name in ("response1", "response2")):
        return Example(prompt=prompt, undecided="not text")
    answers = [any_text_field(row, f'"{name}"', row.fields[name]) for name in ("response1", "response2")]
    winner = next((answer for answer in (1, 2) if votes[answer] > 1), 0)
    return _decided(prompt, answers, winner, "no majority", "majority-of-3")


def arena(row: Row) -> Example:
    """Convert two conversations with a winner; they are comparable if they differ in the last answer alone."""
    sides = [
        split_answer(row, f'"{key}"', conversation(row, f'"{key}"', row.fields[key]))
        for key in ("conversation_a", "conversation_b")
    ]
    return _same_prompt(sides, _meaning(row, "winner", WINNERS))


def arena_lists(row: Row) -> Example:
    """Convert Chatbot Arena's rows of JSON lists: the prompts of all rounds, and each side's answers."""
    prompts, *answers = (_texts(row, key) for key in ("prompt", "response_a", "response_b"))
    if not prompts or any(len(side) != len(prompts) for side in answers):
        raise row_error(
            row, "unequal_lists", '"prompt", "response_a" and "response_b" must be lists of the same length'
        )
    sides = []
    for side in answers:
        rounds = [
            (Message(role="user", content=q), Message(role="assistant", content=a))
            for q, a in zip(prompts, side, strict=True)
        ]
        *before, (asked, answered) = rounds
        sides.append(((*(turn for both in before for turn in both), asked), answered.content))
    won = [number_field(row, f'"{key}"', row.fields[key]) for key in ONE_HOT]
    if sorted(won) != [0, 0, 1]:
        raise row_error(row, "no_one_hot", "one of {options} must be 1 and the others 0", options=listed(ONE_HOT))
    return _same_prompt(sides, (1, 2, 0)[won.index(1)])


def helpsteer3(row: Row) -> Example:
    """Convert HelpSteer3's preferences: negative for the first response, positive for the second, 0 for a tie."""
    value = number_field(row, '"overall_preference"', row.fields["overall_preference"])
    if value not in range(-3, 4):
        raise row_error(
            row,
            "bad_preference",
            '"overall_preference" is {value:g}. Expected a whole number from -3 to 3',
            value=value,
        )
    answers = [any_text_field(row, f'"{key}"', row.fields[key]) for key in ("response1", "response2")]
    return _decided(prompt_of(row, "context"), answers, 1 if value < 0 else 2 if value > 0 else 0)


def tldr(row: Row) -> Example:
    """Convert OpenAI's comparisons of summaries of one post or article."""
    info, summaries = row.fields["info"], row.fields["summaries"]
    if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2:
        raise row_error(row, "no_summaries", '"info" must be an object and "summaries" a list of two')
    text = text_field(row, "info.post or info.article", info.get("post") or info.get("article"))
    lines = [f"{key.upper()}: {info[key]}" for key in ("subreddit", "title") if info.get(key)]
    prompt = (Message(role="user", content="\n".join([*lines, f"POST: {text}", "TL;DR:"])),)
    answers = []
    for index, summary in enumerate(summaries):
        if not isinstance(summary, dict):
            raise row_error(row, "no_summary", "summaries[{index}] must be an object with text", index=index)
        answers.append(any_text_field(row, f"summaries[{index}].text", summary.get("text")).strip())
    return _decided(prompt, answers, _meaning(row, "choice", {"0": 1, "1": 2}))


def _texts(row: Row, key: str) -> list[str]:
    """Return a list of texts, which may be written as JSON."""
    value = row.fields[key]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise row_error(row, "no_text_list", '"{key}" must be a list of texts, as JSON', key=key) from None
    if not isinstance(value, list):
        raise row_error(row, "no_text_list", '"{key}" must be a list of texts, as JSON', key=key)
    return [any_text_field(row, f"{key}[{index}]", text) for index, text in enumerate(value)]


def _meaning(row: Row, key: str, meaning: Mapping[str, int]) -> int:
    """Return the better answer, 1 or 2, or 0 for a tie; numbers may be written as text or with a decimal point."""
    value = row.fields[key]
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    if isinstance(value, bool) or text not in meaning:
        first, second, tied = (" or ".join(word for word, says in meaning.items() if says == n) for n in (1, 2, 0))
        tie = f", {tied} for a tie" if tied else ""
        raise row_error(
            row,
            "bad_verdict",
            '"{key}" is {value!r}. Expected {first} for the first answer, {second} for the second{tie}',
            key=key,
            value=value,
            first=first,
            second=second,
            tie=tie,
        )
    return meaning[text]


def _same_prompt(sides: list[tuple[Turns, str]], winner: int) -> Example:
    (prompt, first), (other, second) = sides
    if prompt != other:
        return Example(prompt=prompt, undecided="other prompt")
    return _decided(prompt, [first, second], winner)


def _decided(
    prompt: Turns, answers: list[str], winner: int, tied: Undecided = "tie", annotator: str = "dataset"
) -> Example:
    undecided: Undecided | None = "same answer" if answers[0] == answers[1] else None if winner else tied
    tiers = ((1,), (0,)) if winner == 2 else ((0,), (1,))
    return Example(prompt=prompt, answers=tuple(answers), tiers=tiers, annotator=annotator, undecided=undecided)
