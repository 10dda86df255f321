"""Seeds derived from the single seed of the config, one for each random choice."""

import hashlib


def derive_seed(seed: int, *key: str | int) -> int:
    """Return the seed of the random choice named by `key`, such as ("ppo", step).

    Each choice has an independent stream, so that resuming needs no generator state.
    """
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
