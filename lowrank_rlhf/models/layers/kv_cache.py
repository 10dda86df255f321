"""Key-value cache with spare capacity: appending a token does not copy those before it."""

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""Capacity, in tokens, that is added at once. Blocks that grow with every token fragment the heap: on a CPU the gaps
took several times the memory of the cache."""


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
        """Append tokens to every row; return all keys and values."""
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
        """Repeat each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._whole = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows with these indices."""
        super().batch_select_indices(indices)
        self._whole = None


def _roomy(held: Tensor | None, new: Tensor, filled: int) -> Tensor:
    """Return a tensor for `filled` + `ROOM` tokens in the format of `new`, with the contents of `held` copied."""
    whole = new.new_empty(*new.shape[:-2], filled + ROOM, new.shape[-1])
    if held is not None and held.numel():
        whole[:, :, : held.shape[-2]] = held
    return whole


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache for a model; layers with a sliding window keep the implementation of transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
