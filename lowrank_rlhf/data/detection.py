"""Detect the format of a file from all of its rows. An ambiguous file is an error."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.formats import FORMATS, Format
from lowrank_rlhf.data.readers.rows import EXAMPLE, Row, counted, listed
from lowrank_rlhf.errors import UserError

# With a smaller share of rows in the most common format, the file is a mixture and not one format with mistakes.
_ONE_FORMAT = 0.9
# These two may be mixed in one file: both have a prompt, and no part of a row is lost.
_MIXABLE = frozenset({"prompt-completion", "messages"})


class Found(NamedTuple):
    """Detected format of a file, with the reason in words."""

    format: Format
    why: str


def detect(rows: Sequence[Row], source: str, setting: str, among: Collection[Format] = FORMATS) -> Found:
    """Return the only format that fits the rows. `setting` is the key that selects a format, such as `data.format`.

    Raises `UserError` if no format fits, if two fit equally well, or if the rows mix formats.
    """
    readings = Counter(_readings(row, among) for row in rows)
    unread = readings.pop(frozenset(), 0)
    if unread > len(rows) / 2:
        raise UserError(_unknown(rows, among))
    common, count = readings.most_common(1)[0]
    if len(common) > 1:
        names = [entry.name for entry in FORMATS if entry.name in common]
        keys = "; ".join(f"{entry.name} reads {listed(entry.keys)}" for entry in FORMATS if entry.name in common)
        raise UserError(
            f"{source}: the rows fit {len(names)} formats ({keys}). Choose one: {setting}={' or '.join(names)}"
        )
    used = {name for names in readings for name in names}
    if used == _MIXABLE and all(len(names) == 1 for names in readings):
        return Found(_mixture(rows), f"{_rows_with(rows, ('prompt',))}, {_rows_with(rows, ('messages',))}")
    if count < _ONE_FORMAT * readings.total():
        raise UserError(_mixed(rows, source, setting, among))
    found = next(entry for entry in FORMATS if entry.name in common)
    return Found(found, _rows_with(rows, found.keys) + found.requirement)


def _readings(row: Row, among: Collection[Format]) -> frozenset[str]:
    """Return the formats that fit the row, except those whose keys are a subset of another's."""
    fitting = [entry for entry in among if entry.reads(row.fields)]
    return frozenset(entry.name for entry in fitting if not any(set(entry.keys) < set(other.keys) for other in fitting))


def _mixture(rows: Sequence[Row]) -> Format:
    prompts, messages = (next(entry for entry in FORMATS if entry.name == name) for name in sorted(_MIXABLE)[::-1])

    def convert(row: Row) -> Example:
        return (messages if "messages" in row.fields else prompts).convert(row)

    keys = tuple({key: None for row in rows for key in row.fields if key in ("prompt", "messages")})
    return Format(prompts.name, prompts.what, (), (*keys, *prompts.optional), convert, EXAMPLE)


def _rows_with(rows: Sequence[Row], keys: Sequence[str]) -> str:
    having = sum(all(key in row.fields for key in keys) for row in rows)
    if having == len(rows):
        return f"{'its only row has' if having == 1 else f'all {having:,} rows have'} {listed(keys)}"
    return f"{having:,} of {len(rows):,} rows {'has' if having == 1 else 'have'} {listed(keys)}"


def _unknown(rows: Sequence[Row], among: Collection[Format]) -> str:
    bare = next(row for row in rows if not _readings(row, among))
    other = _readings(bare, FORMATS)
    if other:
        names = ", ".join(sorted(other))
        return (
            f"{bare.where}: this looks like {names}, which contains no ranked answers. "
            f"Formats that do: {_described(among)}"
        )
    if {"chosen", "rejected"} <= bare.fields.keys():
        return (
            f'{bare.where}: "chosen" and "rejected" without "prompt" must be conversations (lists of role and content) '
            'or transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ..."). Add the prompt as "prompt"'
        )
    if isinstance(bare.fields.get("label"), bool):
        return (
            f'{bare.where}: "prompt", "completion" and a true-or-false "label" are unpaired preferences, which are not '
            'supported. For demonstrations, keep the rows whose "label" is true and remove that key'
        )
    own = {key for entry in FORMATS for key in (*entry.keys, *entry.optional)}
    needed = {key for entry in among for key in entry.keys}.difference(bare.fields)
    hints = [f' "{key}":{guess}' for key in bare.fields if key not in own and (guess := suggestion(key, needed))]
    return (
        f"{bare.where}: unknown format. Keys found: {', '.join(bare.fields) or 'none'}.{''.join(hints)} "
        f"Supported formats (docs/data-formats.md): {_described(among)}"
    )


def _described(among: Collection[Format]) -> str:
    return "; ".join(f"{entry.name} ({', '.join(entry.keys)})" for entry in among)


def _mixed(rows: Sequence[Row], source: str, setting: str, among: Collection[Format]) -> str:
    first: dict[frozenset[str], Row] = {}
    counts: Counter[frozenset[str]] = Counter()
    for row in rows:
        names = _readings(row, among)
        first.setdefault(names, row)
        counts[names] += 1
    parts = [
        f"{counted(count, 'row')} as {' or '.join(sorted(names)) or 'unknown format'} (first: {first[names].where})"
        for names, count in counts.most_common()
    ]
    return f"{source}: the rows have different formats: {', '.join(parts)}. Split the file, or set {setting}"
