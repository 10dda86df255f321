"""Environment that `accelerate launch`, `torchrun` or MPI gives to each process."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

import psutil

from lowrank_rlhf.errors import UserError

_HERE = "LOCAL_WORLD_SIZE"
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", _HERE)
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
"""Numbers of processes that implementations of MPI set."""
_ACCELERATE = "ACCELERATE_MIXED_PRECISION"
"""Set by `accelerate launch`, also where it starts a single process."""
_WAY_OUT = "Start them with `torchrun --nproc_per_node N -m lowrank_rlhf run ...` (docs/more_than_one_gpu.md)"
_ANY_PORT = 9
_hidden: dict[str, str] = {}


@contextmanager
def hide() -> Iterator[None]:
    """Hide the process's rank and number from libraries for the duration of the block, but not from this module."""
    _hidden.update({name: os.environ.pop(name) for name in NAMES if name in os.environ})
    try:
        yield
    finally:
        os.environ.update(_hidden)
        _hidden.clear()


def launched_processes() -> int:
    """Return the number of processes that the launcher started.

    Raises `UserError` as `environment` does.
    """
    return environment()["WORLD_SIZE"]


def processes_here() -> int:
    """Return the number of processes that the launcher started on this machine.

    Raises `UserError` for a value that is no number.
    """
    return max(1, _number(_HERE)) if _HERE in _given() else 1


def is_main_process() -> bool:
    """Return True in the main process."""
    return "WORLD_SIZE" not in _given() or _given().get("RANK", "0") == "0"


def on_several_machines(given: dict[str, int]) -> bool:
    """Return True if the launcher started processes on other machines too, by `environment`."""
    return given.get(_HERE, given["WORLD_SIZE"]) != given["WORLD_SIZE"]


@contextmanager
def silence_other_processes() -> Iterator[None]:
    """Discard the output of every process except the main one.

    The first process of each other machine prints its errors there.
    """
    with ExitStack() as stack:
        if not is_main_process():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            if _given().get("LOCAL_RANK") != "0":
                stack.enter_context(redirect_stderr(nowhere))
        yield


def is_launched() -> bool:
    """Return True if a launcher started this process, alone or with others."""
    return any(name in _given() for name in (*NAMES, _ACCELERATE))


def environment() -> dict[str, int]:
    """Return rank, number of processes and place on this machine; those of a single process without a launcher.

    Raises `UserError` for values that are not numbers, and if the launcher was asked for several processes but this one
    would work alone: each would make a whole run.
    """
    given = {name: _number(name) for name in NAMES if name in _given()}
    found = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0} | given
    if ("RANK" in given) != ("WORLD_SIZE" in given) and max(found["RANK"], found["WORLD_SIZE"] - 1) > 0:
        raise UserError(f"the environment has only one of RANK and WORLD_SIZE. {_WAY_OUT}")
    if "WORLD_SIZE" not in given:
        _refuse_copies()
    return found


def interface_towards(address: str) -> str:
    """Return the name of the interface that packets to an address leave by; nothing is sent.

    Raises `UserError` for an unknown address or a loopback address.
    """
    try:
        found = socket.getaddrinfo(address, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(found[0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[4])
            own = probe.getsockname()[0]
    except OSError as error:
        raise UserError(f"the main machine, {address}, cannot be reached: {error.strerror}") from None
    interfaces = psutil.net_if_addrs().items()
    name = next((name for name, addresses in interfaces if own in {each.address for each in addresses}), None)
    if name is None or own.startswith("127.") or own == "::1":
        raise UserError(
            f"{address} is an address of this machine alone, and the other machines cannot reach it. Pass torchrun an "
            "address of the network (--master_addr, or --rdzv_endpoint with --local_addr), or set GLOO_SOCKET_IFNAME "
            "to the interface"
        )
    return name


def _refuse_copies() -> None:
    """Raise `UserError` if a launcher was asked for several processes and gave none of them a rank."""
    if several := next((name for name in _MPI if name in os.environ and _number(name) > 1), None):
        raise UserError(
            f"MPI started {os.environ[several]} processes ({several}), and each would make a whole run. {_WAY_OUT}"
        )
    if _ACCELERATE in os.environ and "MASTER_ADDR" in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes or machines (MASTER_ADDR is set), but this process "
            f"found no other: it would make a whole run. {_WAY_OUT}, or set --num_machines 1 --num_processes 1"
        )


def _given() -> dict[str, str]:
    return os.environ | _hidden


def _number(name: str) -> int:
    value = _given()[name]
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name}: expected a number in the environment, got {value!r}") from None
