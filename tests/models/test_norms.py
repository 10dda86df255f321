"""Norms in few operations: PyTorch's `rms_norm` on CUDA, our own on a CPU; `rms_norm` in float64 is the oracle."""

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
            vars(module).pop("forward", None)  # the base has it already
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


class _GatedNorm(_Norm):
    """As in Mamba layers."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x if gate is None else x * nn.functional.silu(gate))


class _NormOfHeads(_Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(2, 3)).view_as(x)


@pytest.mark.parametrize(
    ("norm", "count"),
    [
        (_Norm(1e-6), 1),
        (_Norm(1e-6, shift=1.0), 0),
        (_Norm(1e-6, own_eps=1e-5), 0),
        (nn.LayerNorm(16), 0),
        (_GatedNorm(1e-6), 0),
        (_NormOfHeads(1e-6), 0),
    ],
)
def test_another_formula_is_left_alone(norm, count) -> None:
    assert fuse_norms(nn.Sequential(norm)) == count


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 1 / 128)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])  # at 1e-3 eps is as large as the mean square
def test_norm_and_gradient_are_those_of_float64(dtype, tolerance, size) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = _Norm(1e-6)
    norm.weight = nn.Parameter(torch.randn(16, generator=generator).to(dtype), requires_grad=False)
    assert fuse_norms(norm) == 1
    x = (size * torch.randn(3, 5, 16, generator=generator)).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    weights = torch.randn(3, 5, 16, generator=generator).to(dtype)
    found, expected = norm(x), nn.functional.rms_norm(exact, (16,), norm.weight.double(), 1e-6)
    pairs = [(found, expected)]
    pairs.append(tuple(torch.autograd.grad(y, at, weights.to(y))[0] for y, at in ((found, x), (expected, exact))))
    for ours, theirs in pairs:
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().mean()))
