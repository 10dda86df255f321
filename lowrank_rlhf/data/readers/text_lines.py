"""Read a text file as prompts, one per line."""

from lowrank_rlhf.data.readers.json_lines import is_object, json_rows
from lowrank_rlhf.data.readers.rows import BadRow, Row, make_row
from lowrank_rlhf.errors import Fault


def text_rows(content: bytes, name: str) -> list[Row | BadRow]:
    """Return a row with the key `prompt` for each line that is not blank, counted from 1.

    A file of JSON lines under this name is read as such.
    """
    if is_object(content.lstrip().partition(b"\n")[0]):
        return json_rows(content, name)
    found = (_row(number, f"{name}:{number}", line) for number, line in enumerate(content.split(b"\n"), 1))
    return [row for row in found if row is not None]


def _row(number: int, where: str, line: bytes) -> Row | BadRow | None:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        return BadRow(number, Fault("not_utf8", "{where}: not UTF-8 text. Save the file as UTF-8", where=where))
    return make_row(number, where, {"prompt": text}) if text else None
