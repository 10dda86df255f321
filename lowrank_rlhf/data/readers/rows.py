"""Rows that people bring along: each knows its place in the file, and errors name it."""

import json
from typing import Any, NamedTuple

from lowrank_rlhf.errors import HALF_A_CHARACTER, UserError, is_whole

MOST_UNPACKED = 2**30
"""Bytes of one file; a few packed kilobytes can hold more than any memory."""

EXAMPLE = '{"prompt": "..."}'


class Row(NamedTuple):
    """One object of a file. `where` is what an error message starts with, such as `my.jsonl:12`."""

    number: int
    where: str
    fields: dict[str, Any]


class BadRow(NamedTuple):
    """A row that cannot be read at all. `problem` begins with its place."""

    number: int
    problem: str


def make_row(number: int, where: str, value: object) -> Row | BadRow:
    """A row from what was parsed there; NaN, pandas' sign for a missing cell, becomes None."""
    if not isinstance(value, dict):
        return BadRow(number, f"{where}: {kind(value)} instead of an object like {EXAMPLE}")
    if not all(map(is_whole, map(str, value))):
        return BadRow(number, f"{where}: a key {HALF_A_CHARACTER}")
    return Row(number, where, {str(key): None if item != item else item for key, item in value.items()})


def text_field(row: Row, name: str, value: object) -> str:
    """`value` if it is text with something in it; else an error that calls it `name`."""
    if value is None:
        raise UserError(f"{row.where}: {name} is empty; write something or delete the row")
    text = any_text_field(row, name, value)
    if not text.strip():
        raise UserError(f"{row.where}: {name} is empty; write something or delete the row")
    return text


def any_text_field(row: Row, name: str, value: object) -> str:
    """`value` if it is text, even an empty one."""
    if not isinstance(value, str):
        raise UserError(f"{row.where}: {name} must be a string, not {kind(value)}")
    if not is_whole(value):
        raise UserError(f"{row.where}: {name} {HALF_A_CHARACTER}")
    return value


def list_field(row: Row, name: str, value: object) -> list[Any]:
    """`value` if it is a list with something in it; else an error that calls it `name`."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        raise UserError(
            f"{row.where}: {name} is a list spelt as text; keep lists in JSONL or Parquet, not in CSV cells"
        )
    if not isinstance(value, list):
        raise UserError(f"{row.where}: {name} must be a list, not {kind(value)}")
    if not value:
        raise UserError(f"{row.where}: {name} is empty; write something or delete the row")
    return value


def kind(value: object) -> str:
    """What JSON calls a value, for error messages."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else "a number"


def same_text_key(text: str) -> str:
    """Texts with equal keys count as the same prompt."""
    return text.strip().casefold()


def listed(names: object) -> str:
    """Names in quotation marks: `"prompt", "chosen"`; `none` where there are none."""
    return ", ".join(f'"{name}"' for name in names) or "none"  # type: ignore[attr-defined]


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
