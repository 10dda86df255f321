"""Read JSON and JSONL as rows with their line numbers."""

import json
from contextlib import suppress
from typing import Any

from lowrank_rlhf.data.readers.rows import EXAMPLE, BadRow, Row, make_row
from lowrank_rlhf.errors import Fault, UserError, is_whole

ROWS_UNDER = ("data", "rows", "train", "examples", "instances", "items", "records")
"""Keys of an object under which its list of rows is found."""


def json_rows(content: bytes, name: str) -> list[Row | BadRow]:
    """Return the objects of a JSONL file, without blank lines, or of a JSON list, counted from 1.

    A file of one object may have the rows under one key (`{"data": [...]}`), or be a table of columns.
    """
    if content.lstrip().startswith(b"["):
        return _list_rows(_whole(content, name), name)
    if (single := _single_object(content)) is not None:
        first_line = content[: len(content) - len(content.lstrip())].count(b"\n") + 1
        return _object_rows(single, name, first_line)
    rows = []
    # Only b"\n" ends a line here: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            rows.append(_line_row(number, f"{name}:{number}", line))
    return rows


def _line_row(number: int, where: str, line: bytes) -> Row | BadRow:
    try:
        return make_row(number, where, _parsed(line.decode()))
    except UnicodeDecodeError:
        return BadRow(number, Fault("not_utf8", "{where}: not UTF-8 text. Save the file as UTF-8", where=where))
    except json.JSONDecodeError as error:
        return BadRow(
            number,
            Fault(
                "bad_json_line",
                "{where}: invalid JSON ({reason}). Expected a line like {example}",
                where=where,
                reason=error.msg,
                example=EXAMPLE,
            ),
        )
    except (ValueError, RecursionError) as error:
        return BadRow(number, Fault("bad_json", "{where}: invalid JSON ({reason})", where=where, reason=error))


def _single_object(content: bytes) -> dict[str, Any] | None:
    """Return the object of a file that has only one, over several lines or on one; None for other files."""
    first, _, rest = content.strip().partition(b"\n")
    with suppress(ValueError, RecursionError):
        if not rest.strip():
            found = _parsed(first.decode())
        elif not is_object(first):
            found = _parsed(content.decode())
        else:
            return None
        return found if isinstance(found, dict) else None
    return None


def is_object(line: bytes) -> bool:
    """Return True for a line that is a JSON object."""
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(line), dict)
    return False


def _object_rows(found: dict[str, Any], name: str, line: int) -> list[Row | BadRow]:
    under = [key for key in ROWS_UNDER if isinstance(found.get(key), list)]
    if under:
        return _list_rows(found[under[0]], f"{name}: {under[0]}")
    columns = {key: list(value.values()) if isinstance(value, dict) else value for key, value in found.items()}
    if _is_table(found, columns):
        cells = zip(*columns.values(), strict=True)
        return _list_rows([dict(zip(columns, row, strict=True)) for row in cells], name)
    return [make_row(line, f"{name}:{line}", found)]


def _is_table(found: dict[str, Any], columns: dict[str, Any]) -> bool:
    """Return True for an object of equally long columns: lists, or pandas' objects of the same row names.

    A list of turns is a cell of one row, not a column, and so is a list of one element or none.
    """
    if not columns or not all(isinstance(column, list) and len(column) > 1 for column in columns.values()):
        return False
    names = {tuple(value) if isinstance(value, dict) else len(value) for value in found.values()}
    turns = any(isinstance(cell, dict) for column in columns.values() for cell in column)
    return len(names) == 1 and not turns


def _list_rows(values: list[Any], name: str) -> list[Row | BadRow]:
    return [make_row(number, f"{name}: row {number}", value) for number, value in enumerate(values, 1)]


def _whole(content: bytes, name: str) -> list[Any]:
    """Return a JSON list. A syntax error raises `UserError` even if bad rows may be skipped."""
    try:
        values: list[Any] = _parsed(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            Fault("not_utf8", "{where}: not UTF-8 text. Save the file as UTF-8", where=f"{name}:{line}")
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(
            Fault(
                "bad_json_at",
                "{name}:{line}: invalid JSON ({reason}). Correct this line",
                name=name,
                line=error.lineno,
                reason=error.msg,
            )
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(Fault("bad_json", "{where}: invalid JSON ({reason})", where=name, reason=error)) from None
    return values


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {json.dumps(twice, ensure_ascii=not is_whole(twice))}")
    return made
