"""Run a stage in several processes: the main one in the run folder, each other one on a copy of the stage's inputs.

Thus one process writes, and stages need not distinguish processes. Importing this module imports no torch.
"""

import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import StageFailed, StaleRun
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.results import StageResult, Started
from lowrank_rlhf.run.results.rounds import prefix
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import Stage, of_rounds


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
    group = session.group
    if sharing(stage, group) == 1:
        with group.single_process():
            return stage.run(session)
    session.load_roles()  # in the main process first: it records machine-dependent choices for the others
    names = [each.name for each in of_rounds(session.config.rounds)]
    group.sum(names.index(stage.name) + 1)
    group.barrier()  # the others have made their copies
    result = stage.run(session)
    _check_outputs(stage, session.run_dir, group)
    return result


def follow(config: Config, run_dir: RunDir, group: ProcessGroup) -> None:
    """Work on this process's part of each shared stage until `dismiss`, in all but the main process."""
    with TemporaryDirectory(prefix="lowrank_rlhf-") as folder, StopRequest(group) as stop:
        own = RunDir(Path(folder) / "run")
        session = Session(config, own, Progress.silent(), stop, group)
        every = list(of_rounds(config.rounds))
        while number := group.sum(0):
            stage = every[number - 1]
            _copy(stage, run_dir.path, own.path)
            session.run_dir = own.round(stage.round)
            group.barrier()
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


def _copy(stage: Stage, run: Path, own: Path) -> None:
    """Copy the stage's inputs, its work folder, and the run's logs and records."""
    shutil.rmtree(own, ignore_errors=True)
    inside = prefix(stage.round)
    notes = [path.relative_to(run).as_posix() for folder in {"", inside} for path in run.glob(f"{folder}*.json*")]
    for name in {*stage.reads, *notes, f"{inside}work/{stage.kind}"}:
        if (run / name).is_dir():
            shutil.copytree(run / name, own / name)
        elif (run / name).exists():
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, own / name)
