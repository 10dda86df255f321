"""Bytes of a pass: by hand, and against what autograd saves in real models of each kind."""

import pytest
from quickstart_plan import SMOLLM

from lowrank_rlhf.config.schema import LoraConfig, ModelConfig
from lowrank_rlhf.planner import tensors
from lowrank_rlhf.sources.model_shape import find_shape

ALL = LoraConfig(rank=16)


class TestSaved:
    def test_of_a_layer_of_smollm2_by_hand(self) -> None:
        """Norms 2 x 576, q 576, k and v 192 each, MLP 3 x 1536; read by adapters: 576 + 576 + 576 + 1536; A: 7 x 16."""
        assert tensors.saved(SMOLLM, ALL, 2) == 2 * (1152 + 576 + 384 + 4608 + 3264 + 112)
        assert tensors.saved(SMOLLM, ALL, 4) == 2 * tensors.saved(SMOLLM, ALL, 2)
        few = LoraConfig(rank=8, target_modules=("q_proj", "v_proj"))
        assert tensors.saved(SMOLLM, few, 2) == 2 * (1152 + 576 + 384 + 4608 + 576 + 2 * 8)

    @pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3_text"])
    @pytest.mark.parametrize("targets", ["all-linear", ("o_proj",)])
    def test_is_what_autograd_saves(self, tiny_base, architecture: str, targets) -> None:
        import torch

        from lowrank_rlhf.maths.sequences import pack
        from lowrank_rlhf.models.roles import Role, Roles

        lora = LoraConfig(rank=4, target_modules=targets)
        base = tiny_base(architecture=architecture)
        roles, shape = Roles(base, lora), find_shape(ModelConfig(source=base.config.source))
        assert shape is not None
        batch = pack([[5, 6, 7] * 4], [[8, 9] * 10], base.pad)  # 32 tokens
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with roles.acting_as(Role.POLICY, train=True):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                hidden = roles.hidden(batch)
            weights = {p.untyped_storage().data_ptr() for p in roles.peft.parameters()}
            slots = {t.untyped_storage().data_ptr() for joint in roles.slots.joints if joint.slot for t in joint.slot[1]}
            found = sum(size for place, size in saved.items() if place not in weights | slots)
            hidden.sum().backward()
        outside = 4 * (shape.hidden + 2 * 16)  # last norm, and cos and sin for all layers
        expected = 32 * (shape.layers * tensors.saved(shape, lora, 4) + outside)
        assert found == pytest.approx(expected, rel=0.1)
