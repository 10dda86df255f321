"""Read JSON and JSONL as rows with their line numbers."""

import json
from typing import Any

from lowrank_rlhf.data.readers.rows import EXAMPLE, BadRow, Row, make_row
from lowrank_rlhf.errors import UserError, is_whole


def json_rows(content: bytes, name: str) -> list[Row | BadRow]:
    """Return the objects of a JSONL file, without blank lines, or of a JSON list, counted from 1."""
    if content.lstrip().startswith(b"["):
        return _list_rows(content, name)
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
        return BadRow(number, f"{where}: not UTF-8 text. Save the file as UTF-8")
    except json.JSONDecodeError as error:
        return BadRow(number, f"{where}: invalid JSON ({error.msg}). Expected a line like {EXAMPLE}")
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"{where}: invalid JSON ({error})")


def _list_rows(content: bytes, name: str) -> list[Row | BadRow]:
    """Return the rows of a JSON list. A syntax error raises `UserError` even if bad rows may be skipped."""
    try:
        values = _parsed(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}:{line}: not UTF-8 text. Save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{name}:{error.lineno}: invalid JSON ({error.msg}). Correct this line") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: invalid JSON ({error})") from None
    return [make_row(number, f"{name}: row {number}", value) for number, value in enumerate(values, 1)]


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {json.dumps(twice, ensure_ascii=not is_whole(twice))}")
    return made
