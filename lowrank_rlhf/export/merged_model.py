"""A role as a plain transformers folder in 16 bits, written tensor by tensor.

Writing needs no second model in memory: a weight is dequantised and merged when its file is written. Files are
written by transformers' `save_pretrained`: names and shapes in them can differ from those in memory (experts).
"""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, GenerationConfig, PreTrainedModel

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.layers.merging import merged_weight
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import raise_os_errors
from lowrank_rlhf.run import fault_points

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 2 * 2**30
"""Largest weights file, unless one layer is larger; one file at a time is in memory."""
SETTINGS = "lowrank_rlhf"
"""Key of a reward model's `config.json` with its pooling, and mean and deviation of its scores."""


@dataclass(frozen=True)
class Plan:
    """Model to be written, on the meta device and in the file's number format."""

    model: PreTrainedModel
    config: Any
    tensors: dict[str, Tensor]
    """Its weights by their names in memory; tied weights once, under their first name."""

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def plan_merged(base: Base, dtype: torch.dtype) -> Plan:
    """Plan the base's own architecture with merged weights."""
    config = _plain_config(base, dtype, type(base.model))
    with torch.device("meta"):
        model: Any = type(base.model)(config)
    return Plan(model, config, _tensors(model.to(dtype)))


def plan_reward(roles: Roles, dtype: torch.dtype, settings: dict[str, Any]) -> Plan:
    """Plan the sequence classifier of the base's family, with a label for each member and the reward model's layers.

    Raises `UserError` if transformers has no such class.
    """
    config = _plain_config(roles.base, dtype, type(roles.base.model))
    labels = ["score"] if roles.members == 1 else [f"member {number}" for number in range(1, roles.members + 1)]
    config.num_labels, config.id2label = len(labels), dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    text = config.get_text_config()  # the config itself, but of a composite model a part of it
    text.num_hidden_layers = roles.head_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: roles.head_layers]
    setattr(config, SETTINGS, settings)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config).to(dtype=dtype)
    except ValueError:
        raise UserError(
            f"transformers has no sequence classifier for {config.model_type} models: "
            "use `--what adapters`, whose folder `reward` PEFT loads"
        ) from None
    config.architectures = [type(model).__name__]
    return Plan(model, config, _tensors(model))


def write_model(roles: Roles, role: Role, plan: Plan, folder: Path, on_tensor: Callable[[], None]) -> None:
    """Write config, tokenizer and weights, in shards if they are large.

    Raises `UserError` if a weight is too large for float16.
    """
    plan.config.save_pretrained(folder)
    roles.base.tokenizer.save_pretrained(folder)
    shards = _shards(plan)
    files: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        tensors = {}
        for name in names:
            tensors[name] = _weight(roles, role, name, plan.tensors[name])
            on_tensor()
        suffix = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = folder / f"model{suffix}.safetensors"
        files |= dict.fromkeys(_write_shard(plan.model, tensors, file), file.name)
        fault_points.point(f"{file.name}: written")
    if len(shards) > 1:
        index = {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(files.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(plan: Plan) -> list[list[str]]:
    """Return the names of the weights of each file; a layer's stay together, because they may be converted together."""
    shards: list[list[str]] = []
    free = 0
    for _, grouped in groupby(plan.tensors, key=_layer):
        names = list(grouped)
        size = sum(plan.tensors[name].nbytes for name in names)
        if size > free or not shards:
            shards.append([])
            free = SHARD_BYTES
        shards[-1] += names
        free -= size
    return shards


def _layer(name: str) -> str:
    """Return the layer of a weight, such as `model.layers.3`, or its whole name outside the layers."""
    return (re.match(r".*?\.\d+(?=\.)", name) or [name])[0]


def _write_shard(model: PreTrainedModel, tensors: dict[str, Tensor], file: Path) -> list[str]:
    """Write the weights as transformers writes them for this architecture; return their names in the file."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    with raise_os_errors(file), TemporaryDirectory(dir=file.parent) as folder:
        model.save_pretrained(folder, state_dict=tensors, max_shard_size=size + 1)
        written = Path(folder) / "model.safetensors"
        written.rename(file)
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def write_generation_config(base: Base, config: Config, folder: Path) -> None:
    """Write the settings with which a plain `generate` samples as `chat` does: temperature, top-p, end of turn."""
    GenerationConfig(
        eos_token_id=base.eos,
        pad_token_id=base.pad,
        bos_token_id=base.tokenizer.bos_token_id,
        do_sample=True,
        temperature=config.chat_temperature,
        top_k=0,
        top_p=config.chat.top_p,
        max_new_tokens=config.sample.max_new_tokens,
    ).save_pretrained(folder)


def _plain_config(base: Base, dtype: torch.dtype, kind: type[PreTrainedModel]) -> Any:
    config = copy.deepcopy(base.model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [kind.__name__]
    config.dtype = dtype
    config.eos_token_id, config.pad_token_id = base.eos, base.pad
    return config


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of this model's files: tied weights once, under their first name."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kept[name] = tensor
    return kept


def _weight(roles: Roles, role: Role, name: str, like: Tensor) -> Tensor:
    path, _, leaf = name.rpartition(".")
    if path == "score":
        found = roles.heads[role].weight
    else:
        module: Any = roles.base.model.get_submodule(path)
        adapted = hasattr(module, "get_base_layer")  # a PEFT layer around the base's own
        if leaf == "weight" and (adapted or isinstance(module, nn.Linear)):
            found = merged_weight(module, role)
        else:
            found = getattr(module.get_base_layer() if adapted else module, leaf)
    weight: Tensor = found.detach().to(like.dtype).cpu().contiguous()
    if weight.shape != like.shape:
        raise RuntimeError(f"{name} is {tuple(weight.shape)}, not {tuple(like.shape)}")
    if not weight.isfinite().all():
        raise UserError(f"{name}: numbers too large for {str(like.dtype).removeprefix('torch.')}; use --dtype bfloat16")
    return weight.clone() if weight.data_ptr() == found.data_ptr() else weight
