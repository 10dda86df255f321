"""One seed in the config; every random choice gets one of its own that follows from it."""

import hashlib


def derive_seed(seed: int, *place: str | int) -> int:
    """A seed for that place, such as ("ppo", step): independent streams, so a resumed run needs no generator state."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
