"""Run folders for the dashboard's tests: settings, done marks and events without any training."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lowrank_rlhf.config.loading import preset_path
from lowrank_rlhf.dashboard.chat_worker import ChatWorker
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.run.files import append_line, write_json_atomic
from lowrank_rlhf.run.run_lock import identity

NASTY = "<script>document.title='taken'</script> **bold** ${1+1} {{value}} \u202eabc"
SLEEPER = "import time, sys; print('lowrank_rlhf'); sys.stdout.flush(); time.sleep(60)"
HOLDER = """
import sys, time, filelock
with filelock.FileLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""
RESULTS = {
    "sample": {"prompts": 2, "answers": 8},
    "rank": {"source": "judge", "rankings": 2, "comparisons": 3},
    "reward": {"accuracy": 0.61, "accuracy_interval": [0.48, 0.73]},
    "evaluate": {"prompts": 2, "win_rate": 0.7, "win_rate_interval": [0.41, 0.9]},
}
"""Results of the stages that need fields."""


def make_run(folder: Path, name: str = "one") -> Path:
    """A run folder with the quickstart's settings and no finished stage."""
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(preset_path("quickstart").read_text(encoding="utf-8"), encoding="utf-8")
    return run


def finish(run: Path, *stages: str) -> None:
    """Write done marks."""
    for stage in stages:
        mark = {
            "fingerprint": {"settings": {}, "inputs": {}},
            "summary": RESULTS.get(stage, {}),
            "seconds": 10.0,
            "peak_memory_bytes": 2**30,
            "finished_at": "x",
        }
        write_json_atomic(run / "done" / f"{stage}.json", mark)


def event(run: Path, kind: str, stage: str = "sft", **more: object) -> None:
    """Append an event."""
    append_line(run / "events.jsonl", {"time": "2026-01-01T00:00:00+00:00", "kind": kind, "stage": stage, **more})


@contextmanager
def holding(run: Path, name: str = "lowrank_rlhf", **changes: Any) -> Iterator[subprocess.Popen]:
    """A live process with the run's lock, as training has it; killed afterwards. `changes` are of its record."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, run / "run.lock", name], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        since = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 1))
        record = {"pid": process.pid, "since": since, **identity(run / "run.lock")} | changes
        write_json_atomic(run / "run.lock.json", record)
        yield process
        process.kill()


def page_of(folder: Path, chat: ChatWorker | None = None) -> Any:
    """The tabs' shared state without components."""
    return SimpleNamespace(runs=RunsFolder(folder), chat=chat or ChatWorker())
