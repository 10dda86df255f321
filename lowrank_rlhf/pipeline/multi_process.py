"""Run a stage in several processes: the main one in the run folder, each other one on a copy of the stage's inputs.

The main process sends what the stage reads: data, an imported adapter, and files of the run. The others need no access
to its folders, so they may be on other machines. Thus one process writes, and stages need not distinguish processes.
Importing this module imports no torch.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.errors import StageFailed, StaleRun, UserError
from lowrank_rlhf.pipeline.preflight import ADAPTER_FILES
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.files import file_names, sha256
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.results import StageResult, Started
from lowrank_rlhf.run.results.rounds import SFT, prefix
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import Stage, of_rounds

_CHUNK = 2**26
"""Bytes of a file that are sent at once."""
_LOAD = -1
"""Sent instead of the number of a stage."""
_RECORDS = ("env.json", "datasets.json", "room.json", "backend.json", "precision.json")
"""Records of the run that stages read."""


def sharing(stage: Stage, group: ProcessGroup) -> int:
    """Return the number of processes that share the stage's work."""
    return group.world_size if stage.shared else 1


def check_processes(stage: Stage, group: ProcessGroup, started: Started) -> None:
    """Raise `StaleRun` if the stage was started in another number of processes, which divides the work differently."""
    now, before = sharing(stage, group), started.processes
    if before != now:
        raise StaleRun(
            f"Stage {stage.name} was started in {before} process{'es' * (before > 1)} and cannot resume in {now}.\n"
            f"Start {before} (docs/more_than_one_gpu.md), or redo the stage in {now}: "
            f"--redo {stage.name}"
        )


def run_stage(stage: Stage, session: Session) -> StageResult:
    """Run the stage in the main process; the others work on their part of a shared stage, or wait."""
    group, run = session.group, session.run_dir.run

    def announce(number: int) -> None:
        group.sum(number)
        if not session.data_is_shared:
            group.broadcast(session.config.model_dump_json().encode())
            group.broadcast(session.data.contents)
            session.data_is_shared = True

    if session.config.model.shard and "model" in stage.settings and not session.has_roles:
        announce(_LOAD)
        _share_files(run, group, [name for name in _RECORDS if (run / name).exists()])
        session.load_roles()  # with the others: it gathers layers
    if sharing(stage, group) == 1:
        with group.single_process():
            return stage.run(session)
    session.load_roles()  # in the main process first: it records machine-dependent choices for the others
    announce([each.name for each in of_rounds(session.config.rounds)].index(stage.name) + 1)
    if stage.kind == SFT and session.config.sft.adapter:
        _share_files(Path(session.config.sft.adapter), group, ADAPTER_FILES)
    _share_files(run, group, _read_files(stage, run))
    result = stage.run(session)
    _check_outputs(stage, session.run_dir, group)
    return result


def follow(config: Config, group: ProcessGroup) -> None:
    """Work on this process's part of each shared stage until `dismiss`, in all but the main process."""
    with TemporaryDirectory(prefix="lowrank_rlhf-") as folder, StopRequest(group) as stop:
        own, adapter, given = RunDir(Path(folder) / "run"), Path(folder) / "adapter", config
        if config.sft.adapter:
            config = config.model_copy(update={"sft": config.sft.model_copy(update={"adapter": str(adapter)})})
        session = Session(config, own, Progress.silent(), stop, group)
        every = list(of_rounds(config.rounds))
        while number := group.sum(0):
            if not session.data_is_shared:
                _check_settings(given, group.broadcast(b""))
                session.data = RunData.received(config, group.broadcast(b""))
                session.data_is_shared = True
            if number == _LOAD:
                _share_files(own.path, group)
                session.load_roles()
                continue
            stage = every[number - 1]
            if stage.kind == SFT and config.sft.adapter:
                _share_files(adapter, group)
            shutil.rmtree(own.path, ignore_errors=True)
            _share_files(own.path, group)
            session.run_dir = own.round(stage.round)
            stage.run(session)
            _check_outputs(stage, own, group)


def dismiss(group: ProcessGroup) -> None:
    """Let the other processes end."""
    group.sum(0)


def _check_outputs(stage: Stage, run_dir: RunDir, group: ProcessGroup) -> None:
    """Raise `StageFailed` if the outputs of the processes differ."""
    digests = "".join(sha256(run_dir.work(stage.name) / name) for name in stage.outputs)
    own = int(hashlib.sha256(digests.encode()).hexdigest()[:12], 16)  # short: the sum must not overflow
    if group.sum(own) != own * group.world_size:
        raise StageFailed(
            f"{stage.name}: the results of the processes differ, and none can be trusted. All must run on "
            "equal hardware; if they do, this is a bug here or in a library, please report it with the run's env.json"
        )


def _check_settings(own: Config, of_main: bytes) -> None:
    """Raise `UserError` with the sections in which this machine's config differs from the main process's."""
    theirs = json.loads(of_main)
    if different := [name for name, value in own.model_dump(mode="json").items() if value != theirs[name]]:
        raise UserError(
            f"the config differs from that of the main process in {', '.join(different)}. Start all processes with the "
            "same config and overrides"
        )


def _read_files(stage: Stage, run: Path) -> list[str]:
    """Return the files that the stage reads in the run folder: its inputs, its work folder, logs and records."""
    inside = prefix(stage.round)
    logs = [log.path.relative_to(run).as_posix() for each in {1, stage.round} for log in RunDir(run, each).logs]
    found: set[str] = set()
    for name in {*stage.reads, *_RECORDS, *logs, f"{inside}work/{stage.kind}"}:
        if (run / name).is_dir():
            found |= {f"{name}/{each}" for each in file_names(run / name)}
        elif (run / name).exists():
            found.add(name)
    return sorted(found)


def _share_files(folder: Path, group: ProcessGroup, names: Iterable[str] | None = None) -> None:
    """Copy files of the main process's folder, by default all, into the other processes' folder."""
    listing = json.dumps(list(file_names(folder) if names is None else names)) if group.is_main else ""
    for name in json.loads(group.broadcast(listing.encode())):
        path = folder / name
        if not (group.is_main or path.resolve().is_relative_to(folder.resolve())):
            raise UserError(
                f"the main process sent the file {name!r}, which is outside its folder. Update both machines"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb" if group.is_main else "wb") as file:
            while chunk := group.broadcast(file.read(_CHUNK) if group.is_main else b""):
                if not group.is_main:
                    file.write(chunk)
