"""Export a short quickstart as GGUF files of every type, and compare each in llama.cpp with the run's own model.

    make verify-export            # or: python tools/verify_export.py --run runs/quickstart --types q8_0

Needs the packages of requirements-gguf.txt. Prints a Markdown table. Exits with 1 if a file is not within its bound.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TYPES = ("f16", "q8_0", "q4_k_m", "lora")
SHORT = (
    "name=verify-export", "stages=[sft]", "sft.examples=64", "sft.batch_size=8", "data.held_out=12",
    "sample.max_new_tokens=32",
)  # fmt: skip


def main() -> None:
    """Run, export, print."""
    given = _parse()
    run = given.run or short_run(given.folder)
    rows = [
        (kind, *exported(run, kind, given.role or ("policy" if given.run else "sft"), given.folder))
        for kind in given.types
    ]
    print("| type | MiB | same prompts | same greedy answers | same most probable token | mean, nats | largest, nats |")
    print("|---|---|---|---|---|---|---|")
    for kind, size, found in rows:
        print(
            f"| {kind} | {size / 2**20:.0f} | {found['same_prompt_tokens']} of {found['prompts']} | "
            f"{found['same_answers']} | {100 * found['same_best']:.1f} % | {found['mean_logprob']:.3f} "
            f"(bound {found['bound']:g}) | {found['max_logprob']:.2f} |"
        )
    sys.exit(not all(found["passed"] for _, _, found in rows))


def short_run(folder: Path) -> Path:
    """Train the quickstart's SFT adapter for sixteen steps, or return it if it is there."""
    _command("run", "quickstart", *SHORT, "--runs", str(folder / "runs"))
    return folder / "runs" / "verify-export"


def exported(run: Path, kind: str, role: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """Return size and figures of one export; a difference beyond the bound (exit code 1) is a figure too."""
    target = folder / kind
    shutil.rmtree(target, ignore_errors=True)
    options = ("--what", "gguf", "--type", kind, "--role", role, "--json")
    summary = json.loads(_command("export", str(run), str(target), *options, allowed=(0, 1)))
    return summary["bytes"], summary["gguf_check"]


def _command(*arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lowrank_rlhf", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in allowed or not done.stdout:
        sys.exit(f"{' '.join(arguments)}: exit code {done.returncode}")
    return done.stdout


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="an existing run folder; by default a short quickstart")
    parser.add_argument("--role", choices=("policy", "sft"))
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "verify-export")
    return parser.parse_args()


if __name__ == "__main__":
    main()
