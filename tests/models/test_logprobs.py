"""Log-probabilities of response tokens against the model's own logits at all positions."""

import pytest
import torch
from tiny import DEVICE, gradients, make_batch, make_roles, random_tokens
from torch import Tensor
from transformers import PreTrainedModel

from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.models import logprobs
from lowrank_rlhf.models.roles import Role, Roles


def oracle(roles: Roles, batch: Sequences, temperature: float) -> tuple[Tensor, Tensor]:
    """(B, T) log-probabilities and entropies from full float64 log-softmax; 0 outside the response."""
    with roles.acting_as(Role.POLICY):
        logits = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits
    table = (logits.double() / temperature).log_softmax(-1)
    found, entropy = torch.zeros(2, *batch.ids.shape, dtype=torch.float64, device=DEVICE)
    for row, position in batch.response.nonzero().tolist():
        distribution = table[row, position - 1]  # the token at t is predicted at t - 1
        found[row, position] = distribution[batch.ids[row, position]]
        entropy[row, position] = torch.distributions.Categorical(logits=distribution).entropy()
    return found, entropy


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])  # gemma2 caps its logits
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_against_log_softmax_of_all_logits(tiny_base, architecture, temperature) -> None:
    roles, batch = make_roles(tiny_base(architecture=architecture)), make_batch()
    expected, entropy = oracle(roles, batch, temperature)
    with roles.acting_as(Role.POLICY):
        found = roles.logprobs(batch, temperature, entropy=True)
        assert roles.logprobs(batch, temperature).entropy is None
    assert found.entropy is not None
    assert found.logprobs.dtype == found.entropy.dtype == torch.float32
    torch.testing.assert_close(found.logprobs.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    assert (found.logprobs[batch.response] < 0).all()
    assert not found.logprobs[~batch.response].any()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite"])  # granite divides its logits
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_gradient_is_that_of_the_log_softmax_of_all_logits(tiny_base, architecture, temperature) -> None:
    model, batch = tiny_base(architecture=architecture).model, make_batch()
    width = model.get_output_embeddings().weight.shape[1]
    hidden = torch.randn(*batch.ids.shape, width, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    weights = torch.linspace(-1, 1, batch.ids.numel(), device=DEVICE).view(batch.ids.shape)
    ours, plain = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    (weights * logprobs.token_logprobs(ours, batch, model, temperature).logprobs).sum().backward()
    table = (logprobs.vocabulary_logits(plain, model) / temperature).log_softmax(-1)[:, :-1]
    found = table.gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    (weights[:, 1:] * found * batch.response[:, 1:]).sum().backward()
    assert plain.grad is not None
    assert float(plain.grad.abs().max()) > 0.01
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-5)


def test_capped_logits_stay_below_the_cap(tiny_base) -> None:
    base = tiny_base(architecture="gemma2")
    with torch.no_grad():
        logits = logprobs.vocabulary_logits(
            100 * torch.randn(4, 64, generator=torch.Generator()).to(DEVICE), base.model
        )
    assert 2.9 < logits.abs().max() <= 3.0


@pytest.mark.parametrize("architecture", ["granite", "cohere"])
def test_scaled_logits_are_scaled_in_place(tiny_base, architecture) -> None:
    """A chunk's logits are the largest tensor of a training step: 156 MB with 152,000 tokens."""
    model, made = tiny_base(architecture=architecture).model, []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, output: made.append(output))
    with torch.no_grad():
        found = logprobs.vocabulary_logits(torch.ones(4, 64, device=DEVICE), model)
    hook.remove()
    assert found.data_ptr() == made[0].data_ptr()


@pytest.mark.parametrize("chunk", [1, 4, 22, 23, 24])  # the batch has 23 response tokens
def test_chunks_change_neither_values_nor_gradients(tiny_base, monkeypatch, chunk) -> None:
    roles, batch = make_roles(tiny_base()), make_batch()
    assert batch.response.sum() == 23

    def values() -> tuple[Tensor, Tensor | None]:
        with roles.acting_as(Role.POLICY):
            found = roles.logprobs(batch, 0.8, entropy=True)
        return found.logprobs, found.entropy

    whole, slopes = values(), gradients(roles, Role.POLICY, batch)
    rows: list[int] = []
    real = logprobs.vocabulary_logits

    def counted(states: Tensor, model: PreTrainedModel) -> Tensor:
        rows.append(len(states))
        return real(states, model)

    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    monkeypatch.setattr(
        logprobs, "vocabulary_logits", lambda states, model: rows.append(len(states)) or real(states, model)
    )
    torch.testing.assert_close(values(), whole, rtol=1e-5, atol=1e-6)
    assert (sum(rows), max(rows)) == (23, min(chunk, 23))
    for name, slope in gradients(roles, Role.POLICY, batch).items():
        torch.testing.assert_close(slope, slopes[name], rtol=1e-4, atol=1e-5)
    assert sum(rows) == 2 * 23  # read-only and forward; the backward pass projects nothing


def test_entropy_carries_no_gradient(tiny_base) -> None:
    roles = make_roles(tiny_base())
    with roles.acting_as(Role.POLICY, train=True):
        found = roles.logprobs(make_batch(), 1.0, entropy=True)
    assert found.entropy is not None
    assert found.logprobs.requires_grad
    assert not found.entropy.requires_grad


def test_the_two_ways_in_agree_bit_for_bit(tiny_base) -> None:
    """The first minibatch's ratio is 1 only if training and eval forward are equal."""
    for quantization in ("none", "nf4"):
        roles, batch = make_roles(tiny_base(quantization, True)), make_batch()
        with roles.acting_as(Role.POLICY):
            old = roles.logprobs(batch, 0.7).logprobs
        with roles.acting_as(Role.POLICY, train=True):
            new = roles.logprobs(batch, 0.7).logprobs.detach()
        assert torch.equal(new, old)


def test_a_long_row_beside_a_short_one(tiny_base) -> None:
    """The last token of a full row and the first of a response right after a one-token prompt."""
    roles, batch = make_roles(tiny_base()), pack([[5], random_tokens(1, [30])[0]], [[9], [8, 2]], 0, DEVICE)
    expected, _ = oracle(roles, batch, 1.0)
    with roles.acting_as(Role.POLICY):
        found = roles.logprobs(batch, 1.0).logprobs
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert found.count_nonzero() == 3
