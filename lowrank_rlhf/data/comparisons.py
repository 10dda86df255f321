"""Load comparisons from a data set as prompts, answers and rankings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import comb
from pathlib import Path

from lowrank_rlhf.config.data import Columns, FormatName
from lowrank_rlhf.data.examples import UNDECIDED, Example, Undecided
from lowrank_rlhf.data.formats import FORMATS
from lowrank_rlhf.data.loading import Loaded, load
from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.data.turns import prompt_key
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.run.records import Prompt, Ranking, Sample

COMPARISON_FORMATS = tuple(entry for entry in FORMATS if entry.ordered)


@dataclass(frozen=True)
class ComparisonData:
    """Contents of a file of comparisons; `notes` are sentences about rows read and dropped."""

    prompts: list[Prompt]
    answers: list[Sample]
    rankings: list[Ranking]
    notes: list[str]
    ties: int
    """Pairs of answers of which neither is better; they give no comparisons."""


@dataclass
class _Collected:
    prompts: dict[tuple[tuple[str, str], ...], Prompt] = field(default_factory=dict)
    answers: dict[tuple[str, str], Sample] = field(default_factory=dict)
    answers_to: Counter[str] = field(default_factory=Counter)
    rankings: list[Ranking] = field(default_factory=list)

    def add(self, number: int, example: Example) -> None:
        new = Prompt(id=f"p{number:05d}", messages=example.prompt)
        prompt = self.prompts.setdefault(prompt_key(example.prompt), new).id
        tiers = tuple(tuple(self._answer(prompt, example.answers[place]) for place in tier) for tier in example.tiers)
        self.rankings.append(Ranking(prompt_id=prompt, tiers=tiers, annotator=example.annotator))

    def _answer(self, prompt: str, text: str) -> str:
        if (prompt, text) not in self.answers:
            sample = Sample(id=f"{prompt}-{self.answers_to[prompt]}", prompt_id=prompt, text=text)
            self.answers_to[prompt] += 1
            self.answers[prompt, text] = sample
        return self.answers[prompt, text].id


def load_comparisons(
    source: str | Path,
    chosen: FormatName | None = None,
    skip_bad_rows: float = 0.0,
    columns: Columns | None = None,
    setting: str = "rank.format",
) -> ComparisonData:
    """Load comparisons from a file or the hub. Equal prompts share an id, and so do equal answers to a prompt.

    `setting` is the key or option of `chosen` in messages.
    """
    loaded = load(source, setting, chosen, COMPARISON_FORMATS, columns, imitated=False)
    if not loaded.format.ordered:
        raise UserError(
            Fault(
                "no_rankings_in_format",
                "{setting}: {format} contains no ranked answers",
                setting=setting,
                format=loaded.format.name,
            )
        )
    loaded.refuse_bad(skip_bad_rows)
    data = collect(loaded)
    if not data.rankings:
        raise UserError(
            Fault(
                "no_comparisons_left",
                "{source}: no comparisons left. {notes}",
                source=source,
                notes=" ".join(data.notes),
            )
        )
    return data


def collect(loaded: Loaded) -> ComparisonData:
    """Return the rankings of loaded rows, with notes on rows without an order."""
    collected = _Collected()
    undecided: dict[Undecided, list[int]] = {}
    empty = 0
    for row, example in loaded.located:
        if example.undecided:
            undecided.setdefault(example.undecided, []).append(row.number)
        else:
            collected.add(row.number, example)
            empty += not all(example.answers[place].strip() for tier in example.tiers for place in tier)
    notes = [*loaded.notes, *_dropped(undecided)]
    if empty:
        notes.append(f"Kept {counted(empty, 'row')} in which an answer is empty.")
    pairs = sum(len(example.pairs) for _, example in loaded.located)
    answers, prompts = counted(len(collected.answers), "answer"), counted(len(collected.prompts), "prompt")
    notes.append(f"Kept {counted(pairs, 'comparison')} of {answers} to {prompts}.")
    ties = sum(_ties(example) for _, example in loaded.located)
    return ComparisonData([*collected.prompts.values()], [*collected.answers.values()], collected.rankings, notes, ties)


def without_prompts(data: ComparisonData, prompts: Sequence[Prompt]) -> ComparisonData:
    """Return the data without these prompts, with a note on the number left out."""
    keys = {prompt_key(prompt.messages) for prompt in prompts}
    gone = {prompt.id for prompt in data.prompts if prompt_key(prompt.messages) in keys}
    if not gone:
        return data
    rankings = [ranking for ranking in data.rankings if ranking.prompt_id not in gone]
    notes = [
        *data.notes,
        f"Left out {counted(len(data.rankings) - len(rankings), 'ranking')} of {counted(len(gone), 'prompt')} "
        "that data.held_out keeps from all training.",
    ]
    return replace(
        data,
        prompts=[prompt for prompt in data.prompts if prompt.id not in gone],
        answers=[answer for answer in data.answers if answer.prompt_id not in gone],
        rankings=rankings,
        notes=notes,
    )


def _ties(example: Example) -> int:
    if example.undecided:
        return comb(len(set(example.answers)), 2) if example.undecided in ("no majority", "tie") else 0
    return sum(comb(len(tier), 2) for tier in example.tiers)


def _dropped(undecided: dict[Undecided, list[int]]) -> list[str]:
    notes = []
    for reason, numbers in undecided.items():
        which = f": {', '.join(map(str, numbers))}" if reason == "not text" else ""
        notes.append(f"Dropped {counted(len(numbers), 'row')} {UNDECIDED[reason]}{which}.")
    return notes
