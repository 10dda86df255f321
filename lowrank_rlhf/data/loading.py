"""Load a file as examples: detect its format, convert its rows, and report invalid ones."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from lowrank_rlhf.config.data import Columns, FormatName
from lowrank_rlhf.data.columns import column_setting, ignored, renamed
from lowrank_rlhf.data.converters.rankings import merge_rated
from lowrank_rlhf.data.detection import Found, detect
from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.format_entry import Format
from lowrank_rlhf.data.formats import BY_NAME, FORMATS
from lowrank_rlhf.data.readers.rows import EXAMPLE, Row, counted
from lowrank_rlhf.data.readers.sources import read_rows
from lowrank_rlhf.data.turns import check_weight, prompt_key
from lowrank_rlhf.errors import Fault, UserError

_SHOWN_PROBLEMS = 5
_WORTH_SKIPPING = 0.01


class Located(NamedTuple):
    """Example with its source row."""

    row: Row
    example: Example


@dataclass(frozen=True)
class Loaded:
    """Contents of a file. `problems` has a sentence for each bad row; `located` has the other rows."""

    name: str
    format: Format
    why: str
    rows: int
    located: list[Located]
    problems: list[str]
    ignored: list[str]
    repeated_prompts: bool = False
    """True if every answer began with its prompt, which was split off."""

    @property
    def notes(self) -> list[str]:
        """Sentences about rows read and left out."""
        notes = [f"Read {counted(self.rows, 'row')} of {self.name} in the {self.format.name} format: {self.why}."]
        if self.ignored:
            notes.append(f"Ignored the keys {', '.join(self.ignored)}.")
        if self.repeated_prompts:
            notes.append("Every answer began with its prompt, which was split off.")
        if self.problems:
            notes.append(f"Left out {counted(len(self.problems), 'bad row')}; the first: {self.problems[0]}")
        return notes

    def refuse_bad(self, allowed: float) -> None:
        """Raise `UserError` if more than this share of the rows is bad."""
        bad = len(self.problems)
        if bad <= allowed * self.rows:
            return
        lines = self.problems[:_SHOWN_PROBLEMS]
        if bad > len(lines):
            more = bad - len(lines)
            text = "and {rest}, of {rows:,} rows in all"
            lines.append(Fault("more_bad_rows", text, rest=counted(more, "more bad row"), count=more, rows=self.rows))
        if allowed:
            text = "{bad} of {rows} are bad, more than data.skip_bad_rows={allowed:g} allows"
            rows = counted(self.rows, "row")
            lines.append(Fault("bad_rows", text, bad=bad, rows=rows, count=self.rows, allowed=allowed))
        elif bad <= _WORTH_SKIPPING * self.rows:
            text = "Correct these rows, or leave them out: data.skip_bad_rows={allowed}"
            lines.append(Fault("correct_rows", text, allowed=_WORTH_SKIPPING))
        raise UserError(*lines)


def load(
    source: str | Path,
    setting: str,
    chosen: FormatName | None = None,
    among: Collection[Format] = FORMATS,
    columns: Columns | None = None,
    imitated: bool = True,
) -> Loaded:
    """Load the rows of a source. `setting` is the config key of `chosen`, such as `data.format`.

    With `imitated` a row is bad if its conversation excludes the response from training (`weight: 0`). Raises
    `UserError` if the source cannot be read, if its format is unknown, if two formats fit, or if the format does not
    read a column that changes the meaning of a row.
    """
    of_columns = column_setting(setting)
    everything = read_rows(source)
    problems = [(row.number, row.problem) for row in everything if not isinstance(row, Row)]
    rows = renamed([row for row in everything if isinstance(row, Row)], columns or {}, of_columns)
    if not rows:
        text = "{source}: no rows. Expected one object like {example} per line"
        found_none = Fault("no_rows", text, source=str(source), example=EXAMPLE)
        raise UserError(*[problem for _, problem in problems[:_SHOWN_PROBLEMS]] or [found_none])
    found = Found(BY_NAME[chosen], f"{setting} is set") if chosen else detect(rows, str(source), setting, among)
    located = []
    for row in rows:
        try:
            located.append(Located(row, _converted(row, found.format, imitated)))
        except UserError as error:
            problems += [(row.number, part) for part in error.parts]
    name = str(source) if isinstance(source, str) and ":" in source else Path(source).name
    in_order = [problem for _, problem in sorted(problems, key=itemgetter(0))]
    unread = ignored(rows, found.format, columns or {}, of_columns)
    located, repeated = without_repeated_prompts(_merged(located))
    return Loaded(name, *found[:2], len(everything), located, in_order, unread, repeated)


def _converted(row: Row, form: Format, imitated: bool) -> Example:
    example = form.example_of(row)
    if imitated and example.imitated is not None:
        check_weight(row, example.imitated)
    return example


def without_repeated_prompts(located: list[Located]) -> tuple[list[Located], bool]:
    """Return the rows without the prompt at the beginning of each answer, if all answers of the file repeat it.

    One row would prove nothing: a short prompt may begin an answer by chance.
    """
    answered = [entry.example for entry in located if entry.example.texts]
    if len({example.prompt for example in answered}) < 2 or not all(_repeats_prompt(example) for example in answered):
        return located, False
    return [Located(row, _without_prompt(example)) for row, example in located], True


def _repeats_prompt(example: Example) -> bool:
    asked = example.prompt[-1].content.strip()
    return all(text.lstrip().startswith(asked) and text.strip() != asked for text in example.texts)


def _without_prompt(example: Example) -> Example:
    asked = example.prompt[-1].content.strip()
    response, *answers = (
        None if text is None else text.lstrip().removeprefix(asked).lstrip()
        for text in (example.response, *example.answers)
    )
    return replace(example, response=response, answers=tuple(text for text in answers if text is not None))


def _merged(located: list[Located]) -> list[Located]:
    """Return one ranking for the rated answers to each prompt, at the place of its first row."""
    groups: dict[object, list[Located]] = {}
    for index, entry in enumerate(located):
        key = index if entry.example.rating is None else prompt_key(entry.example.prompt)
        groups.setdefault(key, []).append(entry)
    return [
        group[0] if group[0].example.rating is None else Located(group[0].row, merge_rated([e for _, e in group]))
        for group in groups.values()
    ]
