"""Trial of the policy's adapter on a few tokens, before any stage spends time."""

import re

from torch import Tensor

from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models.loading.library_check import probe_rows
from lowrank_rlhf.models.loading.structure import FAMILIES, unknown_structure, unlike_known
from lowrank_rlhf.models.roles import Role, Roles

_ADVICE = f"Set lora.target_modules to layers of attention alone, or choose a model of the {FAMILIES} family"


def check_training(roles: Roles) -> None:
    """Read a few tokens as the policy, and compute its gradients, which are discarded.

    Raises `UserError` if that fails, or gives all adapters of a kind of layer no gradient: some architectures read
    the weights of their linear layers themselves, past any adapter.
    """
    base, parameters = roles.base, roles.named_parameters(Role.POLICY)
    if base.by_unsloth:
        return
    rows = probe_rows(base)
    batch = pack([row[:1] for row in rows], [row[1:] for row in rows], base.pad, base.device)
    try:
        with base.group.single_process():  # the main process loads before the others
            batch = roles.with_lower_states(batch)
            for train in (False, True):
                with roles.acting_as(Role.POLICY, train=train):
                    logprobs = roles.logprobs(batch, 1.0).logprobs
                    if train:
                        roles.backward(logprobs.sum())
        # B alone: the gradient of A is zero as long as B is. The slots give unread weights zeros instead of None.
        read = {_kind(name) for name, parameter in parameters.items() if ".lora_B." in name and _moves(parameter)}
        without = sorted({kind.rpartition(".")[2] for kind in map(_kind, parameters) if kind not in read})
    except Exception as error:  # whatever an architecture raises: anything but a sentence would be a traceback
        tried = "reading and training a few tokens through the adapter"
        raise unknown_structure(base.model, base.config.source, tried, error, _ADVICE) from None
    finally:
        for parameter in parameters.values():
            parameter.grad = None
    if without:
        found = f"it reads the weights of {', '.join(without)} itself, past any adapter"
        raise unlike_known(base.model, base.config.source, found, _ADVICE)


def _kind(name: str) -> str:
    """Return the path of a parameter's layer without the numbers of decoder layers and experts."""
    return re.sub(r"\.\d+(?=\.)", "", name.partition(".lora_")[0])


def _moves(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())
