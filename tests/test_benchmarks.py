"""The benchmarks, on tiny models: the measuring programs run and give the figures that they promise."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_ppo_step_prints_one_json_object(tiny_folder: Callable[..., Path]) -> None:
    """The figures of issue 4, from the command's last line."""
    work = {"batch": 4, "prompt-tokens": 8, "new-tokens": 6, "epochs": 2, "updates": 2, "threads": 1}
    command = [sys.executable, ROOT / "benchmarks" / "ppo_step.py", "--json", f"--model={tiny_folder()}"]
    command += ["--dtype=float32", *(f"--{name}={value}" for name, value in work.items())]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert len(result["seconds_per_update"]) == 2
    assert set(result["phases"]) == {"rollout", "scoring", "policy_update", "critic_update"}
    assert sum(result["phases"].values()) > result["arithmetic_floor_seconds"] > 0
    # Answers go on to their full length: 4 answers of 6 tokens in the time of the rollout (rounded).
    tokens = result["rollout_tokens_per_second"] * result["phases"]["rollout"]
    assert abs(tokens - 24) < 3
    assert result["peak_rss_mb"] > 100


def test_memory_table_compares_with_sft_of_the_same_setting() -> None:
    """Hand values: 3 GiB measured where 2 were told, and 1.5 times what SFT took."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.memory import table

    gib = 2**30
    rows = [
        {"setting": "a", "stage": "sft", "measured": 2 * gib, "predicted": 2 * gib},
        {"setting": "a", "stage": "ppo", "measured": 3 * gib, "predicted": 2 * gib},
        {"setting": "b", "stage": "sft", "measured": gib, "predicted": 2 * gib},
    ]
    assert table(rows).splitlines()[2:] == [
        "| a | sft | 2,048 | 2,048 | 1.00 | 1.00 |",
        "| a | ppo | 3,072 | 2,048 | 1.50 | 1.50 |",
        "| b | sft | 1,024 | 2,048 | 0.50 | 1.00 |",
    ]


def test_a_short_soak_measures_memory_and_logs(tmp_path: Path) -> None:
    """Eight steps are too few to judge the memory; what a step logs shows in them already."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.soak import MOST_LOGGED_BYTES, soak

    figures = soak(tmp_path, 8)
    assert 100 < figures["warm_mib"] < 20_000
    assert abs(figures["growth"]) < 0.5
    assert 100 < figures["logged_bytes_per_step"] < MOST_LOGGED_BYTES


def test_the_table_of_algorithms() -> None:
    """Means with the lowest and highest over two seeds; the page keeps what stands around the table."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.algorithms import BEGIN, END, PAGE, settings, table, with_table

    figures = {"kl": 2.0, "length": 20, "ends": 1.0, "steps": 16, "tokens": 12_345, "seconds": 60, "peak_mib": 2000}
    rows = [
        {
            "algorithm": name,
            "measure": measure,
            "seed": seed,
            "second_win_rate": None,
            "win_rate": 0.5 + seed / 10,
            **figures,
        }
        for name in ("ppo", "rloo", "grpo", "dpo")
        for measure in ("tokens", "time")
        for seed in (1, 2)
    ]
    lines = table(rows).splitlines()
    assert len(lines) == 2 + 8 + 2
    assert lines[2] == "| equal tokens | PPO | 0.65 [0.60, 0.70] | – | 2.0 | 20 | 1.00 | 16 | 12,345 | 60 | 2,000 |"
    page = PAGE.read_text(encoding="utf-8")
    replaced = with_table(page, "a table")
    assert (
        replaced.replace(f"{BEGIN}\n\na table\n\n{END}", "")
        == page[: page.index(BEGIN)] + page[page.index(END) + len(END) :]
    )
    assert settings("dpo", 2, 64, 640)[:2] == ["ppo.evaluate_every=2", "align.epochs=2"]
    assert settings("ppo", 16, 72, 640) == ["ppo.evaluate_every=2", "ppo.steps=16", "ppo.batch_size=72"]


def test_the_settings_of_the_algorithms_are_valid() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.algorithms import ALIGN, settings
    from lowrank_rlhf.config.loading import load_config

    for name in ("ppo", *ALIGN):
        assert load_config(Path("quickstart"), settings(name, 16, 72, 2000)).align.algorithm == name
