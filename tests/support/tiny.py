"""Tiny random models of real architectures, and helpers for tests of the models."""

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bitsandbytes as bnb
import torch
from tiny_sources import make_gguf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from lowrank_rlhf.config.schema import LoraConfig, ModelConfig
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.models.base import Base, load_base
from lowrank_rlhf.models.precision import bfloat16_speedup
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.progress import Progress

DEVICE = os.environ.get("LOWRANK_RLHF_TEST_DEVICE", "cpu")
"""Device of the tests' models: `cuda` in `make gpu-check`."""
VOCABULARY = 300
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token }}[INST] {{ message.content }} [/INST]"
    "{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Special tokens, template, and which of the tokens have a name, as the families' tokenizers come.
STYLES: dict[str, tuple[list[str], str, dict[str, str]]] = {
    "chatml": (SPECIAL, CHATML, {"pad_token": SPECIAL[0], "eos_token": SPECIAL[2]}),
    "gemma": (
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        GEMMA,
        {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
    ),
    "phi": (
        ["<unk>", "<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        PHI,
        {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "bos_token": "<s>", "unk_token": "<unk>"},
    ),
    "qwen-base": (SPECIAL, CHATML, {"pad_token": SPECIAL[0], "eos_token": SPECIAL[0]}),
    "llama2": (["<unk>", "<s>", "</s>"], LLAMA2, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}),
    "llama3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>",
         "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        LLAMA3,
        {"eos_token": "<|eot_id|>", "bos_token": "<|begin_of_text|>"},
    ),
}  # fmt: skip
# Weights far larger than usual, so that a random model's distributions are not all but uniform.
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "final_logit_softcapping": 3.0},
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "sliding_window_pattern": 2},
    "phi3": {},
}
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
_LINEAR = {
    "head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
# Further families that train and sample as the whole model does; the laws are checked on those above.
FURTHER: dict[str, dict] = {
    "apertus": {},
    "arcee": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "exaone4": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "glm4": {"head_dim": 16},
    "gpt_neox": {},
    "granite": {"logits_scaling": 4.0},
    "olmo": {"clip_qkv": 0.02},
    "olmo2": {},
    "olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "phi": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "gpt_oss": {
        "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "moe_intermediate_size": 32},
    "gemma3n_text": {
        "head_dim": 16, "intermediate_size": [128, 128, 128], "num_hidden_layers": 3, "num_kv_shared_layers": 1,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 4,
        "altup_num_inputs": 2, "activation_sparsity_pattern": [0.5, 0.0, 0.0], "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "gemma4_text": {
        "head_dim": 16, "global_head_dim": 16, "num_hidden_layers": 3, "num_kv_shared_layers": 1,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    # multi-head latent attention: values narrower than keys
    "deepseek_v2": {
        **_LATENT, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
    },
    "deepseek_v3": {**_LATENT, "n_group": 2, "topk_group": 1},
    # linear attention beside full attention: a cache of states
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        **_LINEAR, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32, "mlp_only_layers": [0],
    },
    "qwen3_5_text": _LINEAR,
    # Mamba layers, computed by PyTorch: kernels for GPUs would read `out_proj` past its adapter
    "bamba": {"attn_layer_indices": [1], **_MAMBA},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], **_MAMBA, "num_local_experts": 0, "num_experts_per_tok": 0,
        "shared_intermediate_size": 64,
    },
}  # fmt: skip
# Families that are refused when they are loaded, and what their refusal says.
REFUSED: dict[str, tuple[str, dict]] = {
    "falcon": ("no list `layers`", {"alibi": True, "new_decoder_architecture": False, "multi_query": False}),
    "jamba": (
        "reads the weights of",
        {
            "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
            "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
        },
    ),
    "mamba2": ("differs by", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1}),
    "recurrent_gemma": (
        "differs by", {"block_types": ["recurrent", "attention"], "lru_width": 64, "attention_window_size": 16},
    ),
}  # fmt: skip
# Composite models: tests/models/test_structure.py.
COMPOSITE = ("Gemma3ForConditionalGeneration", "Gemma4ForConditionalGeneration")
REFUSED_COMPOSITE = ("Qwen2_5_VLForConditionalGeneration",)
LORA = LoraConfig(rank=4, alpha=8)
QUANTISED = {
    "none": None,
    "nf4": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "gguf": None,  # transformers dequantises
}


def make_tiny_model(folder: Path, architecture: str = "llama", style: str = "chatml") -> Path:
    """Save a model of about 100,000 random weights with a byte-level tokenizer and the style's chat template."""
    config = AutoConfig.for_model(architecture, **{**COMMON, **_settings(architecture)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    make_tokenizer(*STYLES[style]).save_pretrained(folder)
    return folder


def make_composite(folder: Path) -> Path:
    """Save a Gemma 3 with a vision tower."""
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(
        text_config={**COMMON, **ARCHITECTURES["gemma3_text"]}, vision_config=vision, mm_tokens_per_image=4,
        image_token_index=299, boi_token_index=298, eoi_token_index=297, pad_token_id=0, eos_token_id=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    make_tokenizer(*STYLES["chatml"]).save_pretrained(folder)
    return folder


def _settings(architecture: str) -> dict:
    return REFUSED[architecture][1] if architecture in REFUSED else (FURTHER | ARCHITECTURES)[architecture]


def make_tokenizer(special: list[str], template: str, named: dict[str, str]) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer whose first tokens are the special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    text = "the user asks a question and the assistant gives an answer that is short, kind and to the point"
    tokenizer.train_from_iterator([text], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    fast.chat_template = template
    return fast


def load_tiny(
    folder: Path,
    quantization: str = "none",
    checkpointing: bool = False,
    merged: bool = True,
    compute_dtype: str = "float32",
) -> Base:
    """Load the folder with `load_base`; with one thread, as several would only spin on busy cores.

    With `gguf`, load a GGUF file made from it.
    """
    source = tiny_gguf(folder) if quantization == "gguf" else folder
    config = ModelConfig.model_validate(
        {
            "source": str(source),
            "backend": os.environ.get("LOWRANK_RLHF_TEST_BACKEND", "transformers"),
            "quantization": quantization,
            "gradient_checkpointing": checkpointing,
            "compute_dtype": compute_dtype,
            "device": DEVICE,
            "threads": 1,
            "merged_rollouts": merged,
        }
    )
    with patch.dict(os.environ, {"LOWRANK_RLHF_CACHE": str(folder.parent / "cache")} if source != folder else {}):
        return load_base(config, Progress.silent())


def bfloat16_works() -> bool:
    """Return True if bfloat16 products run, however slowly; some virtual machines crash (decision 0008)."""
    return bfloat16_speedup() > 0


def randomise(roles: Roles, role: Role, seed: int) -> None:
    """Set random weights as after training: B is not 0, so the adapter clearly changes the output."""
    generator = torch.Generator().manual_seed(seed)
    roles.reset(role, generator)
    with torch.no_grad():
        for name, parameter in roles.named_parameters(role).items():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def tiny_gguf(folder: Path) -> Path:
    """Write the folder's model beside it as a GGUF file of several block types, once."""
    path = folder.with_suffix(".gguf")
    if not path.exists():
        architecture = json.loads((folder / "config.json").read_text())["model_type"].removesuffix("_text")
        make_gguf(folder, path, architecture, kinds=("Q4_1", "Q8_0", "Q5_0", "Q4_0", "Q5_1", "F16"))
    return path


def load_plain(auto: Any, roles: Roles, quantization: str, **settings: Any) -> Any:
    """Load the roles' base with transformers alone, to add adapters with PEFT alone."""
    source = Path(roles.base.config.source)
    if source.suffix == ".gguf":
        source, settings = source.parent, {**settings, "gguf_file": source.name}
    model = auto.from_pretrained(
        source,
        dtype=torch.float32,
        quantization_config=QUANTISED[quantization],
        device_map={"": DEVICE},
        **settings,
    )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # else bitsandbytes computes in bfloat16 on CPUs that have it
    return model.eval()


def make_roles(base: Base) -> Roles:
    """Make all four roles, each with different random weights."""
    roles = Roles(base, LORA)
    for seed, role in enumerate(Role):
        randomise(roles, role, seed)
    return roles


def random_tokens(seed: int, lengths: list[int]) -> list[list[int]]:
    """Return lists of ordinary tokens, of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def make_batch(seed: int = 0) -> Sequences:
    """Return five rows of unequal prompts and responses."""
    return pack(random_tokens(seed, [3, 7, 5, 4, 12]), random_tokens(seed + 1, [6, 2, 9, 1, 5]), pad=0, device=DEVICE)


def snapshot(roles: Roles, role: Role) -> dict[str, Tensor]:
    """Return copies of the role's weights."""
    return {name: parameter.detach().clone() for name, parameter in roles.named_parameters(role).items()}


def role_loss(roles: Roles, role: Role, batch: Sequences) -> Tensor:
    """Return a loss of the acting role in which every response token has a different weight."""
    out = roles.scores(batch).tanh() if role.has_head else roles.logprobs(batch, 0.8).logprobs
    weights = torch.sin(batch.ids.float()) * batch.response
    return (out * weights).sum()


def gradients(roles: Roles, role: Role, batch: Sequences) -> dict[str, Tensor]:
    """Return the role's gradients of `role_loss`, and clear them."""
    with roles.acting_as(role, train=True):
        roles.backward(role_loss(roles, role, batch))
    found = {}
    for name, parameter in roles.named_parameters(role).items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
        parameter.grad = None
    return found
