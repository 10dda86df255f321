"""Load the base model once: quantised, frozen, with its tokenizer, in the fastest number format of this machine."""

import copy
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.allocator import keep_few_kernels, keep_freed_memory, release_freed_memory
from lowrank_rlhf.models.batch_limits import BatchLimits
from lowrank_rlhf.models.gguf_model import load_blocks
from lowrank_rlhf.models.layers.int8 import compute_at_full_precision
from lowrank_rlhf.models.layers.norms import fuse_norms
from lowrank_rlhf.models.layers.rotary import fuse_rotary
from lowrank_rlhf.models.layers.sharded_layers import shard
from lowrank_rlhf.models.layers.weights import gathered
from lowrank_rlhf.models.loading.library_check import choose_attention
from lowrank_rlhf.models.loading.structure import (
    check_decoder,
    check_quantised,
    check_shapes,
    unknown_structure,
    wrong_shape,
)
from lowrank_rlhf.models.precision import choose_dtype
from lowrank_rlhf.models.unsloth import load_model
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.sources.checks import check_architecture
from lowrank_rlhf.sources.fetch import fetch_model
from lowrank_rlhf.sources.model_shape import check_experts, find_shape, length_notes
from lowrank_rlhf.sources.provenance import provenance
from lowrank_rlhf.sources.tokenizer import control_tokens, prompt_tokens, read_tokenizer, response_tokens, token_id


@dataclass(frozen=True)
class Base:
    """Frozen base model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    compute_dtype: torch.dtype
    folder: Path
    """Folder it was loaded from."""
    group: ProcessGroup = field(default_factory=ProcessGroup)
    """Processes that share the work, each with its copy of the base, or with its part if `config.shard` is set."""

    @property
    def by_unsloth(self) -> bool:
        """True if unsloth loaded the model and runs it."""
        return self.config.backend == "unsloth"

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def pad(self) -> int:
        """Padding token. It differs from the end-of-turn token; otherwise models would never learn to stop."""
        return int(self.tokenizer.pad_token_id)

    @cached_property
    def limits(self) -> BatchLimits:
        """Limits on the size of a batch."""
        return BatchLimits(self.config.micro_batch_tokens, group=self.group)

    @cached_property
    def eos(self) -> int:
        """Token that ends a response in the chat template."""
        return token_id(self.tokenizer, control_tokens(self.tokenizer).end)

    @cached_property
    def vocabulary(self) -> int:
        """Number of token ids that the tokenizer has; models may have further rows, for a size that suits a GPU."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def provenance(self) -> dict[str, str]:
        """Checksums of the model, saved with every adapter trained on it."""
        return provenance(self.folder, self.config, self.tokenizer)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Return the token ids of the conversation up to the beginning of the response.

        Raises `UserError` if the chat template cannot render it.
        """
        return prompt_tokens(self.tokenizer, prompt)

    def encode_response(self, text: str) -> list[int]:
        """Return the token ids of a finished response, including the end-of-turn token, once."""
        return response_tokens(self.tokenizer, [text])[0]

    def decode(self, tokens: tuple[int, ...] | list[int]) -> str:
        """Return the text of a response without special tokens."""
        kept = [token for token in tokens if token != self.eos]  # not a special token in every tokenizer
        return str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip()

    def checksum(self) -> str:
        """Return the SHA-256 of all weights and quantisation statistics of the base, without adapters."""
        digest = hashlib.sha256()
        for name, tensor, layer in sorted(_base_tensors(self.model), key=lambda item: item[0]):
            gathered(layer)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_base(config: ModelConfig, progress: Progress, group: ProcessGroup | None = None) -> Base:
    """Fetch, quantise and freeze the base, with transformers unless `config.backend` is unsloth: see `take_backend`.

    Raises `UserError` if the model or its tokenizer is not supported.
    """
    keep_freed_memory()
    keep_few_kernels()
    if config.threads:
        torch.set_num_threads(config.threads)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|peft\.")
    folder = fetch_model(config, progress)
    check_architecture(folder, config.source)
    shape = find_shape(config)
    check_experts(config, shape)
    for note in length_notes(config, shape):
        progress.say(note)
    device = _device(config)
    compute_dtype = choose_dtype(config.compute_dtype, device)
    tokenizer = read_tokenizer(folder, config, progress)
    sharded = config.shard and group is not None and group.processes > 1
    model = _model(folder, config, torch.device("cpu") if sharded else device, compute_dtype)
    base = freeze(model, tokenizer, config, compute_dtype, folder, group)
    check_quantised(base.model, config, progress)
    if sharded:
        shard(base.model, base.group, device)
    choose_attention(base, progress)
    if not base.by_unsloth:
        fuse_norms(base.model)
        fuse_rotary(base.model)
    release_freed_memory()  # the unquantised weights: 0.28 GB for 135M
    return base


def _model(folder: Path, config: ModelConfig, device: torch.device, compute_dtype: torch.dtype) -> PreTrainedModel:
    try:
        if config.quantization == "gguf":
            model = load_blocks(folder, device, compute_dtype)
        else:
            load = load_model if config.backend == "unsloth" else _load
            model = load(folder, config, device, compute_dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.source: {config.source}: {error}") from None
    except Exception as error:  # whatever an architecture raises: anything but a sentence would be a traceback
        kind = str((AutoConfig.from_pretrained(folder).architectures or ["the model"])[0])
        raise unknown_structure(kind, config.source, "loading it with transformers", error) from None
    check_shapes(model, config)
    return model


def _load(folder: Path, config: ModelConfig, device: torch.device, compute_dtype: torch.dtype) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=compute_dtype,
        quantization_config=_quantization(config, compute_dtype),
        device_map={"": str(device)},
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # its own error names no tensor
    )
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise UserError(
            f"model.source: {config.source}: {len(missing)} weights of {type(model).__name__} are not in the files "
            f"({missing[0]} ...); these would be random. Fetch the model again"
        )
    for name, found, expected in sorted(loaded[1]["mismatched_keys"]):
        raise wrong_shape(config, name, found, expected)
    return model


def _untie(model: PreTrainedModel) -> None:
    """Correct a config that ties a separate vocabulary projection to the embeddings: an export would lose it."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        for config in (model.config, model.config.get_text_config()):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False


def _quantization(config: ModelConfig, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if config.quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if config.quantization == "int8" else None


def freeze(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: ModelConfig,
    compute_dtype: torch.dtype,
    folder: Path,
    group: ProcessGroup | None = None,
) -> Base:
    """Freeze a loaded model and return it as the base."""
    model.requires_grad_(False)
    check_decoder(model, config.source)
    _without_dropout(model)
    _without_clamping(model)
    _untie(model)
    _check_vocabulary(model, tokenizer, config)
    compute_at_full_precision(model)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # With AVX512-BF16 an eval forward would repack the weights, and later gradients through them be wrong.
            module.support_avx512bf16_for_cpu = False
    if config.gradient_checkpointing and config.backend != "unsloth":  # unsloth set up its own already
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.pad_token_id = tokenizer.pad_token_id
    return Base(model, tokenizer, config, compute_dtype, folder, group or ProcessGroup())


def _without_dropout(model: nn.Module) -> None:
    """Disable the dropout that some configs set: it would make old and new log-probabilities differ at random."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):  # attention reads the number itself
                setattr(module, name, 0.0)


def _without_clamping(model: nn.Module) -> None:
    """Keep Gemma 3n from clamping frozen weights in training mode: it reads them past the adapter, or packed codes."""
    for module in model.modules():
        if hasattr(module, "prediction_coefs"):
            config = copy.copy(module.config)
            vars(config)["altup_coef_clip"] = None  # not by `setattr`: its class admits no None
            module.config = config


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Raise `UserError` for a token of the tokenizer without an embedding in the model."""
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    for token in (tokenizer.pad_token, control_tokens(tokenizer).end):
        if token_id(tokenizer, token) >= rows:
            raise UserError(
                f"model.source: {config.source}: the tokenizer's {token} is beyond the model's {rows:,} embeddings. "
                "Tokenizer and weights belong to different models: fetch both again"
            )


def _base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """Yield names and tensors, with the modules that they belong to."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        plain, layer = name.replace(".base_layer", ""), model.get_submodule(name.rpartition(".")[0])
        yield plain, parameter, layer
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            for key, tensor in state.as_dict(packed=True).items():
                yield f"{plain}.{key}", tensor, layer


def _device(config: ModelConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (gpu := {"cuda": torch.cuda, "mps": torch.backends.mps}.get(config.device)) and not gpu.is_available():
        raise UserError(f"model.device: {config.device.upper()} device not found. Set `auto` or `cpu`")
    return torch.device(config.device)
