"""Write a run's report again after the run, with results that were measured since."""

import json
import shutil

from lowrank_rlhf.reports.render import write_report
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_lines, read_record
from lowrank_rlhf.run.results import MARKS
from lowrank_rlhf.stages import STAGES

EVALUATE = "evaluate"
ROWS = "eval.jsonl"


def rewrite_report(run_dir: RunDir) -> None:
    """Write the report of a run; a finished evaluation remains done, with the new report among its outputs.

    Raises `StaleRun` if the evaluation's rows changed after it finished.
    """
    mark = read_record(run_dir.path / "done" / f"{EVALUATE}.json", MARKS[EVALUATE])
    if mark is None:
        write_report(run_dir, run_dir.results(), [], run_dir.path)
        return
    run_dir.check_outputs(ROWS)
    rows = [json.loads(line) for line in read_lines(run_dir.artifact(ROWS)) if line]
    work = run_dir.work(EVALUATE)
    shutil.copyfile(run_dir.artifact(ROWS), work / ROWS)
    write_report(run_dir, run_dir.results(), rows, work)
    stage = next(stage for stage in STAGES if stage.name == EVALUATE)
    run_dir.finish(EVALUATE, stage.outputs, mark)
