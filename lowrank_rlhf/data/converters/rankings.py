"""Convert rows with more than two answers, or with one rated answer, to rankings."""

from collections.abc import Sequence

from lowrank_rlhf.data.converters.demonstrations import RESPONSES
from lowrank_rlhf.data.converters.prompts import instruction_of, prompt_of
from lowrank_rlhf.data.examples import Example, Undecided
from lowrank_rlhf.data.readers.rows import Row, any_text_field, list_field, listed, number_field, row_error, text_field
from lowrank_rlhf.data.turns import Turns, answer_text

ORDERS = ("ranking", "ranks", "scores")
RATINGS = ("score", "rating", "overall_score", "helpfulness")
"""Keys of one answer's rating, higher is better."""


def ranked(row: Row) -> Example:
    """Convert a row of prompt and responses with ranking, ranks or scores."""
    prompt = prompt_of(row, "prompt")
    values = list_field(row, '"responses"', row.fields["responses"])
    answers = [any_text_field(row, f"responses[{i}]", value) for i, value in enumerate(values)]
    given = [key for key in ORDERS if row.fields.get(key) is not None]
    if len(given) != 1:
        raise row_error(
            row, "one_of", "expected one of {options}, got {keys}", options=listed(ORDERS), keys=listed(given)
        )
    order = list_field(row, f'"{given[0]}"', row.fields[given[0]])
    if given[0] == "ranking":
        tiers = _tiers_of_ranking(row, order, len(answers))
    else:
        tiers = _tiers_of_numbers(row, given[0], order, len(answers), best_first=given[0] == "ranks")
    return _ordered(row, prompt, answers, tiers)


def best_first(row: Row) -> Example:
    """Convert LLaMA-Factory's older rankings: an instruction whose `output` is a list of answers, best first."""
    values = list_field(row, '"output"', row.fields["output"])
    answers = [text_field(row, f"output[{i}]", value) for i, value in enumerate(values)]
    return _ordered(row, instruction_of(row), answers, [(i,) for i in range(len(answers))])


def ultrafeedback(row: Row) -> Example:
    """Convert an instruction with rated completions: the mean of the aspects' ratings, or the overall score."""
    answers, scores = [], []
    for i, entry in enumerate(list_field(row, '"completions"', row.fields["completions"])):
        if not isinstance(entry, dict):
            raise row_error(
                row, "no_completion", "completions[{i}] must be an object with response and overall_score", i=i
            )
        answers.append(any_text_field(row, f"completions[{i}].response", entry.get("response")))
        # The mean first: its authors found overall scores of 10 that were 1.
        rating = next((key for key in ("fine-grained_score", *RATINGS) if entry.get(key) is not None), RATINGS[0])
        scores.append(number_field(row, f"completions[{i}].{rating}", entry.get(rating)))
    tiers = _tiers_of_numbers(row, "scores", scores, len(answers), best_first=False)
    return _ordered(row, instruction_of(row), answers, tiers)


def rated(row: Row) -> Example:
    """Convert one answer with its rating; `merge_rated` makes rankings of the rows of one prompt."""
    prompt = prompt_of(row, "prompt")
    answer = next((key for key in RESPONSES if row.fields.get(key) is not None), RESPONSES[0])
    given = [key for key in RATINGS if row.fields.get(key) is not None]
    if len(given) != 1:
        raise row_error(
            row, "one_of", "expected one of {options}, got {keys}", options=listed(RATINGS), keys=listed(given)
        )
    rating = number_field(row, f'"{given[0]}"', row.fields[given[0]])
    text = answer_text(row, answer, prompt)
    return Example(prompt=prompt, answers=(text,), tiers=((0,),), rating=rating, undecided="alone")


def merge_rated(examples: Sequence[Example]) -> Example:
    """Return one ranking of the rated answers to one prompt, without repeated ones."""
    ratings: dict[str, float] = {}
    for example in examples:
        ratings.setdefault(example.answers[0], example.rating or 0.0)
    if len(ratings) == 1:
        return examples[0]
    places: dict[float, list[int]] = {}
    for place, rating in enumerate(ratings.values()):
        places.setdefault(rating, []).append(place)
    tiers = tuple(tuple(places[rating]) for rating in sorted(places, reverse=True))
    undecided: Undecided | None = None if len(tiers) > 1 else "tie"
    return Example(prompt=examples[0].prompt, answers=tuple(ratings), tiers=tiers, undecided=undecided)


def _ordered(row: Row, prompt: Turns, answers: Sequence[str], tiers: Sequence[Sequence[int]]) -> Example:
    once = _each_text_once(row, answers, tiers)
    undecided: Undecided | None = None if len(once) > 1 else "tie"
    return Example(prompt=prompt, answers=tuple(answers), tiers=once, undecided=undecided)


def _tiers_of_ranking(row: Row, order: Sequence[object], count: int) -> tuple[tuple[int, ...], ...]:
    tiers = [[_position(row, place, count) for place in (item if isinstance(item, list) else [item])] for item in order]
    places = [place for tier in tiers for place in tier]
    if len(set(places)) < len(places):
        raise row_error(row, "ranked_twice", '"ranking" contains a response twice')
    return tuple(tuple(tier) for tier in tiers if tier)


def _position(row: Row, value: object, count: int) -> int:
    place = number_field(row, "ranking", value)
    if place not in range(count):
        raise row_error(
            row,
            "bad_position",
            '"ranking" contains {value!r}. Expected positions in "responses", from 0 to {last}',
            value=value,
            last=count - 1,
        )
    return int(place)


def _tiers_of_numbers(
    row: Row, name: str, numbers: Sequence[object], count: int, best_first: bool
) -> tuple[tuple[int, ...], ...]:
    if len(numbers) != count:
        raise row_error(
            row, "wrong_count", '{given} "{name}" for {count} responses', given=len(numbers), name=name, count=count
        )
    by_number: dict[float, list[int]] = {}
    for index, number in enumerate(numbers):
        by_number.setdefault(number_field(row, f"{name}[{index}]", number), []).append(index)
    return tuple(tuple(by_number[number]) for number in sorted(by_number, reverse=not best_first))


def _each_text_once(row: Row, answers: Sequence[str], tiers: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Keep one of a tier's equal answers (sampled answers may be equal); in two tiers they are a contradiction."""
    tier_of: dict[str, int] = {}
    kept = []
    for number, tier in enumerate(tiers):
        first = [place for place in tier if tier_of.setdefault(answers[place], number) == number]
        if len(first) < len(tier):
            raise row_error(row, "two_ranks", "the same response has two ranks. Give equal responses the same rank")
        kept.append(tuple({answers[place]: place for place in reversed(tier)}.values())[::-1])
    return tuple(kept)
