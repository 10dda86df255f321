"""Run the combinations of a sweep one after another; the table on disk is updated after each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.pipeline.pipeline import plan
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.sweep.grid import Combination, Sweep
from lowrank_rlhf.sweep.launch import Outcome
from lowrank_rlhf.sweep.plot import write_plot
from lowrank_rlhf.sweep.results import PLOT, STATES, row, save
from lowrank_rlhf.sweep.share import take_over

Start = Callable[[Combination], Outcome]
Say = Callable[[str], None]


def run_sweep(sweep: Sweep, runs: Path, start: Start, say: Say) -> dict[str, Any]:
    """Complete every run with `start`, even if others fail, and return the contents of sweep.json.

    Raises `Stopped` from `start`; finished work is saved.
    """
    folder = runs / sweep.name
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is the folder of a run. Give the sweep another name: name=...")
    rows = [row(entry, runs, STATES[0] if complete(entry, runs) else "to do") for entry in sweep.combinations]
    save(folder, sweep, rows)
    for index, combination in enumerate(sweep.combinations):
        say(f"\n[{index + 1}/{len(rows)}] {combination.label}: {combination.config.name}")
        if rows[index]["state"] == STATES[0]:
            say("  already done, skipped")
            continue
        outcome = _one(sweep, combination, runs, start, say)
        state = STATES.get(outcome.code, "failed")
        rows[index] = row(combination, runs, state, outcome.message if outcome.code else "")
        if outcome.code:
            say(f"  {state} (exit code {outcome.code}); recorded; the sweep continues")
        save(folder, sweep, rows)
    drawn = write_plot(rows, runs, folder / PLOT)
    return save(folder, sweep, rows, drawn)


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


def _one(sweep: Sweep, combination: Combination, runs: Path, start: Start, say: Say) -> Outcome:
    """Copy the stages that other runs of the sweep share, then run the rest."""
    donors = [other.config.name for other in sweep.combinations if other is not combination]
    try:
        taken = take_over(combination.config, runs, donors)
    except UserError as error:
        say(f"  {error}")
        return Outcome(int(error.exit_code), str(error))
    for stage, donor in taken.items():
        say(f"  {stage}: same as in {donor}; copied and verified by hashes")
    return start(combination)
