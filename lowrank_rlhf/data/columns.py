"""Columns of a data set: the config's map to the keys of the formats, and columns that must not be ignored."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from lowrank_rlhf.config.data import Columns
from lowrank_rlhf.data.format_entry import Format
from lowrank_rlhf.data.formats import FORMATS
from lowrank_rlhf.data.readers.rows import Row, is_empty, row_error
from lowrank_rlhf.errors import Fault, UserError

_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_TOOLS = ("tools", "functions")
_LABELS = ("label", "labels", "kto_tag")
_CONTEXT = ("system", "system_prompt", "history", "input", "context")
_RATINGS = ("score", "scores", "rating", "ratings", "overall_score", "helpfulness", "ranks", "ranking")
WORSE = ("rejected", "rejected_response", "rejected_messages")
"""Columns with the worse answer of a comparison."""
UNREAD = {
    **dict.fromkeys(_MEDIA, "images, videos and sound are not supported"),
    **dict.fromkeys(_TOOLS, "definitions of tools are not supported"),
    **dict.fromkeys(
        _LABELS, "unpaired preferences (one answer with a label) are not supported: bad answers would be imitated"
    ),
    **dict.fromkeys(_CONTEXT, "{format} has no such key, and the prompt would lack it"),
    **dict.fromkeys(_RATINGS, "{format} has no such key, and bad answers would be imitated"),
    **dict.fromkeys(WORSE, "{format} has no such key, and the comparison would be lost"),
}
"""Columns that change the meaning of a row, with the reason to refuse them where the format does not read them."""
_OF_DEMONSTRATIONS = frozenset((*_LABELS, *_RATINGS, *WORSE))
KEYS = frozenset({key for entry in FORMATS for key in (*entry.keys, *entry.optional)} | UNREAD.keys())
"""Keys that `data.columns` may map."""

TYPO = 0.85
"""Similarity of a typo: one or two letters differ (`respones`, `promt`); `prompt_id` is not a typo of `prompt`."""


def column_setting(format_setting: str) -> str:
    """Return the beginning of an assignment to the column map: `data.columns.` for `data.format`."""
    return format_setting.replace("format", "columns") + ("." if "." in format_setting else " ")


def renamed(rows: Sequence[Row], columns: Columns, setting: str) -> list[Row]:
    """Return the rows with columns under the keys of `columns`; messages begin with `setting`, `data.columns.`.

    Raises `UserError` for a key that no format reads, and for a column that no row has.
    """
    found = {key for row in rows for key in row.fields}
    for key, column in columns.items():
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            hint = f'Did you mean "{close[0]}"?' if close else f"Keys: {', '.join(sorted(KEYS))}"
            raise UserError(
                Fault(
                    "unknown_column_key",
                    "{setting}{key}: no format reads this key. {hint}",
                    setting=setting,
                    key=key,
                    hint=hint,
                )
            )
        if column is not None and column not in found:
            raise UserError(
                Fault(
                    "column_not_found",
                    '{setting}{key}: column "{column}" not found. Columns: {columns}',
                    setting=setting,
                    key=key,
                    column=column,
                    columns=", ".join(sorted(found)),
                )
            )
    return [row._replace(fields=_renamed(row.fields, columns)) for row in rows] if columns else list(rows)


def _renamed(fields: Mapping[str, object], columns: Columns) -> dict[str, object]:
    taken = {*columns, *columns.values()}
    mapped = {key: fields[column] for key, column in columns.items() if column is not None and column in fields}
    return {**{key: value for key, value in fields.items() if key not in taken}, **mapped}


def ignored(rows: Sequence[Row], form: Format, columns: Columns, setting: str) -> list[str]:
    """Return the keys that the format ignores; the keys of `columns` have no typos.

    Raises `UserError` for one that looks like a typo of a known key, and for one that changes the meaning of a row.
    """
    known = [*form.keys, *form.optional]
    counts = Counter(key for row in rows for key in row.fields)
    others = sorted(set(counts) - set(known))
    for key in others:
        meant = difflib.get_close_matches(
            key, [name for name in known if name not in counts and name not in columns], n=1, cutoff=TYPO
        )
        if meant:
            where = next(row.where for row in rows if key in row.fields)
            raise UserError(
                Fault(
                    "column_typo",
                    '{where}: unknown key "{key}". Did you mean "{meant}"? Set {setting}{meant}={key}, or '
                    "{setting}{meant}=null to ignore it",
                    where=where,
                    key=key,
                    meant=meant[0],
                    setting=setting,
                )
            )
    harmless = _OF_DEMONSTRATIONS if form.ordered else {"rejected"} & counts.keys() if "chosen" in counts else set()
    for key in (key for key in others if key in UNREAD and key not in harmless):
        row = next((row for row in rows if not is_empty(row.fields.get(key))), None)
        if row:
            why = UNREAD[key].format(format=form.name)
            raise row_error(
                row,
                "column_not_read",
                '"{key}" is not read: {why}. Set {setting}{key}=null to ignore it',
                key=key,
                why=why,
                setting=setting,
            )
    return others
