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
from lowrank_rlhf.models.batch_limits import first_line
from lowrank_rlhf.models.layers.attention import NAME as SHORT_ATTENTION
from lowrank_rlhf.models.layers.kv_cache import GrowingLayer, growing_cache, select_rows


class DecodingSteps(Protocol):
    """Decoding of a batch of rows after their prompts, one token per call."""

    drop_below: float
    """Share of unfinished rows at which to drop finished ones, which costs a copy of the cache or a new recording."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append a token to each row, (N,); return its last hidden states, (N, h), valid until the next call."""

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows with these indices, (M,)."""


def prefill(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    pad: int,
    repeats: int,
    max_steps: int,
    poll: Callable[[], None] | None = None,
) -> tuple[Tensor, DecodingSteps]:
    """Run P prompts through the model; return their last states, (P x repeats, h), and up to `max_steps` further steps.

    With `poll` the step is recorded if device and model allow it. A replayed graph calls no forward hooks, so every
    step calls `poll` instead.
    """
    ids, attention = left_padded(prompts, pad)
    ids, attention = ids.to(model.device), attention.to(model.device)  # (P, T)
    cache = growing_cache(model.config)
    position = (attention.cumsum(-1) - 1).clamp(min=0)  # (P, T): padding on the left counts for nothing
    states = _forward(model, ids, attention, position, cache)  # (P, h)
    rows = torch.arange(len(prompts), device=model.device).repeat_interleave(repeats)  # one prefill per prompt, then
    select_rows(cache, rows)  # K rows each, P -> P x K; the caches of linear attention have this way to select only
    states, attention, position = states[rows], attention[rows], position[rows, -1:]
    if poll is not None and model.device.type == "cuda" and has_plain_attention(model, cache):
        return states, RecordedSteps(model, cache, attention, position, max_steps, poll)
    return states, GrowingSteps(model, cache, attention, position)


def has_plain_attention(model: PreTrainedModel, cache: DynamicCache) -> bool:
    """Return True if every token attends by mask and position alone: no sliding window, no positions scaled by length.

    Every decoding step then runs the same kernels.
    """
    text = model.config.get_text_config(decoder=True)
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    boolean = text._attn_implementation in ("sdpa", SHORT_ATTENTION)  # others add the mask, which is boolean here
    return boolean and rope not in ("dynamic", "longrope") and all(type(la) is GrowingLayer for la in cache.layers)


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
        select_rows(self.cache, rows)
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
        max_steps: int,
        poll: Callable[[], None],
    ):
        length = attention.shape[-1]
        self.model, self.position, self.poll = model, position, poll
        self.next_index = torch.tensor([length], device=attention.device)
        self.mask = torch.zeros(len(attention), 1, 1, length + max_steps, dtype=torch.bool, device=attention.device)
        self.mask[..., :length] = attention[:, None, None].bool()
        for index, layer in enumerate(cache.layers):  # one at a time: two full caches need not fit
            cache.layers[index] = _FixedLayer(layer, length + max_steps, self.next_index)
        self.cache = cache
        self.ids = torch.zeros_like(position)
        self.graph: Any = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """See `DecodingSteps`."""
        self.poll()
        self.ids.copy_(tokens[:, None])
        self.position.add_(1)
        self.mask.index_fill_(-1, self.next_index, value=True)
        if self.graph is None:
            self._record()
        if self.graph is not None:
            self.graph.replay()
        self.next_index.add_(1)
        return self.states

    def keep(self, rows: Tensor) -> None:
        """See `DecodingSteps`."""
        self.graph = None
        select_rows(self.cache, rows)
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
                f"({first_line(error)}). Set it to false"
            ) from None
        self.graph = graph

    def _forward(self) -> Tensor:
        """Run the step; repeating it writes the same keys and values to the same position."""
        return _forward(self.model, self.ids, self.mask, self.position, self.cache)


class _FixedLayer(DynamicLayer):
    """Keys and values of full length, (rows, heads, total, d); new ones are written at `index`, (1,)."""

    def __init__(self, filled: Any, total: int, index: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(filled.keys, filled.values)
        self.keys, self.values = _lengthened(filled.keys, total), _lengthened(filled.values, total)
        self.index = index

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: object,  # noqa: ARG002 - transformers' signature
        **kwargs: object,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Write one token of every row; return all keys and values, unfilled positions included."""
        whole: Any = (self.keys, self.values)
        for tensor, new in zip(whole, (key_states, value_states), strict=True):
            tensor.index_copy_(2, self.index, new)  # (rows, heads, 1, d)
        return whole


def _lengthened(filled: Tensor, total: int) -> Tensor:
    whole = filled.new_zeros(*filled.shape[:-2], total, filled.shape[-1])
    whole[:, :, : filled.shape[-2]] = filled
    return whole


def _forward(model: PreTrainedModel, ids: Tensor, attention: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    output = model.get_decoder()(
        input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True
    )
    states: Tensor = output.last_hidden_state[:, -1]  # (N, T, h) -> (N, h)
    return states


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask of N prompts, (N, T) each, all ending in the last column."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, attention
