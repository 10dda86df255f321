"""Small run folders to compare: config, done marks, metrics and evaluated answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_json_atomic

REQUIRED = {"sample": {"prompts": 2, "answers": 8}, "rank": {"rankings": 2, "comparisons": 3}}


def evaluation(win_rate: float = 0.75, judge: str = "plain-language", **changes: Any) -> dict[str, Any]:
    """A result of `evaluate` with round figures."""
    table = [
        {"id": "mean_score", "judge": judge, "sft": 0.5, "policy": 0.625},
        {"id": "win_rate", "judge": "second", "interval": [0.4, 0.6], "sft": 0.5, "policy": 0.5},
        {"id": "length_tokens", "sft": 12.0, "policy": 15.5},
        {"id": "eos_rate", "sft": 1.0, "policy": 0.97},
    ]
    figures = {
        "prompts": 40,
        "judge": judge,
        "second_judge": "second",
        "win_rate": win_rate,
        "win_rate_interval": [win_rate - 0.1, win_rate + 0.1],
        "length_controlled_win_rate": 0.7,
        "length_controlled_interval": [0.61, 0.79],
        "mean_shift": 0.5,
        "kl_per_answer": 2.5,
        "kl_mean_interval": [2.25, 2.75],
        "temperature": 0.7,
        "kl_at_temperature_1": 3.25,
        "kl_at_temperature_1_interval": [3.0, 3.5],
    }
    return figures | {"table": table} | changes


def answers(prompts: Sequence[str], policy: str = "Of course!", **more: Any) -> list[dict[str, Any]]:
    """Rows of eval.jsonl, one for each prompt."""
    rows = enumerate(prompts)
    return [{"prompt_id": f"p{at}", "prompt": prompt, "sft": "No.", "policy": policy} | more for at, prompt in rows]


def write_run(
    folder: Path,
    results: dict[str, dict[str, Any]] | None = None,
    metrics: Sequence[dict[str, Any]] = (),
    rows: Sequence[dict[str, Any]] = (),
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write a run, finished unless `results` by stage are given."""
    run_dir = RunDir(folder)
    run_dir.open(dump_config(Config(**({"name": "any", "model": {"source": "x"}} | (settings or {})))))
    if results is None:
        reward = {"accuracy": 0.8, "accuracy_interval": [0.7, 0.9]}
        reward |= {"over_length": 0.125, "over_length_interval": [0.05, 0.2]}
        results = {"sft": {}, **REQUIRED, "reward": reward, "ppo": {"steps": 50, "best_step": 40}}
        results |= {"evaluate": evaluation()}
    for place, (stage, result) in enumerate(results.items(), 1):
        mark = {"fingerprint": {"settings": {}, "inputs": {}}, "summary": result, "seconds": 30.0}
        write_json_atomic(folder / "done" / f"{stage}.json", mark | {"peak_memory_bytes": place * 2**28})
    for name, lines in (("metrics.jsonl", metrics), ("eval.jsonl", rows)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder
