"""Load a file as examples: detect its format, convert its rows, and report invalid ones."""

import difflib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lowrank_rlhf.config.schema import FormatName
from lowrank_rlhf.data.detection import Found, detect
from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.formats import BY_NAME, FORMATS, Format
from lowrank_rlhf.data.readers.rows import EXAMPLE, Row, counted
from lowrank_rlhf.data.readers.sources import read_rows
from lowrank_rlhf.errors import UserError

_SHOWN_PROBLEMS = 5
# One or two letters differ (`respones`, `promt`); `prompt_id` is not a typo of `prompt`.
_TYPO = 0.85
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

    @property
    def notes(self) -> list[str]:
        """Sentences about rows read and left out."""
        notes = [f"Read {counted(self.rows, 'row')} of {self.name} in the {self.format.name} format: {self.why}."]
        if self.ignored:
            notes.append(f"Ignored the keys {', '.join(self.ignored)}.")
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
            lines.append(f"and {counted(bad - len(lines), 'more bad row')}, of {self.rows:,} rows in all")
        if allowed:
            lines.append(
                f"{bad} of {counted(self.rows, 'row')} are bad, more than data.skip_bad_rows={allowed:g} allows"
            )
        elif bad <= _WORTH_SKIPPING * self.rows:
            lines.append(f"Correct these rows, or leave them out: data.skip_bad_rows={_WORTH_SKIPPING}")
        raise UserError("\n".join(lines))


def load(
    source: str | Path, setting: str, chosen: FormatName | None = None, among: Collection[Format] = FORMATS
) -> Loaded:
    """Load the rows of a source. `setting` is the config key of `chosen`.

    Raises `UserError` if the source cannot be read, if its format is unknown, or if two formats fit.
    """
    everything = read_rows(source)
    rows = [row for row in everything if isinstance(row, Row)]
    problems = [(row.number, row.problem) for row in everything if not isinstance(row, Row)]
    if not rows:
        found_none = f"{source}: no rows. Expected one object like {EXAMPLE} per line"
        raise UserError("\n".join(problem for _, problem in problems[:_SHOWN_PROBLEMS]) or found_none)
    found = Found(BY_NAME[chosen], f"{setting} is set") if chosen else detect(rows, str(source), setting, among)
    located = []
    for row in rows:
        try:
            located.append(Located(row, _converted(row, found.format)))
        except UserError as error:
            problems.append((row.number, str(error)))
    name = str(source) if isinstance(source, str) and ":" in source else Path(source).name
    in_order = [problem for _, problem in sorted(problems)]
    return Loaded(name, *found[:2], len(everything), located, in_order, _ignored(rows, found.format))


def _converted(row: Row, form: Format) -> Example:
    missing = [key for key in form.keys if key not in row.fields]
    if missing:
        keys = ", ".join(row.fields) or "none"
        raise UserError(f"{row.where}: no {', '.join(missing)}, which {form.name} needs. Keys found: {keys}")
    return form.convert(row)


def _ignored(rows: Sequence[Row], form: Format) -> list[str]:
    """Return the keys that the format ignores. Raises `UserError` for one that looks like a typo of a known key."""
    known = [*form.keys, *form.optional]
    counts = Counter(key for row in rows for key in row.fields)
    ignored = sorted(set(counts) - set(known))
    for key in ignored:
        meant = difflib.get_close_matches(key, [name for name in known if name not in counts], n=1, cutoff=_TYPO)
        if meant:
            where = next(row.where for row in rows if key in row.fields)
            raise UserError(f'{where}: unknown key "{key}". Did you mean "{meant[0]}"? Rename it or delete it')
    return ignored
