"""Measure the peak memory of every stage against the forecast of `plan`, for SFT and PPO at equal rows and length.

    python benchmarks/memory.py --output docs/performance

Runs the quickstart's model through the stages in separate processes, each setting with few examples, and writes
`memory.json` and `memory.md` (a table) into that folder. The last setting has ten times the prompts of the first: its
peaks must be the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EQUAL_ROWS = (
    "model.quantization=nf4",
    "model.micro_batch_tokens=1536", "model.max_length=96", "sft.batch_size=16", "sft.epochs=1", "sft.examples=128",
    "data.held_out=32", "sample.max_new_tokens=48", "sample.prompts=32", "sample.batch_size=16", "reward.layers=null",
    "reward.epochs=1", "ppo.batch_size=16", "ppo.steps=5", "ppo.contrastive=false", "ppo.evaluate_prompts=16",
    "ppo.evaluate_every=100", "ppo.accept_weak_reward=true",
)  # fmt: skip
"""16 rows of up to 96 tokens in one pass, in SFT and in PPO; reward model and critic have all layers."""
ALL_LINEAR = ("lora.last_layers=null", "lora.target_modules=all-linear")
SETTINGS: dict[str, tuple[str, ...]] = {
    "nf4": EQUAL_ROWS,
    "nf4, adapters everywhere": (*EQUAL_ROWS, *ALL_LINEAR),
    "nf4, checkpointed": (*EQUAL_ROWS, *ALL_LINEAR, "model.gradient_checkpointing=true"),
    "nf4, float32": (*EQUAL_ROWS, "model.compute_dtype=float32"),
    "nf4, rank 64 everywhere": (*EQUAL_ROWS, *ALL_LINEAR, "lora.rank=64"),
    "nf4, half the tokens in a pass": (*EQUAL_ROWS, "model.micro_batch_tokens=768"),
    "nf4, twice the length": (*EQUAL_ROWS, "model.max_length=192", "sample.max_new_tokens=96"),
    "nf4, 64 rows": (*EQUAL_ROWS, "sft.batch_size=64", "ppo.batch_size=64", "sample.batch_size=64"),
    "nf4, sampling through the adapter": (*EQUAL_ROWS, "model.merged_rollouts=false"),
    "gguf": (*EQUAL_ROWS, "model.quantization=gguf"),
    "int8": (*EQUAL_ROWS, "model.quantization=int8"),
    "no quantisation": (*EQUAL_ROWS, "model.quantization=none"),
    "nf4, ten times the prompts": (*EQUAL_ROWS, "sample.prompts=320", "ppo.steps=50"),
}

Row = dict[str, Any]


def main() -> None:
    """Run every setting and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="quickstart", help="a preset, or a YAML file with another model")
    parser.add_argument("--only", choices=list(SETTINGS), action="append", help="one setting; may be repeated")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance")
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as runs:
        for number, setting in enumerate(given.only or SETTINGS):
            rows += measure(given.preset, setting, SETTINGS[setting], Path(runs), f"memory-{number}")
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "memory.json").write_text(json.dumps(rows, indent=1) + "\n")
    (given.output / "memory.md").write_text(table(rows))
    print(table(rows))


def measure(preset: str, setting: str, changes: Sequence[str], runs: Path, name: str) -> list[Row]:
    """Return forecast and measured peak of each stage of one run up to PPO."""
    arguments = [preset, "--runs", str(runs), f"name={name}", *changes]
    plan = json.loads(command("plan", *arguments, "--json"))
    predicted = {stage["stage"]: stage["memory"] for stage in plan["stages"] if stage["memory"]}
    command("run", *arguments, "--until", "ppo")
    rows = []
    for stage, memory in predicted.items():
        mark = runs / name / "done" / f"{stage}.json"
        if mark.exists():
            measured = json.loads(mark.read_text())["peak_memory_bytes"]
            row = {"setting": setting, "stage": stage, "measured": measured, "predicted": memory["shown_bytes"]}
            rows.append(row)
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def command(*arguments: str) -> str:
    """Return the standard output of one command of the package; exit if it fails."""
    whole = [sys.executable, "-m", "lowrank_rlhf", *arguments]
    run = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{' '.join(whole)} ended with {run.returncode}:\n{run.stderr[-3000:]}")
    return run.stdout


def table(rows: list[Row]) -> str:
    """Format a Markdown row for each stage of each setting."""
    lines = [
        "| setting | stage | measured, MiB | forecast | measured / forecast | over sft |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        sft = next(one["measured"] for one in rows if one["setting"] == row["setting"] and one["stage"] == "sft")
        mib = (row["measured"] / 2**20, row["predicted"] / 2**20)
        ratios = (row["measured"] / row["predicted"], row["measured"] / sft)
        cells = (row["setting"], row["stage"], *(f"{value:,.0f}" for value in mib), *(f"{r:.2f}" for r in ratios))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
