"""Models loaded and run by unsloth, with its backend for CPUs: `make test-unsloth` runs these tests.

pytest does not collect this file by default: unsloth must be imported first and affects every test (conftest.py).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import done
from peft.tuners.lora import LoraLayer
from tiny import LORA, load_tiny, make_batch, make_roles
from tiny_run import STAGES, make_config, write_prompts
from tiny_sampling import LENGTH, PROMPTS, naive, sample
from torch import Tensor
from unsloth import FastLanguageModel

from lowrank_rlhf.config.schema import LoraConfig
from lowrank_rlhf.models import backend, generation
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.progress import Progress

BONUS = 3.0


def test_unsloth_loads_what_transformers_loads(tiny_folder, tiny_base, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers in NF4, the same modules adapted, the same outputs without a mask as with one."""
    for quantization in ("none", "nf4"):
        ours = make_roles(tiny_base(quantization))
        assert ours.base.by_unsloth
        assert hasattr(ours.peft, "for_training")  # only unsloth's model has it
        monkeypatch.setenv("LOWRANK_RLHF_TEST_BACKEND", "transformers")
        plain = make_roles(load_tiny(tiny_folder(), quantization))
        monkeypatch.undo()
        assert not plain.base.by_unsloth
        assert ours.base.checksum() == plain.base.checksum()
        for role in Role:
            assert ours.named_parameters(role).keys() == plain.named_parameters(role).keys()
            with ours.acting_as(role), plain.acting_as(role):
                batch = make_batch()
                found, expected = (roles.hidden(batch)[batch.attention] for roles in (ours, plain))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "lora", [LORA, LoraConfig(rank=3, alpha=5, use_rslora=True, target_modules=("q_proj", "o_proj"))]
)
def test_the_first_adapter_has_the_shape_of_the_others(tiny_base, lora: LoraConfig) -> None:
    roles = Roles(tiny_base("nf4"), lora)
    for role in Role:
        roles.prepare(role)
    first, *others = (roles.peft.peft_config[role.value] for role in Role)
    for other in others:
        for name in ("r", "lora_alpha", "use_rslora", "lora_dropout", "bias", "layers_to_transform"):
            assert getattr(first, name) == getattr(other, name), name
        assert set(first.target_modules) == set(other.target_modules)
    layer = roles.decoder.layers[0].self_attn.q_proj
    assert {layer.scaling[role.value] for role in Role} == {layer.scaling["default"]}


def test_loading_takes_no_number_from_a_seeded_process(tiny_base) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Roles(tiny_base(), LORA)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_sampling_against_a_naive_loop(tiny_base, quantization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of unequal lengths to left-padded prompts, from the same random streams as with transformers."""
    real = generation._next_tokens

    def biased(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, 2] += BONUS
        return real(logits, temperature, uniforms)

    monkeypatch.setattr(generation, "_next_tokens", biased)
    roles = make_roles(tiny_base(quantization, True))
    prompts = [*PROMPTS, [5, roles.base.pad, 9]]  # whose second token is no padding
    uniforms = torch.rand(len(prompts), 2, LENGTH, generator=torch.Generator().manual_seed(3)).tolist()
    found = sample(roles, prompts, answers_per_prompt=2)
    expected = [[naive(roles, p, u, 0.9, bonus=BONUS) for u in us] for p, us in zip(prompts, uniforms, strict=True)]
    assert found == expected
    assert {answer.finished for answers in found for answer in answers} == {True, False}


def test_a_checkpoints_own_penalties_stay_out_of_rollouts(tiny_folder, tmp_path: Path) -> None:
    """Like those in Qwen2.5's generation_config.json."""
    for file in tiny_folder().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "do_sample": True,
        "top_k": 2,
        "eos_token_id": [5],
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with_them, without = (sample(make_roles(load_tiny(folder))) for folder in (tmp_path, tiny_folder()))
    assert with_them == without


def test_sampling_is_between_its_two_switches(tiny_base, monkeypatch: pytest.MonkeyPatch) -> None:
    """They disable checkpointing, enable its decoder, and undo both; afterwards all is frozen, in eval mode."""
    roles = make_roles(tiny_base("nf4", True))
    seen: list[str] = []

    def spied(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: (seen.append(name), real(*args, **kwargs))[1])

    spied(FastLanguageModel, "for_inference")
    spied(roles.peft, "generate")
    spied(FastLanguageModel, "for_training")
    sample(roles, batch_size=3)
    assert seen == ["for_inference", *["generate"] * 2, "for_training"]
    assert roles.base.model.is_gradient_checkpointing
    assert not any(module.training for module in roles.peft.modules())
    assert not any(parameter.requires_grad for parameter in roles.peft.parameters())


@pytest.mark.parametrize("train", [False, True])
def test_unsloth_finds_its_own_layers_and_no_mask(tiny_base, train: bool) -> None:
    """Its kernels read PEFT's layers; its training forward drops the mask, so the eval forward must have none."""
    roles = make_roles(tiny_base("nf4"))
    seen: list[Any] = []
    hook = roles.decoder.register_forward_pre_hook(lambda *call: seen.append(call[2]), with_kwargs=True)
    with roles.acting_as(Role.POLICY, train=train):
        roles.logprobs(make_batch(), 0.8)
        assert isinstance(roles.decoder.layers[0].self_attn.q_proj, LoraLayer)
    hook.remove()
    assert [call["attention_mask"] for call in seen] == [None]


def test_a_whole_run(tiny_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """All stages as on a GPU, but on the CPU; every self-check passes."""
    monkeypatch.setattr(backend, "_cuda", lambda: True)
    data = write_prompts(tmp_path / "prompts.jsonl")
    config = make_config(tiny_folder(), data, model__backend="auto", model__device="auto")
    run_dir = pipeline.run(config, tmp_path, progress=Progress())
    assert "model.backend: unsloth" in capsys.readouterr().out
    assert json.loads((run_dir.path / "backend.json").read_text())["backend"] == "unsloth"
    marks = {name: done(run_dir, name) for name in STAGES}
    assert all(marks.values())
    claims = [claim for mark in marks.values() for claim in mark["summary"].get("claims", [])]
    assert len(claims) > 5
    assert all(claim["holds"] for claim in claims), claims
