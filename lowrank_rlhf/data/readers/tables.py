"""CSV and Parquet as rows. An empty cell is None; a column without a single value is left out."""

import csv
import io
import sys
from collections.abc import Sequence
from typing import Any

from lowrank_rlhf.data.readers.rows import MOST_UNPACKED, BadRow, Row, make_row
from lowrank_rlhf.errors import UserError

BATCH = 1024
"""Rows of a Parquet file that are unpacked at once."""
BYTES_OF_A_ROW = 100
"""What an empty row takes in Python at least."""


def csv_rows(content: bytes, name: str) -> list[Row | BadRow]:
    """The records under the header; a record's number is the line on which it begins, quoted line breaks counted."""
    text = _decoded(content, name)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default, 131,072 characters, is less than a long answer
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row | BadRow] = []
    header: list[str] = []
    begins = 1
    try:
        for cells in reader:
            number, begins = begins, reader.line_num + 1
            where = f"{name}:{number}"
            if not any(cells):
                continue
            if not header:
                header = _checked(cells, where)
            elif len(cells) != len(header):
                problem = f"{where}: {len(cells)} cells under a header of {len(header)}; quote cells that hold commas"
                rows.append(BadRow(number, problem))
            else:
                pairs = zip(header, cells, strict=True)
                # A file of Windows has its line breaks inside quoted cells too.
                fields = {key: cell.replace("\r\n", "\n") or None for key, cell in pairs if key}
                rows.append(make_row(number, where, fields))
    except csv.Error as error:
        raise UserError(
            f"{name}:{begins}: broken CSV ({error}); a quote is open, or not doubled, from here on"
        ) from None
    return without_empty_columns(rows)


def parquet_rows(content: bytes, name: str) -> list[Row | BadRow]:
    """The rows of a Parquet file, counted from 1."""
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = []
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        held = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        for batch in file.iter_batches(BATCH) if held <= MOST_UNPACKED else ():
            held += batch.nbytes + BYTES_OF_A_ROW * batch.num_rows  # one repeated value takes no room before
            if held > MOST_UNPACKED:
                break
            rows += batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # damage may show in a cell alone
        raise UserError(f"{name}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    if held > MOST_UNPACKED:
        raise UserError(f"{name}: holds more than {MOST_UNPACKED >> 20:,} MiB unpacked; split it")
    return without_empty_columns(numbered(rows, name))


def numbered(values: Sequence[dict[str, Any]], name: str) -> list[Row | BadRow]:
    """Rows with places such as `prefs.parquet: row 5`."""
    return [make_row(number, f"{name}: row {number}", value) for number, value in enumerate(values, 1)]


def without_empty_columns(rows: list[Row | BadRow]) -> list[Row | BadRow]:
    """A table gives every row all columns: one that is empty throughout says nothing about the format."""
    used = {key for row in rows if isinstance(row, Row) for key, value in row.fields.items() if value is not None}
    return [
        row._replace(fields={key: value for key, value in row.fields.items() if key in used})
        if isinstance(row, Row)
        else row
        for row in rows
    ]


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}:{line}: not UTF-8 text; save the file as UTF-8") from None


def _checked(header: list[str], where: str) -> list[str]:
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise UserError(f"{where}: one column only; the cells must be separated by commas")
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise UserError(f'{where}: two columns are called "{twice[0]}"; rename one')
    return header
