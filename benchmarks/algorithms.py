"""PPO, RLOO, GRPO and DPO from the same SFT, rankings and reward model: at equal generated tokens, and in equal time.

    python benchmarks/algorithms.py                     # three seeds: hours on two cores
    python benchmarks/algorithms.py --seeds 1 --steps 2 --batch 8 sample.prompts=24 data.held_out=8    # a look

For each seed the preset runs up to the reward stage once; copies of that run continue, each in its own process. PPO
sets both measures: the others make as many steps with as many answers each, and then as many as fit into PPO's time at
their own pace. DPO samples nothing: it makes one pass over the shared comparisons, and then as many as the time allows,
at least one. Finished runs stay in the runs folder, and the same command resumes. Writes `algorithms.json` to the
output folder, and the table to docs/algorithms.md, between its marks; rows of other seeds with the same setting stay.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.memory import command

PAGE = ROOT / "docs" / "algorithms.md"
BEGIN, END = "<!-- table: benchmarks/algorithms.py writes it -->", "<!-- end of the table -->"
ALIGN: dict[str, tuple[str, ...]] = {
    "rloo": ("align.learning_rate=6e-4", "align.warmup_steps=4", "align.beta=0.15"),
    "grpo": ("align.learning_rate=6e-4", "align.warmup_steps=4", "align.beta=0.04"),
    "dpo": ("align.learning_rate=2e-4", "align.warmup_steps=4", "align.beta=0.1"),
}
"""The quickstart's rate and KL weight for RLOO, the paper's weight for GRPO, common ones for DPO: only PPO is tuned."""
EVALUATIONS = 8

Row = dict[str, Any]


def main() -> None:
    """Run the missing combinations and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="quickstart", help="a preset, or a YAML file")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated numbers")
    parser.add_argument("--steps", type=int, default=16, help="steps of PPO, and of RLOO and GRPO at equal tokens")
    parser.add_argument("--batch", type=int, default=72, help="answers per step; with DPO comparisons")
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "algorithms")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose table is replaced")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of all runs")
    given = parser.parse_args()
    seeds, file = [int(seed) for seed in given.seeds.split(",")], given.output / "algorithms.json"
    of = {"preset": given.preset, "steps": given.steps, "batch": given.batch, "changes": given.changes}
    rows = others(file, of, seeds)
    for seed in seeds:
        rows += compare(given, seed)
        given.output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"of": of, "rows": rows}, indent=1) + "\n")
        given.page.write_text(with_table(given.page.read_text(encoding="utf-8"), table(rows)), encoding="utf-8")
    print(table(rows))


def others(file: Path, of: dict[str, Any], seeds: Sequence[int]) -> list[Row]:
    """Return the rows of other seeds measured earlier with the same preset, amounts and changes."""
    before = json.loads(file.read_text()) if file.exists() else {}
    return [row for row in before["rows"] if row["seed"] not in seeds] if before.get("of") == of else []


def compare(given: argparse.Namespace, seed: int) -> list[Row]:
    """Run all algorithms with one seed, by both measures."""
    runs, ready = given.runs, f"ready-{seed}"
    common = [given.preset, "--runs", str(runs), *given.changes, f"seed={seed}"]
    command("run", *common, f"name={ready}", "--until", "reward")

    comparisons = len((runs / ready / "comparisons.jsonl").read_text(encoding="utf-8").splitlines())

    def row(algorithm: str, measure: str, amount: int) -> Row:
        name = f"{algorithm}-{measure}-{seed}"
        if not (runs / name).exists():
            shutil.copytree(runs / ready, runs / name)
        command("run", *common, f"name={name}", *settings(algorithm, amount, given.batch, comparisons))
        found = {"algorithm": algorithm, "measure": measure, "seed": seed, **figures(runs / name, given.batch)}
        print(found, file=sys.stderr, flush=True)
        return found

    ppo = row("ppo", "tokens", given.steps)
    rows = [ppo, {**ppo, "measure": "time"}]
    for algorithm in ALIGN:
        amount = 1 if algorithm == "dpo" else given.steps
        first = row(algorithm, "tokens", amount)
        fitting = max(1, round(amount * ppo["seconds"] / first["seconds"]))
        rows += [first, {**first, "measure": "time"} if fitting == amount else row(algorithm, "time", fitting)]
    return rows


def settings(algorithm: str, amount: int, batch: int, comparisons: int) -> list[str]:
    """Return settings for `amount` steps (DPO: epochs), with about `EVALUATIONS` evaluations."""
    steps = amount * comparisons // batch if algorithm == "dpo" else amount
    evaluate = f"ppo.evaluate_every={max(1, steps // EVALUATIONS)}"
    if algorithm == "ppo":
        return [evaluate, f"ppo.steps={amount}", f"ppo.batch_size={batch}"]
    count = f"align.epochs={amount}" if algorithm == "dpo" else f"align.steps={amount}"
    common = (f"align.algorithm={algorithm}", f"align.batch_size={batch}", "ppo.contrastive=false")
    return [evaluate, count, *common, *ALIGN[algorithm]]


def figures(run: Path, batch: int) -> Row:
    """Return a finished run's held-out comparison and the figures of the stage that trained its policy."""
    marks = {name: json.loads((run / "done" / f"{name}.json").read_text()) for name in ("ppo", "evaluate")}
    made, judged = marks["ppo"], marks["evaluate"]["summary"]
    of_policy = {entry["id"]: entry["policy"] for entry in judged["table"]}
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    sampled = [line["response/length_mean"] for line in lines if "response/length_mean" in line]
    return {
        "steps": made["summary"]["steps"],
        "best_step": made["summary"]["best_step"],
        "win_rate": judged["win_rate"],
        "second_win_rate": of_policy.get("win_rate"),
        "kl": judged["kl_per_answer"],
        "length": of_policy["length_tokens"],
        "ends": of_policy["eos_rate"],
        "distinct_2": of_policy["distinct_2"],
        "tokens": round(batch * sum(sampled)),
        "seconds": made["seconds"] - made["loading_seconds"],
        "peak_mib": made["peak_memory_bytes"] / 2**20,
        "claims_hold": all(claim["holds"] for claim in made["summary"]["claims"]),
    }


def table(rows: Sequence[Row]) -> str:
    """Format a Markdown row per algorithm and measure: mean, lowest and highest over the seeds."""
    columns = (
        ("win_rate", "judge's win rate", "{:.2f}"), ("second_win_rate", "second judge's", "{:.2f}"),
        ("kl", "KL, nats", "{:.1f}"), ("length", "tokens an answer", "{:.0f}"), ("ends", "end by themselves", "{:.2f}"),
        ("steps", "steps", "{:.0f}"), ("tokens", "generated tokens", "{:,.0f}"), ("seconds", "seconds", "{:.0f}"),
        ("peak_mib", "peak, MiB", "{:,.0f}"),
    )  # fmt: skip
    lines = [
        f"| measure | algorithm | {' | '.join(title for _, title, _ in columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for measure in ("tokens", "time"):
        for algorithm in ("ppo", *ALIGN):
            chosen = [row for row in rows if (row["measure"], row["algorithm"]) == (measure, algorithm)]
            cells = [_cell([row[key] for row in chosen], shown) for key, _, shown in columns]
            lines.append(f"| equal {measure} | {algorithm.upper()} | {' | '.join(cells)} |")
    seeds = len({row["seed"] for row in rows})
    return "\n".join([*lines, "", f"Means over {seeds} seed{'s' * (seeds != 1)}, in brackets the lowest and highest."])


def _cell(values: Sequence[float | None], shown: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, low, high = (shown.format(value) for value in (fmean(known), min(known), max(known)))
    return mean if low == high else f"{mean} [{low}, {high}]"


def with_table(page: str, table: str) -> str:
    """Return the page with the table between its marks."""
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    main()
