"""Laws of the roles as functions, to check on any base.

Each takes the fixture `tiny_base` and the settings that it names; `check` calls it for all roles.
"""

import inspect
import json
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from tiny import (
    LORA,
    gradients,
    load_plain,
    make_batch,
    make_roles,
    random_tokens,
    randomise,
    role_loss,
    snapshot,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.sequences import Sequences, micro_batches
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.layers.int8 import Int8Linear
from lowrank_rlhf.models.layers.merging import merged
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_logprobs, score_tokens
from lowrank_rlhf.models.storage import CONFIG, save_role


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


def trainable(roles: Roles) -> list[nn.Parameter]:
    parameters = [*roles.peft.parameters(), *(head.weight for head in roles.heads.values())]
    return [parameter for parameter in parameters if parameter.requires_grad]


def logits(roles: Roles, role: Role, batch: Sequences) -> Tensor:
    with roles.acting_as(role):
        return roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[batch.attention]


# --- Law 1


def only_the_acting_role_receives_gradients(tiny_base, quantization, checkpointing, role) -> None:
    roles = make_roles(tiny_base(quantization, checkpointing))
    with roles.acting_as(role, train=True):
        roles.backward(role_loss(roles, role, make_batch()))
    everything = [*roles.peft.parameters(), *(head.weight for head in roles.heads.values())]
    touched = {id(parameter) for parameter in everything if parameter.grad is not None}
    assert touched == {id(parameter) for parameter in roles.parameters(role)}
    assert all(parameter.grad.abs().max() > 0 for parameter in roles.parameters(role))
    adapted = [name for name, _ in roles.decoder.layers.named_modules() if name.endswith("base_layer")]
    assert len(adapted) in (2 * 7, 2 * 4)  # two blocks; in Phi-3's two and three layers are one
    assert len(roles.parameters(role)) == 2 * len(adapted) + role.has_head
    assert trainable(roles) == []


def a_read_only_block_builds_no_graph(tiny_base, quantization, checkpointing, role) -> None:
    roles = make_roles(tiny_base(quantization, checkpointing))
    with roles.acting_as(role):
        assert trainable(roles) == []
        assert not role_loss(roles, role, make_batch()).requires_grad


# --- Law 2


def backward_only_in_a_training_block(tiny_base, quantization, checkpointing) -> None:
    roles = make_roles(tiny_base(quantization, checkpointing))
    with roles.acting_as(Role.POLICY, train=True):
        loss = role_loss(roles, Role.POLICY, make_batch())
    with pytest.raises(RuntimeError, match="train=True"):
        roles.backward(loss)
    with roles.acting_as(Role.POLICY), pytest.raises(RuntimeError, match="train=True"):
        roles.backward(loss)
    with pytest.raises(RuntimeError, match="no role is acting"):
        roles.hidden(make_batch())


def checkpointing_changes_no_gradient(tiny_base, quantization, role) -> None:
    plain, checkpointing = (gradients(make_roles(tiny_base(quantization, way)), role, make_batch()) for way in (0, 1))
    assert_same(checkpointing, plain)


def gradients_equal_those_of_plain_peft_and_full_log_softmax(tiny_base, quantization, checkpointing) -> None:
    """The oracle shares no code with Roles: dequantised float32 weights, and logits at all positions."""
    roles, batch = make_roles(tiny_base(quantization, checkpointing)), make_batch()
    plain = load_plain(AutoModelForCausalLM, roles, "none")
    layers = dict(plain.named_modules())
    for name, module in roles.base.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight, module.weight.quant_state)
            layers[name.removesuffix(".base_layer")].weight.data.copy_(weight)
        if isinstance(module, Int8Linear):
            weight = layers[name.removesuffix(".base_layer")].weight.data
            rows = weight.half().float()
            largest = rows.abs().amax(1, keepdim=True)
            assert (rows * (127 / largest) - module.weight).abs().max() < 0.51  # the nearest whole number, if not a tie
            weight.copy_(module.weight * largest / 127)
    lora = PeftLoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    oracle = get_peft_model(plain, lora)
    weights = roles.named_parameters(Role.POLICY)
    named = {name.replace(".default.", "."): p for name, p in oracle.named_parameters() if p.requires_grad}
    assert named.keys() == weights.keys()
    for name, parameter in named.items():
        parameter.data.copy_(weights[name])
    output = oracle(input_ids=batch.ids, attention_mask=batch.attention.long()).logits
    logprobs = (output / 0.8).log_softmax(-1)[:, :-1].gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    (logprobs * torch.sin(batch.ids[:, 1:].float()) * batch.response[:, 1:]).sum().backward()
    for name, gradient in gradients(roles, Role.POLICY, batch).items():
        torch.testing.assert_close(gradient, named[name].grad, rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


# --- Law 3


def blocks_do_not_nest(tiny_base, quantization, checkpointing) -> None:
    roles = make_roles(tiny_base(quantization, checkpointing))
    with roles.acting_as(Role.POLICY, train=True):
        with pytest.raises(RuntimeError, match="already acting as POLICY"), roles.acting_as(Role.REFERENCE):
            pass
        assert roles.acting is Role.POLICY
        with pytest.raises(RuntimeError, match="already acting as POLICY"), merged(roles, Role.POLICY):
            pass
        roles.backward(role_loss(roles, Role.POLICY, make_batch()))
    assert roles.acting is None


def no_block_inside_merged_weights(tiny_base, quantization, checkpointing) -> None:
    """Merged weights replace the adapters: any role would silently be the merged one."""
    roles = make_roles(tiny_base(quantization, checkpointing))
    with merged(roles, Role.POLICY):
        with pytest.raises(RuntimeError, match="nest"), roles.acting_as(Role.REFERENCE):
            pass
        with pytest.raises(RuntimeError, match="nest"), merged(roles, Role.REFERENCE):
            pass
    with roles.acting_as(Role.REFERENCE):
        pass


def after_an_error_everything_is_frozen(tiny_base, quantization, checkpointing) -> None:
    roles = make_roles(tiny_base(quantization, checkpointing))
    before = logits(roles, Role.POLICY, make_batch())
    for block in (lambda: roles.acting_as(Role.CRITIC, train=True), lambda: merged(roles, Role.REWARD)):
        with pytest.raises(ZeroDivisionError), block():
            raise ZeroDivisionError
        assert roles.acting is None
        assert trainable(roles) == []
        assert not roles.peft.training
        assert torch.equal(logits(roles, Role.POLICY, make_batch()), before)


# --- Law 4


def a_copy_is_identical_and_not_the_bare_base(tiny_base, quantization, checkpointing) -> None:
    roles, batch = Roles(tiny_base(quantization, checkpointing), LORA), make_batch()
    roles.reset(Role.POLICY, torch.Generator().manual_seed(0))
    bare = logits(roles, Role.POLICY, batch)  # B is 0: the base itself
    with torch.no_grad():
        mask = batch.attention
        untouched = tiny_base(quantization, checkpointing).model
        alone = untouched(input_ids=batch.ids, attention_mask=mask.long()).logits[mask]
    assert torch.equal(bare, alone)
    randomise(roles, Role.POLICY, 5)
    roles.copy(Role.POLICY, Role.REFERENCE)
    policy, reference = (logits(roles, role, batch) for role in (Role.POLICY, Role.REFERENCE))
    assert torch.equal(policy, reference)
    assert (policy - bare).abs().max() > 0.1


def copies_take_the_head_along(tiny_base, quantization, checkpointing) -> None:
    roles = make_roles(tiny_base(quantization, checkpointing))
    roles.copy(Role.REWARD, Role.CRITIC)
    assert_same(snapshot(roles, Role.CRITIC), snapshot(roles, Role.REWARD))
    with roles.acting_as(Role.REWARD):
        expected = roles.scores(make_batch())
    with roles.acting_as(Role.CRITIC):
        assert torch.equal(roles.scores(make_batch()), expected)
    roles.new_head(Role.CRITIC, None)
    with roles.acting_as(Role.CRITIC):
        assert not roles.scores(make_batch()).any()


# --- Law 5


def training_one_role_leaves_all_else_bit_identical(tiny_base, quantization, checkpointing, role) -> None:
    roles = make_roles(tiny_base(quantization, checkpointing))
    before, checksum = {each: snapshot(roles, each) for each in Role}, roles.base.checksum()
    optimizer = torch.optim.Adam(roles.parameters(role), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        with roles.acting_as(role, train=True):
            roles.backward(role_loss(roles, role, make_batch()))
        optimizer.step()
    for other in set(Role) - {role}:
        assert_same(snapshot(roles, other), before[other])
    assert not any(torch.equal(tensor, before[role][name]) for name, tensor in snapshot(roles, role).items())
    assert roles.base.checksum() == checksum


def checksum_is_of_the_base_alone_and_sees_every_weight(tiny_base, quantization, checkpointing) -> None:
    base = tiny_base(quantization, checkpointing)
    checksum = base.checksum()
    assert tiny_base(quantization, checkpointing).checksum() == checksum
    roles = make_roles(base)
    assert base.checksum() == checksum
    with merged(roles, Role.POLICY), torch.no_grad():
        pass
    assert base.checksum() == checksum
    for name, parameter in base.model.named_parameters():
        if "lora_" not in name:
            flat = parameter.data.view(-1)
            old = flat[-1].clone()
            flat[-1] = old + 1
            assert base.checksum() != checksum, name
            flat[-1] = old
    if quantization == "nf4":
        state = base.model.get_decoder().layers[0].mlp.down_proj.base_layer.weight.quant_state
        state.state2.absmax[0] += 1
        assert base.checksum() != checksum


# --- Law 6


def save_and_load_round_trip(tiny_base, tmp_path, quantization, checkpointing, role) -> None:
    roles = make_roles(tiny_base(quantization, checkpointing))
    saved = snapshot(roles, role)
    save_role(roles, role, tmp_path)
    fresh = Roles(tiny_base(quantization, checkpointing), LORA)
    load_role(fresh, role, tmp_path)
    assert_same(snapshot(fresh, role), saved)
    if role.has_head:
        with roles.acting_as(role), fresh.acting_as(role):
            assert torch.equal(fresh.scores(make_batch()), roles.scores(make_batch()))


def missing_and_unexpected_keys_are_errors(tiny_base, tmp_path, quantization, checkpointing) -> None:
    roles = make_roles(tiny_base(quantization, checkpointing))
    save_role(roles, Role.POLICY, tmp_path / "policy")
    save_role(roles, Role.REWARD, tmp_path / "reward")
    before = snapshot(roles, Role.CRITIC)
    with pytest.raises(UserError, match=r"missing base_model\.model\.score\.weight"):
        load_role(roles, Role.CRITIC, tmp_path / "policy")
    assert_same(snapshot(roles, Role.CRITIC), before)
    config = tmp_path / "reward" / CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": None}))
    with pytest.raises(UserError, match=r"unexpected base_model\.model\.score\.weight"):
        load_role(roles, Role.REFERENCE, tmp_path / "reward")


# --- Law 7


def reading_and_generating_change_no_gradient(tiny_base, quantization, checkpointing, role) -> None:
    batch = make_batch()
    for merged_rollouts in (True, False):
        roles = make_roles(tiny_base(quantization, checkpointing, merged=merged_rollouts))
        before = gradients(roles, role, batch)
        logits(roles, Role.REFERENCE, batch)
        assert_same(gradients(roles, role, batch), before)
        prompts = random_tokens(3, [4, 1, 6])
        sample_answers(roles, Role.POLICY, prompts, SampleConfig(max_new_tokens=3, batch_size=3), seed=0)
        assert_same(gradients(roles, role, batch), before)


# --- Law 8


def padding_order_and_micro_batches_change_nothing(tiny_base, quantization, checkpointing, role) -> None:
    roles, batch = make_roles(tiny_base(quantization, checkpointing)), make_batch()
    score = score_tokens if role.has_head else lambda *args: score_logprobs(*args, 0.8).logprobs
    whole = score(roles, role, batch)
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(score(roles, role, batch.rows(order))[:, : whole.shape[1]], whole[order])
    wide = Sequences(*(nn.functional.pad(t, (0, 5)) for t in (batch.ids, batch.attention, batch.response)))
    torch.testing.assert_close(score(roles, role, wide)[:, :-5], whole)
    wide.ids[~wide.attention] = 77  # what stands in the padding means nothing
    torch.testing.assert_close(score(roles, role, wide)[:, :-5], whole)
    config = roles.base.config.model_copy(update={"micro_batch_tokens": 20})
    object.__setattr__(roles.base, "config", config)
    assert len(micro_batches(batch.lengths(), 20)) == 4
    torch.testing.assert_close(score(roles, role, batch), whole)


def gradients_of_micro_batches_add_up(tiny_base, quantization, checkpointing, role) -> None:
    roles, batch = make_roles(tiny_base(quantization, checkpointing)), make_batch()
    whole = gradients(roles, role, batch)
    parts = [gradients(roles, role, batch.rows(index)) for index in micro_batches(batch.lengths(), 20)]
    for name, gradient in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), gradient, rtol=1e-4, atol=2e-5)


LAWS: dict[int, list[Callable[..., None]]] = {
    1: [
        only_the_acting_role_receives_gradients,
        a_read_only_block_builds_no_graph,
    ],
    2: [
        backward_only_in_a_training_block,
        checkpointing_changes_no_gradient,
        gradients_equal_those_of_plain_peft_and_full_log_softmax,
    ],
    3: [
        blocks_do_not_nest,
        no_block_inside_merged_weights,
        after_an_error_everything_is_frozen,
    ],
    4: [
        a_copy_is_identical_and_not_the_bare_base,
        copies_take_the_head_along,
    ],
    5: [
        training_one_role_leaves_all_else_bit_identical,
        checksum_is_of_the_base_alone_and_sees_every_weight,
    ],
    6: [
        save_and_load_round_trip,
        missing_and_unexpected_keys_are_errors,
    ],
    7: [
        reading_and_generating_change_no_gradient,
    ],
    8: [
        padding_order_and_micro_batches_change_nothing,
        gradients_of_micro_batches_add_up,
    ],
}
"""The laws by number, as in `docs/code.md`."""


each_law = pytest.mark.parametrize(
    "law", [pytest.param(law, id=f"{number}-{law.__name__}") for number, laws in LAWS.items() for law in laws]
)


def check(law: Callable[..., None], **given: Any) -> None:
    """Call a law with those of the given arguments that it names, once for each role if it names `role`."""
    names = inspect.signature(law).parameters
    for role in Role if "role" in names else (None,):
        law(**{name: value for name, value in {**given, "role": role}.items() if name in names})
