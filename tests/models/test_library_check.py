"""Comparison of each loaded model with transformers' eager attention."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    FURTHER,
    QUANTISED,
    REFUSED,
    gradients,
    load_tiny,
    make_batch,
    make_roles,
    make_tiny_model,
    random_tokens,
)
from tiny_run import make_config, make_session
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.models.base import load_base
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.layers import attention
from lowrank_rlhf.models.loading import full_precision, library_check
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.progress import Progress


class Lines(Progress):
    """Progress that collects what is said."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def notes(monkeypatch) -> list[str]:
    """Load tiny models with a progress that collects its lines here."""
    progress = Lines()
    monkeypatch.setattr("tiny.load_base", lambda config, _: load_base(config, progress))
    return progress.lines


def attention_of(base) -> str:
    return base.model.config.get_text_config()._attn_implementation


@pytest.mark.parametrize("architecture", FURTHER)
def test_further_families_give_the_log_probabilities_of_transformers(tmp_path, architecture) -> None:
    """For the attention sinks of gpt_oss our attention gave others, by up to 2.67 nats.

    Sampling and training of DeepSeek V2, Gemma 3n and the families with linear attention ended in tracebacks.
    """
    folder = make_tiny_model(tmp_path / architecture, architecture)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    roles, batch = make_roles(load_tiny(folder)), make_batch()
    trained = gradients(roles, Role.POLICY, batch)
    assert all(gradient.isfinite().all() for gradient in trained.values())
    assert sum(bool(gradient.abs().max() > 0) for gradient in trained.values()) > 0.8 * len(trained)
    for role in Role:
        roles.reset(role, torch.Generator().manual_seed(0))  # no effect: the base alone
    with roles.acting_as(Role.POLICY):
        found = roles.logprobs(batch, 1.0).logprobs[:, 1:]
    with torch.no_grad():
        full = model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, :-1].log_softmax(-1)
    expected = full.gather(-1, batch.ids[:, 1:, None]).squeeze(-1) * batch.response[:, 1:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    alike = [
        sample_answers(
            roles, Role.POLICY, random_tokens(3, [4, 14, 6]), SampleConfig(max_new_tokens=8, batch_size=n), 0
        )
        for n in (3, 1)
    ]
    assert alike[0] == alike[1]


@pytest.mark.parametrize("architecture", REFUSED)
def test_a_family_that_cannot_be_trained_is_refused_by_its_class(tmp_path, architecture) -> None:
    """Before any stage: Mamba layers read weights past the adapter, others have no cache that can be repeated."""
    folder = make_tiny_model(tmp_path / architecture, architecture)
    (kind,) = AutoConfig.from_pretrained(folder).architectures
    with pytest.raises(
        UserError, match=rf"{kind} is built in a way not known here: .*{REFUSED[architecture][0]}"
    ) as raised:
        make_session(make_config(folder, quantization="none"), tmp_path).load_roles()
    assert raised.value.exit_code == ExitCode.BAD_INPUT


def test_linear_layers_of_attention_alone_can_be_adapted(tmp_path) -> None:
    """As the refusal advises."""
    folder = make_tiny_model(tmp_path / "jamba", "jamba")
    config = make_config(folder, quantization="none", lora__target_modules=["q_proj", "v_proj"])
    roles = make_session(config, tmp_path).load_roles()
    assert {name.split(".")[-3] for name in roles.named_parameters(Role.POLICY)} == {"q_proj", "v_proj"}
    assert all(parameter.grad is None for parameter in roles.parameters(Role.POLICY))


def test_gemma_3n_leaves_its_frozen_weights_as_they_are(tmp_path) -> None:
    """In training mode it clamps weights in place to 120 at most, and failed on the codes of nf4, up to 255."""
    folder = make_tiny_model(tmp_path / "gemma3n_text", "gemma3n_text")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.altup.prediction_coefs.weight"
    weights[name] = torch.linspace(-1, 1, weights[name].numel()).view(weights[name].shape)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    base = load_tiny(folder, "nf4")
    layer = base.model.get_decoder().layers[0].altup.prediction_coefs
    quantised = AutoModelForCausalLM.from_pretrained(folder, quantization_config=QUANTISED["nf4"])
    expected = quantised.get_decoder().layers[0].altup.prediction_coefs.weight
    assert expected.max() > 120
    assert torch.equal(layer.weight.data, expected.data)
    assert base.model.config.altup_coef_clip == 120.0  # what an export writes


@pytest.mark.parametrize(("supported", "chosen"), [(True, attention.NAME), (False, "eager")])
def test_our_attention_is_only_for_models_that_support_sdpa(tiny_folder, monkeypatch, supported, chosen) -> None:
    """It computes what SDPA does: a model that refuses that one may need more than any check of a few tokens finds."""
    monkeypatch.setattr(LlamaModel, "_supports_sdpa", supported)
    monkeypatch.setattr(LlamaForCausalLM, "_supports_sdpa", supported)
    assert attention_of(load_tiny(tiny_folder())) == chosen


def test_our_attention_refuses_keywords_that_it_does_not_know() -> None:
    q = torch.randn(1, 2, 3, 8)
    for keyword in ("s_aux", "softcap", "position_bias"):
        with pytest.raises(NotImplementedError, match=f"does not support {keyword}"):
            attention.attention(torch.nn.Module(), q, q, q, None, **{keyword: torch.ones(2)})
    attention.attention(torch.nn.Module(), q, q, q, None, softcap=None, sliding_window=4)
    with pytest.raises(NotImplementedError, match="causal layers and boolean masks"):
        attention.attention(torch.nn.Module(), q, q, q, torch.zeros(1, 1, 3, 3))
    with pytest.raises(NotImplementedError, match="causal layers and boolean masks"):
        attention.attention(torch.nn.Module(), q, q, q, None, is_causal=False)


def test_values_narrower_than_keys() -> None:
    """As in multi-head latent attention."""
    q, k, v = torch.randn(2, 4, 5, 12), torch.randn(2, 2, 5, 12), torch.randn(2, 2, 5, 7)
    found, _ = attention.attention(torch.nn.Module(), q, k, v, None)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found, plain.transpose(1, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("quantization", "dtype", "factor"),
    [("none", "float32", 1.05), ("nf4", "bfloat16", 0.9), ("int8", "bfloat16", 1.05)],
)
def test_attention_that_differs_is_not_used(tiny_folder, monkeypatch, notes, quantization, dtype, factor) -> None:
    """In bfloat16 too, in which rounding hides a difference of .1 nats: the comparison is in float32."""
    assert attention_of(load_tiny(tiny_folder(), quantization, compute_dtype=dtype)) == attention.NAME
    assert all("attention" not in note for note in notes)
    real = attention._probabilities
    monkeypatch.setattr(
        attention, "_probabilities", lambda q, k, mask, heads, scale: real(q, k, mask, heads, factor * scale)
    )
    assert attention_of(load_tiny(tiny_folder(), quantization, compute_dtype=dtype)) == "sdpa"
    notes[:] = [note for note in notes if "attention" in note]
    assert len(notes) == 1
    assert notes[0].startswith("NOTE: LlamaForCausalLM: the attention of this package differs from that of")


@pytest.mark.parametrize("quantization", ["none", "nf4", "gguf", "int8"])
def test_a_comparison_in_float32_leaves_the_model_as_it_was(tiny_folder, quantization) -> None:
    base = load_tiny(tiny_folder(), quantization, compute_dtype="bfloat16")

    def tensors() -> list[tuple[str, torch.dtype, int]]:
        found = [*base.model.named_parameters(), *base.model.named_buffers()]
        return [(name, tensor.dtype, tensor.data_ptr()) for name, tensor in found]

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return base.model(input_ids=make_batch().ids).logits

    before, sums, output = tensors(), base.checksum(), logits()
    whole = load_tiny(tiny_folder(), quantization, compute_dtype="bfloat16").model  # all of it in float32 at once
    for tensor in (*whole.parameters(), *whole.buffers()):
        tensor.data = tensor.data.float() if tensor.dtype == torch.bfloat16 else tensor.data
    for layer in whole.modules():
        if hasattr(layer, "compute_dtype"):
            layer.compute_dtype = torch.float32
    with full_precision.in_float32(base.model), torch.no_grad():
        assert logits().dtype == torch.float32
        torch.testing.assert_close(logits(), whole(input_ids=make_batch().ids).logits)
        assert 1e-4 < (logits() - output).abs().max() < 1
    assert tensors() == before
    assert base.checksum() == sums
    assert torch.equal(logits(), output)


@pytest.mark.parametrize("tied", [True, False])
def test_a_comparison_in_float32_copies_one_layer_at_a_time(tiny_folder, tied) -> None:
    base = load_tiny(tiny_folder(), compute_dtype="bfloat16")
    model, layers = base.model, base.model.get_decoder().layers
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    most: list[int] = []

    def count(*_: object) -> None:
        most.append(sum(p.nbytes for p in model.parameters() if p.dtype == torch.float32))

    for layer in layers:
        layer.self_attn.register_forward_hook(count)
    with full_precision.in_float32(model), torch.no_grad():
        model(input_ids=make_batch().ids)
        norm = 4 * model.model.norm.weight.numel()
        assert most == [4 * sum(p.numel() for p in layer.parameters()) + norm for layer in layers]
        layers[0].mlp.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=make_batch().ids)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_large_copy_is_not_made(tiny_folder, monkeypatch) -> None:
    base = load_tiny(tiny_folder(), compute_dtype="bfloat16")
    size = 4 * sum(parameter.numel() for parameter in base.model.parameters())
    decoder = base.model.get_decoder()
    layer = 4 * sum(parameter.numel() for parameter in decoder.layers[0].parameters())
    copies = layer + 4 * decoder.norm.weight.numel()  # of one layer at a time, and of the last norm throughout
    for most, free, expected in ((size, 2 * copies, True), (size - 1, 2 * size, False), (size, 2 * copies - 1, False)):
        monkeypatch.setattr(full_precision, "MOST_BYTES", most)
        monkeypatch.setattr(full_precision, "free_memory_bytes", lambda _, free=free: free)
        assert full_precision.fits_in_float32(base.model, base.device) is expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_that_differs_is_refused_with_the_figure(tiny_folder, monkeypatch, dtype) -> None:
    """No attention helps: every one decodes on the same cache."""
    real = library_check.prefill

    def one_too_far(model, prompts, pad, repeats, more, poll):
        states, steps = real(model, prompts, pad, repeats, more, poll)
        steps.position = steps.position + 1
        return states, steps

    monkeypatch.setattr(library_check, "prefill", one_too_far)
    with pytest.raises(UserError, match=r"LlamaForCausalLM is built in a way not known.*eager: differs by [\d.]+ n"):
        load_tiny(tiny_folder(), compute_dtype=dtype)


@pytest.mark.parametrize("place", ["prefill", "_library_logprobs", "backward"])
def test_any_exception_of_an_architecture_is_a_sentence(tiny_folder, tmp_path, monkeypatch, place) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a layer of its own kind")

    monkeypatch.setattr(Roles if place == "backward" else library_check, place, broken)
    with pytest.raises(UserError, match=r"LlamaForCausalLM is built in a way not known.*a layer of its own") as raised:
        make_session(make_config(tiny_folder()), tmp_path).load_roles()
    assert raised.value.exit_code == ExitCode.BAD_INPUT


def test_not_a_number_in_the_weights_is_found_at_load(tmp_path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"][3, 3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="LlamaForCausalLM gives NaN or infinite log-probabilities") as raised:
        load_tiny(folder)
    assert raised.value.exit_code == ExitCode.NOT_FINITE
