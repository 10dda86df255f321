"""Run the combinations of a sweep, one after another or several at once; the table on disk is updated after each."""

import time
from pathlib import Path
from typing import Any

from lowrank_rlhf.errors import ExitCode, Stopped, UserError
from lowrank_rlhf.pipeline.pipeline import plan
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import StopRequest
from lowrank_rlhf.sweep.grid import Combination, Sweep
from lowrank_rlhf.sweep.plot import write_plot
from lowrank_rlhf.sweep.results import PLOT, STATES, row, save
from lowrank_rlhf.sweep.schedule import Say, Schedule, Start

_SECONDS_BETWEEN_LOOKS = 0.1


def run_sweep(
    sweep: Sweep, runs: Path, start: Start, say: Say, stop: StopRequest, places: int = 1, only: int | None = None
) -> dict[str, Any]:
    """Complete every run with `start`, even if others fail, and return the contents of sweep.json.

    Up to `places` runs are at work at once. Of one run, `only` by its index, its row alone is returned and nothing is
    written to the sweep's folder: others may be at work elsewhere. Raises `Stopped` after a stop request, when all of
    them have ended; finished work is saved.
    """
    folder = runs / sweep.name
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is the folder of a run. Give the sweep another name: name=...")
    if only is not None and only >= len(sweep.combinations):
        raise UserError(f"--only {only + 1}: the sweep has runs 1 to {len(sweep.combinations)}; `--dry-run` lists them")
    chosen = range(len(sweep.combinations)) if only is None else (only,)
    rows = {index: _row_before(sweep.combinations[index], runs) for index in chosen}

    def keep() -> None:
        if only is None:
            save(folder, sweep, list(rows.values()))

    keep()
    with Schedule(sweep, runs, start, say, places) as schedule:
        for index in chosen:
            if rows[index]["state"] == STATES[0]:
                say(f"{schedule.title(index)}: already done, skipped")
            else:
                schedule.add(index)
        while schedule.busy:
            if stop.requested:
                schedule.stop()
            schedule.start()
            for index, outcome in schedule.ended():
                message = outcome.message if outcome.code else ""
                # Before a run can handle it, the signal of a stop ends it with a negative code.
                code = ExitCode.STOPPED if stop.requested and outcome.code < 0 else outcome.code
                rows[index] = row(sweep.combinations[index], runs, STATES.get(code, "failed"), message)
                keep()
            time.sleep(_SECONDS_BETWEEN_LOOKS if schedule.busy else 0)
    if stop.requested:
        raise Stopped("Sweep stopped. Finished runs and stages are saved; the same command resumes.")
    found = list(rows.values())
    if only is not None:
        return {"runs": found}
    drawn = write_plot(found, runs, folder / PLOT)
    return save(folder, sweep, found, drawn)


def _row_before(combination: Combination, runs: Path) -> dict[str, Any]:
    return row(combination, runs, STATES[0] if complete(combination, runs) else "to do")


def complete(combination: Combination, runs: Path) -> bool:
    """Return True if every stage of the run is done and matches these settings."""
    run_dir = RunDir(runs / combination.config.name)
    return all(planned.state == "done" for planned in plan(combination.config, run_dir))


def exit_code(record: dict[str, Any]) -> ExitCode:
    """Return OK if all runs are done, WAITING if the others only wait for rankings, else FAILED."""
    states = {entry["state"] for entry in record["runs"]} - {STATES[0]}
    if not states:
        return ExitCode.OK
    return ExitCode.WAITING if states == {STATES[int(ExitCode.WAITING)]} else ExitCode.FAILED
