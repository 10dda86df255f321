"""A base in bfloat16: float32 adapters learn on it, and gradients differ from float32 by rounding."""

import pytest
import torch
from tiny import gradients, make_batch, make_roles, role_loss
from tiny_run import make_config, make_session, write_prompts

from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_features, score_logprobs, score_tokens
from lowrank_rlhf.stages import sft

both = pytest.mark.parametrize("quantization", ["none", "nf4"])


@both
@pytest.mark.parametrize("role", [Role.POLICY, Role.CRITIC])
def test_gradients_are_those_of_float32_but_for_rounding(tiny_base, quantization, role) -> None:
    def flat(dtype: str, checkpointing: bool) -> torch.Tensor:
        roles = make_roles(tiny_base(quantization, checkpointing, compute_dtype=dtype))
        found = gradients(roles, role, make_batch())
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        return torch.cat([gradient.flatten() for gradient in found.values()])

    short = flat("bfloat16", checkpointing=False)
    assert torch.cosine_similarity(short, flat("float32", checkpointing=False), dim=0) > 0.97
    assert torch.equal(short, flat("bfloat16", checkpointing=True))


@both
def test_a_step_inside_a_block_is_seen_by_the_next_forward(tiny_base, quantization) -> None:
    """TRL's loop steps many times within one block; autocast's cache of cast weights would hide all its steps."""
    roles = make_roles(tiny_base(quantization, compute_dtype="bfloat16"))
    optimizer = torch.optim.Adam(roles.parameters(Role.POLICY), lr=0.01)
    losses = []
    with roles.acting_as(Role.POLICY, train=True):
        for _ in range(2):
            loss = role_loss(roles, Role.POLICY, make_batch())
            losses.append(float(loss.detach()))
            roles.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    assert losses[1] < losses[0] - 1


def test_reading_equals_training_to_the_bit(tiny_base) -> None:
    roles = make_roles(tiny_base("nf4", compute_dtype="bfloat16"))
    batch = make_batch()
    read = score_logprobs(roles, Role.POLICY, batch, 0.8, parts=[list(range(5))]).logprobs
    with roles.acting_as(Role.POLICY, train=True):
        assert torch.equal(roles.logprobs(batch, 0.8).logprobs.detach(), read)


def test_sft_learns(tiny_folder, tmp_path) -> None:
    """With TRL's trainer, until it reproduces ten demonstrations."""
    data = write_prompts(tmp_path / "prompts.jsonl")
    config = make_config(tiny_folder(), data, model__compute_dtype="bfloat16", sft__epochs=30)
    session = make_session(config, tmp_path)
    sft.run(session)
    losses = [row["loss"] for row in session.metrics.read("sft")]
    assert losses[-1] < 0.7 * losses[0]
    assert {parameter.dtype for parameter in session.load_roles().parameters(Role.POLICY)} == {torch.float32}


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_features_scores_and_entropies_are_float32(tiny_base, pooling) -> None:
    """Only the decoder computes in bfloat16: numbers computed from its states have more than 8 bits."""
    roles, batch = make_roles(tiny_base("nf4", compute_dtype="bfloat16")), make_batch()
    features = score_features(roles, Role.REWARD, batch, pooling, lambda _: None)
    scores = score_tokens(roles, Role.REWARD, batch)
    found = score_logprobs(roles, Role.POLICY, batch, 0.8, entropy=True)
    for tensor in (scores[batch.response], found.logprobs[batch.response], found.entropy[batch.response]):
        assert not torch.equal(tensor, tensor.bfloat16().float())
    assert features.dtype == torch.float32
    torch.testing.assert_close(
        pool(scores, batch.response, pooling), features @ roles.heads[Role.REWARD].weight[0], rtol=1e-4, atol=1e-4
    )
