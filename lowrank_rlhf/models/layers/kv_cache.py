"""Key-value cache with spare capacity: appending a token does not copy those before it."""

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE_TOKENS = 32
"""Tokens of capacity that are added at once. Tensors that grow with every token fragment the heap: on a CPU the gaps
took several times the memory of the cache."""


class GrowingLayer(DynamicLayer):
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
        length = self.get_seq_length()
        filled = length + key_states.shape[-2]
        if self._whole is None or self._whole[0].shape[-2] < filled:
            self._whole = (_grown(self.keys, key_states, filled), _grown(self.values, value_states, filled))
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, length:filled] = new  # (rows, heads, new tokens, d)
        self.keys, self.values = (whole[:, :, :filled] for whole in self._whole)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows by their indices; a row may be selected several times."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._whole = None


def _grown(old: Tensor | None, new: Tensor, filled: int) -> Tensor:
    """Return a tensor like `new` for `filled` + `SPARE_TOKENS` tokens that starts with the contents of `old`."""
    whole = new.new_empty(*new.shape[:-2], filled + SPARE_TOKENS, new.shape[-1])
    if old is not None and old.numel():
        whole[:, :, : old.shape[-2]] = old
    return whole


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache for a model; layers with a sliding window keep the implementation of transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep the rows with these indices, each as often as it is named."""
    cache.reorder_cache(rows)  # type: ignore[arg-type] # transformers names a type of CPU tensors
