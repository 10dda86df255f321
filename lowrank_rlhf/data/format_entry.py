"""Entry of the table of formats."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowrank_rlhf.config.data import FormatName
from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.readers.rows import Row, row_error

Fields = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """Format of a row."""

    name: FormatName
    what: str
    """Description for the documentation."""
    keys: tuple[str, ...]
    """Required keys."""
    optional: tuple[str, ...]
    """Optional keys; of the others, those in `UNREAD` are refused, and the rest are ignored and listed."""
    convert: Callable[[Row], Example]
    example: str
    """Example row, as JSON."""
    fits: Callable[[Fields], bool] | None = None
    """Further condition on a row with these keys."""
    requirement: str = ""
    """The condition in words."""
    ordered: bool = True
    """True if rows contain ranked answers, so that files can be used as comparisons; False for demonstrations."""
    keeps_positions: bool = False
    """True if the answers are in the order in which the annotators saw them."""

    def reads(self, fields: Fields) -> bool:
        """Return True if the fields look like this format; `convert` checks their values."""
        return all(key in fields for key in self.keys) and (self.fits is None or self.fits(fields))

    def example_of(self, row: Row) -> Example:
        """Return the row's example. Raises `UserError` for missing keys and values of another form."""
        if missing := [key for key in self.keys if key not in row.fields]:
            text = "no {missing}, which {format} needs. Keys found: {keys}"
            keys = ", ".join(row.fields) or "none"
            raise row_error(row, "missing_keys", text, missing=", ".join(missing), format=self.name, keys=keys)
        return self.convert(row)
