"""What a stage says when its training breaks down."""

from collections.abc import Iterator
from contextlib import contextmanager

from lowrank_rlhf.errors import StageFailed
from lowrank_rlhf.models.stepping import NotFinite


@contextmanager
def explained(stage: str, step: int, rate: str) -> Iterator[None]:
    """Around one step: `NotFinite` becomes a `StageFailed` that says where, what, and what to try.

    `rate` is the setting that most often mends it.
    """
    try:
        yield
    except NotFinite as error:
        raise StageFailed(
            f"{stage}: step {step}: {error}. Training stopped before that could spoil a weight. Lower {rate}, or set "
            f"model.compute_dtype: float32 where it is not; then make the stage again with --redo {stage}"
        ) from None
