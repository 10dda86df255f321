"""Parts of a model that other modules rely on, and the refusal of a model without them."""

import re
from collections.abc import Sequence
from typing import Any

import bitsandbytes as bnb
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.config.schema import LoraConfig, ModelConfig
from lowrank_rlhf.errors import CannotFit, UserError
from lowrank_rlhf.models.batch_limits import first_line, is_out_of_memory
from lowrank_rlhf.models.layers.gguf_linear import GgufLinear
from lowrank_rlhf.models.layers.int8 import Int8Linear
from lowrank_rlhf.run.progress import Progress

FAMILIES = "Llama, Qwen, Gemma, Mistral or Phi-3"
_EXPERTS = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Linear layers whose names PEFT turns into adapters of whole tensors of experts, in models that have them."""
_MOST_UNQUANTISED = 0.1


def unlike_known(model: object, source: str, what: str, advice: str | None = None) -> UserError:
    """Return the refusal of an architecture; `what` is what was found, `model` may be the name of its class."""
    kind = model if isinstance(model, str) else type(model).__name__
    return UserError(
        f"model.source: {source}: {kind} is built in a way not known here: {what}. "
        f"{advice or f'Choose a model of the {FAMILIES} family'}"
    )


def unknown_structure(
    model: object, source: str, tried: str, error: BaseException, advice: str | None = None
) -> UserError:
    """Return the refusal of a model that raised an exception in something that was tried."""
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        return CannotFit(
            f"model.source: {source}: out of memory in {tried} ({first_line(error)}). Choose a smaller model"
        )
    return unlike_known(model, source, f"{tried} failed ({type(error).__name__}: {first_line(error)})", advice)


def wrapped(model: PreTrainedModel, shape: PeftLoraConfig, config: ModelConfig) -> PeftModel:
    """Return the model with its adapter `default`. Raises `UserError` for an architecture that PEFT refuses."""
    try:
        found: PeftModel = get_peft_model(model, shape)
    except Exception as error:
        raise unknown_structure(model, config.source, "adding an adapter with PEFT", error) from None
    return found


def check_decoder(model: PreTrainedModel, source: str) -> None:
    """Raise `UserError` for a decoder without `layers`, which adapters and the shared lower layers require."""
    try:
        layers = getattr(model.get_decoder(), "layers", None)
    except Exception as error:
        raise unknown_structure(model, source, "finding its decoder", error) from None
    if not isinstance(layers, nn.ModuleList) or not any(isinstance(module, nn.Linear) for module in layers.modules()):
        raise unlike_known(model, source, "its decoder has no list `layers` of blocks with linear layers")


def layers_path(model: PreTrainedModel) -> str:
    """Return the name of the decoder's list of layers in the model, such as `model.language_model.layers`."""
    layers: Any = model.get_decoder().layers
    return next(name for name, module in model.named_modules() if module is layers)


def target_modules(lora: LoraConfig, model: PreTrainedModel, first: int) -> list[str]:
    """Return the names of the linear layers to adapt: in decoder layers only, without experts.

    They are names such as `q_proj`; where modules outside the decoder have them too (a vision tower), full paths from
    layer `first` on. Raises `UserError` for an unknown name: PEFT ignores it as long as another name matches.
    """
    prefix = layers_path(model)
    layers = model.get_submodule(prefix)
    linear = [name for name, module in layers.named_modules() if isinstance(module, nn.Linear)]
    hidden = set(_EXPERTS) if has_experts(layers) else set()
    known = sorted({_leaf(name) for name in linear} - hidden)
    chosen = known if lora.target_modules == "all-linear" else list(lora.target_modules)
    for name in chosen:
        if name not in known:
            raise UserError(
                f'lora.target_modules: this model has no linear layer "{name}", only {", ".join(known)}. '
                f"Set some of them, or all-linear.{suggestion(name, known)}"
            )
    outside = (name for name, _ in model.named_modules() if not name.startswith(f"{prefix}."))
    if not any(_leaf(name) in chosen for name in outside):  # of any kind: PEFT matches names alone
        return chosen
    return [f"{prefix}.{name}" for name in linear if _leaf(name) in chosen and int(name.partition(".")[0]) >= first]


def has_experts(layers: nn.Module) -> bool:
    """Return True if a layer keeps the weights of several experts in one tensor."""
    return any(parameter.dim() == 3 for parameter in layers.parameters())


def check_quantised(model: PreTrainedModel, config: ModelConfig, progress: Progress) -> None:
    """Print the number of weights of the decoder layers that are not quantised, norms and biases aside.

    Raises `UserError` if they are more than a tenth: the memory would be several times the expected one.
    """
    if config.quantization == "none":
        return
    left, whole = unquantised(model)
    if not left:
        return
    counts = f"{left:,} of {whole:,} weights of the decoder layers of {type(model).__name__}"
    if config.quantization != "gguf" and left > _MOST_UNQUANTISED * whole:
        raise UserError(
            f"model.quantization: {config.quantization} leaves {counts} unquantised: they are not in linear layers, "
            "but in tensors such as those of several experts. Set model.quantization: none, or choose another model"
        )
    progress.say(f"NOTE: model.quantization: {config.quantization} leaves {counts} unquantised")


def unquantised(model: PreTrainedModel) -> tuple[int, int]:
    """Return the number of weights of the decoder layers that are not quantised, and of all; vectors do not count."""
    left = packed = 0
    for module in model.get_submodule(layers_path(model)).modules():
        if isinstance(module, bnb.nn.Linear4bit | Int8Linear | GgufLinear):
            packed += module.in_features * module.out_features
        else:
            left += sum(weight.numel() for weight in module.parameters(recurse=False) if weight.dim() > 1)
    return left, left + packed


def check_shapes(model: PreTrainedModel, config: ModelConfig) -> None:
    """Compare the shapes of quantised weights with the config: transformers does not check them."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and not isinstance(layer, GgufLinear):
            state = getattr(layer.weight, "quant_state", None)
            found, expected = tuple((state or layer.weight).shape), (layer.out_features, layer.in_features)
            if found != expected:
                raise wrong_shape(config, f"{name}.weight", found, expected)


def wrong_shape(config: ModelConfig, name: str, found: Sequence[int], expected: Sequence[int]) -> UserError:
    """Return the refusal of a weight whose shape is not that of the config."""
    return UserError(
        f"model.source: {config.source}: {name} has shape {tuple(found)}, expected {tuple(expected)} by config.json. "
        "Config and weights belong to different models: fetch both again"
    )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def layer_index(name: str) -> int:
    """Return the index of the decoder layer that a parameter belongs to."""
    found = re.search(r"\.layers\.(\d+)\.", name)
    assert found, name  # noqa: S101 - adapters are in decoder layers only
    return int(found[1])
