"""Norms by PyTorch's `rms_norm`, which is one operation on CUDA; here its results are checked."""

import pytest
import torch
from tiny import gradients, make_batch, make_roles
from torch import nn

from lowrank_rlhf.models.layers.norms import fuse_norms
from lowrank_rlhf.models.roles import Role


@pytest.mark.parametrize(
    ("architecture", "count"), [("llama", 5), ("qwen3", 9), ("gemma3_text", 0), ("phi3", 5)]
)  # two layers with two norms, in qwen3 four, and the last one; Gemma multiplies by 1 + weight
def test_results_and_gradients_are_those_of_the_model(tiny_base, architecture, count) -> None:
    roles, batch = make_roles(tiny_base(architecture=architecture)), make_batch()
    for module in roles.decoder.modules():
        if type(module).__name__.endswith("RMSNorm"):
            vars(module).pop("forward", None)  # on CUDA the base has it already
    with torch.no_grad():
        for name, weight in roles.decoder.named_parameters():
            if "norm" in name:
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
    expected = gradients(roles, Role.POLICY, batch)
    assert fuse_norms(roles.decoder) == count
    for name, gradient in gradients(roles, Role.POLICY, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


class _Norm(nn.Module):
    def __init__(self, eps: float, shift: float = 0.0, own_eps: float | None = None) -> None:
        super().__init__()
        self.weight, self.eps, self.shift = nn.Parameter(torch.linspace(0.5, 1.5, 16)), eps, shift
        self.own_eps = eps if own_eps is None else own_eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance = (x - self.shift * x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(variance + self.own_eps)


@pytest.mark.parametrize(
    ("norm", "count"),
    [(_Norm(1e-6), 1), (_Norm(1e-6, shift=1.0), 0), (_Norm(1e-6, own_eps=1e-5), 0), (nn.LayerNorm(16), 0)],
)
def test_another_formula_is_left_alone(norm, count) -> None:
    assert fuse_norms(nn.Sequential(norm)) == count
