"""Load LoRA adapters saved by PEFT as roles: the run's own, or others of any rank and layers on the same base."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from lowrank_rlhf.errors import ModelNotFinite, UserError
from lowrank_rlhf.models.loading.structure import layers_path
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import CONFIG, WEIGHTS, read_tensors
from lowrank_rlhf.run.files import read_json
from lowrank_rlhf.sources.provenance import check_provenance

_PREFIX = "base_model.model."
_HEAD = "score"
_PICKLED = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base unchanged; PiSSA, OLoRA and LoftQ adapters fit only a modified base."""
_DEFAULTS = PeftLoraConfig().to_dict()
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
"""Settings without effect on the output of a saved adapter (dropout is active in training only)."""


class _Saved(BaseModel):
    """Fields of `adapter_config.json` that determine the adapter's output; the others are in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    peft_type: Literal["LORA"]
    r: int = Field(ge=1)
    lora_alpha: float = _DEFAULTS["lora_alpha"]
    target_modules: str | list[str]
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False


def load_role(roles: Roles, role: Role, folder: Path) -> None:
    """Load an adapter with the run's own settings (`lora`) from a PEFT folder into the role.

    Raises `UserError`, with all roles unchanged, for other settings and where `fill_role` raises it (`ModelNotFinite`
    for weights that are NaN or infinite).
    """
    settings: Any = roles.peft.peft_config.get(role.value, roles.shape)
    _, weights = _read_adapter(roles, role, folder, settings)
    roles.prepare(role)
    _copy(weights, roles, role)


def fill_role(roles: Roles, role: Role, folder: Path | None) -> None:
    """Load an adapter with any settings from a PEFT folder into the role; None loads one without effect (the base).

    Rank, alpha and layers come from the folder and may differ from the run's; the other roles keep their adapters.
    Raises `UserError`, with all roles unchanged, if the adapter is incompatible with this base or records that it was
    trained on another.
    """
    if folder is None:
        roles.reset(role, torch.Generator().manual_seed(0))
        return
    settings, weights = _read_adapter(roles, role, folder)
    roles.replace_adapter(role, settings)
    _copy(weights, roles, role)


@contextmanager
def replaced(roles: Roles, role: Role, folder: Path) -> Iterator[None]:
    """Load another adapter with the run's own settings into a role for the time of the block. Raises as `load_role`."""
    own = {name: weight.clone() for name, weight in roles.named_parameters(role).items()}
    load_role(roles, role, folder)
    try:
        yield
    finally:
        _copy(own, roles, role)


def trained_on(folder: Path) -> str | None:
    """Return the base model named in the adapter's config, or None."""
    name = _config(folder).get("base_model_name_or_path")
    return name if isinstance(name, str) else None


def _config(folder: Path) -> dict[str, Any]:
    """Return the contents of the folder's `adapter_config.json`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: folder not found. Set the folder of an adapter saved by PEFT")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: {CONFIG} not found. An adapter is a folder saved by PEFT")
    config = read_json(folder / CONFIG)
    if config is None:
        raise UserError(f"{folder / CONFIG}: not a JSON object")
    return config


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS
    if path.is_file():
        return path
    pickled = [name for name in _PICKLED if (folder / name).is_file()]
    if pickled:
        raise UserError(
            f"{folder}: {pickled[0]} is a pickle, which can run code when loaded. "
            f"Save the adapter as {WEIGHTS} (PEFT: save_pretrained with safe_serialization=True)"
        )
    raise UserError(f"{folder}: {WEIGHTS} not found. An adapter is a folder saved by PEFT in safetensors")


def _read_adapter(
    roles: Roles, role: Role, folder: Path, required: PeftLoraConfig | None = None
) -> tuple[PeftLoraConfig, dict[str, Tensor]]:
    """Return settings and weights of a saved adapter.

    The weights have exactly the names and shapes that the settings imply on this base: the `required` ones, or else the
    folder's. Raises `UserError` otherwise, and if the adapter was trained on another base.
    """
    settings = _plain_settings(folder, role)
    path = _weights_file(folder)
    weights = read_tensors(path)
    check_provenance(path, roles.base.provenance)
    differences = _scaling_differences(settings, required) if required else []
    differences += _tensor_differences(weights, _expected(roles, role, required or settings, folder))
    if differences:
        listed = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
        expected = "this run's section lora" if required else f"this base model or its own {CONFIG}"
        raise UserError(f"{path}: does not fit {expected}: {listed}")
    if broken := [name for name in sorted(weights) if not weights[name].isfinite().all()]:
        raise ModelNotFinite(
            f"{path}: {len(broken)} of {len(weights)} tensors contain NaN or infinite values ({broken[0]} ...). "
            "The adapter is damaged: train it again, or fetch it again"
        )
    return settings, weights


def _copy(weights: dict[str, Tensor], roles: Roles, role: Role) -> None:
    with torch.no_grad():
        for name, parameter in roles.named_parameters(role).items():
            parameter.copy_(weights[name])


def _plain_settings(folder: Path, role: Role) -> PeftLoraConfig:
    """Return the adapter's settings; only those known to be safe are taken from the saved config.

    Raises `UserError` for anything but plain LoRA: DoRA, biases, or an initialisation (PiSSA, OLoRA) that modified the
    base.
    """
    config = _config(folder)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{folder}: PEFT adapters of type {kind} are not supported, only LORA")
    try:
        saved = _Saved.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{folder / CONFIG}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    unsupported = [key for key, value in (saved.model_extra or {}).items() if not _harmless(key, value, role)]
    if unsupported:
        listed = ", ".join(f"{key}: {config[key]!r}" for key in sorted(unsupported))
        raise UserError(f"{folder / CONFIG}: {listed}: not supported, only plain LoRA is")
    fields = saved.model_dump(include=set(_Saved.model_fields) - {"peft_type"})
    try:
        return PeftLoraConfig(**fields, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
    except ValueError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None


def _harmless(key: str, value: Any, role: Role) -> bool:
    """Return False for a setting that changes the effect of the weights, such as DoRA, biases or retrained layers."""
    if key == "init_lora_weights":
        return value in _PLAIN_INIT
    if key == "bias":
        return value == "none"
    if key == "modules_to_save":
        return not value or (role.has_head and value == [_HEAD])
    return key in _WITHOUT_EFFECT or not value or value == _DEFAULTS.get(key)


def _expected(roles: Roles, role: Role, settings: PeftLoraConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors of an adapter with those settings on this base."""
    expected: dict[str, tuple[int, ...]] = {}
    ranks, inside = settings.rank_pattern or {}, re.compile(re.escape(layers_path(roles.base.model)) + r"\.(\d+)\.")
    for name, layer in _targeted(roles.base.model, settings, folder):
        number = inside.match(name)
        if not number or not isinstance(layer, nn.Linear):
            raise UserError(
                f"{folder / CONFIG}: target_modules: adapts {name}; "
                "only linear layers inside the decoder's layers are supported"
            )
        if role.has_head and int(number[1]) >= roles.head_layers:
            continue
        rank = ranks.get(get_pattern_key(list(ranks), name), settings.r)
        expected[f"{_PREFIX}{name}.lora_A.weight"] = (rank, layer.in_features)
        expected[f"{_PREFIX}{name}.lora_B.weight"] = (layer.out_features, rank)
    if not expected:
        raise UserError(f"{folder / CONFIG}: target_modules: the base has no layer of that name")
    if role.has_head:
        expected[f"{_PREFIX}{_HEAD}.weight"] = roles.head_shape(role)
    return expected


def _targeted(model: nn.Module, settings: PeftLoraConfig, folder: Path) -> list[tuple[str, Any]]:
    """Return the layers of the base that an adapter with those settings targets, with their names."""
    try:
        return [
            (name, getattr(module, "base_layer", module))
            for name, module in model.named_modules()
            if ".base_layer" not in name and ".lora_" not in name and check_target_module_exists(settings, name)
        ]
    except re.error as error:
        raise UserError(f"{folder / CONFIG}: target_modules: not a regular expression ({error})") from None


def _tensor_differences(weights: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Return a message for each missing, unexpected or wrongly shaped tensor."""
    differences = [f"missing {name}" for name in sorted(expected.keys() - weights.keys())]
    differences += [f"unexpected {name}" for name in sorted(weights.keys() - expected.keys())]
    differences += [
        f"{name} is {tuple(weights[name].shape)}, not {expected[name]}"
        for name in sorted(expected.keys() & weights.keys())
        if tuple(weights[name].shape) != expected[name]
    ]
    return differences


def _scaling_differences(saved: PeftLoraConfig, required: PeftLoraConfig) -> list[str]:
    """Return a message for each setting that scales the same weights otherwise, which their shapes do not reveal."""
    keys = ("lora_alpha", "alpha_pattern", "use_rslora")
    pairs = [(key, getattr(saved, key), getattr(required, key)) for key in keys]
    return [f"{key} is {found}, not {expected}" for key, found, expected in pairs if found != expected]
