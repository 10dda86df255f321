"""Decoding steps: on a growing cache, or on a GPU as one recorded graph that is replayed.

A step of a small model is a thousand short kernels, and launching them from Python takes far longer than running them.
A CUDA graph launches them all at once, but only the contents of its tensors may change between steps: the cache has its
full length from the beginning, and the mask covers the unfilled part.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.layers.kv_cache import RoomyLayer, growing_cache


class DecodingSteps(Protocol):
    """Decoding of a batch of rows after their prompts, one token per call."""

    drop_below: float
    """Share of unfinished rows at which to drop finished ones, which costs a copy of the cache or a new recording."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append a token to each row, (N,); return its last hidden states, (N, h), valid until the next call."""

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows with these indices, (M,)."""


def begin(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    pad: int,
    repeats: int,
    more: int,
    poll: Callable[[], None] | None = None,
) -> tuple[Tensor, DecodingSteps]:
    """Read each of P prompts once; return the states after them, (P x repeats, h), and the steps, at most `more`.

    With `poll` the step is recorded where device and model allow it. A replayed graph calls no forward hooks, so every
    step calls `poll` instead.
    """
    ids, attention = left_padded(prompts, pad)
    ids, attention = ids.to(model.device), attention.to(model.device)  # (P, T)
    cache = growing_cache(model.config)
    position = (attention.cumsum(-1) - 1).clamp(min=0)
    states = _forward(model, ids, attention, position, cache)  # (P, h)
    cache.batch_repeat_interleave(repeats)
    states, attention = (tensor.repeat_interleave(repeats, 0) for tensor in (states, attention))
    position = position[:, -1:].repeat_interleave(repeats, 0)
    if poll is not None and model.device.type == "cuda" and of_fixed_shape(model, cache):
        return states, RecordedSteps(model, cache, attention, position, more, poll)
    return states, GrowingSteps(model, cache, attention, position)


def of_fixed_shape(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Return True if every step runs the same kernels: no sliding window, no positions scaled by the length."""
    text = model.config.get_text_config()
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    capped = getattr(text, "attn_logit_softcapping", None) is not None  # its attention adds the mask; ours is boolean
    return not capped and rope not in ("dynamic", "longrope") and all(type(la) is RoomyLayer for la in cache.layers)


class GrowingSteps:
    """One forward per step, on a growing cache."""

    drop_below = 0.75

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, attention: Tensor, position: Tensor):
        self.model, self.cache, self.attention, self.position = model, cache, attention, position

    def __call__(self, tokens: Tensor) -> Tensor:
        """See `DecodingSteps`."""
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], -1)
        self.position = self.position + 1
        return _forward(self.model, tokens[:, None], self.attention, self.position, self.cache)

    def keep(self, rows: Tensor) -> None:
        """See `DecodingSteps`."""
        self.cache.batch_select_indices(rows)
        self.attention, self.position = self.attention[rows], self.position[rows]


class RecordedSteps:
    """One step on a cache of full length, recorded at the first call and after every `keep`; not recorded on a CPU."""

    drop_below = 0.5

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        attention: Tensor,
        position: Tensor,
        more: int,
        poll: Callable[[], None],
    ):
        held = attention.shape[-1]
        self.model, self.position, self.poll = model, position, poll
        self.place = torch.tensor([held], device=attention.device)
        self.mask = torch.zeros(len(attention), 1, 1, held + more, dtype=torch.bool, device=attention.device)
        self.mask[..., :held] = attention[:, None, None].bool()
        for index, layer in enumerate(cache.layers):  # one at a time: two full caches need not fit
            cache.layers[index] = _FixedLayer(layer, held + more, self.place)
        self.cache = cache
        self.ids = torch.zeros_like(position)
        self.graph: Any = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """See `DecodingSteps`."""
        self.poll()
        self.ids.copy_(tokens[:, None])
        self.position.add_(1)
        self.mask.index_fill_(-1, self.place, value=True)
        if self.graph is None:
            self._record()
        if self.graph is not None:
            self.graph.replay()
        self.place.add_(1)
        return self.states

    def keep(self, rows: Tensor) -> None:
        """See `DecodingSteps`."""
        self.graph = None
        self.cache.batch_select_indices(rows)
        self.mask, self.position, self.ids = (tensor[rows] for tensor in (self.mask, self.position, self.ids))

    def _record(self) -> None:
        self.states = self._forward()
        if self.model.device.type != "cuda":
            return
        self._forward()  # a second warm-up before the recording, as PyTorch requires: kernels choose their workspaces
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.states = self._forward()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(
                f"model.cuda_graphs: a decoding step of {type(self.model).__name__} cannot be recorded "
                f"({str(error).partition(chr(10))[0]}); set it to false"
            ) from None
        self.graph = graph

    def _forward(self) -> Tensor:
        """Run the step; repeating it writes the same keys and values to the same position."""
        return _forward(self.model, self.ids, self.mask, self.position, self.cache)


class _FixedLayer(DynamicLayer):
    """Keys and values of full length, (rows, heads, total, d); new ones are written at position `place`, (1,)."""

    def __init__(self, filled: Any, total: int, place: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(filled.keys, filled.values)
        self.keys, self.values = _lengthened(filled.keys, total), _lengthened(filled.values, total)
        self.place = place

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: object,  # noqa: ARG002 - transformers' signature
        **kwargs: object,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Write one token of every row; return all keys and values, unfilled positions included."""
        whole: Any = (self.keys, self.values)
        for held, new in zip(whole, (key_states, value_states), strict=True):
            held.index_copy_(2, self.place, new)
        return whole


def _lengthened(held: Tensor, total: int) -> Tensor:
    whole = held.new_zeros(*held.shape[:-2], total, held.shape[-1])
    whole[:, :, : held.shape[-2]] = held
    return whole


def _forward(model: PreTrainedModel, ids: Tensor, attention: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    output = model.get_decoder()(
        input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True
    )
    states: Tensor = output.last_hidden_state[:, -1]
    return states


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask of N prompts, (N, T) each, all ending in the last column."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, attention
