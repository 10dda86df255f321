"""Runs the stages in order: skips what is done, goes on with what is half done, refuses what is stale."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lowrank_rlhf import stages
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.messages import Key
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import look_up_commits
from lowrank_rlhf.errors import StaleRun, UserError
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.pipeline import multi_process, selection
from lowrank_rlhf.pipeline.fingerprint import current_fingerprint, differences
from lowrank_rlhf.planner.compute_cost import seconds_to_go
from lowrank_rlhf.planner.disk import check_disk_space, disk_watched, smallest_need
from lowrank_rlhf.planner.fit import fit_to_memory
from lowrank_rlhf.planner.forecast import shown_peaks
from lowrank_rlhf.planner.pace import stage_costs
from lowrank_rlhf.reports.render import write_report
from lowrank_rlhf.run.directory import Begun, RunDir, read_record, write_json_atomic
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.files import now
from lowrank_rlhf.run.memory_usage import forget_peak_memory, peak_memory_bytes
from lowrank_rlhf.run.progress import Later, Progress, StopRequest, duration, memory
from lowrank_rlhf.run.tracking import tracked
from lowrank_rlhf.session import Session
from lowrank_rlhf.sources.fetch import fetch_model
from lowrank_rlhf.sources.model_shape import find_shape
from lowrank_rlhf.stages import Stage

State = Literal["done", "to do", "half done", "stale"]


class Standing(NamedTuple):
    """Where a stage stands in a run, and for a stale one the differences that make it so."""

    stage: Stage
    state: State
    why: tuple[str, ...] = ()


def run(
    config: Config,
    runs_folder: Path,
    *,
    until: str | None = None,
    redo: Sequence[str] = (),
    progress: Progress,
    group: ProcessGroup | None = None,
) -> RunDir:
    """Bring the run of that name up to its last stage, or to `until`, and return its folder.

    Raises `UserError` for unknown stage names and for inputs that no stage would make, `RunLocked`, `StaleRun`,
    `CannotFit` where the disk refuses, and whatever a stage raises; its work is kept.
    """
    chosen = selection.up_to(until, stages_of(config))
    again = selection.built_on(selection.named(redo, stages_of(config)))
    run_dir = RunDir(runs_folder / config.name)
    run_dir.check_version()
    config = _fitted(config, run_dir, progress)
    to_do = [stage for stage in chosen if stage in again or run_dir.done(stage.name) is None]
    check_disk_space(run_dir.path, smallest_need(to_do, config, find_shape(config.model)))
    with disk_watched(run_dir.path), run_dir.lock(), StopRequest(group) as stop:
        run_dir.recover()
        selection.check_inputs(chosen, again, run_dir, _not_made(config))
        look_up_commits(run_dir, config)
        kept = [stage for stage in chosen if stage not in again]
        _refuse_stale([_standing(stage, config, run_dir) for stage in kept])
        session = Session(config, run_dir, progress, stop, group or ProcessGroup())
        if to_do:
            session.read_data()
        if any("model" in stage.settings for stage in to_do):
            fetch_model(config.model, progress)
            _refuse_stale([_standing(stage, config, run_dir) for stage in kept])  # its files are known only now
            session.take_backend()  # before anything imports transformers
            session.check_lengths()
        told = shown_peaks(config, run_dir, session.data) if to_do else {}
        # Last first: if this is cut short, no stage is left standing on one that is gone.
        for stage in reversed(again):
            run_dir.discard(stage.name, stage.writes)
        run_dir.open(dump_config(config))
        with tracked(config, run_dir.metrics, run_dir.path), progress.recorded_in(run_dir.path):
            for index, stage in enumerate(chosen, 1):
                progress.stage(index, len(chosen), stage.name, stage.does, *_to_go(chosen, stage, session))
                _run_stage(stage, session, told.get(stage.name))
        _report(run_dir)
    return run_dir


def plan(config: Config, run_dir: RunDir) -> list[Standing]:
    """Where each of the config's stages stands in the run. Raises `UserError` for a run of a newer version."""
    run_dir.check_version()
    return [_standing(stage, config, run_dir) for stage in stages_of(config)]


def missing_inputs(config: Config, run_dir: RunDir) -> list[tuple[Key, str]]:
    """A sentence for each stage that reads what is not in the run and what no stage of the config makes before it."""
    sentences = selection.missing_inputs(stages_of(config), (), run_dir, _not_made(config))
    return [(("stages",), sentence) for sentence in sentences]


def stages_of(config: Config) -> list[Stage]:
    """The config's stages; comparisons from a data set need no sampling."""
    not_made, algorithm = _not_made(config), config.align.algorithm
    wanted = [stage for stage in stages.STAGES if stage.name in config.stages and not_made.isdisjoint(stage.writes)]
    return [stages.made_by(stage, algorithm) for stage in wanted]


def _fitted(config: Config, run_dir: RunDir, progress: Progress) -> Config:
    """The config with numbers in the place of `model.memory: auto`. Says which."""
    if config.model.memory == "auto" and not run_dir.artifact("config.yaml").exists():
        fetch_model(config.model, progress)  # its shape tells what fits
    config, choice = fit_to_memory(config, run_dir)
    if config.model.memory == "auto":
        raise UserError(
            f"model.memory: auto cannot tell what {config.model.source} needs: its config.json is not of a known form. "
            "Take as_set, with numbers of your own in model.micro_batch_tokens and model.gradient_checkpointing"
        )
    if choice:
        progress.say(choice.message)
    return config


def _not_made(config: Config) -> set[str]:
    """What no stage of this config makes or needs: with comparisons from a data set there are no samples."""
    return set() if config.rank.source != "dataset" else set(stages.stage("sample").writes)


def _standing(stage: Stage, config: Config, run_dir: RunDir) -> Standing:
    mark = run_dir.done(stage.name)
    started = mark or _begun(run_dir, stage)
    if started is None:
        return Standing(stage, "to do")
    why = differences(started["fingerprint"], current_fingerprint(stage, config, run_dir), finished=bool(mark))
    if mark:
        why += tuple(f"{name} is gone" for name in stage.writes if not run_dir.artifact(name).exists())
    if why:
        return Standing(stage, "stale", why)
    return Standing(stage, "done" if mark else "half done")


def _run_stage(stage: Stage, session: Session, told: float | None) -> None:
    run_dir, progress = session.run_dir, session.progress
    standing = _standing(stage, session.config, run_dir)
    _refuse_stale([standing])  # again, for the stages before it may have changed its inputs
    if standing.state == "done":
        progress.say("  done before, skipped")
        return
    session.stop.check("everything finished so far is saved")
    fresh = {"schema": 1, "fingerprint": current_fingerprint(stage, session.config, run_dir), "seconds": 0.0}
    started = multi_process.noted(stage, session.group, _begun(run_dir, stage), fresh)
    if standing.state == "half done":
        progress.say(f"  goes on after {duration(started['seconds'])} of work")
    run_dir.work(stage.name)
    mark = _work(stage, session, started)
    release_freed_memory()
    run_dir.finish(stage.name, stage.writes, mark | {"planned_memory_bytes": told and round(told)})
    if told:
        progress.say(f"  peak memory {memory(mark['peak_memory_bytes'])}; plan said {memory(told)}")
    run_dir.event("finished", stage=stage.name, seconds=mark["seconds"])


def _report(run_dir: RunDir) -> None:
    """The report of a run that has no evaluation yet, or never will; the evaluation writes its own."""
    if not run_dir.done("evaluate"):
        write_report(run_dir, run_dir.results(), [], run_dir.path)


def _work(stage: Stage, session: Session, started: dict[str, Any]) -> dict[str, Any]:
    """Run the stage and return its done-mark; if it stops, seconds and memory so far stay with its fingerprint.

    The peak of memory is the stage's own on Linux, over all attempts; elsewhere it is the process's so far, earlier
    stages included.
    """
    path = _started_path(session.run_dir, stage)
    write_json_atomic(path, started)
    session.run_dir.event("started", stage=stage.name)
    forget_peak_memory()
    since, loading = time.monotonic(), session.loading_seconds
    try:
        summary = multi_process.run_stage(stage, session)
    except BaseException as error:
        used = _used(started, since)
        write_json_atomic(path, started | used)
        session.run_dir.event("ended early", stage=stage.name, seconds=used["seconds"], error=type(error).__name__)
        raise
    return {
        "schema": 1,
        "stage": stage.name,
        "fingerprint": started["fingerprint"],
        "summary": summary if isinstance(summary, dict) else summary.model_dump(exclude_unset=True),
        "processes": started["processes"],
        **_used(started, since),
        "loading_seconds": round(session.loading_seconds - loading, 1),
        "finished_at": now(),
    }


def _used(started: dict[str, Any], since: float) -> dict[str, Any]:
    """Seconds of the stage's attempts together, and the highest of their peaks of memory."""
    return {
        "seconds": round(started["seconds"] + time.monotonic() - since, 1),
        "peak_memory_bytes": max(started.get("peak_memory_bytes", 0), peak_memory_bytes()),
    }


def _to_go(chosen: Sequence[Stage], stage: Stage, session: Session) -> tuple[float | None, Later]:
    """Seconds from the beginning of a stage to the end of the run, and what tells those after it from its own."""
    marks = {each.name: session.run_dir.done(each.name) for each in chosen}
    # Loading and converting the model happens once, whatever the stage has to compute.
    done = {name: float(mark["seconds"]) - mark.get("loading_seconds", 0.0) for name, mark in marks.items() if mark}
    shape = find_shape(session.config.model)
    if shape is None:
        return None, lambda _: None
    amount = stage_costs(session.config, session.run_dir, shape, session.data)
    amount = {name: amount[name] for name in marks}
    return seconds_to_go(done, amount), lambda own: seconds_to_go({**done, stage.name: own}, amount)


def _refuse_stale(standings: Sequence[Standing]) -> None:
    stale = [standing for standing in standings if standing.state == "stale"]
    if not stale:
        return
    parts = [
        f"Stage {stage.name} was made from something else than is asked for now:\n"
        + "".join(f"  {line}\n" for line in why)
        for stage, _, why in stale
    ]
    flags = " ".join(f"--redo {stage.name}" for stage, _, _ in stale)
    raise StaleRun(
        "".join(parts)
        + f"Make it again, and with it all that was built on it: {flags}\n"
        + "Or keep it, and give this run another name: name=..."
    )


def _begun(run_dir: RunDir, stage: Stage) -> dict[str, Any] | None:
    """What was noted when the stage began, if it left something to go on from.

    One that was stopped or refused before that is still to do, with other settings too.
    """
    path = _started_path(run_dir, stage)
    left = path.parent.exists() and any(file != path for file in path.parent.iterdir())
    return read_record(path, Begun) if left else None


def _started_path(run_dir: RunDir, stage: Stage) -> Path:
    return run_dir.work_path(stage.name) / "fingerprint.json"
