"""Count the operations that PyTorch dispatches, views aside: each costs host time, whatever its size."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = ("aten::_unsafe_view", "aten::detach", "aten::lift_fresh")
"""Operations that copy nothing, beside those with a view in their schema."""


class OperationCount(TorchDispatchMode):
    """Number of operations inside the block by name, forward and backward, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count and run one operation."""
        if not func.is_view and func.name().partition(".")[0] not in _VIEWS:
            self.by_name[func.name()] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Number of all operations."""
        return self.by_name.total()


def count(function: Callable[[], object]) -> int:
    """Return the number of operations that a function runs."""
    with OperationCount() as operations:
        function()
    return operations.total


def on_gpu_attention(model: Any) -> None:
    """Use the attention of a GPU: on a CPU ours is a dozen operations instead of one."""
    model.get_decoder().set_attn_implementation("sdpa")


