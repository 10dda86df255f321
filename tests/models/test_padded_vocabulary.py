"""A model with more token ids than its tokenizer, for a size that suits a GPU: no answer contains one of the others."""

from pathlib import Path

import pytest
import torch
from tiny import VOCABULARY, load_tiny, make_batch, make_roles, make_tiny_model
from tiny_sampling import PROMPTS, sample
from transformers import AutoModelForCausalLM

from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.generation import generating_as, stream_answer
from lowrank_rlhf.models.roles import Role, Roles

PADDED = 320


@pytest.fixture(params=["llama", "gemma2"])
def roles(tmp_path: Path, request: pytest.FixtureRequest) -> Roles:
    """Roles of a model whose 20 further ids are likely: twice the rows of 20 other ids."""
    folder = make_tiny_model(tmp_path, request.param)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(PADDED, mean_resizing=False)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[VOCABULARY:] = 2 * weight[100:120]
    model.save_pretrained(folder)
    roles = make_roles(load_tiny(folder))
    assert roles.base.vocabulary == VOCABULARY
    assert len(roles.base.model.get_output_embeddings().weight) == PADDED
    return roles


def test_none_is_sampled(roles, monkeypatch) -> None:
    def beyond() -> int:
        return sum(token >= VOCABULARY for answer in sample(roles, PROMPTS * 8) for token in answer[0].tokens)

    def greedy() -> list[int]:
        with generating_as(roles, Role.POLICY):
            return [
                token
                for prompt in PROMPTS
                for token in stream_answer(roles, prompt, max_new_tokens=8, temperature=0, seed=0)
            ]

    assert beyond() == 0
    assert max(greedy()) < VOCABULARY
    monkeypatch.setattr(Base, "vocabulary", PADDED)
    vars(roles.base).pop("vocabulary")
    assert beyond() > 0
    assert max(greedy()) >= VOCABULARY


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_scored_and_sampled_distribution_are_the_same(roles, temperature) -> None:
    """Against the softmax over the tokenizer's ids alone, and its gradient by autograd."""
    batch = make_batch()
    rows, positions = batch.response_positions()
    with roles.acting_as(Role.POLICY, train=True):
        found = roles.logprobs(batch, temperature, entropy=True)
        roles.backward(found.logprobs.sum())
    slopes = {name: value.grad.clone() for name, value in roles.named_parameters(Role.POLICY).items()}
    for value in roles.named_parameters(Role.POLICY).values():
        value.grad = None
    with roles.acting_as(Role.POLICY, train=True):
        logits = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[..., :VOCABULARY]
        table = (logits.float() / temperature).log_softmax(-1)[rows, positions - 1]
        expected = table.gather(-1, batch.ids[rows, positions][:, None]).squeeze(-1)
        roles.backward(expected.sum())
    torch.testing.assert_close(found.logprobs[batch.response], expected, rtol=1e-4, atol=1e-4)
    entropy = torch.distributions.Categorical(logits=table).entropy()
    torch.testing.assert_close(found.entropy[batch.response], entropy, rtol=1e-4, atol=1e-4)
    for name, value in roles.named_parameters(Role.POLICY).items():
        torch.testing.assert_close(slopes[name], value.grad, rtol=1e-3, atol=1e-4)
