"""Read data sets of the Hugging Face hub with the library `datasets`, which is imported only when needed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
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
    """Parts of a source such as `hub:OWNER/NAME/CONFIG@REVISION:SPLIT`."""

    name: str
    config: str | None
    revision: str | None
    split: str


def parse_source(source: str) -> HubSource:
    """Parse a source; the default split is `train`. Raises `UserError` for another form."""
    match = _SOURCE.fullmatch(source)
    if not match:
        raise UserError(f"{source}: expected {FORM}, such as hub:Anthropic/hh-rlhf:test")
    return HubSource(match["name"], match["config"], match["revision"], match["split"] or "train")


def hub_commit(source: str) -> str | None:
    """Return the current commit of the source's revision; None if the hub fails, which reading then reports."""
    wanted = parse_source(source)
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(wanted.name, revision=wanted.revision).sha
    except Exception:  # whatever its HTTP library raises, which differs between versions
        return None


def at_commit(source: str, commit: str) -> str:
    """Return the source at that commit."""
    wanted = parse_source(source)
    config = f"/{wanted.config}" if wanted.config else ""
    return f"{SCHEME}{wanted.name}{config}@{commit}:{wanted.split}"


def hub_rows(source: str) -> list[Row | BadRow]:
    """Return the rows of one split, counted from 1. Raises `UserError` if hub or data set cannot be read."""
    wanted = parse_source(source)
    import datasets

    try:
        found = datasets.load_dataset(wanted.name, wanted.config, revision=wanted.revision, split=wanted.split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(f"{source}: data set not found, or it requires a login ({_first_line(error)})") from None
    except ConnectionError as error:
        raise UserError(
            f"{source}: the hub cannot be reached ({_first_line(error)}). "
            "Download the file elsewhere and set its path instead (JSONL, JSON, CSV or Parquet)"
        ) from None
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{source}: {_first_line(error)}") from None
    return without_empty_columns(numbered(found.to_list(), source))


def is_downloaded(source: str) -> bool:
    """Return True if the data set is in the cache of the library `datasets`; the hub is not contacted."""
    wanted = parse_source(source)
    with from_cache() as datasets:
        try:
            datasets.load_dataset_builder(wanted.name, wanted.config)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
            return False
    return True


@contextmanager
def from_cache() -> Iterator[ModuleType]:
    """Let the library `datasets` read data sets from its cache without contacting the hub; yields the library."""
    import datasets

    offline, verbosity = datasets.config.HF_HUB_OFFLINE, datasets.logging.get_verbosity()
    datasets.config.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity_error()  # it warns that the hub could not be reached
    try:
        yield datasets
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        datasets.logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
