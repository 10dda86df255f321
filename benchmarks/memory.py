"""Measure the peak memory of every stage against the forecast of `plan`, on models of any size and eight settings.

    python benchmarks/memory.py                                            # the quickstart's model
    python benchmarks/memory.py --model Qwen2.5-Coder-0.5B=qwen05.gguf --only none

Each cell, a model with a setting, is a run of its own up to PPO, in a process of its own, with two optimizer steps for
each stage; over many steps peaks still grow a little. Prompts and responses are the built-in ones, joined until the
longest fill the setting's `model.max_length`. Writes `memory.json` and `memory.md` (a table) into the output folder; a
rerun replaces the cells that it measures and keeps the others. A cell takes one to five minutes of one core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from lowrank_rlhf.config.loading import dump_config, load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.planner.assumed_data import planned_amounts
from lowrank_rlhf.planner.compute_cost import Amounts
from lowrank_rlhf.planner.forecast import changed
from lowrank_rlhf.planner.memory import Device, need
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.fetch import fetch_model
from lowrank_rlhf.sources.model_shape import Shape, find_shape

SMALL: dict[str, Any] = {
    "model": {"compute_dtype": "bfloat16", "device": "cpu", "threads": 1, "micro_batch_tokens": 512, "max_length": 192},
    "data": {"held_out": 8, "skip_too_long": True},
    "sft": {"batch_size": 4, "epochs": 1, "examples": 8},
    "sample": {"prompts": 8, "answers_per_prompt": 2, "batch_size": 16, "max_new_tokens": 32},
    "rank": {"judge": "plain-language"},
    "reward": {"epochs": 1, "batch_size": 3},
    "ppo": {"steps": 2, "batch_size": 4, "epochs": 1, "evaluate_prompts": 2, "accept_weak_reward": True},
}
"""Two optimizer steps of each stage, of two passes each, and rows that fill a pass."""
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"model.quantization": "none", "lora.last_layers": 12},
    "nf4, adapters everywhere": {
        "model.quantization": "nf4", "model.micro_batch_tokens": 1024, "sft.batch_size": 5, "sft.examples": 10,
        "ppo.batch_size": 5,
    },
    "int8, 512 tokens": {
        "model.quantization": "int8", "model.max_length": 512, "sample.max_new_tokens": 64, "lora.last_layers": 12,
        "ppo.batch_size": 2, "sft.batch_size": 2, "sft.examples": 4,
    },
    "gguf, rank 64 everywhere": {"model.quantization": "gguf", "model.max_length": 128, "lora.rank": 64},
    "none, checkpointed": {
        "model.quantization": "none", "model.max_length": 256, "model.gradient_checkpointing": True,
        "model.micro_batch_tokens": 1024,
    },
    "nf4, 64 rows, four heads": {
        "model.quantization": "nf4", "model.max_length": 96, "lora.last_layers": 4, "model.merged_rollouts": False,
        "sample.prompts": 32, "sample.batch_size": 64, "ppo.batch_size": 64, "ppo.minibatches": 2, "ppo.steps": 1,
        "reward.members": 4, "reward.epochs": 0, "reward.fit_head_first": True,
    },
    "nf4, float32": {
        "model.quantization": "nf4", "model.compute_dtype": "float32", "model.max_length": 128, "lora.last_layers": 8,
        "model.micro_batch_tokens": 256, "sft.batch_size": 2, "sft.examples": 4,
    },
    "gguf, rank 8, small passes": {
        "model.quantization": "gguf", "lora.rank": 8, "lora.last_layers": 6,
        "lora.target_modules": ["q_proj", "v_proj"], "model.micro_batch_tokens": 256, "sample.batch_size": 8,
        "ppo.batch_size": 2, "sft.batch_size": 2, "sft.examples": 4,
    },
}  # fmt: skip

Cell = dict[str, Any]
"""Model, setting, the shape and the amounts that the planner read, and the measured bytes by stage."""
STAGES = ("sft", "sample", "reward", "ppo")


def main() -> None:
    """Measure every cell and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", metavar="NAME=SOURCE", help="a model.source; may be repeated")
    parser.add_argument("--chat-template", help="Jinja template for models that have none")
    parser.add_argument("--only", choices=list(SETTINGS), action="append", help="one setting; may be repeated")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance")
    given = parser.parse_args()
    path, quickstart = given.output / "memory.json", load_config(Path("quickstart")).model.source
    for name, source in (model.split("=", 1) for model in given.model or [f"SmolLM2-135M={quickstart}"]):
        for setting in given.only or SETTINGS:
            cell = measure(name, base_config(source, given.chat_template), setting)
            kept = json.loads(path.read_text()) if path.exists() else []
            cells = [other for other in kept if (other["model"], other["setting"]) != (name, setting)] + [cell]
            path.write_text(json.dumps(cells, indent=1) + "\n")
            (given.output / "memory.md").write_text(table(cells))
            print(table([cell]), flush=True)


def base_config(source: str, chat_template: str | None = None) -> Config:
    """Return the config that all settings share."""
    model = {**SMALL["model"], "source": source, "chat_template": chat_template}
    return Config.model_validate({**SMALL, "name": "memory", "model": model})


def measure(name: str, base: Config, setting: str) -> Cell:
    """Return the measured peak of each stage of one run up to PPO, with all that its forecast depends on."""
    with tempfile.TemporaryDirectory() as scratch:
        runs, data = Path(scratch) / "runs", Path(scratch) / "data.jsonl"
        config = changed(base, {**SETTINGS[setting], "data.prompts": str(data)})
        fetch_model(config.model, Progress.silent())  # converting a GGUF file leaves 0.2 GB in the process that does it
        with data.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in examples(config))
        path = Path(scratch) / "memory.yaml"
        path.write_text(dump_config(config))
        command("run", str(path), "--runs", str(runs), "--until", "ppo")
        run_dir, shape = RunDir(runs / config.name), find_shape(config.model)
        if shape is None:
            sys.exit(f"{name}: the model's shape is unknown")
        counts = planned_amounts(config, run_dir, RunData(config)).counts
        marks = {stage: json.loads((run_dir.path / "done" / f"{stage}.json").read_text()) for stage in STAGES}
        measured = {stage: mark["peak_memory_bytes"] for stage, mark in marks.items()}
        about = {"shape": asdict(shape), "counts": asdict(counts)}
    return {"model": name, "setting": setting, "measured": measured, **about}


def examples(config: Config) -> Iterator[dict[str, str]]:
    """Yield 64 demonstrations with lengths up to the longest that the config allows: built-in texts, joined."""
    file = ROOT / "lowrank_rlhf" / "data" / "builtin" / "everyday.jsonl"
    texts = [json.loads(line) for line in file.read_text().splitlines()]
    prompts, responses = cycle(row["prompt"] for row in texts), cycle(r["response"] for r in texts if "response" in r)
    most = config.model.max_length - config.sample.max_new_tokens
    for number in range(64):
        share = 1 - number % 8 / 10
        yield {
            "prompt": joined(prompts, 4 * share * most),
            "response": joined(responses, 4 * share * config.sample.max_new_tokens),
        }


def joined(texts: Iterator[str], characters: float) -> str:
    """Return the next text and those after it while they fit into that many characters together."""
    found = next(texts)
    while len(found) < characters and len(longer := f"{found} {next(texts)}") <= characters:
        found = longer
    return found


def planned(cell: Cell, stage: str) -> float:
    """Return the forecast of a stage by the present formulas, as `run` prints it beside the peak."""
    config = changed(base_config("model.gguf"), SETTINGS[cell["setting"]])
    device = Device(cuda=False, width=4 if config.model.compute_dtype == "float32" else 2)
    found = need(stage, config, Shape(**cell["shape"]), Amounts(**cell["counts"]), device)
    return found.shown if found else 0.0


def ratios(cell: Cell) -> dict[str, float]:
    """Return the measured peak over the forecast of each stage."""
    return {stage: size / planned(cell, stage) for stage, size in cell["measured"].items()}


def command(*arguments: str) -> str:
    """Return the standard output of one command of the package; exit if it fails."""
    whole = [sys.executable, "-m", "lowrank_rlhf", *arguments]
    run = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{' '.join(whole)} ended with {run.returncode}:\n{run.stderr[-3000:]}")
    return run.stdout


def table(cells: Sequence[Cell]) -> str:
    """Format a Markdown row for each stage of each cell, sizes in MiB."""
    lines = ["| model | setting | stage | forecast | measured | measured / forecast |", "|---|---|---|---|---|---|"]
    for cell in cells:
        for stage, found in ratios(cell).items():
            sizes = [f"{size / 2**20:,.0f}" for size in (planned(cell, stage), cell["measured"][stage])]
            lines.append(f"| {' | '.join([cell['model'], cell['setting'], stage, *sizes, f'{found:.2f}'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
