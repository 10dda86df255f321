"""What a person can be told, and the exit code that goes with it. Anything else that escapes is a bug."""

import unicodedata
from enum import IntEnum

_JOINERS = "\u200c\u200d"  # invisible, but scripts and emoji need them


class ExitCode(IntEnum):
    """Exit codes of `python -m lowrank_rlhf`; docs/guides/troubleshooting.md documents them."""

    OK = 0
    FAILED = 1  # a stage stopped because a check failed or training broke down
    BAD_INPUT = 2  # config, data or command line
    STALE = 3  # a finished stage was made with another config or other inputs
    CANNOT_FIT = 4  # the plan does not fit this machine
    WAITING = 5  # a stage needs people before the run can resume
    LOCKED = 6  # another process holds the run
    NOT_FINITE = 7  # training gave NaN or infinities again after a roll-back
    STOPPED = 130  # Ctrl-C or SIGTERM; the work so far is saved


HALF_A_CHARACTER = "holds half a character (a lone surrogate); delete it"


class UserError(Exception):
    """Something a person can mend: the message says what, where and what to do; no traceback is shown.

    It can always be printed, and steers no terminal: it is `visible`.
    """

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, message: str):
        super().__init__(visible(message))


def visible(text: str) -> str:
    """A text that is safe to print: line ends and tabs stay, every other control character is spelt out.

    Among them escape sequences, which could rewrite the screen, marks that turn the direction of the text, and halves
    of characters. JSON, YAML and command lines may hold them all.
    """
    return "".join(character if _harmless(character) else repr(character)[1:-1] for character in text)


def _harmless(character: str) -> bool:
    if character in "\n\t" or character in _JOINERS:
        return True
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def is_whole(text: str) -> bool:
    """False for text with half of a surrogate pair in it, which nothing can write, show or tokenise."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class StageFailed(UserError):
    """A stage stopped itself: the run's own checks say that going on would be worthless."""

    exit_code = ExitCode.FAILED


class Diverged(UserError):
    """Training gives NaN or infinities again and again, after a roll-back and at a lower rate too."""

    exit_code = ExitCode.NOT_FINITE


class StaleRun(UserError):
    """A finished stage no longer matches the config or its inputs."""

    exit_code = ExitCode.STALE


class CannotFit(UserError):
    """This machine's memory or disk cannot hold what is asked for."""

    exit_code = ExitCode.CANNOT_FIT


class WaitingForPeople(UserError):
    """The run stands still until people have ranked enough answers."""

    exit_code = ExitCode.WAITING


class RunLocked(UserError):
    """Another process works in this run's folder."""

    exit_code = ExitCode.LOCKED


class Stopped(UserError):
    """Somebody asked the run to stop; its state is saved and the same command goes on from there."""

    exit_code = ExitCode.STOPPED
