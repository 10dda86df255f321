"""Seeds derived from the single seed of the config, one for each random choice."""

import hashlib


def derive_seed(seed: int, *place: str | int) -> int:
    """Return the seed of a place, such as ("ppo", step): independent streams need no generator state on resume."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
