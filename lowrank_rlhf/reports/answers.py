"""Example answers of a report: the first pair to each prompt, greedy answers first."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lowrank_rlhf.reports.format import number
from lowrank_rlhf.reports.locale import Locale

Row = Mapping[str, Any]
"""A row of eval.jsonl."""


class ShownAnswer(NamedTuple):
    """One model's answer to a prompt."""

    decoding: str
    """`greedy` or `sampled` in the reader's language; empty where there is one answer only."""
    text: str
    scores: str
    """Scores in words."""


def first_answers(rows: Sequence[Row]) -> list[Row]:
    """Return the first pair of answers to each prompt."""
    return list({row.get("prompt_id", row["prompt"]): row for row in reversed(rows)}.values())[::-1]


def has_greedy(row: Row) -> bool:
    """Return True if the row has greedy answers of both models: the first rows of runs since version 0.2."""
    return "greedy_sft" in row and "greedy_policy" in row


def shown_answers(row: Row, side: str, texts: Locale) -> list[ShownAnswer]:
    """Return the answers of one side (`sft` or `policy`): the greedy one, if the row has it, then the sampled one."""
    if not has_greedy(row):
        return [ShownAnswer("", str(row[side]), scores(row, side, texts))]
    return [
        ShownAnswer(texts(f"decoding.{decoding}"), str(row[key]), scores(row, key, texts))
        for decoding, key in (("greedy", f"greedy_{side}"), ("sampled", side))
    ]


def scores(row: Row, side: str, texts: Locale) -> str:
    """Return the scores of one answer of a row, such as `sft` or `greedy_sft`, and which judges prefer it.

    Judges that only compare have compared the sampled answers of both models.
    """
    parts = []
    for key in ("judge", "second", "score"):
        name, value, preferred = texts(f"scores.{key}"), row.get(f"{key}_{side}"), row.get(f"{key}_prefers")
        if value is not None:
            parts.append(texts("scores.value", name=name, value=number(value)))
        elif preferred == side or (preferred == "tie" and side in ("sft", "policy")):
            outcome = texts("scores.tie" if preferred == "tie" else "scores.preferred")
            parts.append(texts("scores.outcome", name=name, outcome=outcome))
    return " · ".join(parts)
