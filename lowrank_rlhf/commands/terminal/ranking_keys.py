"""Keys of an annotator: single ones from a terminal, or lines from a script."""

import sys
from typing import Protocol, TextIO

import typer

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.labelling import KEYS, SHORT_FLAGS, Action

_IGNORED = " \t>,"
_COMMAND_KEYS = [
    key for action in (Action.SKIP, Action.UNDO, Action.HELP, Action.QUIT) for key in KEYS[action] if key.isprintable()
]
_RANKING_KEYS = (*KEYS[Action.TIE], *KEYS[Action.FLAG], *SHORT_FLAGS)


class Keys(Protocol):
    """Source of keys."""

    live: bool
    """True if a person sees the effect of each key before the next one."""

    def read(self) -> str:
        """Return the next key. Raises EOFError at the end, KeyboardInterrupt on Ctrl-C."""

    def refused(self, why: str) -> str:
        """Return the message for a key without effect. Raises `UserError` if the keys come from a script."""


class TerminalKeys:
    """Single keys from a terminal, without Enter. Keys typed ahead are kept, even across a saved ranking."""

    live = True

    def __init__(self) -> None:
        self._waiting: list[str] = []

    def read(self) -> str:
        """Return the next key; an arrow or function key is one key."""
        if not self._waiting:
            try:
                typed = typer.getchar()
            except OSError:  # the terminal is gone
                typed = ""
            self._waiting = [typed] if typed.startswith("\x1b") else list(typed)
        if not self._waiting:
            raise EOFError
        key = self._waiting.pop(0)
        if key == "\x03":  # typer misses it in the middle of other keys
            raise KeyboardInterrupt
        if key == "\x04":
            raise EOFError
        return key

    def refused(self, why: str) -> str:
        """Return the reason, and discard keys typed ahead: they were meant for another state."""
        self._waiting.clear()
        return why


class LineKeys:
    """Keys from lines, for scripts: a line is a whole ranking, such as `2 > 1 = 3`, or a command, such as `s`."""

    live = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._number = 0
        self._waiting: list[str] = []

    def read(self) -> str:
        """Return the next key of the line; a ranking is followed by Enter."""
        while not self._waiting:
            line = self._stream.readline()
            if not line:
                raise EOFError
            self._number += 1
            self._waiting = self._parsed([key for key in line.strip() if key not in _IGNORED])
        return self._waiting.pop(0)

    def _parsed(self, keys: list[str]) -> list[str]:
        if not any(key.isdigit() or key in _RANKING_KEYS for key in keys):
            if len(keys) > 1:
                self.refused("a line must be one ranking, such as 2 > 1 = 3, or one command, such as s")
            return keys
        if any(key in _COMMAND_KEYS for key in keys):
            self.refused("a command must be alone on its line")
        return [*keys, "\n"]

    def refused(self, why: str) -> str:
        """Raise `UserError`: the next lines were meant for the prompts that would have followed."""
        raise UserError(f"stdin:{self._number}: {why}. The lines before it are saved; this one and the rest are not.")


def keys_of_this_process() -> Keys:
    """Return single keys if stdin is a terminal, else lines."""
    return TerminalKeys() if sys.stdin.isatty() else LineKeys(sys.stdin)
