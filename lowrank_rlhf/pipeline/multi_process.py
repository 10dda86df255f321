"""A stage in several processes: the main one works in the run's folder, each other one on a copy of what it reads.

So one process writes, and no stage has to know which one it is in. Importing this imports no torch.
"""

import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import StageFailed, StaleRun
from lowrank_rlhf.run import distributed
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import sha256
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import STAGES, Stage


def sharing(stage: Stage) -> int:
    """How many processes share the stage's work."""
    return distributed.count() if stage.shared else 1


def noted(stage: Stage, begun: dict[str, Any] | None, fresh: dict[str, Any]) -> dict[str, Any]:
    """What is noted of a stage's beginning, with the number of processes: what was, or else `fresh`.

    Raises `StaleRun` where it was begun in another number: its work was cut otherwise.
    """
    now = sharing(stage)
    before = begun.get("processes", 1) if begun else now
    if before != now:
        raise StaleRun(
            f"Stage {stage.name} was begun in {before} process{'es' * (before > 1)}, and goes on in as many only; here "
            f"are {now}.\nStart it in {before} (docs/more_than_one_gpu.md), or make it again in {now}: "
            f"--redo {stage.name}"
        )
    return (begun or fresh) | {"processes": now}


def run_stage(stage: Stage, session: Session) -> dict[str, Any]:
    """As `stage.run`, in the main process; the others take their part in it if it is shared, or wait."""
    if sharing(stage) == 1:
        with distributed.alone():
            return stage.run(session)
    _ = session.roles  # loaded here first: what it finds out about the machine is noted in the run for the others
    with distributed.listening(session.stop):
        distributed.meet(STAGES.index(stage) + 1)
        distributed.meet()  # the others have their copies
        return _run_alike(stage, session)


def follow(config: Config, run_dir: RunDir) -> None:
    """What a process beside the main one does in a run: its part of each shared stage, until `dismiss`."""
    with TemporaryDirectory(prefix="lowrank_rlhf-") as folder, StopRequest() as stop, distributed.listening(stop):
        own = RunDir(Path(folder) / "run")
        session = Session(config, own, Progress.silent(), stop)
        while number := distributed.meet():
            stage = STAGES[number - 1]
            _copy(stage, run_dir.path, own.path)
            distributed.meet()
            _run_alike(stage, session)


def dismiss() -> None:
    """The other processes are not needed any more."""
    distributed.meet(0)


def _run_alike(stage: Stage, session: Session) -> dict[str, Any]:
    """Run it; raises `StageFailed` where the processes made different things of it."""
    summary = stage.run(session)
    made = "".join(sha256(session.work(stage.name) / name) for name in stage.writes)
    own = int(hashlib.sha256(made.encode()).hexdigest()[:12], 16)  # short enough for many of them to be added
    if distributed.meet(own) != own * distributed.count():
        raise StageFailed(
            f"{stage.name}: the processes came to different results, and none of them can be trusted. They must run on "
            "equal hardware; if they do, this is a bug here or in a library, please report it with the run's env.json"
        )
    return summary


def _copy(stage: Stage, run: Path, own: Path) -> None:
    """What the stage reads, what it has done so far, and the run's logs and notes."""
    shutil.rmtree(own, ignore_errors=True)
    notes = [path.name for path in run.glob("*.json*")]
    for name in {*stage.reads, *notes, f"work/{stage.name}"}:
        if (run / name).is_dir():
            shutil.copytree(run / name, own / name)
        elif (run / name).exists():
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, own / name)
