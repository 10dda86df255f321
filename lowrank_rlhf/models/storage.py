"""Write adapters as PEFT folders, and read and write tensors and optimizers: safetensors and JSON only."""

import copy
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.sources.provenance import as_metadata

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def save_role(roles: Roles, role: Role, folder: Path) -> None:
    """Write the role as a PEFT folder that loads without this package; its header records the base it was trained on.

    Roles with a head become sequence classifiers, whose `score` layer is the head: one label, or one for each member.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = copy.copy(roles.peft.peft_config[role.value])
    config.inference_mode = True
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # a set: sorted, so that equal adapters give equal files
    config.base_model_name_or_path = roles.base.config.source
    if role.has_head:
        config.task_type = "SEQ_CLS"
        config.modules_to_save = ["score"]
    config.save_pretrained(str(folder))
    fault_points.point(f"{folder.name}: {CONFIG} written")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in roles.named_parameters(role).items()}
    write_tensors(weights, folder / WEIGHTS, as_metadata(roles.base.provenance))
    fault_points.point(f"{folder.name}: {WEIGHTS} written")


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, with `metadata` in its header. Raises OSError if the disk is full or read-only."""
    with raise_os_errors(path):
        save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
        if metadata:
            _sort_metadata(path)


@contextmanager
def raise_os_errors(path: Path) -> Iterator[None]:
    """Raise OSError for this path if safetensors reports a full or read-only disk, with errno only in its message."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def _sort_metadata(path: Path) -> None:
    """Sort the header in place: safetensors writes it in random order, and equal weights should give equal files."""
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) != size:
            raise RuntimeError(f"{path}: the sorted header has {len(text)} bytes, expected {size}")
        file.seek(8)
        file.write(text)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises `UserError` if it is not one."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write the state of Adam as safetensors, without learning rates: the caller sets them again."""
    tensors: dict[str, Tensor] = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    write_tensors(tensors, path)
    fault_points.point(f"{path.name}: written")


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Load a state written by `save_optimizer` into an optimiser over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    if state and sorted(state) != list(range(parameters)):
        raise UserError(f"{path}: contains the state of {len(state)} parameters, expected {parameters}")
    names = set().union(*state.values())  # the same for all parameters: they take their first step together
    if missing := [f"{index}.{name}" for index in state for name in sorted(names) if name not in state[index]]:
        raise UserError(f"{path}: {', '.join(missing[:3])} not found: the optimiser cannot resume from this file")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
