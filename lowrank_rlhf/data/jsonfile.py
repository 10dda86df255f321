"""JSON and JSONL that people bring along: rows with their place in the file, and errors that name it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_rlhf.errors import UserError


class Row(NamedTuple):
    """One JSON object of a file. `where` is what an error message starts with, such as `my.jsonl:12`."""

    number: int
    where: str
    fields: dict[str, Any]


def read_rows(path: Path, example: str) -> list[Row]:
    """The objects of a JSONL file, blank lines skipped. `example` shows a good row in error messages."""
    return [
        _row(number, f"{path}:{number}", _parsed(line, f"{path}:{number}", example), example)
        for number, line in _lines(path)
    ]


def read_rows_or_list(path: Path, example: str) -> list[Row]:
    """The objects of a JSONL file, or of a file that is one JSON list; a list's rows count from 1."""
    lines = list(_lines(path))
    if not lines or not lines[0][1].lstrip().startswith("["):
        return read_rows(path, example)
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON ({error.msg}); mend this line") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON ({error})") from None
    return [_row(number, f"{path}: row {number}", row, example) for number, row in enumerate(rows, 1)]


def text_field(row: Row, name: str, value: object) -> str:
    """`value` if it is text with something in it; else an error that calls it `name`."""
    text = any_text_field(row, name, value)
    if not text.strip():
        raise UserError(f"{row.where}: {name} is empty; write something or delete the row")
    return text


def any_text_field(row: Row, name: str, value: object) -> str:
    """`value` if it is text, even an empty one."""
    if not isinstance(value, str):
        raise UserError(f"{row.where}: {name} must be a string, not {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may spell half of a surrogate pair, which nothing can write or tokenise
        raise UserError(f"{row.where}: {name} holds half a character (a lone surrogate); delete it") from None
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


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; relative paths start at {Path.cwd()}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder; name a file in it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    # Only b"\n" ends a line here: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number}: not UTF-8 text; save the file as UTF-8") from None
        if text.strip():
            yield number, text


def _parsed(line: str, where: str, example: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON ({error.msg}); a line looks like {example}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON ({error})") from None


def _row(number: int, where: str, value: object, example: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {kind(value)} instead of an object like {example}")
    return Row(number, where, value)
