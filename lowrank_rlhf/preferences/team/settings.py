"""Settings that the owner of a run may change while people rank: guidelines, quota, deadline."""

import os
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lowrank_rlhf.config.loading import dump_config, load_config
from lowrank_rlhf.config.schema import GuidelinesText, RankConfig
from lowrank_rlhf.config.section import Count
from lowrank_rlhf.run.files import write_atomic


class TeamSettings(BaseModel):
    """Settings of section `rank` that concern all annotators; `RankConfig` has their meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    guidelines: GuidelinesText | None
    quota: Count | None
    deadline: date | None


def team_settings(rank: RankConfig) -> TeamSettings:
    """Return those of a run."""
    return TeamSettings(guidelines=rank.guidelines, quota=rank.quota, deadline=rank.deadline)


def save_team_settings(run: Path, settings: TeamSettings) -> None:
    """Write the settings into the `config.yaml` of a run that people rank; pages show them with the next prompt.

    A later `run` with another file replaces them by that file's.
    """
    path = run / "config.yaml"
    config, before = load_config(path), path.stat()
    rank = config.rank.model_copy(update=dict(settings))
    write_atomic(path, dump_config(config.model_copy(update={"rank": rank})))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of the last command on the run
