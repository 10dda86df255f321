"""Exported weights have the names and shapes of files: those of the base's own files, which other software reads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import FURTHER, LORA, load_tiny, make_batch, make_composite, make_roles, make_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lowrank_rlhf.export import merged_model as writing
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_tokens

EXAMPLE = {  # a name in the file that differs from the one in memory
    "mixtral": "model.layers.1.block_sparse_moe.experts.3.w2.weight",
    "qwen3_moe": "model.layers.1.mlp.experts.3.down_proj.weight",
    "gemma3": "language_model.model.layers.1.mlp.down_proj.weight",
}
families = pytest.mark.parametrize("family", EXAMPLE)


def untrained(folder: Path, family: str, head_layers: int | None = None) -> Roles:
    make_composite(folder) if family == "gemma3" else make_tiny_model(folder, family)
    roles = Roles(load_tiny(folder), LORA, head_layers=head_layers)
    for role in Role:
        roles.reset(role, torch.Generator().manual_seed(0))
    return roles


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@families
def test_a_merged_model_has_the_tensors_of_the_bases_own_files(tmp_path, monkeypatch, family) -> None:
    roles = untrained(tmp_path / "base", family)
    expected = tensors(tmp_path / "base")
    assert EXAMPLE[family] in expected
    for name, size in (("whole", writing.SHARD_BYTES), ("cut", 100_000)):
        monkeypatch.setattr(writing, "SHARD_BYTES", size)
        plan = writing.plan_merged(roles.base, torch.float32)
        (tmp_path / name).mkdir()
        writing.write_model(roles, Role.POLICY, plan, tmp_path / name, lambda: None)
        found = tensors(tmp_path / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[weight], expected[weight]) for weight in expected)
    files = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())["weight_map"]
    assert files == {
        weight: file.name for file in (tmp_path / "cut").glob("*.safetensors") for weight in load_file(file)
    }
    assert len(set(files.values())) > 2
    ids = make_batch().ids
    with torch.no_grad():
        own, cut = (AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("base", "cut"))
        assert torch.equal(own(input_ids=ids).logits, cut(input_ids=ids).logits)


@families
def test_a_reward_model_has_the_names_of_its_own_class_in_files(tmp_path, family) -> None:
    roles, batch = untrained(tmp_path / "base", family, head_layers=1), make_batch()
    plan = writing.plan_reward(roles, torch.float32, {})
    (tmp_path / "reward").mkdir()
    writing.write_model(roles, Role.REWARD, plan, tmp_path / "reward", lambda: None)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    AutoModelForSequenceClassification.from_config(plan.config).save_pretrained(tmp_path / "own")
    assert tensors(tmp_path / "reward").keys() == tensors(tmp_path / "own").keys()
    with torch.no_grad():
        found = model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, 0]
    expected = pool(score_tokens(roles, Role.REWARD, batch), batch.response, "last")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", FURTHER)
def test_a_merged_model_of_every_further_architecture(tmp_path, architecture) -> None:
    """Oracles: the names of the base's own files, and the run's model with its adapter beside the weights."""
    roles, batch = make_roles(load_tiny(make_tiny_model(tmp_path / "base", architecture))), make_batch()
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention.long()}
    with roles.acting_as(Role.POLICY):
        expected = roles.peft(**inputs).logits[batch.attention]
    (tmp_path / "merged").mkdir()
    plan = writing.plan_merged(roles.base, torch.float32)
    writing.write_model(roles, Role.POLICY, plan, tmp_path / "merged", lambda: None)
    base, merged = tensors(tmp_path / "base"), tensors(tmp_path / "merged")
    assert {name: tensor.shape for name, tensor in merged.items()} == {n: tensor.shape for n, tensor in base.items()}
    assert any(not torch.equal(merged[name], base[name]) for name in base)
    with torch.no_grad():
        own = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()(**inputs).logits[batch.attention]
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(**inputs).logits[batch.attention]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - own).abs().max() > 1e-3
