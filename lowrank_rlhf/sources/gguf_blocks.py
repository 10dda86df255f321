"""Rewrite a GGUF file as a safetensors folder whose tensors keep their blocks, byte for byte, or are in bfloat16.

Tensors get transformers' names and row order. A row of a weight is a whole number of blocks, so rows can be reordered
without touching a block. Files are written while the GGUF file is read: no more than one of them is in memory. Imports
torch only to convert.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_rlhf.sources.gguf import convert_gguf, write_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""Block types that can be kept."""
TYPES = "gguf_types"
"""Key in the header of a written file: JSON object of tensor name to block type."""
_ROTARY_PAIRS = ("llama",)
"""Architectures whose query and key rows llama.cpp interleaves: rotary pairs side by side, not in two halves."""
_NORM_PLUS_ONE = ("gemma2", "gemma3")
"""Architectures whose norm weights llama.cpp stores plus 1."""
_ARCHITECTURES = (*_ROTARY_PAIRS, *_NORM_PLUS_ONE, "qwen2", "qwen3", "phi3")
_COMPUTED = "rope_freqs.weight"
"""Rotary frequencies: not a weight; transformers computes its own."""
_SHARD_BYTES = 512 * 2**20
_ROWS_BYTES = 64 * 2**20
"""Bytes in float32 of the rows that are dequantised at once."""


def keep_blocks(gguf: Path, folder: Path) -> None:
    """Write config, tokenizer and tensors of a GGUF file to `folder`.

    Raises `ValueError` for an architecture, block type or tensor that is not supported.
    """
    _write(gguf, folder, dequantised=False)


def dequantise_blocks(gguf: Path, folder: Path) -> None:
    """Write the same with all tensors in bfloat16: bitsandbytes cannot quantise while GGUF is read.

    Files that are not supported here are read by transformers, with all weights in float32 in memory at once.
    """
    try:
        _write(gguf, folder, dequantised=True)
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)
        convert_gguf(gguf, folder)


def _write(gguf: Path, folder: Path, dequantised: bool) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, GenerationConfig

    reader = GGUFReader(gguf)
    field = reader.get_field("general.architecture")
    architecture = str(field.contents()) if field else "nameless"
    if architecture not in _ARCHITECTURES:
        raise ValueError(f"blocks of a {architecture} model are not supported")
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(_tensors(reader, architecture, config, dequantised), folder)  # names the class in the config
    if dequantised:
        config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    write_tokenizer(gguf, folder)


def _write_shards(tensors: Iterator[tuple[str, "Tensor", str | None]], folder: Path) -> None:
    """Write the tensors, each with its block type, to files of at most `_SHARD_BYTES`, or one tensor."""
    from safetensors.torch import save_file

    written: list[tuple[Path, list[str]]] = []
    shard: dict[str, Tensor] = {}
    kinds: dict[str, str] = {}
    total = 0

    def flush() -> None:
        path = folder / f"part{len(written)}"
        # a single key: several would be written in random order
        save_file(shard, path, {"format": "pt"} if not kinds else {TYPES: json.dumps(kinds, sort_keys=True)})
        written.append((path, list(shard)))
        shard.clear()
        kinds.clear()

    for name, tensor, kind in tensors:
        if shard and sum(other.nbytes for other in shard.values()) + tensor.nbytes > _SHARD_BYTES:
            flush()
        shard[name] = tensor.contiguous()
        total += tensor.nbytes
        if kind:
            kinds[name] = kind
    flush()
    if len(written) == 1:
        written[0][0].rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, (path, names) in enumerate(written, start=1):
        file = f"model-{number:05}-of-{len(written):05}.safetensors"
        path.rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def block_sizes(folder: Path) -> tuple[int, int]:
    """Return bytes and number of the weights in blocks in the decoder layers of a folder that `keep_blocks` wrote."""
    from safetensors import SafetensorError, safe_open

    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(SafetensorError, OSError), safe_open(path, framework="numpy") as file:
            for name, kind in json.loads((file.metadata() or {}).get(TYPES, "{}")).items():
                if ".layers." in name:
                    rows, size = file.get_slice(name).get_shape()
                    found.append((rows * size, kind))
    return _sum(found)


def block_sizes_of_file(reader: Any) -> tuple[int, int]:
    """Return the same of a GGUF file."""
    layers = [tensor for tensor in reader.tensors if tensor.name.startswith("blk.")]
    return _sum([(int(tensor.n_bytes), tensor.tensor_type.name) for tensor in layers])


def _sum(found: list[tuple[int, str]]) -> tuple[int, int]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    sizes = {kind: GGML_QUANT_SIZES[GGMLQuantizationType[kind]] for kind in BLOCK_TYPES}  # weights, bytes
    kept = [(size, size // sizes[kind][1] * sizes[kind][0]) for size, kind in found if kind in sizes]
    return sum(size for size, _ in kept), sum(weights for _, weights in kept)


def _tensors(
    reader: Any, architecture: str, config: Any, dequantised: bool
) -> Iterator[tuple[str, "Tensor", str | None]]:
    """Yield name, tensor and block type of each weight; sets the class name in `config`."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    found = {tensor.name: tensor for tensor in reader.tensors if tensor.name != _COMPUTED}
    for name, theirs in _gguf_names(model, architecture, config.num_hidden_layers):
        if theirs not in found:
            raise ValueError(f"{theirs} is not in it")
        entry = found.pop(theirs)
        tensor, kind = (_dequantised(entry), None) if dequantised else _read(entry)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        count = heads.get(theirs.split(".")[-2]) if architecture in _ROTARY_PAIRS else None
        if count:
            tensor = tensor.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2)  # (heads, pairs, 2) -> halves
        if architecture in _NORM_PLUS_ONE and theirs.endswith("norm.weight"):
            tensor = tensor - 1
        yield name, tensor.bfloat16() if dequantised else tensor, kind
    if found:
        raise ValueError(f"{sorted(found)[0]} has no place in {config.architectures[0]}")


def _gguf_names(model: Any, architecture: str, layers: int) -> Iterator[tuple[str, str]]:
    """Yield transformers' and GGUF's name of each weight."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, layers)
    for name, _ in model.named_parameters():  # a tied vocabulary projection is not listed
        stem, _, leaf = name.rpartition(".")
        yield name, f"{names.get_name(stem)}.{leaf}"


def _read(entry: Any) -> tuple["Tensor", str | None]:
    """Return the tensor as stored, and its block type: uint8 of (rows, bytes of a row) if it has one."""
    import torch

    kind, data = entry.tensor_type.name, torch.from_numpy(entry.data.copy())
    if kind in BLOCK_TYPES:
        return data, kind
    if kind == "BF16":
        return data.view(torch.bfloat16), None
    if kind not in ("F32", "F16"):
        raise ValueError(f"{entry.name} has blocks of type {kind}, not one of {', '.join(BLOCK_TYPES)}")
    return data, None


def _dequantised(entry: Any) -> "Tensor":
    """Return the tensor in bfloat16, from blocks a few rows at a time; one that has no blocks as stored."""
    import torch
    from gguf.quants import dequantize

    if entry.tensor_type.name in ("F32", "F16", "BF16"):
        return _read(entry)[0]
    rows, inputs = entry.data.shape[0], int(entry.shape[0])
    found = torch.empty(rows, inputs, dtype=torch.bfloat16)
    step = max(1, _ROWS_BYTES // (4 * inputs))
    for start in range(0, rows, step):
        some = entry.data[start : start + step]
        found[start : start + step] = torch.from_numpy(dequantize(some, entry.tensor_type))
    return found
