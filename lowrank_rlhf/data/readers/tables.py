"""Read CSV and Parquet as rows. An empty cell is None; a column without values is left out."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lowrank_rlhf.data.readers.rows import MOST_UNPACKED, BadRow, Row, make_row
from lowrank_rlhf.errors import Fault, UserError

BATCH = 1024
"""Rows of a Parquet file unpacked at once."""
BYTES_OF_A_ROW = 100
"""Minimum size of an empty row in Python."""


def csv_rows(content: bytes, name: str) -> list[Row | BadRow]:
    """Return the records below the header; a record's number is the line of the file on which it begins."""
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
                problem = f"{where}: {len(cells)} cells, expected {len(header)}. Quote cells that contain commas"
                rows.append(BadRow(number, problem))
            else:
                pairs = zip(header, cells, strict=True)
                fields = {key: cell or None for key, cell in pairs if key}
                rows.append(make_row(number, where, fields))
    except csv.Error as error:
        raise UserError(
            Fault(
                "invalid_csv",
                "{name}:{begins}: invalid CSV ({reason}). From this line on a quote is not closed or not doubled",
                name=name,
                begins=begins,
                reason=error,
            )
        ) from None
    return without_empty_columns(rows)


def parquet_rows(content: bytes, name: str) -> list[Row | BadRow]:
    """Return the rows of a Parquet file, counted from 1."""
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = []
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        _refuse_duplicates(file.schema_arrow.names, name)  # rows as objects would keep the last one alone
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        for batch in file.iter_batches(BATCH) if size <= MOST_UNPACKED else ():
            size += batch.nbytes + BYTES_OF_A_ROW * batch.num_rows  # a repeated value takes no space in the file
            if size > MOST_UNPACKED:
                break
            rows += batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # damage may show in a cell alone
        raise UserError(
            Fault(
                "bad_parquet",
                "{name}: cannot be read as Parquet ({reason})",
                name=name,
                reason=str(error).splitlines()[0],
            )
        ) from None
    if size > MOST_UNPACKED:
        raise UserError(
            Fault(
                "too_large_unpacked",
                "{path}: unpacks to more than {size:,} MiB. Split it",
                path=name,
                size=MOST_UNPACKED >> 20,
            )
        )
    return without_empty_columns(numbered(rows, name))


def numbered(values: Sequence[dict[str, Any]], name: str) -> list[Row | BadRow]:
    """Return rows with places such as `prefs.parquet: row 5`."""
    return [make_row(number, f"{name}: row {number}", value) for number, value in enumerate(values, 1)]


def without_empty_columns(rows: list[Row | BadRow]) -> list[Row | BadRow]:
    """Return the rows without columns that are empty in all of them, which would mislead format detection."""
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
        raise UserError(
            Fault("not_utf8", "{where}: not UTF-8 text. Save the file as UTF-8", where=f"{name}:{line}")
        ) from None


def _checked(header: list[str], where: str) -> list[str]:
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise UserError(Fault("one_column", "{where}: only one column. Cells must be separated by commas", where=where))
    _refuse_duplicates([name for name in header if name], where)
    return header


def _refuse_duplicates(columns: Sequence[str], where: str) -> None:
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(
            Fault("duplicate_column", '{where}: duplicate column "{column}". Rename one', where=where, column=twice[0])
        )
