"""Data of a config: each file is read once, and a hub data set at the commit that the run read first."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

from pydantic import BaseModel, TypeAdapter

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.comparisons import ComparisonData, load_comparisons, without_prompts
from lowrank_rlhf.data.prompts import PromptData, load_prompt_data
from lowrank_rlhf.data.readers.hub import SCHEME, at_commit, from_cache, hub_commit
from lowrank_rlhf.data.readers.sources import is_here
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import SCHEMA, read_record, write_json_atomic

VALIDATION = "data.validation"
_COMMITS = "datasets.json"
_CONTENTS = TypeAdapter(tuple[PromptData, ComparisonData | None])


class _Commits(BaseModel):
    commits: dict[str, str]


def hub_sources(config: Config) -> list[str]:
    """Return the config's data sources on the hub, each once."""
    return [source for source in data_sources(config) if source.startswith(SCHEME)]


def data_sources(config: Config) -> list[str]:
    """Return the config's data sources, each once."""
    return list(dict.fromkeys(filter(None, (config.data.prompts, config.rank.dataset))))


def remote_sources(config: Config) -> list[str]:
    """Return the config's data sources on the hub, and those of ModelScope that are not downloaded."""
    return [source for source in data_sources(config) if source.startswith(SCHEME) or not is_here(source)]


def read_commits(run_dir: RunDir) -> dict[str, str]:
    """Return the recorded commit of each hub source."""
    found = read_record(run_dir.run / _COMMITS, _Commits)
    return found["commits"] if found else {}


def keep_commits(run_dir: RunDir, commits: Mapping[str, str]) -> None:
    """Record commits for the run; those recorded before do not change."""
    known = read_commits(run_dir)
    if not commits.keys() <= known.keys():
        write_json_atomic(run_dir.run / _COMMITS, {"schema": SCHEMA, "commits": {**commits, **known}})


def look_up_commits(run_dir: RunDir, config: Config) -> None:
    """Record the current commits of the config's hub sources; none if the hub cannot be reached."""
    known = read_commits(run_dir)
    new = {source: hub_commit(source) for source in hub_sources(config) if source not in known}
    keep_commits(run_dir, {source: commit for source, commit in new.items() if commit})


def divides_held_out(run_dir: RunDir) -> bool:
    """Return False for a run whose policy an older version trained: it selected on all held-out prompts."""
    found = run_dir.round(1).fingerprint("ppo")
    return found is None or VALIDATION in found.settings


class RunData:
    """Contents of `data.prompts` and `rank.dataset`, read on first use and cached.

    Hub sources are read at their commit in `commits`, otherwise at the current one. Without `downloads` no hub is
    contacted: what is downloaded already is read as it is, and reading the rest raises `UserError`.
    """

    def __init__(self, config: Config, commits: Mapping[str, str] | None = None, *, downloads: bool = True):
        self._config, self._commits, self._downloads = config, commits or {}, downloads

    @classmethod
    def received(cls, config: Config, contents: bytes) -> "RunData":
        """Return the data that another process read, from its `contents`."""
        data = cls(config)
        data.prompts, data._all_comparisons = _CONTENTS.validate_python(json.loads(contents))
        return data

    @property
    def contents(self) -> bytes:
        """Contents of both sources in JSON, for `received`; of a row's other columns, the right answers alone."""
        columns = {term.column for term in self._config.ppo.rewards.values()}
        fields = {
            name: {key: value for key, value in row.items() if key in columns and isinstance(value, str | int | float)}
            for name, row in self.prompts.fields.items()
        }
        sent = (replace(self.prompts, fields=fields), self._all_comparisons)
        return json.dumps(_CONTENTS.dump_python(sent), default=list).encode()  # mode="json" drops infinity

    @cached_property
    def prompts(self) -> PromptData:
        """Prompts and demonstrations after the split. Raises `UserError` with the place of an invalid row."""
        data, imitated = self._config.data, self._config.trains_on_demonstrations
        with self._reading(data.prompts):
            data = data.model_copy(update={"prompts": self._kept_to(data.prompts)})
            return load_prompt_data(data, self._config.seed, imitated=imitated)

    @cached_property
    def comparisons(self) -> ComparisonData | None:
        """Comparisons without held-out prompts; None without `rank.source: dataset`. Raises `UserError` likewise."""
        found = self._all_comparisons
        return found and without_prompts(found, self.prompts.held_out)

    def on_this_machine(self) -> tuple[PromptData | None, ComparisonData | None]:
        """Return prompts and comparisons, None for those in `remote_sources`.

        Without prompts the comparisons include those of held-out prompts. Raises `UserError` likewise.
        """
        remote = remote_sources(self._config)
        prompts = None if self._config.data.prompts in remote else self.prompts
        if self._config.rank.dataset in remote:
            return prompts, None
        return prompts, self._all_comparisons if prompts is None else self.comparisons

    @cached_property
    def _all_comparisons(self) -> ComparisonData | None:
        rank = self._config.rank
        if rank.dataset is None:
            return None
        allowed = self._config.data.skip_bad_rows
        with self._reading(rank.dataset):
            return load_comparisons(self._kept_to(rank.dataset), rank.format, allowed, rank.columns)

    def missing(self) -> list[str]:
        """Return the sources that cannot be read for want of a download; none with `downloads`."""
        return [] if self._downloads else [source for source in data_sources(self._config) if not is_here(source)]

    def _reading(self, source: str) -> AbstractContextManager[Any]:
        if self._downloads:
            return nullcontext()
        if not is_here(source):
            raise UserError(f"{source}: not downloaded yet; `run` downloads it")
        return from_cache() if source.startswith(SCHEME) else nullcontext()

    def _kept_to(self, source: str) -> str:
        return at_commit(source, self._commits[source]) if source in self._commits else source
