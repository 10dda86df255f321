"""Detect the format of a file from all of its rows. An ambiguous file is an error."""

import difflib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from lowrank_rlhf.data.columns import TYPO, column_setting
from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.format_entry import Format
from lowrank_rlhf.data.formats import FORMATS
from lowrank_rlhf.data.readers.rows import Row, counted, listed
from lowrank_rlhf.errors import Fault, UserError

# With a smaller share of rows in the most common format, the file is a mixture and not one format with mistakes.
_ONE_FORMAT = 0.9
_SHOWN_FORMATS = 4
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
        raise UserError(_unknown(rows, setting, among))
    common, count = readings.most_common(1)[0]
    if len(common) > 1:
        names = [entry.name for entry in FORMATS if entry.name in common]
        keys = "; ".join(f"{entry.name} reads {listed(entry.keys)}" for entry in FORMATS if entry.name in common)
        text = "{source}: the rows fit {count} formats ({keys}). Choose one: {setting}={names}"
        values = {"source": source, "count": len(names), "keys": keys, "setting": setting, "names": " or ".join(names)}
        raise UserError(Fault("two_formats", text, **values))
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
        return (messages if "messages" in row.fields else prompts).example_of(row)

    keys = tuple({key: None for row in rows for key in row.fields if key in ("prompt", "messages")})
    return replace(prompts, keys=(), optional=(*keys, *prompts.optional), convert=convert, fits=None)


def _rows_with(rows: Sequence[Row], keys: Sequence[str]) -> str:
    having = sum(all(key in row.fields for key in keys) for row in rows)
    if having == len(rows):
        return f"{'its only row has' if having == 1 else f'all {having:,} rows have'} {listed(keys)}"
    return f"{having:,} of {len(rows):,} rows {'has' if having == 1 else 'have'} {listed(keys)}"


def _unknown(rows: Sequence[Row], setting: str, among: Collection[Format]) -> str:
    bare = next(row for row in rows if not _readings(row, among))
    other = _readings(bare, FORMATS)
    if other:
        text = (
            "{where}: this looks like {names}, which contains no ranked answers. Formats that do "
            "(docs/data-formats.md): {formats}"
        )
        names, formats = ", ".join(sorted(other)), _described(_nearest(bare, among))
        return Fault("no_comparisons", text, where=bare.where, names=names, formats=formats)
    columns = column_setting(setting)
    if {"chosen", "rejected"} <= bare.fields.keys():
        text = (
            '{where}: "chosen" and "rejected" without a prompt must be conversations (lists of role and content) '
            'or transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ..."). Name its column: {columns}prompt=COLUMN'
        )
        return Fault("pair_without_prompt", text, where=bare.where, columns=columns)
    own = {key for entry in FORMATS for key in (*entry.keys, *entry.optional)}
    needed = {key for entry in among for key in entry.keys}.difference(bare.fields)
    close = {key: difflib.get_close_matches(key, needed, n=1, cutoff=TYPO) for key in bare.fields if key not in own}
    hints = [
        Fault("did_you_mean", ' "{key}": Did you mean "{meant}"?', key=key, meant=meant[0])
        for key, meant in close.items()
        if meant
    ]
    text = (
        "{where}: unknown format. Keys found: {keys}.{hints} Name the columns, such as {columns}prompt=COLUMN. "
        "Formats (docs/data-formats.md): {formats}"
    )
    values = {"keys": ", ".join(bare.fields) or "none", "hints": tuple(hints), "columns": columns}
    formats = _described(_nearest(bare, among))
    return Fault("unknown_format", text, where=bare.where, formats=formats, **values)


def _nearest(row: Row, among: Collection[Format]) -> list[Format]:
    """Return the few formats with the most of the row's keys, those with the fewest missing first; else all."""
    shared = [entry for entry in among if any(key in row.fields for key in entry.keys)]
    nearest = sorted(shared, key=lambda entry: sum(key not in row.fields for key in entry.keys))
    return nearest[:_SHOWN_FORMATS] or list(among)[:_SHOWN_FORMATS]


def _described(among: Collection[Format]) -> str:
    return "; ".join(f"{entry.name} ({', '.join(entry.keys)})" for entry in among)


def _mixed(rows: Sequence[Row], source: str, setting: str, among: Collection[Format]) -> str:
    first: dict[frozenset[str], Row] = {}
    counts: Counter[frozenset[str]] = Counter()
    for row in rows:
        names = _readings(row, among)
        first.setdefault(names, row)
        counts[names] += 1
    parts: list[str] = []
    for names, count in counts.most_common():
        text = "{rows} as {names} (first: {where})" if names else "{rows} as unknown format (first: {where})"
        values = {"names": " or ".join(sorted(names)), "where": first[names].where}
        part = Fault("rows_as" if names else "rows_unknown", text, rows=counted(count, "row"), count=count, **values)
        parts += [", ", part] if parts else [part]
    text = "{source}: the rows have different formats: {parts}. Split the file, or set {setting}"
    return Fault("mixed_formats", text, source=source, parts=tuple(parts), setting=setting)
