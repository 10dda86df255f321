"""Rows of users' data files, with their place in the file for error messages."""

import json
import math
from contextlib import suppress
from decimal import Decimal
from typing import Any, NamedTuple

from lowrank_rlhf.errors import HALF_A_CHARACTER, Fault, UserError, is_whole

MOST_UNPACKED = 2**30
"""Maximum bytes of one file: a few compressed kilobytes can expand beyond any memory."""

EXAMPLE = '{"prompt": "..."}'


class Row(NamedTuple):
    """Object of a file. `where` is the beginning of error messages, such as `my.jsonl:12`."""

    number: int
    where: str
    fields: dict[str, Any]


class BadRow(NamedTuple):
    """Unreadable row. `problem` begins with its place."""

    number: int
    problem: str


def row_error(row: Row, key: str, text: str, /, **values: Any) -> UserError:
    """Return the error of a row: `fault` with the row's place before the text."""
    return UserError(Fault(key, "{where}: " + text, where=row.where, **values))


def make_row(number: int, where: str, value: object) -> Row | BadRow:
    """Return the row of a parsed value, with one kind of line end, decimals as numbers, and NaN as None."""
    if not isinstance(value, dict):
        return BadRow(
            number,
            Fault(
                "no_object",
                "{where}: expected an object like {example}, got {kind}",
                where=where,
                example=EXAMPLE,
                kind=kind(value),
            ),
        )
    if not all(map(is_whole, map(str, value))):
        return BadRow(number, Fault("half_a_key", "{where}: a key " + HALF_A_CHARACTER, where=where))
    try:
        return Row(number, where, {str(key): _plain(item) for key, item in value.items()})
    except RecursionError:
        return BadRow(number, Fault("nested", "{where}: nested too deeply", where=where))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\r\n", "\n")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if value != value:  # NaN, pandas' mark of a missing cell
        return None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value


def is_empty(value: object) -> bool:
    """Return True for null, an empty text, an empty list and an empty object."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def text_field(row: Row, name: str, value: object) -> str:
    """Return `value` if it is non-empty text. Raises `UserError` with `name` otherwise."""
    if value is None:
        raise row_error(row, "empty_cell", "{name} is empty. Fill it in or delete the row", name=name)
    text = any_text_field(row, name, value)
    if not text.strip():
        raise row_error(row, "empty_cell", "{name} is empty. Fill it in or delete the row", name=name)
    return text


def any_text_field(row: Row, name: str, value: object) -> str:
    """Return `value` if it is text, even empty. Raises `UserError` with `name` otherwise."""
    if not isinstance(value, str):
        raise row_error(row, "no_string", "{name} must be a string, not {kind}", name=name, kind=kind(value))
    if not is_whole(value):
        raise row_error(row, "half_a_character", "{name} " + HALF_A_CHARACTER, name=name)
    return value


def list_field(row: Row, name: str, value: object) -> list[Any]:
    """Return `value` if it is a non-empty list. Raises `UserError` with `name` otherwise."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        raise row_error(
            row,
            "list_as_text",
            "{name} is a list written as text. Store lists in JSONL or Parquet, not in CSV cells",
            name=name,
        )
    if not isinstance(value, list):
        raise row_error(row, "no_list", "{name} must be a list, not {kind}", name=name, kind=kind(value))
    if not value:
        raise row_error(row, "empty_cell", "{name} is empty. Fill it in or delete the row", name=name)
    return value


def number_field(row: Row, name: str, value: object) -> float:
    """Return `value` if it is a finite number, or one written as text. Raises `UserError` with `name` otherwise."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):  # no number, or one beyond the range of a float
            number = float(value)
    if not math.isfinite(number):
        raise row_error(row, "no_number", "{name} must be a finite number, not {kind}", name=name, kind=kind(value))
    return number


def kind(value: object) -> str:
    """Return JSON's name for the type of a value, for error messages."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return Fault("kind.string", "a string")
    if isinstance(value, list):
        return Fault("kind.list", "a list")
    return Fault("kind.object", "an object") if isinstance(value, dict) else Fault("kind.number", "a number")


def same_text_key(text: str) -> str:
    """Return a key; texts with equal keys count as the same prompt."""
    return text.strip().casefold()


def listed(names: object) -> str:
    """Return the names in quotation marks, such as `"prompt", "chosen"`, or `none`."""
    return ", ".join(f'"{name}"' for name in names) or "none"  # type: ignore[attr-defined]


def counted(number: int, noun: str) -> str:
    """Return number and noun, such as `1 row` or `2 rows`."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
