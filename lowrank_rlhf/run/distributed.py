"""Several processes on one machine, each with the whole model: who does which part, and sums over all of them.

`accelerate launch` and `torchrun` start them, and say in the environment which is which. All run the same program with
the same seeds. Work in independent pieces is dealt out by `share`, each process leaves zeros where others compute, and
`add` makes the results whole again: every process then holds all of them, and takes the same decisions. With one
process both do nothing, and torch.distributed is not imported.
"""

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lowrank_rlhf.errors import StageFailed, UserError

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_DEVICES = "CUDA_VISIBLE_DEVICES"
_TO_BEGIN, _TO_MEET = timedelta(minutes=10), timedelta(days=30)
"""How long a process waits for the others to start, and to come to a meeting: the main one may be asking people. One
that dies is noticed at once."""
_ERROR = "error"


class Stop(Protocol):
    """What knows whether somebody asked for an end."""

    requested: bool

    def check(self, saved: str) -> None:
        """Raises `Stopped` if so."""


class RanOut(MemoryError):
    """Another process that shares the work ran out of memory."""


class Left(StageFailed):
    """Another process of this run has ended, and this one cannot go on without it."""


@dataclass
class _Team:
    rank: int
    count: int
    control: Any
    """Group for a few numbers on the CPU, whatever the device."""
    notes: Any
    """Where a process that fails says why."""
    stop: Stop | None = None
    agreed: bool = False
    """All have heard that a stop was asked for."""


_team: _Team | None = None
_alone = False


def started() -> int:
    """How many processes the launcher started. Raises `UserError` for several machines, and where it is unclear."""
    return _team.count if _team else _from_environment()["WORLD_SIZE"]


def is_main() -> bool:
    """True in the one process that writes into the run's folder and speaks."""
    if _team:
        return _team.rank == 0
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


def count() -> int:
    """How many processes share the work: 1 outside of `joined`, and inside of `alone`."""
    return _team.count if _team and not _alone else 1


def share(items: Sequence[Item]) -> list[Item]:
    """Those of the items that are this process's; every one belongs to exactly one process, some to none may come."""
    return list(items[_team.rank :: _team.count]) if _team and not _alone else list(items)


def add(tensors: Iterable["Tensor"], may_stop: bool = True) -> None:
    """Replace each tensor by its sum over all processes, bit by bit the same in all of them.

    Raises what `meet` raises instead, in all of them: call it before anything is changed for good, or else without
    `may_stop`, and soon after a meeting.
    """
    if count() == 1:
        return
    import torch

    with torch.no_grad():
        alike = [list(group) for _, group in groupby(tensors, lambda tensor: (tensor.device, tensor.dtype))]
        wholes = [torch.cat([part.reshape(-1) for part in parts]) for parts in alike]
        if may_stop:
            meet()  # here: one that finds no memory above tells it there
        for whole, parts in zip(wholes, alike, strict=True):
            _reduce(whole, None)
            for part, total in zip(parts, whole.split([part.numel() for part in parts]), strict=True):
                part.copy_(total.view_as(part))


def meet(number: int = 0, ran_out: bool = False) -> int:
    """Wait until all processes are here; the sum of the numbers that they bring.

    Raises `Stopped` in all of them where a stop was asked for in any, `Left` where one has ended, and `RanOut` where
    another comes because it ran out of memory on the way to where the rest meet.
    """
    if _team is None or count() == 1:
        return number
    import torch

    told = torch.tensor([int(bool(_team.stop and _team.stop.requested)), int(ran_out), number])
    _reduce(told, _team.control)
    asked, out_of_memory, total = told.tolist()
    if asked and _team.stop:
        _team.stop.requested = _team.agreed = True
        _team.stop.check("everything before this stage is saved")
    if out_of_memory and not ran_out:
        raise RanOut("in another process")
    return int(total)


def free_to_stop() -> bool:
    """True where this process may obey a stop by itself: nobody shares its work, or all have heard of it."""
    return count() == 1 or bool(_team and _team.agreed)


@contextmanager
def alone() -> Iterator[None]:
    """What happens inside is this process's alone; the others wait at their next meeting."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


@contextmanager
def listening(stop: Stop) -> Iterator[None]:
    """Inside, a stop that is asked for in one process is told to all at their next meeting."""
    if _team:
        _team.stop = stop
    try:
        yield
    finally:
        if _team:
            _team.stop = None


@contextmanager
def silent_beside_main() -> Iterator[None]:
    """Inside, what any process but the main one prints is not seen."""
    with ExitStack() as stack:
        if not is_main():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that the launcher started work together.

    Libraries see none of it: each process looks like the only one, with one GPU. An error in a process beside the main
    one is left for the main one to tell. Raises `UserError` where they don't find each other or some lack a GPU.
    """
    global _team
    place = _from_environment()
    with _one_gpu(place["LOCAL_RANK"]):
        if place["WORLD_SIZE"] == 1:
            yield
            return
        import torch.distributed as dist

        _team = _begin(place["RANK"], place["WORLD_SIZE"])
        hidden = {name: os.environ.pop(name) for name in _LAUNCHER if name in os.environ}
        try:
            yield
        except BaseException as error:
            if not is_main() and not isinstance(error, Left):
                with suppress(RuntimeError):  # the main process is gone already
                    _team.notes.set(_ERROR, f"process {_team.rank}: {str(error) or type(error).__name__}")
            raise
        finally:
            _team = None
            os.environ.update(hidden)
            dist.destroy_process_group()


@contextmanager
def _one_gpu(place: int) -> Iterator[None]:
    """Inside, the process sees that one of its GPUs only, if CUDA starts there: trl's trainer would spread over all."""
    visible = os.environ.get(_DEVICES)
    os.environ[_DEVICES] = str(place) if visible is None else dict(enumerate(visible.split(","))).get(place, "")
    try:
        yield
    finally:
        os.environ.pop(_DEVICES)
        if visible is not None:
            os.environ[_DEVICES] = visible


def _begin(rank: int, count: int) -> _Team:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nobody else need reach these sockets
    import torch
    import torch.distributed as dist

    logging.getLogger("transformers.training_args").setLevel(logging.ERROR)  # it wonders at processes not its own
    gpu = torch.cuda.is_available()
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=_TO_BEGIN))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=rank, world_size=count, timeout=_TO_BEGIN
        )
        control = dist.new_group(backend="gloo", timeout=_TO_MEET)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {count} processes don't find each other: {str(error).partition(chr(10))[0]}") from None
    with_gpu = torch.tensor([int(gpu)])
    dist.all_reduce(with_gpu, group=control)
    if int(with_gpu) not in (0, count):
        raise UserError(
            f"{int(with_gpu)} of {count} processes found a GPU: start as many processes as there are GPUs, or hide "
            f"these ({_DEVICES}= in front of the command)"
        )
    return _Team(rank, count, control, dist.PrefixStore("lowrank_rlhf", store))


def _reduce(tensor: "Tensor", group: Any) -> None:
    import torch.distributed as dist

    try:
        dist.all_reduce(tensor, group=group)
    except RuntimeError:
        assert _team  # noqa: S101 - nothing is reduced alone
        why = _team.notes.get(_ERROR).decode() if is_main() and _team.notes.check([_ERROR]) else None
        raise Left(
            why or "a process of this run was killed or broke down; the same command goes on from the last checkpoint"
        ) from None


def _from_environment() -> dict[str, int]:
    found = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        for name in _LAUNCHER:
            if name in os.environ:
                try:
                    found[name] = int(os.environ[name])
                except ValueError:
                    raise UserError(f"{name}: {os.environ[name]!r} in the environment is not a number") from None
        if found.get("LOCAL_WORLD_SIZE", found["WORLD_SIZE"]) != found["WORLD_SIZE"]:
            raise UserError(
                "started on several machines: all processes must be on one; docs/more_than_one_gpu.md says where to "
                "go beyond"
            )
    return found
