"""Trial of the policy's adapter: only a kind of layer that no adapter reaches is refused."""

import pytest
import torch
from tiny import make_roles

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.loading.training_check import check_training
from lowrank_rlhf.models.roles import Role, Roles


def fresh_roles(base) -> Roles:
    roles = make_roles(base)
    roles.reset(Role.POLICY, torch.Generator().manual_seed(0))  # B = 0, as at the start of a run
    return roles


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [[], [1], [0, 1]])
def test_layers_without_effect_are_refused_if_all_of_their_kind_are(tiny_base, layers, compute_dtype) -> None:
    """A decoder layer whose output projections are zero, as in models with added layers, is trained as it is."""
    base = tiny_base(compute_dtype=compute_dtype)
    with torch.no_grad():
        for number in layers:
            base.model.get_decoder().layers[number].mlp.down_proj.weight.zero_()
    roles = fresh_roles(base)
    if len(layers) < 2:
        check_training(roles)
    else:
        with pytest.raises(UserError, match="reads the weights of gate_proj, up_proj itself, past any adapter"):
            check_training(roles)
    assert all(parameter.grad is None for parameter in roles.parameters(Role.POLICY))
