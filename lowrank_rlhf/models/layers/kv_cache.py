"""A key-value cache that has room to grow, so that a new token is written and not everything before it copied."""

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""Tokens that are made room for at once. In a heap blocks that grow with every token leave gaps behind them: on a CPU
they held several times what the cache itself takes."""


class RoomyLayer(DynamicLayer):
    """`keys` and `values` are the filled part of larger tensors, (rows, heads, tokens, d)."""

    def __init__(self) -> None:
        super().__init__()
        self._whole: tuple[Tensor, Tensor] | None = None

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: object,  # noqa: ARG002 - transformers' signature
        **kwargs: object,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Add tokens to every row; all keys and values, old and new."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        filled = held + key_states.shape[-2]
        if self._whole is None or self._whole[0].shape[-2] < filled:
            self._whole = (_roomy(self.keys, key_states, filled), _roomy(self.values, value_states, filled))
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, held:filled] = new
        self.keys, self.values = (whole[:, :, :filled] for whole in self._whole)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times."""
        super().batch_repeat_interleave(repeats)
        self._whole = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only those rows."""
        super().batch_select_indices(indices)
        self._whole = None


def _roomy(held: Tensor | None, new: Tensor, filled: int) -> Tensor:
    """A tensor for `filled` tokens and `ROOM` more, like `new`, with what is held already."""
    whole = new.new_empty(*new.shape[:-2], filled + ROOM, new.shape[-1])
    if held is not None and held.numel():
        whole[:, :, : held.shape[-2]] = held
    return whole


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model of that config; layers with a sliding window stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
