"""Errors shown to users without a traceback, each with its exit code. Any other uncaught exception is a bug."""

import unicodedata
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Self

_JOINERS = "\u200c\u200d"  # invisible, but scripts and emoji need them


class ExitCode(IntEnum):
    """Exit codes of `python -m lowrank_rlhf`; docs/guides/troubleshooting.md documents them."""

    OK = 0
    FAILED = 1  # a check failed, or training failed
    BAD_INPUT = 2  # config, data or command line
    STALE = 3  # a finished stage does not match the config or its inputs
    CANNOT_FIT = 4  # the plan does not fit this machine
    WAITING = 5  # a stage needs people before the run can resume
    LOCKED = 6  # another process works on the run
    NOT_FINITE = 7  # the model gives NaN or infinities, or training gave them again after a roll-back
    STOPPED = 130  # Ctrl-C or SIGTERM; the work so far is saved


HALF_A_CHARACTER = "contains half a character (a lone surrogate); delete it"
ERROR_FILE = "LOWRANK_RLHF_ERROR_FILE"
"""Environment variable with the path of a file for the error of a command, as `error_record` gives it."""


class Fault(str):
    """Text of an error in English, with a key under which the page has words of its own.

    Attributes:
        key: the key.
        values: numbers and texts in the text, by name; a text may be a `Fault`, and a tuple is several texts.
    """

    key: str
    values: Mapping[str, Any]

    def __new__(cls, key: str, text: str, /, **values: Any) -> Self:
        """Return the text with its `{names}` filled in."""
        shown = {name: "".join(value) if isinstance(value, tuple) else value for name, value in values.items()}
        self = super().__new__(cls, text.format(**shown))
        self.key, self.values = key, values
        return self


class UserError(Exception):
    """Error that the user can fix: the message names the place, the fault and the remedy.

    Each part is a line or several of the message. The message is made `visible`, so that it can be printed anywhere
    and cannot control the terminal.
    """

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, *parts: str):
        super().__init__(visible("\n".join(parts)))
        self.parts = parts


def visible(text: str) -> str:
    """Escape control characters except line ends and tabs, so that the text is safe to print.

    This includes escape sequences, which could rewrite the screen, direction marks, and lone surrogates: JSON, YAML and
    command lines can contain all of them.
    """
    return "".join(character if _harmless(character) else repr(character)[1:-1] for character in text)


def _harmless(character: str) -> bool:
    if character in "\n\t" or character in _JOINERS:
        return True
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def is_whole(text: str) -> bool:
    """Return False for text with a lone surrogate, which cannot be encoded, shown or tokenised."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class RewardFailed(UserError):
    """A user's reward function failed; training resumes from the step in which it did."""


class StageFailed(UserError):
    """A stage stopped because a check failed, and continuing would waste time."""

    exit_code = ExitCode.FAILED


class Diverged(UserError):
    """Training gave NaN or infinities again after a roll-back to a lower learning rate."""

    exit_code = ExitCode.NOT_FINITE


class ModelNotFinite(UserError):
    """The model computes NaN or infinities."""

    exit_code = ExitCode.NOT_FINITE


class StaleRun(UserError):
    """A finished stage no longer matches the config or its inputs."""

    exit_code = ExitCode.STALE


class CannotFit(UserError):
    """The memory or disk of this machine is too small."""

    exit_code = ExitCode.CANNOT_FIT


class WaitingForPeople(UserError):
    """The run is waiting for people to rank answers."""

    exit_code = ExitCode.WAITING


class RunLocked(UserError):
    """Another process works on this run."""

    exit_code = ExitCode.LOCKED


class Stopped(UserError):
    """The run stopped on request; its state is saved and the same command resumes it."""

    exit_code = ExitCode.STOPPED


def error_record(error: UserError) -> dict[str, Any]:
    """Return an error as JSON values, for a page that words it."""
    return {"schema": 1, "error": type(error).__name__, "parts": [_as_json(part) for part in error.parts]}


def recorded_parts(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the parts of a recorded error, also of one that another program has damaged."""
    parts = _from_json(record.get("parts"))
    return parts if isinstance(parts, tuple) else ()


def _as_json(value: Any) -> Any:
    if isinstance(value, Fault):
        values = {name: _as_json(inner) for name, inner in value.values.items()}
        return {"key": value.key, "text": str(value), "values": values}
    if isinstance(value, tuple):
        return [_as_json(inner) for inner in value]
    return value if isinstance(value, int | float) else str(value)


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_from_json, value))
    if isinstance(value, dict):
        found = Fault(str(value.get("key")), "{text}", text=str(value.get("text")))
        given = value.get("values")
        found.values = {name: _from_json(inner) for name, inner in given.items()} if isinstance(given, dict) else {}
        return found
    return value if isinstance(value, int | float) else str(value)
