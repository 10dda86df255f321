"""Stages shared by runs of a sweep: one that another run made from the same settings and inputs is copied."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import keep_commits, read_commits
from lowrank_rlhf.errors import StageFailed
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.fingerprint import current_fingerprint, differences, fingerprint
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.results.rounds import split, stages_in
from lowrank_rlhf.stages import Stage


def signatures(config: Config) -> dict[str, str]:
    """Return for each stage of a run the settings and stages that determine it; equal texts mean the same outputs."""
    made: dict[str, str] = {}
    found = {}
    for stage in pipeline.stages_of(config):
        settings = fingerprint(stage, config, {}).settings
        read = [made[name] for name in stage.reads if name in made]
        found[stage.name] = repr((stage.name, sorted(settings.items()), read))
        made |= dict.fromkeys(stage.writes, found[stage.name])
    return found


def shared_stages(configs: Sequence[Config]) -> list[dict[str, str]]:
    """Return for each run the stages that it can copy from an earlier run of the list, and that run's name.

    Two runs share a stage if its settings are equal and so are the stages that made its inputs.
    """
    first: dict[str, str] = {}
    return [
        {
            stage: first[signature]
            for stage, signature in signatures(config).items()
            if first.setdefault(signature, config.name) != config.name
        }
        for config in configs
    ]


def take_over(config: Config, runs: Path, donors: Sequence[str]) -> dict[str, str]:
    """Copy stages that a donor finished from equal settings and inputs; return them with the donor's name.

    Equal means equal settings and equal hashes of all inputs. The copy is checked by hashes, and its done mark has the
    donor's name in `taken_from`. Raises `RunLocked`, and `StageFailed` for a copy that differs.
    """
    run_dir = RunDir(runs / config.name)
    taken: dict[str, str] = {}
    if not any((runs / name / "done").is_dir() for name in donors):
        return taken
    with run_dir.lock():
        run_dir.recover()
        for planned in pipeline.plan(config, run_dir):
            # Plan again for each stage: copying a stage changes the state of the next one.
            stage = planned.stage
            state = next(now.state for now in pipeline.plan(config, run_dir) if now.stage.name == stage.name)
            if state == "done":
                continue
            donor = (
                _donor(stage, config, run_dir, [RunDir(runs / name) for name in donors]) if state == "to do" else None
            )
            if donor is None:
                break  # the later stages need this one
            _copy(stage, donor, run_dir)
            taken[stage.name] = donor.path.name
    return taken


def _donor(stage: Stage, config: Config, run_dir: RunDir, donors: Sequence[RunDir]) -> RunDir | None:
    """Return the first run that made this stage from the same settings and inputs, its outputs unchanged since."""
    wanted = current_fingerprint(stage, config, run_dir)
    for donor in donors:
        mark = donor.mark(stage.name)
        if mark and not differences(mark.fingerprint, wanted) and _unchanged(stage, donor):
            return donor
    return None


def _unchanged(stage: Stage, donor: RunDir) -> bool:
    """Return True if all outputs of the stage exist, as they were when it finished and as later stages read them."""
    hashes = donor.hashes(stage.writes)
    read = [mark.fingerprint.inputs for name in stages_in(donor.run) if (mark := donor.mark(name))]
    return (
        len(hashes) == len(stage.writes)
        and not donor.faults(stage.name)
        and all(inputs.get(name, found) == found for inputs in read for name, found in hashes.items())
    )


def _copy(stage: Stage, donor: RunDir, run_dir: RunDir) -> None:
    work = run_dir.work(stage.name)
    for name in stage.writes:
        source, target = donor.artifact(name), work / split(name)[1]
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
        if sha256(source) != sha256(target):
            raise StageFailed(
                f"{target}: the copy differs from {source}. Wait until nothing is writing to it, then rerun the sweep."
            )
    source_dir, target_dir = donor.round(stage.round), run_dir.round(stage.round)
    for source_log, target_log in zip(source_dir.logs, target_dir.logs, strict=True):
        target_log.truncate(stage.kind, -1)
        for row in source_log.read(stage.kind):
            target_log.append(**row)
    keep_commits(run_dir, read_commits(donor))
    mark = donor.mark(stage.name)
    assert mark is not None  # noqa: S101 - the donor was chosen by its mark
    copied = mark.model_copy(update={"taken_from": mark.taken_from or donor.path.name})
    run_dir.finish(stage.name, stage.writes, copied.model_dump(mode="json", by_alias=True, exclude_unset=True))
    run_dir.event("taken over", stage=stage.name, donor=donor.path.name)
