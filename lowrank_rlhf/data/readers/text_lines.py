"""Read a text file as prompts, one per line."""

from lowrank_rlhf.data.readers.rows import BadRow, Row, make_row


def text_rows(content: bytes, name: str) -> list[Row | BadRow]:
    """Return a row with the key `prompt` for each line that is not blank, counted from 1."""
    return [
        _row(number, f"{name}:{number}", line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()
    ]


def _row(number: int, where: str, line: bytes) -> Row | BadRow:
    try:
        return make_row(number, where, {"prompt": line.decode().strip()})
    except UnicodeDecodeError:
        return BadRow(number, f"{where}: not UTF-8 text. Save the file as UTF-8")
