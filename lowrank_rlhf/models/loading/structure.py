"""Parts of a model that other modules rely on, and the refusal of a model without them."""

from torch import nn
from transformers import PreTrainedModel

from lowrank_rlhf.errors import CannotFit, UserError
from lowrank_rlhf.models.batch_limits import first_line, is_out_of_memory

FAMILIES = "Llama, Qwen, Gemma, Mistral or Phi-3"


def unknown_structure(model: object, source: str, tried: str, error: BaseException) -> UserError:
    """Return the refusal of a model that raised an exception in something that was tried."""
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        return CannotFit(
            f"model.source: {source}: out of memory in {tried} ({first_line(error)}). Choose a smaller model"
        )
    kind = model if isinstance(model, str) else type(model).__name__
    return UserError(
        f"model.source: {source}: {kind} is built in a way not known here: {tried} failed "
        f"({type(error).__name__}: {first_line(error)}). Choose a model of the {FAMILIES} family"
    )


def check_decoder(model: PreTrainedModel, source: str) -> None:
    """Raise `UserError` for a decoder without `layers`, which adapters and the shared lower layers require."""
    try:
        layers = getattr(model.get_decoder(), "layers", None)
    except Exception as error:
        raise unknown_structure(model, source, "finding its decoder", error) from None
    if not isinstance(layers, nn.ModuleList) or not any(isinstance(module, nn.Linear) for module in layers.modules()):
        raise UserError(
            f"model.source: {source}: {type(model).__name__} has an unsupported structure: no decoder with a list of "
            f"layers. Choose a model of the {FAMILIES} family"
        )
