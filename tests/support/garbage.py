"""No collection of garbage: PPO does it twice a step, and among pytest's objects it takes longer than the step."""

from types import SimpleNamespace


def collect_nothing() -> None:
    """Turn the package's collections off in this process."""
    from lowrank_rlhf.models import allocator

    allocator.gc = SimpleNamespace(**dict.fromkeys(("collect", "freeze", "unfreeze"), lambda: None))
