"""Options --format and --columns of commands that read a data file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from lowrank_rlhf.config.data import Columns, DataConfig, FormatName
from lowrank_rlhf.config.schema import RankConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import sha256

FORMAT = "--format"
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=COLUMN",
        help="Column of FILE to read as KEY, such as prompt=question, or label=null to ignore it; "
        "may be given several times.",
    ),
]


def parse_columns(assignments: Sequence[str] | None) -> Columns:
    """Return the column map of the option --columns. Raises `UserError` for a text without an equals sign."""
    found: Columns = {}
    for text in assignments or ():
        key, equals, column = text.partition("=")
        if not equals:
            raise UserError(f"--columns {text}: expected KEY=COLUMN, such as prompt=question")
        found[key] = None if column == "null" else column
    return found


class FileFormat(NamedTuple):
    """Values of both options."""

    name: FormatName | None
    columns: Columns

    def or_of(self, section: DataConfig | RankConfig, source: str) -> "FileFormat":
        """Return the options; those not given are the config's if `source` is the section's own file."""
        own = section.prompts if isinstance(section, DataConfig) else section.dataset
        if own is None or not same_file(source, own):
            return self
        return FileFormat(self.name or section.format, self.columns or section.columns)


def same_file(one: str, other: str) -> bool:
    """Return True if both sources are equal, or files with equal contents."""
    paths = (Path(one), Path(other))
    return one == other or (all(path.is_file() for path in paths) and len({sha256(path) for path in paths}) == 1)
