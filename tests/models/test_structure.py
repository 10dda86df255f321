"""Composite models and mixtures of experts: adapters on the decoder's layers alone, and unquantised weights."""

from types import SimpleNamespace

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    COMMON,
    FURTHER,
    LORA,
    STYLES,
    gradients,
    load_tiny,
    make_batch,
    make_composite,
    make_roles,
    make_tiny_model,
    make_tokenizer,
)
from transformers import (
    AutoModelForSequenceClassification,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from lowrank_rlhf.config.schema import LoraConfig
from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.export.merged_model import plan_reward, write_model
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.models.adapters import fill_role, load_role
from lowrank_rlhf.models.logprobs import vocabulary_logits
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_tokens
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.training.trl_bridge import trl_bridge


@pytest.fixture(scope="module")
def composite(tmp_path_factory) -> object:
    """Gemma 3 with a vision tower."""
    return make_composite(tmp_path_factory.mktemp("gemma3"))


def test_gemma_4_with_a_vision_tower_is_its_text_model(tmp_path) -> None:
    """Layers of the tower that are not linear have the names of the decoder's: PEFT refused them."""
    text = {**COMMON, **FURTHER["gemma4_text"]}
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    config = Gemma4Config(text_config=text, vision_config=vision, pad_token_id=0, eos_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma4ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "model")
    make_tokenizer(*STYLES["chatml"]).save_pretrained(tmp_path / "model")
    roles, batch = make_roles(load_tiny(tmp_path / "model")), make_batch()
    assert type(roles.base.model) is Gemma4ForConditionalGeneration
    assert all(".language_model.layers." in name for name in roles.named_parameters(Role.POLICY))
    assert all(gradient.abs().max() > 0 for gradient in gradients(roles, Role.POLICY, batch).values())
    fill_role(roles, Role.POLICY, None)
    with roles.acting_as(Role.POLICY), torch.no_grad():
        found = roles.logprobs(batch, 1.0).logprobs[:, 1:]
        model.set_attn_implementation("eager")
        full = model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, :-1].log_softmax(-1)
    expected = full.gather(-1, batch.ids[:, 1:, None]).squeeze(-1) * batch.response[:, 1:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_qwen_2_5_vl_is_refused_by_its_class(tmp_path) -> None:
    """Transformers loads it as an image-text model only."""
    text = {**COMMON, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    model.save_pretrained(tmp_path)
    make_tokenizer(*STYLES["chatml"]).save_pretrained(tmp_path)
    expected = r"Qwen2_5_VLForConditionalGeneration is not a causal .* text alone\. Choose one"
    with pytest.raises(UserError, match=expected) as raised:
        load_tiny(tmp_path)
    assert raised.value.exit_code == ExitCode.BAD_INPUT


def test_a_composite_model_is_adapted_in_its_decoder_alone(composite, tmp_path) -> None:
    roles = make_roles(load_tiny(composite))
    names = list(roles.named_parameters(Role.POLICY))
    assert len(names) == 2 * 2 * 7  # A and B of seven layers in two blocks
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    assert [name for name, _ in roles.peft.named_parameters() if "lora_" in name and "vision" in name] == []
    found = gradients(roles, Role.POLICY, make_batch())
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    save_role(roles, Role.POLICY, tmp_path / "policy")
    load_role(roles, Role.REFERENCE, tmp_path / "policy")
    fill_role(roles, Role.CRITIC, None)
    assert all(
        torch.equal(left, right)
        for left, right in zip(roles.parameters(Role.POLICY), roles.parameters(Role.REFERENCE), strict=True)
    )


def test_the_log_probabilities_of_a_composite_model_are_those_of_its_whole_forward(composite) -> None:
    roles, batch = make_roles(load_tiny(composite)), make_batch()
    with roles.acting_as(Role.POLICY):
        found = roles.logprobs(batch, 0.8).logprobs[:, 1:]
        logits = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, :-1]
    expected = (logits / 0.8).log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(found, expected * batch.response[:, 1:])


def test_the_cap_of_logits_is_read_in_the_text_config() -> None:
    """As in Gemma 3n and 4."""
    text = SimpleNamespace(final_logit_softcapping=2.0)
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda decoder: text if decoder else None),
        get_output_embeddings=lambda: torch.nn.Identity(),
    )
    found = vocabulary_logits(torch.tensor([[1.0, 50.0]]), model)
    torch.testing.assert_close(found, 2 * torch.tensor([[0.5, 25.0]]).tanh())


def test_the_last_layers_of_a_composite_model(composite) -> None:
    roles = Roles(load_tiny(composite), LORA.model_copy(update={"last_layers": 1}), head_layers=2)
    assert all(".layers.1." in name for name in roles.named_parameters(Role.POLICY))
    assert len(roles.named_parameters(Role.POLICY)) == 2 * 7


def test_the_exported_reward_model_of_a_composite_model_has_its_own_layers(composite, tmp_path) -> None:
    roles, batch = Roles(load_tiny(composite), LORA, head_layers=1), make_batch()
    roles.reset(Role.REWARD, torch.Generator().manual_seed(0))
    plan = plan_reward(roles, torch.float32, {})
    assert plan.config.text_config.num_hidden_layers == 1
    write_model(roles, Role.REWARD, plan, tmp_path, lambda: None)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype="auto").eval()
    with torch.no_grad():
        found = model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, 0]
    expected = pool(score_tokens(roles, Role.REWARD, batch), batch.response, "last")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_trl_can_train_a_composite_model(composite) -> None:
    """Its forward in training mode, and its config without `use_cache`."""
    roles, batch = make_roles(load_tiny(composite)), make_batch()
    with trl_bridge(roles) as bridge:
        roles.base.model.config.use_cache = False  # as the training loop does
        bridge.switch_to(Role.POLICY)
        loss = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long(), labels=batch.ids).loss
        loss.backward()
    assert all(parameter.grad is not None for parameter in roles.parameters(Role.POLICY))
    assert "use_cache" not in vars(roles.base.model.config)


@pytest.fixture
def mixture(tmp_path) -> object:
    return make_tiny_model(tmp_path / "mixtral", "mixtral")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_mixture_of_experts_is_not_quantised_by_half(mixture, monkeypatch, quantization) -> None:
    with pytest.raises(UserError, match=r"is a mixture of experts: the 196,608 weights of its experts would stay"):
        load_tiny(mixture, quantization)
    monkeypatch.setattr("lowrank_rlhf.models.base.check_experts", lambda *_: None)  # a config with other names
    with pytest.raises(UserError, match=r"leaves 197,120 of 221,696 weights of the decoder layers of Mixtral"):
        load_tiny(mixture, quantization)


def test_a_mixture_of_experts_trains_unquantised_without_adapters_on_experts(mixture) -> None:
    roles, batch = make_roles(load_tiny(mixture)), make_batch()
    assert {name.split(".")[-3] for name in roles.named_parameters(Role.POLICY)} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    assert all(gradient.abs().max() > 0 for gradient in gradients(roles, Role.POLICY, batch).values())


def test_experts_cannot_be_named_as_targets(monkeypatch, tmp_path) -> None:
    """PEFT turns `down_proj` into an adapter of all experts' tensors, which nothing here computes."""
    shape = {
        "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "moe_intermediate_size": 32, "mlp_only_layers": [0],
    }  # fmt: skip
    monkeypatch.setitem(ARCHITECTURES, "qwen3_moe", shape)
    folder = make_tiny_model(tmp_path / "qwen3_moe", "qwen3_moe")
    with pytest.raises(UserError, match=r'has no linear layer "down_proj", only k_proj'):
        Roles(load_tiny(folder), LoraConfig(rank=2, target_modules=["q_proj", "down_proj"]))
