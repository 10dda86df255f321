"""Bridge between the roles' model and TRL's trainers: switches of the adapter become switches of the acting role.

TRL's trainers compute reference log-probabilities after `set_adapter("ref")` on the model, sample by `generate`, and
create `ref` by `add_adapter`. All three are public methods of a PEFT model. While the bridge is open they are replaced,
because a switch of adapter that bypasses `acting_as` would not reach the slots of the layers: the reference would
silently be the policy.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf.models.roles import Role, Roles

Generate = Callable[[list[list[int]]], Sequence[Sequence[int]]]
"""Prompts, one per answer -> the tokens of the answers."""


class TrlBridge:
    """Switch of the acting role while TRL uses the model; one role acts at a time."""

    def __init__(self, roles: Roles):
        self._roles, self._acting = roles, ExitStack()

    def switch_to(self, role: Role) -> None:
        """Activate a role until the next switch. Only the policy is trained.

        Roles may switch between a forward of the policy and its backward if the policy acts again before the backward:
        the graph keeps the tensors it needs, and gradients go to the parameters that require them at that moment.
        """
        self._acting.close()
        self._acting.enter_context(self._roles.acting_as(role, train=role is Role.POLICY))

    @contextmanager
    def released(self) -> Iterator[None]:
        """Deactivate the acting role, so that the block can choose one; the policy acts after the block."""
        self._acting.close()
        yield
        self.switch_to(Role.POLICY)

    def close(self) -> None:
        """Deactivate the acting role."""
        self._acting.close()


@contextmanager
def trl_bridge(roles: Roles, generate: Generate | None = None) -> Iterator[TrlBridge]:
    """Open a bridge: build a trainer on `roles.peft` in the block and train; the model is restored at its end.

    Build the trainer before the first switch, while everything is frozen, or TRL casts the adapter to bfloat16 in
    place. If TRL makes a reference, it copies the policy onto REFERENCE: load REFERENCE again before training.
    """
    model, base, bridge = roles.peft, roles.base.model, TrlBridge(roles)
    switch, own = model.set_adapter, vars(base.config).copy()  # a composite config has no `use_cache`

    def set_adapter(name: str, **settings: Any) -> None:
        if settings:  # called by `acting_as`, with unsloth
            switch(name, **settings)
        else:
            bridge.switch_to(Role(name))

    def answers(input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        assert generate is not None  # noqa: S101 - otherwise the model keeps its own `generate`
        with bridge.released():
            responses = generate(
                [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, attention_mask, strict=True)]
            )
        # (B, longest answer), padded on the right as TRL expects
        padded = torch.full((len(responses), max(map(len, responses))), roles.base.pad, device=input_ids.device)
        for row, tokens in zip(padded, responses, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return torch.cat([input_ids, padded], 1)

    switch(Role.POLICY.value, inference_mode=True)  # TRL returns to the adapter that is active here
    replaced: dict[str, Any] = {"set_adapter": set_adapter, "add_adapter": lambda *_: None}
    vars(model).update(replaced | ({"generate": answers} if generate else {}))
    try:
        yield bridge
    finally:
        bridge.close()
        model.eval()  # a trainer sets training mode in every module; a block of a role only outside of adapted layers
        for name in ("set_adapter", "add_adapter", "generate"):
            vars(model).pop(name, None)
        vars(base).pop("forward", None)  # TRL's fused head
        vars(base.config).pop("use_cache", None)
        if "use_cache" in own:
            base.config.use_cache = own["use_cache"]
