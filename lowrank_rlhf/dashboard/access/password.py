"""The password of a page: one environment variable, one minimum length, and a limit on wrong attempts."""

import ipaddress
import math
import os
import time
from collections import deque

from lowrank_rlhf.errors import UserError

PASSWORD_VARIABLE = "LOWRANK_RLHF_PASSWORD"  # noqa: S105 - its name, not its value
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_CHARACTERS = 12
WINDOW_SECONDS = 600
MAX_WRONG = 20
"""Limit of wrong passwords in a window, by address and by name; wrong ones above it get status 429."""
MAX_FROM_ADDRESS = 200
"""Limit of wrong passwords in a window, by address; attempts above it are refused without a check."""
_MAX_KEYS = 10_000


def password_for(host: str, by_proxy: bool = False) -> str | None:
    """Return the password from the environment, or None without one.

    Raises `UserError` if it is too short, and if it is missing where other computers can reach the page.
    """
    password = os.environ.get(PASSWORD_VARIABLE) or None
    if password is not None:
        check_length(password)
    elif by_proxy or host not in LOOPBACK:
        option = "--served-as" if by_proxy else f"--host {host}"
        raise UserError(
            f"{option}: others could start programs on this computer through the page. Set {PASSWORD_VARIABLE} to a "
            f"password of at least {MIN_CHARACTERS} characters, or remove the option and use an SSH tunnel."
        )
    return password


def check_length(password: str) -> None:
    """Raise `UserError` if the password is too short."""
    if len(password) < MIN_CHARACTERS:
        raise UserError(f"{PASSWORD_VARIABLE}: expected at least {MIN_CHARACTERS} characters, got {len(password)}")


class WrongPasswords:
    """Recent wrong passwords by address and by name. No attempt delays another visitor's."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}

    def seconds_blocked(self, address: str) -> int:
        """Return the seconds until this address may try again; 0 if it may now."""
        return self._seconds_above(f"address {_network(address)}", MAX_FROM_ADDRESS)

    def add(self, address: str, name: str) -> int:
        """Count a wrong password. Return the seconds until the count is within the limit again; 0 if it is now."""
        keys = [f"address {_network(address)}", *([f"name {name.casefold()[:100]}"] if name else [])]
        now = time.monotonic()
        for key in keys:
            times = self._times.pop(key, deque(maxlen=MAX_FROM_ADDRESS))  # last again, so that the oldest key goes
            times.append(now)
            self._times[key] = times
        while len(self._times) > _MAX_KEYS:
            self._times.pop(next(iter(self._times)))
        return max(self._seconds_above(key, MAX_WRONG + 1) for key in keys)

    def _seconds_above(self, key: str, bound: int) -> int:
        """Return the seconds until fewer than `bound` wrong passwords are in the window."""
        times = self._times.get(key, ())
        if len(times) < bound:
            return 0
        return max(0, math.ceil(times[-bound] + WINDOW_SECONDS - time.monotonic()))


def _network(address: str) -> str:
    """Return the address, or for IPv6 its /64 network: a computer can use every address of it."""
    try:
        if (parsed := ipaddress.ip_address(address)).version == 6:
            return str(ipaddress.ip_network((parsed, 64), strict=False))
    except ValueError:
        pass
    return address
