"""Terminal loop of one annotator: shows item after item, applies keys (`labelling`), saves rankings."""

import time
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.control import Control
from rich.rule import Rule
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from lowrank_rlhf.commands.terminal.ranking_keys import Keys
from lowrank_rlhf.commands.terminal.ranking_text import (
    HELP,
    HELP_KEY,
    QUIT,
    SKIP,
    UNDO,
    describe,
    doubt_text,
    pace_text,
    refusal_text,
)
from lowrank_rlhf.errors import UserError, visible
from lowrank_rlhf.preferences.labelling import (
    KEYS,
    LABELS,
    Action,
    Command,
    Draft,
    Refusal,
    draft_of,
    press,
    ranking_of,
)
from lowrank_rlhf.preferences.overview import RankingProgress, ranking_progress
from lowrank_rlhf.preferences.project import Project, counted
from lowrank_rlhf.preferences.store import Item
from lowrank_rlhf.preferences.team.exclusion import is_excluded
from lowrank_rlhf.run.progress import duration
from lowrank_rlhf.run.records import Ranking, Sample

_AT_THE_END = f"{UNDO} undoes the last step, {SKIP} restores skipped prompts, {QUIT} quits"


class RankingLoop:
    """Ranking session of one annotator. Each ranking is on disk before the next prompt is shown."""

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
        self._guidelines = project.shown_guidelines()

    def run(self) -> None:
        """Run until the annotator quits or the keys end."""
        try:
            self._rank()
        finally:
            self._store.release(self._annotator)

    def _rank(self) -> None:
        if self._guidelines:
            self._say(f"Guidelines:\n{visible(self._guidelines.text)}")
        item = self._project.next_item(self._annotator)
        draft = self._empty(item)
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
            draft = self._empty(item)

    def _decide(self, draft: Draft, item: Item | None) -> tuple[Command, Draft]:
        self._status(draft, item)
        while True:
            try:
                result: Command | Draft | Refusal | None = press(draft, self._keys.read())
            except EOFError:
                self._end_status()
                return Command.QUIT, draft
            if item is None and (not isinstance(result, Command) or result is Command.SAVE):
                result = None
            if isinstance(result, Command) and result is not Command.HELP:
                self._end_status()
                return result, draft
            if isinstance(result, Draft):
                draft = result
            else:
                self._end_status()
                self._say(HELP if result is Command.HELP else self._keys.refused(_reason(result)))
            self._status(draft, item)

    def _save(self, item: Item, draft: Draft, seconds: float) -> None:
        enough_before = self._project.enough
        version = self._guidelines.version if self._guidelines else None
        self._store.save(ranking_of(draft, item, self._annotator, round(seconds, 1), version))
        self._say(f"saved: {describe(draft)}{_rest(draft)}")
        if not enough_before and self._project.enough:
            ranked = ranking_progress(self._project, self._annotator).ranked_by_anyone
            more = "Rank more, or quit" if self._project.has_unranked else "Quit"
            found = self._project.doubtful
            verdict = f", but {doubt_text(found)}" if found else ": the run can resume."
            self._say(f"{ranked} prompts are ranked{verdict} {more} with {QUIT}.")

    def _empty(self, item: Item | None) -> Draft:
        """Return an empty draft. In a script's line half an order is a slip."""
        return Draft(len(item.answers) if item else 0, may_stop=self._keys.live)

    def _undo(self, item: Item | None, draft: Draft) -> tuple[Item | None, Draft]:
        step = self._store.undo(self._annotator)
        if step is None:
            self._say(self._keys.refused("nothing to undo"))
            return item, draft
        back = self._store.item(self._annotator, step.prompt_id)
        if not isinstance(step, Ranking):
            self._say("skip undone")
            return back, self._empty(back)
        self._say("last saved ranking undone")
        return back, draft_of(step, back, may_stop=True) if self._keys.live else self._empty(back)

    def _show(self, item: Item | None) -> None:
        counts = ranking_progress(self._project, self._annotator)
        if item is None and is_excluded(self._store, self._annotator):
            self._say("\nYour rankings are set aside, and no prompts are left for you. They are kept. Thank you.")
            return
        if item is None and counts.own_left == 0:
            self._say(f"\nYou have ranked your share of this round, {counted(counts.ranked, 'prompt')}. Thank you.")
            return
        if item is None:
            self._say(
                f"\nNo prompts left: of {counts.prompts} prompts you have ranked {counts.ranked} "
                f"and skipped {counts.skipped}."
            )
            return
        if len(item.answers) > len(LABELS):
            raise UserError(f"prompt {item.prompt.id!r} has {len(item.answers)} answers; the maximum is {len(LABELS)}")
        number = counts.ranked + counts.skipped + 1
        position = f"round {self._project.round}: {number}" if self._project.round > 1 else f"{number}"
        self._console.print()
        self._console.print(
            Rule(Text(f"{position} of {counts.prompts}   {visible(self._annotator)}"), characters="-", style="dim")
        )
        self._say(self._pace(counts))
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

    def _pace(self, counts: RankingProgress) -> str:
        missing = max(0, counts.needed - counts.ranked_by_anyone)
        text = f"{counts.ranked_by_anyone} ranked" + (f", {missing} more needed" if missing else "")
        if counts.seconds_each is not None and counts.seconds_left is not None:
            text += f", {duration(counts.seconds_each)} each, about {duration(counts.seconds_left)} to go"
        text += f", {counts.own_left} of your share left" if counts.own_left else ""
        text += f"; {HELP_KEY} shows the keys"
        return f"{text}. {pace_text(counts.pace)}" if counts.pace else text

    def _status(self, draft: Draft, item: Item | None) -> None:
        if not self._keys.live:
            return
        text = Text(describe(draft) if item else _AT_THE_END)
        if item and press(draft, KEYS[Action.SAVE][0]) is Command.SAVE:
            text.append("   Enter saves" + _rest(draft), style="dim")
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


def _answer(answer: Sample) -> Text:
    text = Text(visible(answer.text)) if answer.text else Text("(empty)", style="dim")
    return text if answer.finished else text.append(" (cut off)", style="dim")


def _rest(draft: Draft) -> str:
    return "; the rest is below" if draft.tiers and draft.left else ""


def _reason(result: Refusal | Draft | Command | None) -> str:
    return refusal_text(result) if isinstance(result, Refusal) else _AT_THE_END
