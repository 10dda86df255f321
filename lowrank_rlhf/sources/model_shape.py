"""Read a model's shape without loading it, from config.json or the header of a GGUF file. Imports no torch."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lowrank_rlhf.config.schema import LoraConfig, ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import read_json
from lowrank_rlhf.sources.fetch import local_model
from lowrank_rlhf.sources.gguf_blocks import block_sizes, block_sizes_of_file

NF4_BITS = 4 + 0.127
"""Per weight, with a doubly quantised scale per 64 weights (QLoRA, Dettmers et al. 2023, section 3)."""
KNOWN = Path(__file__).with_name("known_shapes.json")
"""Keys of config.json of the presets' models, with their origin and revision, for forecasts before a download."""
_BYTES = {"F32": 4, "float32": 4, "BF16": 2, "F16": 2, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model for estimates of memory and time, in numbers of elements, not bytes."""

    architecture: str
    layers: int
    hidden: int
    mlp: int
    query: int
    """Total width of the query heads."""
    key_value: int
    """Total width of the key heads, and of the value heads."""
    vocabulary: int
    tied: bool
    """True if the vocabulary projection shares the embedding matrix."""
    file_bytes: int | None = None
    """Size of the safetensors files if they are on this machine."""
    file_width: int = 2
    """Bytes per element in them."""
    block_bytes: int = 0
    """Size of the decoder layers' weights in GGUF blocks."""
    block_weights: int = 0
    """Number of these weights."""
    expert_weights: int = 0
    """Weights of all experts, which bitsandbytes does not quantise: they are not linear layers."""
    active_experts: int = 0
    """Weights of the experts of one layer that a token uses."""
    positions: int | None = None
    """Longest sequence that the model was trained on, extended by its scaling of positions."""
    known_from: str | None = None
    """Origin of a shape that ships with the package; None if it was read from the model's own files."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of a decoder layer."""
        h, f, q, kv = self.hidden, self.mlp, self.query, self.key_value
        if self.expert_weights:  # adapters leave the experts out
            return {"o_proj": (q, h), "q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv)}
        ends = {"o_proj": (q, h), "down_proj": (f, h)}
        if self.architecture == "phi3":
            return ends | {"qkv_proj": (h, q + 2 * kv), "gate_up_proj": (h, 2 * f)}
        return ends | {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "gate_proj": (h, f), "up_proj": (h, f)}

    @property
    def per_layer(self) -> int:
        """Weights of the linear layers of one decoder layer."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def linear_weights(self) -> int:
        """Weights of all decoder layers."""
        return self.layers * self.per_layer

    @property
    def used_weights(self) -> int:
        """Weights of all decoder layers that a token is multiplied with."""
        return self.layers * (self.per_layer + self.active_experts)

    @property
    def embeddings(self) -> int:
        """Elements of the embedding matrix, and of the vocabulary projection unless it is shared."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter(self, lora: LoraConfig, below: int | None = None) -> int:
        """Return the number of weights of one adapter; with `below`, of the decoder layers below that one only."""
        per_layer = lora.rank * sum(inputs + outputs for inputs, outputs in self._adapted(lora))
        return max(0, (below or self.layers) - self.first_adapted(lora)) * per_layer

    def under_adapter(self, lora: LoraConfig) -> int:
        """Return the number of weights of the adapted linear layers."""
        per_layer = sum(inputs * outputs for inputs, outputs in self._adapted(lora))
        return (self.layers - self.first_adapted(lora)) * per_layer

    def _adapted(self, lora: LoraConfig) -> list[tuple[int, int]]:
        names = self.linears if lora.target_modules == "all-linear" else lora.target_modules
        return [self.linears[name] for name in names if name in self.linears]

    def first_adapted(self, lora: LoraConfig) -> int:
        """Return the index of the lowest decoder layer with an adapter."""
        return max(0, self.layers - (lora.last_layers or self.layers))


def layer_problems(lora: LoraConfig, head_layers: int | None, layers: int) -> list[tuple[tuple[str, str], str]]:
    """Return key and message of each setting that does not fit a model with that number of decoder layers."""
    if (lora.last_layers or 0) > layers:
        problem = f"must be at most {layers}, the model's layers, not {lora.last_layers}. Set null to adapt all"
        return [(("lora", "last_layers"), problem)]
    lowest = layers - (lora.last_layers or layers) + 1
    if head_layers is None or lowest <= head_layers <= layers:
        return []
    return [
        (
            ("reward", "layers"),
            f"must be from {lowest} (the lowest layer with an adapter) to {layers} (the model's layers), "
            f"not {head_layers}",
        )
    ]


def find_shape(config: ModelConfig) -> Shape | None:
    """Return the shape of the model `model.source`: from its files, else from `KNOWN`, else None."""
    found = local_model(config)
    if found is None:
        return known_shapes().get(config.source.removeprefix("modelscope:"))
    return _gguf_shape(found) if found.suffix == ".gguf" else _folder_shape(found)


@cache
def known_shapes() -> Mapping[str, Shape]:
    """Return the shapes that ship with the package, by `model.source`."""
    shapes = {}
    for source, entry in json.loads(KNOWN.read_text(encoding="utf-8")).items():
        if shape := _config_shape(entry["config"]):
            blocks = {name: entry.get(name, 0) for name in ("block_bytes", "block_weights")}
            shapes[source] = replace(shape, known_from=entry["origin"], **blocks)
    return shapes


def _folder_shape(folder: Path) -> Shape | None:
    outer = read_json(folder / "config.json") or {}
    shape = _config_shape(outer)
    if shape is None:
        return None
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: dtype for file in files for name, dtype in _tensors(file).items()}
    if _tied(outer) is None:
        shape = replace(shape, tied=not any(name.endswith("lm_head.weight") for name in tensors))
    if tensors:
        shape = replace(shape, file_width=_BYTES.get(str(next(iter(tensors.values()))), 2))
    block_bytes, block_weights = block_sizes(folder)
    size = sum(file.stat().st_size for file in files)
    return replace(shape, file_bytes=size or None, block_bytes=block_bytes, block_weights=block_weights)


def _config_shape(outer: Mapping[str, Any]) -> Shape | None:
    """Return the shape that a config.json declares, None for an unknown kind of config; untied if it does not say."""
    about = {**outer, **(outer.get("text_config") or {})}
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    if not all(type(about.get(name)) is int and about[name] > 0 for name in needed):
        return None
    heads = about["num_attention_heads"]
    width = about.get("head_dim") or about["hidden_size"] // heads
    experts, active, expert_mlp = _experts(about)
    return Shape(
        architecture=str(about.get("model_type")),
        layers=about["num_hidden_layers"],
        hidden=about["hidden_size"],
        mlp=expert_mlp or about["intermediate_size"],
        query=heads * width,
        key_value=(about.get("num_key_value_heads") or heads) * width,
        vocabulary=about["vocab_size"],
        tied=bool(_tied(outer)),
        file_width=_BYTES.get(str(outer.get("dtype") or outer.get("torch_dtype")), 2),
        expert_weights=experts,
        active_experts=active,
        positions=_positions(about),
    )


def _tied(outer: Mapping[str, Any]) -> bool | None:
    inner = outer.get("text_config") or {}
    return inner.get("tie_word_embeddings", outer.get("tie_word_embeddings"))


def _positions(about: Mapping[str, Any]) -> int | None:
    """Return the larger of `max_position_embeddings` and the original positions times the factor, if both are given.

    With a factor alone (`linear`, `dynamic`) the first may be meant before or after the scaling.
    """
    longest = about.get("max_position_embeddings")
    scaling = about.get("rope_parameters") or about.get("rope_scaling") or {}
    factor, original = (scaling.get(name) for name in ("factor", "original_max_position_embeddings"))
    if type(longest) is not int or longest < 1:
        return None
    if isinstance(factor, int | float) and isinstance(original, int):
        return max(longest, int(original * factor))
    return longest


def length_notes(config: ModelConfig, shape: Shape | None) -> list[str]:
    """Return a note if `model.max_length` exceeds the sequences that the model was trained on."""
    if shape is None or shape.positions is None or config.max_length <= shape.positions:
        return []
    return [
        f"NOTE: model.max_length {config.max_length:,} exceeds the {shape.positions:,} positions that {config.source} "
        "was trained on (max_position_embeddings): answers to longer texts are poor. Lower it."
    ]


def _experts(about: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the weights of all experts, those that a token uses in a layer, and the width of these; zeros if none."""

    def number(*names: str) -> int:
        return next((about[name] for name in names if type(about.get(name)) is int), 0)

    count = number("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    if count < 2:
        return 0, 0, 0
    width = number("moe_intermediate_size", "intermediate_size")
    each = 3 * about["hidden_size"] * width
    step = number("decoder_sparse_step") or 1
    dense = number("first_k_dense_replace") + len(about.get("mlp_only_layers") or ())
    layers = max(1, about["num_hidden_layers"] // step - dense)
    used = number("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k") or 1
    return layers * count * each, used * each, used * width


def check_experts(config: ModelConfig, shape: Shape | None) -> None:
    """Raise `UserError` for a mixture of experts in a quantisation of bitsandbytes, which leaves the experts out."""
    if shape is None or not shape.expert_weights or config.quantization not in ("nf4", "int8"):
        return
    raise UserError(
        f"model.quantization: {config.quantization} quantises linear layers only, and {config.source} is a mixture of "
        f"experts: the {shape.expert_weights:,} weights of its experts would stay in 16 or 32 bits. Set "
        "model.quantization: none to load all weights in that format, or choose a model without experts"
    )


def _tensors(file: Path) -> dict[str, str]:
    """Return the number format of each tensor of a safetensors file from its header: a length, then JSON."""
    with file.open("rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            return {}
        try:
            header: Mapping[str, Any] = json.loads(stream.read(struct.unpack("<Q", start)[0]))
        except (ValueError, OverflowError, MemoryError):
            return {}
    return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


def _gguf_shape(file: Path) -> Shape | None:
    """Return the shape from the header of a GGUF file; the converted model is in bfloat16."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (ValueError, OSError, IndexError):
        return None

    def field(name: str) -> Any:
        entry = reader.get_field(name)
        return entry.contents() if entry else None

    architecture = field("general.architecture")
    layers, hidden, mlp, heads, groups, width = (
        field(f"{architecture}.{name}")
        for name in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count",
                     "attention.head_count_kv", "attention.key_length")
    )  # fmt: skip
    shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors}
    if not all(type(value) is int for value in (layers, hidden, mlp, heads)) or "token_embd.weight" not in shapes:
        return None
    width = width or hidden // heads
    block_bytes, block_weights = block_sizes_of_file(reader)
    return Shape(
        architecture=str(architecture),
        layers=layers,
        hidden=hidden,
        mlp=mlp,
        query=heads * width,
        key_value=(groups or heads) * width,
        vocabulary=shapes["token_embd.weight"][1],
        tied="output.weight" not in shapes,
        block_bytes=block_bytes,
        block_weights=block_weights,
        positions=field(f"{architecture}.context_length"),
    )
