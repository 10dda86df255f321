"""What runs of a sweep have in common: a stage that another run made the same way is copied, not made again."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import keep_commits, read_commits
from lowrank_rlhf.errors import StageFailed
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.fingerprint import current_fingerprint, differences, fingerprint
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.stages import STAGES, Stage


def shared_stages(configs: Sequence[Config]) -> list[dict[str, str]]:
    """For each run the stages that an earlier one of the list makes the same way, and that run's name.

    Two runs make a stage the same way if its settings are equal and so is everything made before it that it reads.
    """
    first: dict[str, str] = {}
    found = []
    for config in configs:
        signatures: dict[str, str] = {}
        shared = {}
        for stage in pipeline.stages_of(config):
            settings = fingerprint(stage, config, {})["settings"]
            read = [signatures[name] for name in stage.reads if name in signatures]
            signature = repr((stage.name, sorted(settings.items()), read))
            signatures |= dict.fromkeys(stage.writes, signature)
            if first.setdefault(signature, config.name) != config.name:
                shared[stage.name] = first[signature]
        found.append(shared)
    return found


def take_over(config: Config, runs: Path, donors: Sequence[str]) -> dict[str, str]:
    """Copy into the run what the donors have finished the same way; the stages copied now, and from which run.

    A stage is the same if settings and the hashes of all it reads are equal. The copy is compared by hashes, and marked
    done with the donor's name in `taken_from`. Raises `RunLocked`, and `StageFailed` where it is not equal.
    """
    run_dir = RunDir(runs / config.name)
    taken: dict[str, str] = {}
    if not any((runs / name / "done").is_dir() for name in donors):
        return taken
    with run_dir.lock():
        run_dir.recover()
        for standing in pipeline.plan(config, run_dir):
            # Looked at one by one: each stage taken over changes what the next one finds.
            stage = standing.stage
            state = next(now.state for now in pipeline.plan(config, run_dir) if now.stage.name == stage.name)
            if state == "done":
                continue
            donor = (
                _donor(stage, config, run_dir, [RunDir(runs / name) for name in donors]) if state == "to do" else None
            )
            if donor is None:
                break  # what comes after needs this one first
            _copy(stage, donor, run_dir)
            taken[stage.name] = donor.path.name
    return taken


def _donor(stage: Stage, config: Config, run_dir: RunDir, donors: Sequence[RunDir]) -> RunDir | None:
    """The first run in which this stage was made from the same settings and inputs and still lies as it was made."""
    wanted = current_fingerprint(stage, config, run_dir)
    for donor in donors:
        mark = donor.done(stage.name)
        if mark is None or differences(mark["fingerprint"], wanted):
            continue
        if _as_made(stage, donor):
            return donor
    return None


def _as_made(stage: Stage, donor: RunDir) -> bool:
    """Whether all that the stage wrote is there, and as the donor's later stages read it."""
    hashes = donor.hashes(stage.writes)
    marks = [mark for entry in STAGES if (mark := donor.done(entry.name))]
    read = [mark["fingerprint"]["inputs"] for mark in marks]
    return len(hashes) == len(stage.writes) and all(
        inputs.get(name, found) == found for inputs in read for name, found in hashes.items()
    )


def _copy(stage: Stage, donor: RunDir, run_dir: RunDir) -> None:
    work = run_dir.work(stage.name)
    for name in stage.writes:
        source, target = donor.artifact(name), work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
        if sha256(source) != sha256(target):
            raise StageFailed(f"{target}: the copy differs from {source}; is it in use?")
    for theirs, own in ((donor.metrics, run_dir.metrics), (donor.watched, run_dir.watched)):
        own.truncate(stage.name, -1)
        for row in theirs.read(stage.name):
            own.append(**row)
    keep_commits(run_dir, read_commits(donor))
    mark: dict[str, Any] = donor.done(stage.name) or {}
    run_dir.finish(stage.name, stage.writes, {**mark, "taken_from": mark.get("taken_from", donor.path.name)})
    run_dir.event("taken over", stage=stage.name, donor=donor.path.name)
