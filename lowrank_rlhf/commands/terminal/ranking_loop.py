"""Ranking item after item: what is on the screen, and where the keys come from. What they mean is `labelling`."""

import sys
import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Protocol, TextIO

import typer
from rich.console import Console
from rich.control import Control
from rich.rule import Rule
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.labelling import (
    LABELS,
    SHORT_FLAGS,
    Command,
    Draft,
    Refusal,
    describe,
    draft_of,
    flag_keys,
    press,
    ranking_of,
    visible,
)
from lowrank_rlhf.preferences.project import Project
from lowrank_rlhf.preferences.store import AnnotationCounts, Item
from lowrank_rlhf.run.progress import duration
from lowrank_rlhf.run.records import Ranking, Sample

HELP = f"""\
1 2 3 ...   the next best answer; 2 1 3 puts answer 2 first
=           the next answer is just as good as the one before: 2 = 1 3
Enter       save; every answer must have its place
u           take the last key back, or the last saved ranking or skip; Backspace does the same
s           skip this prompt; at the end s brings the skipped ones back
f           flag the ranking; the same again takes the flag off
            {flag_keys()}
b !         all answers bad; harmful: the same as f3 and f4. After one of them Enter saves without an order, too
h q         this help; quit (everything saved stays saved)"""
_IGNORED = " \t>,"
_COMMAND_KEYS = "suhq?"
_AT_THE_END = "u takes the last one back, s brings skipped ones back, q ends"


class Keys(Protocol):
    """Where the keys come from."""

    live: bool
    """A person sees what each key does before the next one."""

    def read(self) -> str:
        """The next key. Raises EOFError if there is none, KeyboardInterrupt on Ctrl-C."""

    def refused(self, why: str) -> str:
        """What to tell about a key that did nothing; raises `UserError` where nobody would read it."""


class TerminalKeys:
    """Single keys from a terminal, without Enter. What is typed ahead in one go is kept, even over a saved ranking."""

    live = True

    def __init__(self) -> None:
        self._waiting: list[str] = []

    def read(self) -> str:
        """The next key; an arrow or function key comes whole."""
        if not self._waiting:
            try:
                typed = typer.getchar()
            except OSError:  # the terminal is gone
                typed = ""
            self._waiting = [typed] if typed.startswith("\x1b") else list(typed)
        if not self._waiting:
            raise EOFError
        key = self._waiting.pop(0)
        if key == "\x03":  # in the middle of other keys the library does not see it
            raise KeyboardInterrupt
        if key == "\x04":
            raise EOFError
        return key

    def refused(self, why: str) -> str:
        """Says why, and drops what was typed ahead: it was meant for another state."""
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
        """The next key of the line; after a ranking comes Enter."""
        while not self._waiting:
            line = self._stream.readline()
            if not line:
                raise EOFError
            self._number += 1
            self._waiting = self._parsed([key for key in line.strip() if key not in _IGNORED])
        return self._waiting.pop(0)

    def _parsed(self, keys: list[str]) -> list[str]:
        if not any(key.isdigit() or key in ("=", "f", *SHORT_FLAGS) for key in keys):
            if len(keys) > 1:
                self.refused("a line is one ranking, such as 2 > 1 = 3, or one command, such as s")
            return keys
        if any(key in _COMMAND_KEYS for key in keys):
            self.refused("a command has a line of its own")
        return [*keys, "\n"]

    def refused(self, why: str) -> str:
        """Raises: the lines that follow were written for a prompt that would not come."""
        raise UserError(f"stdin:{self._number}: {why}. The lines before it are saved, this one and the rest are not.")


class RankingLoop:
    """One annotator at work. Each ranking is on disk before the next prompt is shown."""

    def __init__(
        self,
        project: Project,
        annotator: str,
        keys: Keys,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._project, self._store, self._annotator = project, project.store, annotator
        self._keys, self._console, self._clock = keys, console, clock
        self._seconds: list[float] = []

    def run(self) -> None:
        """Until the annotator quits, the keys end, or there is nothing left and nothing to take back."""
        try:
            self._rank()
        finally:
            self._store.release(self._annotator)

    def _rank(self) -> None:
        item = self._project.next_item(self._annotator)
        draft = _empty(item)
        while True:
            began = self._clock()
            self._show(item)
            command, draft = self._decide(draft, item)
            if command is Command.QUIT:
                return
            if command is Command.UNDO_SAVED:
                item, draft = self._undo(item, draft)
                continue
            if item is None:
                self._store.unskip(self._annotator)
            elif command is Command.SAVE:
                self._save(item, draft, self._clock() - began)
            else:
                self._store.skip(self._annotator, item.prompt.id)
                self._say("skipped")
            item = self._project.next_item(self._annotator)
            draft = _empty(item)

    def _decide(self, draft: Draft, item: Item | None) -> tuple[Command, Draft]:
        self._status(draft, item)
        while True:
            try:
                result = press(draft, self._keys.read())
            except EOFError:
                self._end_status()
                return Command.QUIT, draft
            if item is None and (not isinstance(result, Command) or result is Command.SAVE):
                result = Refusal(_AT_THE_END)
            if isinstance(result, Command) and result is not Command.HELP:
                self._end_status()
                return result, draft
            if isinstance(result, Draft):
                draft = result
            else:
                self._end_status()
                self._say(self._keys.refused(result.why) if isinstance(result, Refusal) else HELP)
            self._status(draft, item)

    def _save(self, item: Item, draft: Draft, seconds: float) -> None:
        enough_before = self._store.ranked_prompts() >= self._project.needed
        self._store.save(ranking_of(draft, item, self._annotator, round(seconds, 1)))
        self._seconds.append(seconds)
        self._say(f"saved: {describe(draft)}")
        if not enough_before and self._store.ranked_prompts() >= self._project.needed:
            self._say(f"That is enough: {self._project.needed} prompts are ranked. Rank more, or quit with q.")

    def _undo(self, item: Item | None, draft: Draft) -> tuple[Item | None, Draft]:
        step = self._store.undo(self._annotator)
        if step is None:
            self._say(self._keys.refused("there is nothing to take back"))
            return item, draft
        back = self._store.item(self._annotator, step.prompt_id)
        if not isinstance(step, Ranking):
            self._say("the skip is taken back")
            return back, _empty(back)
        if self._seconds:
            self._seconds.pop()
        self._say("the last saved ranking is taken back")
        return back, draft_of(step, back) if self._keys.live else _empty(back)

    def _show(self, item: Item | None) -> None:
        standing = self._store.counts(self._annotator)
        if item is None:
            self._say(
                f"\nNothing is left: of {standing.prompts} prompts you have ranked {standing.ranked} "
                f"and skipped {standing.skipped}."
            )
            return
        if len(item.answers) > len(LABELS):
            raise UserError(f"prompt {item.prompt.id!r} has {len(item.answers)} answers; keys are for {len(LABELS)}")
        number = standing.ranked + standing.skipped + 1
        self._console.print()
        self._console.print(
            Rule(Text(f"{number} of {standing.prompts}   {visible(self._annotator)}"), characters="-", style="dim")
        )
        self._say(self._pace(standing))
        self._table((Text(turn.role, style="cyan"), Text(visible(turn.content))) for turn in item.prompt.messages)
        self._table(
            (Text(label, style="bold yellow"), _answer(answer))
            for label, answer in zip(LABELS, item.answers, strict=False)
        )

    def _table(self, rows: Iterable[tuple[Text, Text]]) -> None:
        grid = Table.grid(padding=(0, 1, 1, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for row in rows:
            grid.add_row(*row)
        self._console.print(grid)

    def _pace(self, standing: AnnotationCounts) -> str:
        missing = max(0, self._project.needed - standing.ranked_by_anyone)
        text = f"{standing.ranked_by_anyone} ranked" + (f", {missing} more needed" if missing else "")
        if self._seconds:
            each = median(self._seconds)
            left = missing or standing.prompts - standing.ranked - standing.skipped
            text += f", {duration(each)} each, about {duration(each * left)} to go"
        return f"{text}; h shows the keys"

    def _status(self, draft: Draft, item: Item | None) -> None:
        if not self._keys.live:
            return
        text = Text(describe(draft) if item else _AT_THE_END)
        if item and not draft.left:
            text.append("   Enter saves", style="dim")
        if not self._console.is_terminal:
            self._console.print(text, soft_wrap=True)
            return
        text.truncate(self._console.width - 1, overflow="ellipsis")
        self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
        self._console.print(text, end="")

    def _end_status(self) -> None:
        if self._keys.live and self._console.is_terminal:
            self._console.print()

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def keys_of_this_process() -> Keys:
    """Single keys if a person sits there, else lines from stdin."""
    return TerminalKeys() if sys.stdin.isatty() else LineKeys(sys.stdin)


def _answer(answer: Sample) -> Text:
    text = Text(visible(answer.text)) if answer.text else Text("(empty)", style="dim")
    return text if answer.finished else text.append(" (cut off)", style="dim")


def _empty(item: Item | None) -> Draft:
    return Draft(len(item.answers) if item else 0)
