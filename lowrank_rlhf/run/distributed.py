"""Data parallelism over several processes, each with the whole model.

`accelerate launch` or `torchrun` starts the processes and passes rank and world size in the environment. All run the
same program with the same seeds. `ProcessGroup.shard` divides independent work; each process leaves zeros for the
results of the others, and `ProcessGroup.all_reduce` sums them up: afterwards every process has the whole result and
takes the same decisions. A group of one process, the default everywhere, does neither and imports no torch.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run import launcher
from lowrank_rlhf.run.heartbeat import Heartbeat, ProcessLost

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")

_DEVICES = "CUDA_VISIBLE_DEVICES"
_START_TIMEOUT, _BARRIER_TIMEOUT = timedelta(minutes=10), timedelta(days=30)
"""The main process may wait for people between two barriers. A process that dies is noticed immediately."""
_INTERFACE = "GLOO_SOCKET_IFNAME"


class Stop(Protocol):
    """Source of stop requests."""

    requested: bool

    def check(self, saved: str) -> None:
        """Raise `Stopped` if a stop was requested."""


class OutOfMemoryElsewhere(MemoryError):
    """Another process of the group ran out of memory."""


class ProcessGroup:
    """Processes that share the work of a run; without arguments a group of this process alone.

    `pipeline.run` hands the group down to the base model, so that `roles.group` reaches everything that computes.

    Args:
        rank: number of this process, from 0.
        processes: number of processes.
        control: group of torch.distributed for a few numbers on the CPU, whatever the device.
        beats: beats of all processes.
    """

    def __init__(
        self,
        rank: int = 0,
        processes: int = 1,
        control: Any = None,
        beats: Heartbeat | None = None,
    ) -> None:
        self._rank, self._control, self._beats = rank, control, beats
        self.processes = processes
        """Number of processes, within `single_process` too."""
        self.stop: Stop | None = None
        """Asked at every barrier: a request to one process stops all. Set by `StopRequest` while it is active."""
        self.on_gather: Callable[[int], None] = lambda _: None
        """Gathers a layer of the base, with all processes; set by `ShardedLayers`."""
        self._stop_agreed = False
        self._single = False

    @property
    def world_size(self) -> int:
        """Number of processes that share the work at the moment; 1 within `single_process`."""
        return 1 if self._single else self.processes

    @property
    def rank(self) -> int:
        """Number of this process among those that share the work, from 0."""
        return 0 if self._single else self._rank

    @property
    def is_main(self) -> bool:
        """True in the one process that writes to the run folder and to the terminal."""
        return self._rank == 0

    @property
    def can_stop(self) -> bool:
        """True if a stop needs no agreement: no other process shares the work, or all know of the request."""
        return self.world_size == 1 or self._stop_agreed

    def shard(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's items: each item belongs to one process, and a process may get none."""
        return list(items[self.rank :: self.world_size])

    def all_reduce(self, tensors: Iterable["Tensor"], barrier: bool = True) -> None:
        """Replace each tensor by its sum over all processes, bit-identical in all of them.

        With `barrier`, raises the exceptions of `barrier` in all processes: call it before weights change. Without,
        call it soon after a barrier.
        """
        if self.world_size == 1:
            return
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            alike = [list(group) for _, group in groupby(tensors, lambda tensor: (tensor.device, tensor.dtype))]
            flat = [torch.cat([part.reshape(-1) for part in parts]) for parts in alike]  # one transfer for each dtype
            if barrier:
                self.barrier()  # after the allocations above: a process that lacks memory for them reports it here
            for whole, parts in zip(flat, alike, strict=True):
                self._complete(dist.all_reduce, whole)
                for part, total in zip(parts, whole.split([part.numel() for part in parts]), strict=True):
                    part.copy_(total.view_as(part))

    def barrier(self) -> None:
        """Wait for all processes.

        Raises `Stopped` in all of them if any received a stop request, `ProcessLost` if one has ended or no longer
        answers, which is noticed within a minute, and `OutOfMemoryElsewhere` if another called
        `report_out_of_memory`.
        """
        self._synchronize()

    def sum(self, number: int) -> int:
        """Return the sum of the processes' numbers. Also a barrier, with its exceptions."""
        return self._synchronize(number)

    def report_out_of_memory(self) -> None:
        """Take part in the other processes' next barrier, which raises `OutOfMemoryElsewhere` there."""
        self._synchronize(out_of_memory=True)

    @contextmanager
    def single_process(self) -> Iterator[None]:
        """Run the block in this process only; the others wait at their next barrier. Blocks may be nested."""
        before, self._single = self._single, True
        try:
            yield
        finally:
            self._single = before

    def broadcast(self, data: bytes) -> bytes:
        """Return the main process's bytes in all processes. Also a barrier, with its exceptions."""
        size = self._synchronize(len(data) if self.is_main else 0)
        if self.world_size == 1 or not size:
            return data if self.is_main else b""
        import torch
        import torch.distributed as dist

        tensor = torch.frombuffer(bytearray(data if self.is_main else size), dtype=torch.uint8)
        self._complete(dist.broadcast, tensor, 0, group=self._control)
        return data if self.is_main else tensor.numpy().tobytes()

    def leave_error(self, error: BaseException) -> None:
        """Store the error for the other processes, whose next barrier raises it as `ProcessLost`."""
        if self._beats:
            self._beats.leave_error(error)

    def end(self) -> None:
        """Stop the heartbeat, before this process leaves the group."""
        if self._beats:
            self._beats.end()

    def gather(self, layer: int) -> None:
        """Call `on_gather(layer)` in all processes: those that need the layer, and those that wait at a barrier."""
        self._meet([0, 0, 0], layer)

    def all_gather(self, whole: "Tensor", part: "Tensor") -> None:
        """Fill `whole` with the parts of all processes, in all of them; for `on_gather`."""
        import torch.distributed as dist

        self._complete(getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor, whole, part)

    def _synchronize(self, number: int = 0, out_of_memory: bool = False) -> int:
        """Combine barrier, sum, stop requests and lack of memory in one reduction, so that any two of them match."""
        if self.world_size == 1:
            return number
        own = [int(bool(self.stop and self.stop.requested)), int(out_of_memory), number]
        stop_requests, lacking, total = self._meet(own)
        if stop_requests and self.stop:
            self.stop.requested = self._stop_agreed = True
            self.stop.check("everything before this stage is saved")
        if lacking and not out_of_memory:
            raise OutOfMemoryElsewhere("in another process")
        return int(total)

    def _meet(self, own: list[int], layer: int | None = None) -> list[int]:
        """Sum up the processes' numbers when all are at a barrier; until then gather the layers that some need.

        The first process's layer comes first: the others meet it where it comes to theirs, and compute side by side.
        """
        import torch
        import torch.distributed as dist

        needed = [0] * self.processes  # by each process, from 1
        needed[self._rank] = 0 if layer is None else layer + 1
        while True:
            counts = torch.tensor([*own, *needed])
            self._complete(dist.all_reduce, counts, group=self._control)
            totals = counts.tolist()
            chosen = next(filter(None, totals[len(own) :]), 0)
            if chosen:
                self.on_gather(chosen - 1)
            if chosen == needed[self._rank]:
                return totals[: len(own)]

    def _complete(self, operation: Callable[..., Any], *given: Any, group: Any = None) -> None:
        """Make an operation on tensors with all processes."""
        if given[0].is_cuda:  # soon after a barrier on the CPU, whose wait is watched
            operation(*given, group=group)
        else:
            self._wait(operation(*given, group=group, async_op=True))

    def _wait(self, work: Any) -> None:
        if self._beats:
            self._beats.wait(work)
        else:
            work.wait()


@contextmanager
def join() -> Iterator[ProcessGroup]:
    """Connect the processes that the launcher started, for the duration of the block.

    Libraries do not notice: each process looks like the only one, with one GPU. The main process raises the error of
    another one. Raises `UserError` if they cannot connect, or if only some have a GPU.
    """
    given = launcher.environment()
    with _one_gpu(given["LOCAL_RANK"]):
        if given["WORLD_SIZE"] == 1:
            yield ProcessGroup()
            return
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is a sentence, not a trace of frames
        import torch.distributed as dist

        group = _connect(given)
        try:
            with launcher.hide():
                yield group
        except BaseException as error:
            if not isinstance(error, ProcessLost):
                group.leave_error(error)
            raise
        finally:
            group.end()
            dist.destroy_process_group()


@contextmanager
def _one_gpu(local_rank: int) -> Iterator[None]:
    """Make one GPU visible to this process, if CUDA starts in the block: TRL's trainer would use all of them."""
    visible = os.environ.get(_DEVICES)
    os.environ[_DEVICES] = (
        str(local_rank) if visible is None else dict(enumerate(visible.split(","))).get(local_rank, "")
    )
    try:
        yield
    finally:
        os.environ.pop(_DEVICES)
        if visible is not None:
            os.environ[_DEVICES] = visible


def _connect(given: dict[str, int]) -> ProcessGroup:
    rank, processes = given["RANK"], given["WORLD_SIZE"]
    if sys.platform == "linux" and _INTERFACE not in os.environ:
        several = launcher.on_several_machines(given)
        os.environ[_INTERFACE] = launcher.interface_towards(os.environ.get("MASTER_ADDR", "")) if several else "lo"
    import torch
    import torch.distributed as dist

    logging.getLogger("transformers.training_args").setLevel(logging.ERROR)  # it warns about a group it did not make
    gpu = torch.cuda.is_available()
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=_START_TIMEOUT))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=store,
            rank=rank,
            world_size=processes,
            timeout=_START_TIMEOUT,
        )
        control = dist.new_group(backend="gloo", timeout=_BARRIER_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the {processes} processes cannot connect to each other: {reason}") from None
    with_gpu = torch.tensor([int(gpu)])
    dist.all_reduce(with_gpu, group=control)
    if int(with_gpu) not in (0, processes):
        raise UserError(
            f"GPU found in {int(with_gpu)} of {processes} processes. Start one process per GPU, or hide the GPUs "
            f"({_DEVICES}= before the command)"
        )
    store = dist.PrefixStore("lowrank_rlhf", store)
    return ProcessGroup(rank, processes, control, Heartbeat(store, rank, processes, rank - given["LOCAL_RANK"]))
