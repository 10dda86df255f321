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

    @pytest.mark.parametrize("architecture", sorted(tensors.COUNTED - {"gemma3"}))
    @pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
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
            slots = [tensor for joint in roles.slots.joints if joint.slot for tensor in joint.slot[1]]
            weights = {tensor.untyped_storage().data_ptr() for tensor in [*roles.peft.parameters(), *slots]}
            found = sum(size for place, size in saved.items() if place not in weights)
            hidden.sum().backward()
        outside = 4 * (shape.hidden + 2 * 16)  # last norm, and cos and sin for all layers
        expected = 32 * (shape.layers * tensors.saved(shape, lora, 4) + outside)
        assert found == pytest.approx(expected, rel=0.1)


class TestLogits:
    def test_of_one_chunk_and_of_several_by_hand(self) -> None:
        """Float32 logits and probabilities with 16 bits of these; then with the next chunk's 16 and 32 bits."""
        assert tensors.logits(100, 1000) == (4 + 4 + 2) * 100 * 1000
        assert tensors.logits(257, 1000) == tensors.logits(5000, 1000) == (4 + 4 + 2 + 4) * 256 * 1000

    def test_of_trl_by_hand(self) -> None:
        """Seven tensors of four bytes, a mark of one and the tile; few tokens: the projection in float32 is larger."""
        assert tensors.trl_logits(300, 896, 151_936, 2, cuda=False) == 32_768 * (7 * 4 + 1 + 2) * 300
        assert tensors.trl_logits(300, 896, 1000, 4, cuda=False) == 1000 * (7 * 4 + 1 + 4) * 300
        assert tensors.trl_logits(100, 896, 1000, 2, cuda=False) == 1000 * ((2 + 4) * 100 + 4 * 896)
        assert tensors.trl_logits(9000, 8, 10, 2, cuda=False) == 10 * 31 * 512
        assert tensors.trl_logits(9000, 8, 10, 2, cuda=True) == 10 * 31 * 4096
