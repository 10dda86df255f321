"""The LAWS of DESIGN.md on other architectures, in short."""

import pytest
import torch
from test_roles import assert_same
from tiny import ARCHITECTURES, gradients, load_tiny, make_batch, make_roles, make_tiny_model

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role

both = pytest.mark.parametrize("quantization", ["none", "nf4"])


@both
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
def test_laws_on_other_architectures(tiny_base, quantization, architecture) -> None:
    plain, checkpointing = (make_roles(tiny_base(quantization, way, architecture=architecture)) for way in (0, 1))
    batch = make_batch()
    for role in (Role.POLICY, Role.CRITIC):
        before = gradients(plain, role, batch)
        assert_same(gradients(checkpointing, role, batch), before)
        sample_answers(plain, role, [[5, 6], [7]], max_new_tokens=12, temperature=1.0, seed=0, batch_size=2)
        assert_same(gradients(plain, role, batch), before)
        parts = [gradients(plain, role, batch.rows([row])) for row in range(5)]
        for name, gradient in before.items():
            torch.testing.assert_close(sum(part[name] for part in parts), gradient, rtol=1e-3, atol=1e-4)
    assert plain.base.checksum() == load_tiny(plain.base.config.source, quantization).checksum()
    mask = batch.response[:, 1:]
    with plain.acting_as(Role.POLICY):
        found = plain.logprobs(batch, 0.8).logprobs[:, 1:]
        full = plain.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, :-1] / 0.8
    expected = full.log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(found, expected * mask)


def test_an_architecture_that_scales_its_logits_is_refused(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(ARCHITECTURES, "granite", {"logits_scaling": 4.0})
    folder = make_tiny_model(tmp_path / "granite", "granite")
    with pytest.raises(UserError, match="GraniteForCausalLM changes its logits after the vocabulary projection"):
        load_tiny(folder)
    monkeypatch.setitem(ARCHITECTURES, "granite", {"logits_scaling": 1.0})
    load_tiny(make_tiny_model(tmp_path / "plain", "granite"))
