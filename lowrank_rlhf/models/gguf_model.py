"""Load a model whose quantised linear layers stay in the blocks of a GGUF file."""

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lowrank_rlhf.models.layers.gguf_linear import GgufLinear, dequantise_rows
from lowrank_rlhf.sources.gguf_blocks import TYPES


def load_blocks(folder: Path, device: torch.device, compute_dtype: torch.dtype) -> PreTrainedModel:
    """Load a folder that `sources.gguf_blocks` wrote.

    Linear layers in blocks become `GgufLinear`. Embeddings and the vocabulary projection are dequantised once, as they
    are for every other `model.quantization`: the projection is needed for every chunk of logits.

    Raises `ValueError` if a tensor is missing or does not fit the config.
    """
    config = AutoConfig.from_pretrained(folder)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=compute_dtype)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            types = json.loads((file.metadata() or {}).get(TYPES, "{}"))
            for name in file.keys():  # noqa: SIM118 - not a mapping
                _place(model, name, file.get_tensor(name).to(device), types.get(name), compute_dtype)
    model.tie_weights()
    if missing := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise ValueError(f"{missing[0]} is not in the files")
    nn.Module.to(model, device)  # buffers, which are computed: rotary frequencies
    return model.eval()


def _place(model: PreTrainedModel, name: str, tensor: Tensor, kind: str | None, dtype: torch.dtype) -> None:
    """Put a tensor where its name belongs."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    expected: tuple[int, ...] = tuple(getattr(module, leaf).shape)
    found: tuple[int, ...]
    if kind and isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
        layer = GgufLinear(tensor, kind, module.in_features, module.bias)
        model.set_submodule(path, layer)
        found = (layer.out_features, layer.in_features)
    else:
        whole = dequantise_rows(tensor, kind, expected[-1], dtype) if kind else tensor.to(dtype, copy=True)
        setattr(module, leaf, nn.Parameter(whole, requires_grad=False))
        found = tuple(whole.shape)
    if found != expected:
        raise ValueError(f"{name} is {found}, and by config.json it is {expected}")
