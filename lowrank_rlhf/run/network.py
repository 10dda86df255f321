"""Network interface through which a process reaches the other machines of its run."""

import socket

import psutil

from lowrank_rlhf.errors import UserError

_ANY_PORT = 9


def interface_towards(address: str) -> str:
    """Return the name of the interface that packets to an address leave by; nothing is sent.

    Raises `UserError` for an address that is not known, and for one that means this machine alone.
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
