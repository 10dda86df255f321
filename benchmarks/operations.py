"""Count the operations of a pass, and time a switch of role and a merge: host time, whatever the size of a batch."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.setting import SMOLLM2, make_prompts, make_roles
from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models.layers.merging import merged
from lowrank_rlhf.models.roles import Role, Roles

_VIEWS = ("aten::_unsafe_view", "aten::lift_fresh")
"""Operations that copy nothing, beside those with a view in their schema."""
_WAITING = (
    "item", "tolist", "numpy", "cpu", "nonzero", "masked_select", "unique",
    "__bool__", "__int__", "__float__", "__index__",
)  # fmt: skip
"""Calls that need the result of all work before them."""


class OperationCount(TorchDispatchMode):
    """Operations inside the block by name, forward and backward, without views."""

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


class HostWaits(TorchFunctionMode):
    """Reads of results inside the block (`.item()`, a mask as an index), by name: Python waits there for a GPU.

    Reads are counted on any device. Copies between devices (`.to()`, `.copy_()`) are not, and may wait too. An
    optimizer's own reads are among them, whose steps are counted on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count and run one call."""
        name = getattr(func, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        masks = (part for part in (index if isinstance(index, tuple) else (index,)) if isinstance(part, torch.Tensor))
        if name in _WAITING or any(mask.dtype == torch.bool for mask in masks):
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def attention_of_gpus(roles: Roles) -> Iterator[None]:
    """Use `sdpa` inside the block: on a CPU our own attention is twenty operations instead of two."""
    own = roles.decoder.config._attn_implementation
    roles.decoder.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        roles.decoder.set_attn_implementation(own)


def operations_per_pass(roles: Roles, rows: Sequence[Sequence[int]]) -> int:
    """Return the operations of one forward and backward as policy, after `zero_grad`, with the attention of a GPU."""
    half = len(rows[0]) // 2
    batch = pack([row[:half] for row in rows], [row[half:] for row in rows], roles.base.pad, device=roles.base.device)
    with attention_of_gpus(roles), roles.acting_as(Role.POLICY, train=True), OperationCount() as operations:
        roles.backward(roles.logprobs(batch, 1.0).logprobs.sum())
    for parameter in roles.parameters(Role.POLICY):
        parameter.grad = None
    return operations.by_name.total()


def role_switch_ms(roles: Roles) -> float:
    """Return the milliseconds of entering and leaving a block, the mean of one that reads and one that trains."""

    def two_blocks() -> None:
        with roles.acting_as(Role.REWARD):
            pass
        with roles.acting_as(Role.POLICY, train=True):
            pass

    return _milliseconds(two_blocks, 20) / 2


def merge_ms(roles: Roles) -> float:
    """Return the milliseconds of merging the policy, which happens once a rollout."""

    def merge() -> None:
        with merged(roles, Role.POLICY):
            _wait(roles)

    return _milliseconds(merge, 5)


def host_figures(roles: Roles) -> dict[str, float]:
    """Return the three figures, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            "operations_per_pass": operations_per_pass(roles, make_prompts(roles.base, 2, 16)),
            "role_switch_ms": round(role_switch_ms(roles), 3),
            "merge_ms": round(merge_ms(roles), 1),
        }
    finally:
        torch.set_num_threads(threads)


def _milliseconds(function: Callable[[], object], times: int) -> float:
    """Return the median time of a call, after one that is not counted."""
    function()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)


def _wait(roles: Roles) -> None:
    if roles.base.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, help="a folder, a GGUF file, pypi:... or a hub id")
    parser.add_argument("--quantization", choices=("nf4", "int8", "gguf", "none"), default="nf4")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    given = parser.parse_args()
    roles = make_roles(source=given.model, quantization=given.quantization, compute_dtype=given.dtype)
    print(json.dumps(host_figures(roles)))


if __name__ == "__main__":
    main()
