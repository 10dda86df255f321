"""The roles' model as TRL's trainers are given it: what they do by an adapter's name becomes a role's turn.

TRL's trainers reach SFT's distribution by `set_adapter("ref")` on the model, and answers by `generate`; before that
they make `ref` themselves. All of these are public methods of a PEFT model. While the model is lent, they are the
roles' own: a switch past `acting_as` would not reach the fused layers, and the reference would silently be the policy.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf.models.roles import Role, Roles

Generate = Callable[[list[list[int]]], Sequence[Sequence[int]]]
"""Prompts, one for each answer -> the tokens of the answers."""


class Loan:
    """Whose turn it is while TRL holds the model: one role's, as everywhere, or nobody's."""

    def __init__(self, roles: Roles):
        self._roles, self._turn = roles, ExitStack()

    def give(self, role: Role) -> None:
        """That role's turn until the next change. The policy learns in its turns, every other role only reads.

        It may lie between a forward of the policy and its backward, if the policy has its turn again before that: what
        the backward needs is kept in the graph (`fused`), and gradients go where they are wanted at that moment.
        """
        self._turn.close()
        self._turn.enter_context(self._roles.acting_as(role, train=role is Role.POLICY))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Nobody's turn inside the block, so that any role may act in it; then the policy's."""
        self._turn.close()
        yield
        self.give(Role.POLICY)

    def end(self) -> None:
        """Nobody's turn."""
        self._turn.close()


@contextmanager
def lent(roles: Roles, generate: Generate | None = None) -> Iterator[Loan]:
    """The block in which a trainer of TRL is built on `roles.peft` and trains; its end leaves the model as it was.

    Build the trainer before the first turn, while everything is frozen, or TRL casts the adapter to bfloat16 in place.
    Where it makes a reference it copies the policy onto REFERENCE: give that its own weights again before training.
    """
    model, base, loan = roles.peft, roles.base.model, Loan(roles)
    switch, use_cache = model.set_adapter, base.config.use_cache

    def set_adapter(name: str, **settings: Any) -> None:
        if settings:  # `acting_as` itself
            switch(name, **settings)
        else:
            loan.give(Role(name))

    def answers(input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        assert generate is not None  # noqa: S101 - else the model keeps its own
        with loan.aside():
            found = generate([ids[kept.bool()].tolist() for ids, kept in zip(input_ids, attention_mask, strict=True)])
        blank = torch.full((len(found), max(map(len, found))), roles.base.pad, device=input_ids.device)
        for row, tokens in zip(blank, found, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return torch.cat([input_ids, blank], 1)

    own: dict[str, Any] = {"set_adapter": set_adapter, "add_adapter": lambda *_: None}
    vars(model).update(own | ({"generate": answers} if generate else {}))
    try:
        yield loan
    finally:
        loan.end()
        for name in ("set_adapter", "add_adapter", "generate"):
            vars(model).pop(name, None)
        vars(base).pop("forward", None)  # TRL's fused head
        base.config.use_cache = use_cache
