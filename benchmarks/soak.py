"""Run many PPO steps on a tiny random model: memory must stay constant and the logs small.

    python benchmarks/soak.py [--steps 200]

Ends with an error if the resident memory after the first quarter grows by more than 2 %, or a step logs over 4 KiB.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import make_tiny_model
from tiny_finished import finished_run

from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.stages import ppo

MOST_GROWTH = 0.02
MOST_LOGGED_BYTES = 4096


def soak(folder: Path, steps: int) -> dict[str, float]:
    """Train for `steps` steps in `folder`; return memory in MiB before and after, its growth, and the logs' size."""
    changes = {"ppo__steps": steps, "ppo__evaluate_every": 10, "ppo__learning_rate": 1e-4}
    context = finished_run(make_tiny_model(folder / "model"), folder, adapters=("sft", "reward"), **changes)
    resident, append = [], StepLog.append

    def append_and_measure(log: StepLog, stage: str, step: int, **row: object) -> None:
        append(log, stage, step, **row)
        if "objective/kl" in row:
            resident.append(psutil.Process().memory_info().rss / 2**20)

    StepLog.append = append_and_measure  # type: ignore[method-assign]
    try:
        ppo.run(context)
    finally:
        StepLog.append = append  # type: ignore[method-assign]
    quarter = len(resident) // 4
    warm, late = max(resident[quarter : 2 * quarter]), max(resident[-quarter:])
    logged = sum(log.path.stat().st_size for log in context.run_dir.logs)
    growth = late / warm - 1
    return {
        "steps": steps,
        "warm_mib": warm,
        "late_mib": late,
        "growth": growth,
        "logged_bytes_per_step": logged / steps,
    }


def main() -> None:
    """Print the figures; exit with an error if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder), parser.parse_args().steps)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    if figures["growth"] > MOST_GROWTH:
        sys.exit(f"memory grew by {figures['growth']:.1%} of {figures['warm_mib']:.0f} MiB; at most {MOST_GROWTH:.0%}")
    if figures["logged_bytes_per_step"] > MOST_LOGGED_BYTES:
        sys.exit(f"a step logs {figures['logged_bytes_per_step']:.0f} bytes; at most {MOST_LOGGED_BYTES}")


if __name__ == "__main__":
    main()
