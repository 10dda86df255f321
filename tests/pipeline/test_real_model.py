"""One short run of all six stages on SmolLM2-135M in NF4, as a person starts it; some minutes on a busy CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_rlhf.stages import STAGES

ROOT = Path(__file__).parents[2]
SHORT = {
    "name": "short",
    "sft.examples": 16,
    "sft.epochs": 1,
    "sft.batch_size": 8,
    "sample.prompts": 6,
    "sample.max_new_tokens": 12,
    "data.held_out": 6,
    "reward.held_out": 0.34,
    "ppo.steps": 2,
    "ppo.batch_size": 8,
    "ppo.evaluate_every": 2,
    "ppo.accept_weak_reward": "true",
    "evaluate.bootstrap_samples": 200,
}


@pytest.mark.real_model
def test_all_six_stages_on_a_real_model(tmp_path: Path) -> None:
    settings = [f"{key}={value}" for key, value in SHORT.items()]
    command = ["run", str(ROOT / "presets" / "quickstart.yaml"), *settings, "--runs", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "lowrank_rlhf", *command],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = tmp_path / "short"
    marks = {stage.name: json.loads((run / "done" / f"{stage.name}.json").read_text()) for stage in STAGES}
    for stage in STAGES:
        assert [name for name in stage.writes if not (run / name).exists()] == []
    claims = [claim for mark in marks.values() for claim in mark["summary"].get("claims", [])]
    assert [claim["claim"] for claim in claims if not claim["holds"]] == []
    stated = " ".join(claim["claim"] for claim in claims)
    assert all(words in stated for words in ("KL(policy || SFT) is 0", "ratio is 1", "checksum", "after a reload"))
    assert max(mark["peak_memory_bytes"] for mark in marks.values()) < 3e9
    assert marks["evaluate"]["summary"]["prompts"] == 3
    report = run / "report.html"
    assert "<svg" in report.read_text() or "data:image" in report.read_text()
    assert (run / "report.md").stat().st_size > 500
    for words in ("[6/6] evaluate", str(report), "SFT"):
        assert words in ended.stdout
