"""Save and load a rollout: an update that was stopped midway resumes with bit-identical numbers."""

from pathlib import Path

import torch

from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.models.generation import Response
from lowrank_rlhf.models.roles import Roles
from lowrank_rlhf.models.storage import read_tensors, write_tensors
from lowrank_rlhf.run.files import read_record, write_json_atomic
from lowrank_rlhf.training.rollout import Rollout

_TENSORS, _REST = "rollout.safetensors", "rollout.json"
_BATCH = ("ids", "attention", "response")


def save_rollout(rollout: Rollout, folder: Path) -> None:
    """Write tensors as safetensors and the rest as JSON, without the states of the shared lower layers."""
    tensors = {name: getattr(rollout.batch, name) for name in _BATCH} | rollout.tensors()
    write_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / _TENSORS)
    responses = [[list(response.tokens), response.finished] for response in rollout.responses]
    rest = {"schema": 1, "cut": rollout.cut, "responses": responses, "figures": rollout.figures}
    write_json_atomic(folder / _REST, rest)


def load_rollout(roles: Roles, folder: Path) -> Rollout | None:
    """Load a rollout saved by `save_rollout`; None if not found. Raises `UserError` if its tensors cannot be read."""
    rest = read_record(folder / _REST)
    if rest is None:
        return None
    tensors = {name: tensor.to(roles.base.device) for name, tensor in read_tensors(folder / _TENSORS).items()}
    # Versions before the baseline was saved read no value with it.
    tensors.setdefault("baseline", torch.zeros_like(tensors["scores"]))
    ids, attention, response = (tensors[name] for name in _BATCH)
    return Rollout(
        batch=roles.with_lower_states(Sequences(ids, attention, response)),  # the same states: no role trains these
        cut=rest["cut"],
        responses=[Response(tuple(tokens), finished) for tokens, finished in rest["responses"]],
        figures=rest["figures"],
        **{name: tensor for name, tensor in tensors.items() if name not in _BATCH},
    )
