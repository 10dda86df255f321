"""The password of a page: one environment variable, one minimum length."""

import os

from lowrank_rlhf.errors import UserError

PASSWORD_VARIABLE = "LOWRANK_RLHF_PASSWORD"  # noqa: S105 - its name, not its value
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_CHARACTERS = 12


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
