"""The model while TRL uses it: switches by adapter name switch the role, and the model is restored afterwards."""

import pytest
import torch
from tiny import gradients, make_batch, make_roles, role_loss, snapshot

from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_logprobs
from lowrank_rlhf.training.trl_bridge import trl_bridge


def logprobs(roles) -> torch.Tensor:
    """Log-probabilities of the acting role."""
    return roles.logprobs(make_batch(), 1.0).logprobs.detach()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_switch_by_name_is_that_role_s_turn(tiny_base, quantization) -> None:
    roles = make_roles(tiny_base(quantization))
    expected = {role: score_logprobs(roles, role, make_batch(), 1.0).logprobs for role in (Role.POLICY, Role.REFERENCE)}
    assert not expected[Role.POLICY].allclose(expected[Role.REFERENCE], atol=0.1)
    with trl_bridge(roles) as bridge:
        bridge.switch_to(Role.POLICY)
        assert roles.acting is Role.POLICY
        assert logprobs(roles).allclose(expected[Role.POLICY], atol=1e-5)
        with torch.no_grad():  # as TRL does it
            previous = roles.peft.active_adapter
            roles.peft.set_adapter("ref")
            assert roles.acting is Role.REFERENCE
            assert not any(parameter.requires_grad for parameter in roles.peft.parameters())
            assert logprobs(roles).allclose(expected[Role.REFERENCE], atol=1e-5)
            roles.peft.set_adapter(previous)
        assert roles.acting is Role.POLICY
        assert roles.peft.training
        assert torch.is_grad_enabled()
    assert roles.acting is None


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_reference_s_turn_between_forward_and_backward_changes_no_gradient(
    tiny_base, quantization, checkpointing
) -> None:
    """DPO computes its reference log-probabilities there."""
    roles, batch = make_roles(tiny_base(quantization, checkpointing)), make_batch()
    expected = gradients(roles, Role.POLICY, batch)
    with trl_bridge(roles) as bridge:
        bridge.switch_to(Role.POLICY)
        loss = role_loss(roles, Role.POLICY, batch)
        roles.peft.set_adapter("ref")
        logprobs(roles)
        roles.peft.set_adapter("default")
        roles.backward(loss)
        found = {name: parameter.grad for name, parameter in roles.named_parameters(Role.POLICY).items()}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)
    assert all(parameter.grad is None for parameter in roles.parameters(Role.REFERENCE))


def test_answers_are_the_roles_own(tiny_base) -> None:
    roles = make_roles(tiny_base())
    seen = []

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        assert roles.acting is None
        seen.extend(prompts)
        return [[7, 8, 2], [9, 2]]

    ids = torch.tensor([[0, 0, 5], [4, 5, 6]])
    with trl_bridge(roles, generate) as bridge:
        bridge.switch_to(Role.POLICY)
        found = roles.peft.generate(input_ids=ids, attention_mask=torch.tensor([[0, 0, 1], [1, 1, 1]]), top_k=0)
        assert roles.acting is Role.POLICY
    assert seen == [[5], [4, 5, 6]]
    assert found.tolist() == [[0, 0, 5, 7, 8, 2], [4, 5, 6, 9, 2, roles.base.pad]]


def test_a_reference_that_trl_wants_to_add_is_there_already(tiny_base) -> None:
    roles = make_roles(tiny_base())
    before = {role: snapshot(roles, role) for role in Role}
    with trl_bridge(roles):
        roles.peft.add_adapter("ref", roles.peft.peft_config["default"])
        assert not any(parameter.requires_grad for parameter in roles.peft.parameters())
    assert all(before[role][name].equal(weight) for role in Role for name, weight in snapshot(roles, role).items())
    with pytest.raises(ValueError, match="ref"):
        roles.peft.add_adapter("ref", roles.peft.peft_config["default"])  # the model's own again


def test_after_an_error_too_the_model_is_its_own_again(tiny_base) -> None:
    roles = make_roles(tiny_base())

    def fails_in_the_middle() -> None:
        with trl_bridge(roles, lambda prompts: prompts) as bridge:
            bridge.switch_to(Role.POLICY)
            roles.base.model.forward = roles.base.model.forward  # as TRL's fused head
            roles.base.model.config.use_cache = False
            with bridge.released():
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_in_the_middle()
    assert roles.acting is None
    assert roles.base.model.config.use_cache is True
    assert not {"set_adapter", "add_adapter", "generate"} & set(vars(roles.peft))
    assert "forward" not in vars(roles.base.model)
    with roles.acting_as(Role.REWARD):
        pass
