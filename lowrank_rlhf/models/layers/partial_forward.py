"""Forward through some of the decoder layers.

Layers below the first adapted one give the same output for every role, which is computed once and shared. Reward model
and critic skip the layers above the one that they read. To skip a layer, an identity module replaces it in the
decoder's list for one forward; embeddings, masks, rotary positions and final norm remain those of the architecture.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Identity(nn.Module):
    """Identity module that replaces a layer."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return hidden_states


class _Recorder(_Identity):
    """Identity that records its input."""

    recorded: Tensor

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        self.recorded = hidden_states
        return hidden_states


class _Constant(_Identity):
    """Layer that ignores its input and returns precomputed states."""

    def __init__(self, states: Tensor):
        super().__init__()
        self.states = states

    def forward(self, *_: object, **__: object) -> Tensor:
        return self.states


def lower_states(decoder: Any, start: int, ids: Tensor, attention: Tensor | None) -> Tensor:
    """Return the input of decoder layer `start`: (B, T) ids and mask, if any -> (B, T, h), without a graph."""
    layers = list(decoder.layers)
    recorder = _Recorder()
    with (
        _replaced_layers(decoder, [*layers[:start], recorder, *[_Identity() for _ in layers[start + 1 :]]]),
        torch.no_grad(),
    ):
        decoder(input_ids=ids, attention_mask=attention, use_cache=False)
    return recorder.recorded


@contextmanager
def partial_forward(decoder: Any, start: int, states: Tensor | None, stop: int) -> Iterator[None]:
    """Limit the decoder's forward to layers below `stop`, and if states are given to layers from `start` on.

    Args:
        decoder: decoder with a list of `layers`.
        start: index of the first layer to run if states are given.
        states: (B, T, h), input of layer `start`; None to begin with the embeddings.
        stop: index after the last layer to run.
    """
    layers = list(decoder.layers)
    lower = layers[:start] if states is None else [_Constant(states), *[_Identity() for _ in range(1, start)]]
    with _replaced_layers(decoder, [*lower, *layers[start:stop], *[_Identity() for _ in layers[stop:]]]):
        yield


@contextmanager
def _replaced_layers(decoder: Any, replacements: Sequence[nn.Module]) -> Iterator[None]:
    layers = decoder.layers
    decoder.layers = nn.ModuleList(replacements)
    try:
        yield
    finally:
        decoder.layers = layers
