"""The growing cache equals transformers' cache after prefill, copies, growth and dropped rows."""

import torch
from transformers import DynamicCache, Gemma2Config, LlamaConfig

from lowrank_rlhf.models.layers.kv_cache import SPARE_TOKENS, growing_cache

CONFIG = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, num_key_value_heads=1)


def test_it_holds_what_transformers_own_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = growing_cache(CONFIG), DynamicCache(config=CONFIG)
    rows = 2

    def add(tokens: int) -> None:
        for layer in range(2):
            new = [torch.randn(rows, 1, tokens, 4, generator=generator) for _ in range(2)]
            for found, expected in zip(ours.update(*new, layer), theirs.update(*new, layer), strict=True):
                assert torch.equal(found, expected)

    add(5)
    ours.reorder_cache(torch.tensor([0, 0, 0, 1, 1, 1]))
    theirs.batch_repeat_interleave(3)
    rows = 6
    for _ in range(SPARE_TOKENS + 2):  # beyond the room that is made at once
        add(1)
    kept = torch.tensor([0, 2, 5])
    ours.reorder_cache(kept)
    theirs.batch_select_indices(kept)
    rows = 3
    for _ in range(3):
        add(1)
    assert ours.get_seq_length() == theirs.get_seq_length() == 5 + SPARE_TOKENS + 2 + 3


def test_a_new_token_moves_no_old_one() -> None:
    cache = growing_cache(CONFIG)
    new = torch.ones(2, 1, 1, 4)
    places = [cache.update(new, new, 0)[0].data_ptr() for _ in range(SPARE_TOKENS)]
    assert len(set(places)) == 1


def test_sliding_windows_stay_transformers_own() -> None:
    config = Gemma2Config(num_hidden_layers=2, sliding_window=4)
    kinds = [type(layer).__name__ for layer in growing_cache(config).layers]
    assert len(set(kinds)) == 2
    assert [kind for kind in kinds if "Sliding" in kind]
