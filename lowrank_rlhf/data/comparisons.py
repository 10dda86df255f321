"""Comparisons of two answers that somebody else collected: PandaLM's test set, or prompt-chosen-rejected rows."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeGuard

from lowrank_rlhf.data.jsonfile import Row, any_text_field, read_rows_or_list, same_text_key, text_field
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.records import Message, Prompt, Ranking, Sample

PAIR_KEYS = ("prompt", "chosen", "rejected")
VOTES = ("annotator1", "annotator2", "annotator3")
PANDALM_KEYS = ("instruction", "input", "response1", "response2", *VOTES)
EXAMPLE = '{"prompt": "...", "chosen": "...", "rejected": "..."}'
FORMATS = f"either {', '.join(PAIR_KEYS)}, or PandaLM's {', '.join(PANDALM_KEYS)}"

Drop = Literal["tie", "not text", "same answer"]
DROPPED = {
    "tie": "in which neither answer had two of the three votes",
    "not text": "in which an answer is true or false instead of text",
    "same answer": "in which both answers are the same",
}


@dataclass(frozen=True)
class ComparisonData:
    """What a file of comparisons holds; `notes` says in sentences what was read and what was dropped."""

    prompts: list[Prompt]
    answers: list[Sample]
    rankings: list[Ranking]
    notes: list[str]


@dataclass(frozen=True)
class _Verdict:
    prompt: str
    winner: str
    loser: str
    annotator: str


@dataclass
class _Collected:
    prompts: dict[str, Prompt] = field(default_factory=dict)
    answers: dict[tuple[str, str], Sample] = field(default_factory=dict)
    answers_to: Counter[str] = field(default_factory=Counter)
    rankings: list[Ranking] = field(default_factory=list)

    def add(self, row: Row, verdict: _Verdict) -> None:
        new = Prompt(id=f"p{row.number:05d}", messages=(Message(role="user", content=verdict.prompt),))
        prompt = self.prompts.setdefault(same_text_key(verdict.prompt), new).id
        tiers = tuple((self._answer(prompt, text),) for text in (verdict.winner, verdict.loser))
        self.rankings.append(Ranking(prompt_id=prompt, tiers=tiers, annotator=verdict.annotator))

    def _answer(self, prompt: str, text: str) -> str:
        if (prompt, text) not in self.answers:
            sample = Sample(id=f"{prompt}-{self.answers_to[prompt]}", prompt_id=prompt, text=text)
            self.answers_to[prompt] += 1
            self.answers[prompt, text] = sample
        return self.answers[prompt, text].id


def load_comparisons(path: Path) -> ComparisonData:
    """Reads a JSON list or JSONL of comparisons. Rows of one prompt share its id; equal answers to it share theirs."""
    rows = read_rows_or_list(path, EXAMPLE)
    if not rows:
        raise UserError(f"{path}: no comparisons in it; a row has {FORMATS}")
    keys = _format(rows[0])
    verdict_of = _pandalm_verdict if keys == PANDALM_KEYS else _pair_verdict
    collected = _Collected()
    dropped: dict[Drop, list[int]] = {}
    empty = 0
    for row in rows:
        _check_keys(row, keys)
        verdict = verdict_of(row)
        if isinstance(verdict, _Verdict):
            collected.add(row, verdict)
            empty += not (verdict.winner.strip() and verdict.loser.strip())
        else:
            dropped.setdefault(verdict, []).append(row.number)
    notes = _notes(path, keys, rows, collected, dropped, empty)
    if not collected.rankings:
        raise UserError(f"{path}: no comparison is left. {' '.join(notes)}")
    return ComparisonData([*collected.prompts.values()], [*collected.answers.values()], collected.rankings, notes)


def _format(row: Row) -> tuple[str, ...]:
    for keys in (PAIR_KEYS, PANDALM_KEYS):
        if all(key in row.fields for key in keys):
            return keys
    raise UserError(f"{row.where}: unknown format. Keys found: {_listed(row)}; keys needed: {FORMATS}")


def _check_keys(row: Row, keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if key not in row.fields]
    if missing:
        raise UserError(f"{row.where}: no {', '.join(missing)}, unlike the first row. Keys found: {_listed(row)}")


def _listed(row: Row) -> str:
    return ", ".join(row.fields) or "none"


def _pair_verdict(row: Row) -> _Verdict | Drop:
    prompt = text_field(row, '"prompt"', row.fields["prompt"])
    winner = any_text_field(row, '"chosen"', row.fields["chosen"])
    loser = any_text_field(row, '"rejected"', row.fields["rejected"])
    return "same answer" if winner == loser else _Verdict(prompt, winner, loser, "dataset")


def _pandalm_verdict(row: Row) -> _Verdict | Drop:
    parts = [any_text_field(row, f'"{name}"', row.fields[name]) for name in ("instruction", "input")]
    prompt = text_field(row, '"instruction" with "input"', "\n\n".join(part for part in parts if part.strip()))
    votes = Counter(_vote(row, name) for name in VOTES)
    # Six rows of PandaLM's own file hold the boolean true where an answer should be; what it said is not known.
    if any(isinstance(row.fields[name], bool) for name in ("response1", "response2")):
        return "not text"
    first = any_text_field(row, '"response1"', row.fields["response1"])
    second = any_text_field(row, '"response2"', row.fields["response2"])
    if first == second:
        return "same answer"
    if max(votes[1], votes[2]) < 2:
        return "tie"
    winner, loser = (first, second) if votes[1] > votes[2] else (second, first)
    return _Verdict(prompt, winner, loser, "majority-of-3")


def _vote(row: Row, name: str) -> int:
    value = row.fields[name]
    if not _is_vote(value):
        raise UserError(f'{row.where}: "{name}" is {value!r}; it must be 1 or 2 for the better answer, or 0 for a tie')
    return value


def _is_vote(value: object) -> TypeGuard[int]:
    return type(value) is int and value in (0, 1, 2)


def _notes(
    path: Path,
    keys: tuple[str, ...],
    rows: list[Row],
    collected: _Collected,
    dropped: dict[Drop, list[int]],
    empty: int,
) -> list[str]:
    name = "PandaLM" if keys == PANDALM_KEYS else "prompt-chosen-rejected"
    notes = [f"Read {_count(len(rows), 'row')} of {path.name} in the {name} format."]
    ignored = sorted({key for row in rows for key in row.fields} - set(keys))
    if ignored:
        notes.append(f"Ignored the keys {', '.join(ignored)}.")
    for reason, numbers in dropped.items():
        which = f": {', '.join(map(str, numbers))}" if reason == "not text" else ""
        notes.append(f"Dropped {_count(len(numbers), 'row')} {DROPPED[reason]}{which}.")
    if empty:
        notes.append(f"Kept {_count(empty, 'row')} in which an answer is empty.")
    kept = _count(len(collected.rankings), "comparison")
    answers, prompts = _count(len(collected.answers), "answer"), _count(len(collected.prompts), "prompt")
    notes.append(f"Kept {kept} of {answers} to {prompts}.")
    return notes


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
