"""Compare one PPO update of this package with TRL 1.12's PPOTrainer, on the same model, prompts and settings.

    python benchmarks/against_trl/compare.py --rounds 3
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/against_trl/compare.py --dtype float32

The second command measures both as on an older machine, without bfloat16 units and AVX512.

Creates an environment for TRL in this folder (`.venv`), once. The last line is one JSON object with every
figure and the ratios of the medians.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.setting import SMOLLM2, make_prompts
from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.models.base import load_base
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sources.fetch import fetch_model


def main() -> None:
    """Measure both alternately and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side, alternating")
    for name, default in (("batch", 16), ("micro-batch", 16), ("prompt-tokens", 40), ("new-tokens", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="float32: as on a CPU without bfloat16 units",
    )
    given = parser.parse_args()
    python = _environment()
    config = ModelConfig(source=given.model)
    folder = fetch_model(config, Progress())
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as scratch:
        prompts = Path(scratch) / "prompts.json"
        rows = make_prompts(
            load_base(config, Progress.silent()), given.batch * (given.updates + 1), given.prompt_tokens
        )
        prompts.write_text(json.dumps(rows))
        shared = [f"--{name}={getattr(given, name)}" for name in ("batch", "epochs", "updates")]
        shared += [f"--new-tokens={given.new_tokens}", f"--model={folder}", f"--dtype={given.dtype}"]
        ours = [sys.executable, ROOT / "benchmarks" / "ppo_step.py", "--json", *shared]
        ours += [f"--prompt-tokens={given.prompt_tokens}"]
        theirs = [python, HERE / "trl_step.py", *shared, f"--prompts={prompts}", f"--output={scratch}/trl"]
        theirs += [f"--micro-batch={given.micro_batch}"]
        for turn in range(given.rounds):
            for name, command in (("ours", ours), ("trl", theirs)):
                found[name].append(_last_line(command))
                print(f"{turn + 1}/{given.rounds} {name}: {found[name][-1]}", flush=True)
    seconds = {name: median(s for run in runs for s in run["seconds_per_update"]) for name, runs in found.items()}
    peaks = {name: max(run["peak_rss_mb"] for run in runs) for name, runs in found.items()}
    ratios = {"time": seconds["ours"] / seconds["trl"], "memory": peaks["ours"] / peaks["trl"]}
    print(json.dumps({"seconds": seconds, "peak_rss_mb": peaks, "ratio": ratios, "runs": found}))


def _last_line(command: list[Any]) -> dict[str, Any]:
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{command[1]} failed:\n{run.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return result


def _environment() -> Path:
    """Return TRL's Python; create its environment the first time."""
    folder, stamp = HERE / ".venv", HERE / ".venv" / ".installed"
    python = folder / "bin" / "python"
    if not stamp.exists():
        print("creating TRL's environment (once)", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"], check=True)
        stamp.touch()
    return python


if __name__ == "__main__":
    main()
