"""The recipe for TRL in the docs, run with TRL's own trainer on what `export` writes from a tiny run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import export_merged, export_reward
from tiny_finished import finished_run

from lowrank_rlhf.export.export import export_prompts
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_tokens

GUIDE = Path(__file__).parents[2] / "docs/more_than_one_gpu.md"
SHORTER = {
    "max_steps=100": "max_steps=2",
    "max_completion_length=256": "max_completion_length=8",
    "1e-5": "1e-2",
    "logging_steps=1": "logging_steps=1, use_cpu=True",
}


def recipe() -> str:
    """The code of the guide with few and short steps on the CPU."""
    found = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    code = found[1]
    for written, shorter in SHORTER.items():
        assert written in code
        code = code.replace(written, shorter)
    return code


def test_trl_trains_on_an_exported_run(tiny_folder, tmp_path, monkeypatch) -> None:
    """Oracles: the run's own scores of the answers that TRL sampled, and a KL of 0 before the first step."""
    session = finished_run(tiny_folder(), tmp_path)
    export_merged(session, "sft", "bfloat16", tmp_path / "my-sft")
    export_reward(session, "bfloat16", tmp_path / "my-reward")
    export_prompts(session.config, session.prompts, tmp_path / "my-prompts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names: dict[str, Any] = {}
    before, call, _ = recipe().partition("trainer.train()")
    exec(before, names)  # noqa: S102 - the guide's own lines
    trainer, scored = names["trainer"], []

    def keep(_module: Any, _arguments: Any, given: dict[str, Any], output: Any) -> None:
        scored.append((given["input_ids"], given["attention_mask"], output.logits[:, 0]))

    trainer.reward_funcs[0].register_forward_hook(keep, with_kwargs=True)
    exec(call, names)  # noqa: S102
    roles = session.load_roles()
    base, found, expected = roles.base, [], []
    for ids, mask, scores in scored:
        for row, kept, score in zip(ids, mask.bool(), scores.tolist(), strict=True):
            tokens = row[kept].tolist()
            assert tokens[-1] == base.eos
            batch = pack([tokens[:-1]], [tokens[-1:]], base.pad)
            expected.append(float(pool(score_tokens(roles, Role.REWARD, batch), batch.response, "last")[0]))
            found.append(score)
    assert len(found) == 2 * 8
    assert torch.tensor(expected).std() > 0.05
    assert found == pytest.approx(expected, abs=0.05)  # rounded to 16 bits
    steps = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert len(steps) == 2
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert steps[0]["rewards/my-reward/mean"] == pytest.approx(sum(found[:8]) / 8, abs=1e-3)
    changed = [name for name, weight in trainer.model.named_parameters() if "lora_B" in name and weight.any()]
    assert changed
