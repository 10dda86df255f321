"""Data sets of the Hugging Face hub, through the library `datasets`, which is imported only when one is asked for."""

import re
from typing import NamedTuple

from lowrank_rlhf.data.readers.rows import BadRow, Row
from lowrank_rlhf.data.readers.tables import numbered, without_empty_columns
from lowrank_rlhf.errors import UserError

SCHEME = "hub:"
FORM = "hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]"
_SOURCE = re.compile(
    r"hub:(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(:(?P<split>[\w.\[\]:%+-]+))?"
)


class HubSource(NamedTuple):
    """What a source such as `hub:OWNER/NAME/CONFIG@REVISION:SPLIT` asks for."""

    name: str
    config: str | None
    revision: str | None
    split: str


def parse_source(source: str) -> HubSource:
    """The parts of the source; the split is `train` unless it is named. Raises `UserError` for another form."""
    match = _SOURCE.fullmatch(source)
    if not match:
        raise UserError(f"{source}: the form is {FORM}, such as hub:Anthropic/hh-rlhf:test")
    return HubSource(match["name"], match["config"], match["revision"], match["split"] or "train")


def hub_commit(source: str) -> str | None:
    """The commit that the source's revision means now; None where the hub does not tell: reading it says why."""
    wanted = parse_source(source)
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(wanted.name, revision=wanted.revision).sha
    except Exception:  # whatever its HTTP library raises, which differs between versions
        return None


def at_commit(source: str, commit: str) -> str:
    """The same source at that commit."""
    wanted = parse_source(source)
    config = f"/{wanted.config}" if wanted.config else ""
    return f"{SCHEME}{wanted.name}{config}@{commit}:{wanted.split}"


def hub_rows(source: str) -> list[Row | BadRow]:
    """The rows of one split, counted from 1. Raises `UserError` where the hub or the data set cannot be read."""
    wanted = parse_source(source)
    import datasets

    try:
        found = datasets.load_dataset(wanted.name, wanted.config, revision=wanted.revision, split=wanted.split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(f"{source}: there is no such data set, or it needs a login ({_first_line(error)})") from None
    except ConnectionError as error:
        raise UserError(
            f"{source}: the hub cannot be reached ({_first_line(error)}); "
            "download the file elsewhere and name it here (JSONL, JSON, CSV or Parquet)"
        ) from None
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{source}: {_first_line(error)}") from None
    return without_empty_columns(numbered(found.to_list(), source))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
