"""Forwards through some of the decoder layers.

Those below the first adapted one are the same for every role: run once and shared by all. Those above what reward model
and critic read need not run for them. Layers are switched off by putting stand-ins into the decoder's list for the
length of one forward; embeddings, masks, rotary positions and the final norm stay the architecture's own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Pass(nn.Module):
    """A layer that does nothing."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return hidden_states


class _Tap(_Pass):
    """Keeps what reaches it."""

    seen: Tensor

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        self.seen = hidden_states
        return hidden_states


class _Source(_Pass):
    """Gives out states computed before, whatever comes in."""

    def __init__(self, states: Tensor):
        super().__init__()
        self.states = states

    def forward(self, *_: object, **__: object) -> Tensor:
        return self.states


def trunk_states(decoder: Any, start: int, ids: Tensor, attention: Tensor) -> Tensor:
    """What enters decoder layer `start`: (B, T) ids and mask -> (B, T, h), without a graph."""
    layers = list(decoder.layers)
    tap = _Tap()
    with _standing_in(decoder, [*layers[:start], tap, *[_Pass() for _ in layers[start + 1 :]]]), torch.no_grad():
        decoder(input_ids=ids, attention_mask=attention, use_cache=False)
    return tap.seen


@contextmanager
def part_of(decoder: Any, start: int, states: Tensor | None, stop: int) -> Iterator[None]:
    """Inside the block the decoder's forward ends with layer `stop - 1`, and begins at `start` where states are given.

    Args:
        states: (B, T, h), what enters layer `start`; None to begin with the embeddings.
    """
    layers = list(decoder.layers)
    lower = layers[:start] if states is None else [_Source(states), *[_Pass() for _ in range(1, start)]]
    with _standing_in(decoder, [*lower, *layers[start:stop], *[_Pass() for _ in layers[stop:]]]):
        yield


@contextmanager
def _standing_in(decoder: Any, stand_ins: Sequence[nn.Module]) -> Iterator[None]:
    layers = decoder.layers
    decoder.layers = nn.ModuleList(stand_ins)
    try:
        yield
    finally:
        decoder.layers = layers
