"""Run the stages in order: skip finished stages, resume unfinished ones, refuse stale ones."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lowrank_rlhf import stages
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.messages import Key
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import RunData, look_up_commits
from lowrank_rlhf.errors import Fault, StaleRun, UserError
from lowrank_rlhf.evaluation.run_judges import ENCODERS
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.pipeline import multi_process, redo_stages, selection
from lowrank_rlhf.pipeline.fingerprint import current_fingerprint, differences
from lowrank_rlhf.pipeline.preflight import judges_in_use
from lowrank_rlhf.planner.compute_cost import seconds_to_go
from lowrank_rlhf.planner.disk import check_disk_space, disk_watched, smallest_need
from lowrank_rlhf.planner.fit import fit_to_memory
from lowrank_rlhf.planner.forecast import shown_peaks
from lowrank_rlhf.planner.pace import stage_costs
from lowrank_rlhf.reports.render import write_report
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.files import now, read_record, write_json_atomic
from lowrank_rlhf.run.memory_usage import forget_peak_memory, peak_memory_bytes
from lowrank_rlhf.run.progress import Later, Progress, StopRequest, duration, memory
from lowrank_rlhf.run.results import Started
from lowrank_rlhf.run.results.rounds import prefix
from lowrank_rlhf.run.tracking import tracked
from lowrank_rlhf.session import Session
from lowrank_rlhf.sources.encoder import fetch_encoder
from lowrank_rlhf.sources.fetch import fetch_model
from lowrank_rlhf.sources.model_shape import find_shape
from lowrank_rlhf.stages import Stage

State = Literal["done", "to do", "half done", "stale"]


class StageStatus(NamedTuple):
    """State of a stage in a run, with the differences that make it stale."""

    stage: Stage
    state: State
    why: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    """Part of `why`: outputs and logs that changed after the stage finished."""


def run(
    config: Config,
    runs_folder: Path,
    *,
    until: str | None = None,
    redo: Sequence[str] = (),
    progress: Progress,
    group: ProcessGroup | None = None,
) -> RunDir:
    """Run the stages up to the last, or to `until`, and return the run folder.

    Raises `UserError` for unknown stage names and for inputs that no stage produces, `RunLocked`, `StaleRun`,
    `CannotFit` if the disk is full, and any error of a stage, whose work is kept.
    """
    chosen = selection.up_to(until, stages_of(config))
    again = selection.built_on(selection.named(redo, stages_of(config)), stages.of_rounds(config.rounds))
    run_dir = RunDir(runs_folder / config.name)
    run_dir.check()
    selection.check_rounds(config, run_dir)
    config = _fitted(config, run_dir, progress)
    to_do = [stage for stage in chosen if stage in again or run_dir.mark(stage.name) is None]
    check_disk_space(run_dir.path, smallest_need(to_do, config, find_shape(config.model)))
    with disk_watched(run_dir.path), run_dir.lock(), StopRequest(group) as stop:
        run_dir.recover()
        selection.check_inputs(chosen, stages.of_rounds(config.rounds), again, run_dir, _not_made(config))
        look_up_commits(run_dir, config)
        kept = [stage for stage in chosen if stage not in again]
        _refuse_stale([_status(stage, config, run_dir) for stage in kept])
        if again:
            run_dir.earlier.check()
        redo_stages.refuse_other_answers(again, config, run_dir)
        unfinished = dict.fromkeys(s.kind for s in stages_of(config) if s in again or not run_dir.mark(s.name))
        session = Session(config, run_dir, progress, stop, group or ProcessGroup(), unfinished)
        if to_do:
            session.read_data()
        if any("model" in stage.settings for stage in to_do):
            fetch_model(config.model, progress)
            _refuse_stale([_status(stage, config, run_dir) for stage in kept])  # the model's checksum is known now
            for judge in judges_in_use(config).values():
                if judge in ENCODERS:
                    fetch_encoder(ENCODERS[judge], progress)  # before any long work
            session.take_backend()  # before anything imports transformers
            session.filter_lengths()
        planned = shown_peaks(config, run_dir, session.data) if to_do else {}
        wanted = [stage.name for stage in stages_of(config)]
        run_dir.earlier.drop_if_replaced(wanted)  # by a run that was killed at its end
        redo_stages.set_aside(again, run_dir, progress)
        run_dir.open(dump_config(config))
        with tracked(config, run_dir.metrics, run_dir.path), progress.recorded_in(run_dir.path):
            for index, stage in enumerate(chosen, 1):
                remaining = _to_go(chosen, stage, config, run_dir, session.data)
                progress.stage(index, len(chosen), stage.name, stage.does, *remaining)
                if stage.round > session.run_dir.number:  # a later round is built on the new results
                    run_dir.earlier.drop_if_replaced(wanted)
                session.run_dir = run_dir.round(stage.round)
                session.run_dir.metrics.pass_on_to(run_dir.metrics, prefix(stage.round))
                _run_stage(stage, session, planned.get(stage.name))
        _report(run_dir.rounds[-1])
        run_dir.earlier.drop_if_replaced(wanted)
    return run_dir


def plan(config: Config, run_dir: RunDir) -> list[StageStatus]:
    """Return the state of each of the config's stages. Raises `UserError` for a run of a newer version."""
    run_dir.check()
    return [_status(stage, config, run_dir) for stage in stages_of(config)]


def missing_inputs(config: Config, run_dir: RunDir) -> list[tuple[Key, str]]:
    """Return a message for each stage with an input that is neither in the run nor produced by an earlier stage."""
    known = stages.of_rounds(config.rounds)
    sentences = selection.missing_inputs(stages_of(config), known, (), run_dir, _not_made(config))
    return [(("stages",), sentence) for sentence in sentences]


def stages_of(config: Config) -> list[Stage]:
    """Return the config's stages, round by round; comparisons from a data set need no sampling."""
    not_made = _not_made(config)
    return [
        stages.made_by(stage, config)
        for stage in stages.of_rounds(config.rounds)
        if stage.kind in config.active_stages and not_made.isdisjoint(stage.writes)
    ]


def _fitted(config: Config, run_dir: RunDir, progress: Progress) -> Config:
    """Replace `model.memory: auto` by numbers and print them."""
    if config.model.memory == "auto" and not run_dir.artifact("config.yaml").exists():
        fetch_model(config.model, progress)  # the limits follow from its shape
    config, choice = fit_to_memory(config, run_dir, RunData(config))
    if config.model.memory == "auto":
        raise UserError(
            f"model.memory: auto cannot estimate the memory of {config.model.source}: the form of its config.json is "
            "not known. Set model.memory: as_set, with model.micro_batch_tokens and model.gradient_checkpointing"
        )
    if choice:
        progress.say(choice.message)
    return config


def _not_made(config: Config) -> set[str]:
    """Return the files that this config does not need: comparisons from a data set need no samples."""
    return set() if config.rank.source != "dataset" else set(stages.stage("sample").writes)


def _status(stage: Stage, config: Config, run_dir: RunDir) -> StageStatus:
    mark = run_dir.mark(stage.name)
    started = mark or _started(run_dir, stage)
    if started is None:
        return StageStatus(stage, "to do")
    damage: tuple[str, ...] = ()
    why = differences(started.fingerprint, current_fingerprint(stage, config, run_dir), finished=bool(mark))
    if mark:
        gone = [name for name in stage.writes if not run_dir.artifact(name).exists()]
        why += tuple(f"{name} is gone" for name in gone)
        there = [name for name in stage.writes if name not in gone]
        damage = (*run_dir.faults(stage.name, there), *run_dir.log_faults(stage.name))
    if why or damage:
        return StageStatus(stage, "stale", why + damage, damage)
    return StageStatus(stage, "done" if mark else "half done")


def _run_stage(stage: Stage, session: Session, planned: float | None) -> None:
    run_dir, progress = RunDir(session.run_dir.run), session.progress
    status = _status(stage, session.config, run_dir)
    _refuse_stale([status])  # again: earlier stages may have changed its inputs
    if status.state == "done":
        progress.say("  done before, skipped")
        return
    session.stop.check("everything finished so far is saved")
    processes = multi_process.sharing(stage, session.group)
    fresh = Started(fingerprint=current_fingerprint(stage, session.config, run_dir), processes=processes)
    started = _started(run_dir, stage) or fresh
    multi_process.check_processes(stage, session.group, started)
    if status.state == "half done":
        progress.say(f"  resumes after {duration(started.seconds)} of work")
    if processes < session.group.processes:
        progress.say("  the main process works on it alone")
    run_dir.work(stage.name)
    mark = _work(stage, session, started, planned)
    release_freed_memory()
    run_dir.finish(stage.name, stage.writes, mark)
    if planned:
        progress.say(f"  peak memory {memory(mark['peak_memory_bytes'])}; plan said {memory(planned)}")
    run_dir.event("finished", stage=stage.name, seconds=mark["seconds"])


def _report(run_dir: RunDir) -> None:
    """Write the report of a run without an evaluation, which would write its own."""
    if run_dir.mark("evaluate") is None:
        write_report(run_dir, run_dir.results(), [], run_dir.path)


def _work(stage: Stage, session: Session, started: Started, planned: float | None) -> dict[str, Any]:
    """Run the stage and return its done mark; if it stops, its start record keeps seconds and memory.

    On Linux the peak of memory is that of the stage, over all attempts; elsewhere that of the process, earlier stages
    included.
    """
    run_dir = RunDir(session.run_dir.run)
    path = run_dir.start_record(stage.name)
    _write_started(path, started)
    run_dir.event("started", stage=stage.name)
    forget_peak_memory()
    since, loading = time.monotonic(), session.loading_seconds
    try:
        result = multi_process.run_stage(stage, session)
    except BaseException as error:
        used = _with_usage(started, since)
        _write_started(path, used)
        run_dir.event("ended early", stage=stage.name, seconds=used.seconds, error=type(error).__name__)
        raise
    return {
        "schema": 1,
        "stage": stage.name,
        **_with_usage(started, since).model_dump(),
        "summary": result.model_dump(exclude_unset=True),
        "loading_seconds": round(session.loading_seconds - loading, 1),
        "planned_memory_bytes": None if planned is None else round(planned),
        "finished_at": now(),
    }


def _with_usage(started: Started, since: float) -> Started:
    """Add this attempt's seconds and memory peak to the record."""
    return started.model_copy(
        update={
            "seconds": round(started.seconds + time.monotonic() - since, 1),
            "peak_memory_bytes": max(started.peak_memory_bytes, peak_memory_bytes()),
        }
    )


def _write_started(path: Path, started: Started) -> None:
    write_json_atomic(path, {"schema": 1} | started.model_dump())


def _to_go(
    chosen: Sequence[Stage], stage: Stage, config: Config, run_dir: RunDir, data: RunData
) -> tuple[float | None, Later, bool]:
    """Return the seconds from a stage to the end of the run, an estimator for the stages after it, and if people rank.

    Their time is not included.
    """
    marks = {each.name: run_dir.mark(each.name) for each in chosen}
    # The model is loaded and converted once, independent of the stage.
    done = {name: mark.seconds - mark.loading_seconds for name, mark in marks.items() if mark}
    people_rank = config.rank.source == "human" and any(each.kind == "rank" and not marks[each.name] for each in chosen)
    if (shape := find_shape(config.model)) is None:
        return None, lambda _: None, people_rank
    amount = stage_costs(config, run_dir, shape, data)
    amount = {name: amount[name] for name in marks}
    return seconds_to_go(done, amount), lambda own: seconds_to_go({**done, stage.name: own}, amount), people_rank


def _refuse_stale(statuses: Sequence[StageStatus]) -> None:
    stale = [status for status in statuses if status.state == "stale"]
    if not stale:
        return
    names = [status.stage.name for status in stale]
    damaged = any(status.damage for status in stale)
    text = (
        "{reasons}Redo it, with all stages that depend on it: {flags}\n"
        + ("Or restore the damaged files from a copy.\n" if damaged else "")
        + "Or keep it, and start a new run under another name: name=..."
    )
    flags = " ".join(f"--redo {name}" for name in names)
    values = {"reasons": "".join(map(_refusal, stale)), "stages": ", ".join(names)}
    raise StaleRun(Fault("stale", text, flags=flags, **values))


def _refusal(status: StageStatus) -> str:
    changed = [line for line in status.why if line not in status.damage]
    heads = {
        f"Stage {status.stage.name} does not match the current settings and inputs:\n": changed,
        f"Outputs of stage {status.stage.name} were changed or damaged after it finished:\n": status.damage,
    }
    return "".join(head + "".join(f"  {line}\n" for line in lines) for head, lines in heads.items() if lines)


def _started(run_dir: RunDir, stage: Stage) -> Started | None:
    """Return the record of the stage's start if there is work to resume.

    A stage that stopped before saving any may be started with other settings.
    """
    path = run_dir.start_record(stage.name)
    left = path.parent.exists() and any(file != path for file in path.parent.iterdir())
    found = read_record(path, Started) if left else None
    return None if found is None else Started.model_validate(found)
