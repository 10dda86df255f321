"""Where people's rankings are kept: one SQLite file that several annotators and processes share."""

import random
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lowrank_rlhf.errors import CannotFit, UserError
from lowrank_rlhf.preferences.exchange import Contents, Line, Skip, Verdict, refuse
from lowrank_rlhf.preferences.import_plan import Merge, merge
from lowrank_rlhf.preferences.queue import Policy, give_back, hold, keep, lease, take_back, times_ranked
from lowrank_rlhf.preferences.store_schema import create_or_upgrade
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.run.records import Prompt, Ranking, Record, Sample

BUSY_SECONDS = 30.0
_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)
_WHAT_NOW = "Make room on its disk, or let this user write there, then try again"


class Item(Record):
    """What an annotator sees next: a prompt and its answers in the order to show them."""

    prompt: Prompt
    answers: tuple[Sample, ...]
    done: int = 0
    """How often this annotator has ranked it before."""

    @property
    def shown(self) -> tuple[str, ...]:
        """The answers' ids in that order, for `Ranking.shown`."""
        return tuple(answer.id for answer in self.answers)


class Standing(NamedTuple):
    """Prompts in all, ranked and skipped by one annotator, and put in order by anyone."""

    prompts: int
    ranked: int
    skipped: int
    ranked_by_anyone: int


class AnnotationStore:
    """Prompts, answers and rankings in one SQLite file, created if missing.

    Holds no open connection, so any thread and any number of processes may use it; each method is one transaction,
    on disk when it returns. An older version's file gets the tables that it lacks. `clock` gives seconds since 1970.
    Raises `UserError` for a file that is not such a database, a newer version's, or one that stays locked.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        with self._transaction(write=True) as database:
            create_or_upgrade(database, path)
        self._enable_wal()

    def add_items(self, prompts: Iterable[Prompt], samples: Iterable[Sample]) -> None:
        """Adds prompts with their answers; what is there already stays. Prompts with fewer than two answers have
        nothing to rank and are left out. Raises `UserError` for an answer without its prompt, and if a prompt was
        stored with another text or other answers: rankings would then speak of texts that nobody saw.
        """
        answers: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            answers[sample.prompt_id].append(sample)
        items = {prompt.id: prompt for prompt in prompts}
        if unknown := answers.keys() - items.keys():
            raise UserError(f"{self.path}: answers to an unknown prompt: {min(unknown)!r}")
        with self._transaction(write=True) as database:
            for prompt in items.values():
                if len(answers[prompt.id]) > 1:
                    self._add_item(database, Item(prompt=prompt, answers=tuple(answers[prompt.id])))

    def next_item(self, annotator: str, policy: Policy | None = None) -> Item | None:
        """The prompt that this annotator holds or, in the order of `policy`, the next one that this annotator has
        neither ranked nor skipped; None if there is none left. Nobody else is given it until it is saved, skipped or
        released, or for `queue.LEASE_SECONDS`. Its answers are shuffled blindly, for this annotator always alike.
        """
        with self._transaction(write=True) as database:
            given = lease(database, annotator, self._clock(), policy or Policy())
            item = self._item(database, given[0]) if given else None
        return _shuffled(item, annotator, given[1]) if item and given else None

    def keep(self, annotator: str, prompt_id: str, done: int) -> None:
        """The annotator is still at it: nobody else is given this prompt for some minutes more.

        `done`: as in the item on the screen; one that was ranked since, in another window, is not held again.
        """
        with self._transaction(write=True) as database:
            self._item(database, prompt_id)
            keep(database, annotator, prompt_id, done, self._clock())

    def release(self, annotator: str) -> None:
        """Lets others have what this annotator holds."""
        with self._transaction(write=True) as database:
            give_back(database, annotator)

    def item(self, annotator: str, prompt_id: str) -> Item:
        """That prompt as `next_item` shows it to this annotator."""
        with self._transaction() as database:
            done = times_ranked(database, annotator, prompt_id)
            return _shuffled(self._item(database, prompt_id), annotator, done)

    def save(self, ranking: Ranking, done: int | None = None) -> bool:
        """Keeps a ranking. It is committed when this returns. Raises `UserError` for ids that are not in the store.

        `done`: as in the item that was ranked. If the annotator has ranked it since, in another window or because an
        answer got lost on the way, nothing is kept and the result is False.
        """
        with self._transaction(write=True) as database:
            self._check(database, ranking)
            if done not in (None, times_ranked(database, ranking.annotator, ranking.prompt_id)):
                return False
            self._insert(database, Verdict(ranking=ranking))
            give_back(database, ranking.annotator, ranking.prompt_id)
        return True

    def skip(self, annotator: str, prompt_id: str) -> None:
        """Never shows this prompt to this annotator again."""
        with self._transaction(write=True) as database:
            self._item(database, prompt_id)
            self._skip(database, Skip(annotator=annotator, prompt_id=prompt_id))
            give_back(database, annotator, prompt_id)

    def unskip(self, annotator: str, prompt_id: str | None = None) -> None:
        """Takes back this annotator's skip of a prompt, or every one."""
        with self._transaction(write=True) as database:
            database.execute(
                "DELETE FROM skips WHERE annotator = :annotator AND prompt_id = COALESCE(:prompt_id, prompt_id)",
                {"annotator": annotator, "prompt_id": prompt_id},
            )

    def undo(self, annotator: str) -> Ranking | Skip | None:
        """Takes back this annotator's latest step, a ranking or a skip, and returns it; None if there is none.

        A withdrawn ranking stays in the file, marked. The annotator holds its prompt again.
        """
        with self._transaction(write=True) as database:
            step = take_back(database, annotator)
            if step:
                hold(database, annotator, step.prompt_id, self._clock())
        return step

    def rankings(self) -> list[Ranking]:
        """The latest ranking of each prompt by each annotator, in the order in which they were saved."""
        with self._transaction() as database:
            return self._latest(database)

    def count(self) -> int:
        """Prompts whose answers somebody has put in order, or held to be equal."""
        return self.standing("").ranked_by_anyone

    def standing(self, annotator: str) -> Standing:
        """How far this annotator and everybody together have come."""
        with self._transaction() as database:
            row = database.execute(
                "SELECT (SELECT COUNT(*) FROM prompts),"
                " COUNT(DISTINCT CASE WHEN annotator = :annotator THEN prompt_id END),"
                " COUNT(DISTINCT CASE WHEN json_array_length(record, '$.tiers') > 0 THEN prompt_id END),"
                " (SELECT COUNT(*) FROM skips WHERE annotator = :annotator) FROM rankings WHERE NOT withdrawn",
                {"annotator": annotator},
            ).fetchone()
        return Standing(prompts=row[0], ranked=row[1], ranked_by_anyone=row[2], skipped=row[3])

    def contents(self) -> Contents:
        """Everything that is in the file."""
        with self._transaction() as database:
            return self._contents(database)

    def merge(self, lines: Sequence[Line], new_items: bool = False) -> Merge:
        """Adds the rows of an export, all or none; what is here already stays as it is. Returns what was added.

        Raises `UserError` that names the wrong rows. Only with `new_items` may the file bring prompts along.
        """
        with self._transaction(write=True) as database:
            plan = merge(self._contents(database), lines, new_items)
            if plan.errors:
                refuse(plan.errors)
            self._apply(database, plan)
        return plan

    @contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as database:
                database.execute("PRAGMA foreign_keys = ON")
                database.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, too
                # A write lock from the start: SQLite refuses at once, without waiting, to turn a reader into a writer.
                database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield database
                fault_points.point("annotations: before the commit")
                database.execute("COMMIT")  # closing without it rolls back
                fault_points.point("annotations: committed")
        except sqlite3.IntegrityError:
            raise  # our own mistake
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in _DISK:
                raise CannotFit(f"{self.path}: {error}; all saved before is safe. {_WHAT_NOW}") from error
            raise UserError(f"{self.path}: {error}") from error

    def _enable_wal(self) -> None:
        """Write-ahead logging lets readers go on beside a writer; the file remembers it. Where it cannot be had, the
        file system's fault or another process being just at it, everything works without."""
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as database:
            database.execute("PRAGMA journal_mode = WAL")

    def _add_item(self, database: sqlite3.Connection, item: Item) -> None:
        if database.execute("SELECT 1 FROM prompts WHERE id = ?", (item.prompt.id,)).fetchone():
            if self._item(database, item.prompt.id) != item:
                raise UserError(
                    f"{self.path}: prompt {item.prompt.id!r} is here with another text or other answers;"
                    " export its rankings and start a new file"
                )
            return
        prompt = item.prompt
        database.execute("INSERT INTO prompts (id, record) VALUES (?, ?)", (prompt.id, prompt.model_dump_json()))
        for answer in item.answers:
            if database.execute("SELECT 1 FROM samples WHERE id = ?", (answer.id,)).fetchone():
                raise UserError(f"{self.path}: two answers have the id {answer.id!r}")
            database.execute(
                "INSERT INTO samples (id, prompt_id, record) VALUES (?, ?, ?)",
                (answer.id, prompt.id, answer.model_dump_json()),
            )

    def _item(self, database: sqlite3.Connection, prompt_id: str) -> Item:
        row = database.execute("SELECT record FROM prompts WHERE id = ?", (prompt_id,)).fetchone()
        if row is None:
            raise UserError(f"{self.path}: no prompt {prompt_id!r}")
        rows = database.execute("SELECT record FROM samples WHERE prompt_id = ? ORDER BY position", (prompt_id,))
        answers = tuple(Sample.model_validate_json(record) for (record,) in rows)
        return Item(prompt=Prompt.model_validate_json(row[0]), answers=answers)

    def _check(self, database: sqlite3.Connection, ranking: Ranking) -> None:
        known = set(self._item(database, ranking.prompt_id).shown)
        named = {sample for tier in ranking.tiers for sample in tier} | set(ranking.shown)
        if unknown := named - known:
            raise UserError(f"{self.path}: prompt {ranking.prompt_id!r} has no answer {min(unknown)!r}")

    def _insert(self, database: sqlite3.Connection, verdict: Verdict) -> None:
        ranking = verdict.ranking
        database.execute(
            "INSERT INTO rankings (prompt_id, annotator, record, withdrawn) VALUES (?, ?, ?, ?)",
            (ranking.prompt_id, ranking.annotator, ranking.model_dump_json(), verdict.withdrawn),
        )

    def _skip(self, database: sqlite3.Connection, skip: Skip) -> None:
        database.execute(
            "INSERT OR IGNORE INTO skips (annotator, prompt_id, after)"
            " VALUES (?, ?, (SELECT COALESCE(MAX(position), 0) FROM rankings))",
            (skip.annotator, skip.prompt_id),
        )

    def _contents(self, database: sqlite3.Connection) -> Contents:
        prompts = database.execute("SELECT record FROM prompts ORDER BY position")
        answers = database.execute("SELECT record FROM samples ORDER BY position")
        verdicts = database.execute("SELECT record, withdrawn FROM rankings ORDER BY position")
        skips = database.execute(
            "SELECT annotator, prompt_id FROM skips JOIN prompts ON id = prompt_id ORDER BY annotator, position"
        )
        return Contents(
            prompts=tuple(Prompt.model_validate_json(record) for (record,) in prompts),
            answers=tuple(Sample.model_validate_json(record) for (record,) in answers),
            verdicts=tuple(
                Verdict(ranking=Ranking.model_validate_json(record), withdrawn=bool(withdrawn))
                for record, withdrawn in verdicts
            ),
            skips=tuple(Skip(annotator=annotator, prompt_id=prompt_id) for annotator, prompt_id in skips),
        )

    def _apply(self, database: sqlite3.Connection, plan: Merge) -> None:
        answers = defaultdict(list)
        for answer in plan.answers:
            answers[answer.prompt_id].append(answer)
        for prompt in plan.prompts:
            self._add_item(database, Item(prompt=prompt, answers=tuple(answers[prompt.id])))
        positions = [position for (position,) in database.execute("SELECT position FROM rankings ORDER BY position")]
        for place in plan.withdrawn:
            database.execute("UPDATE rankings SET withdrawn = 1 WHERE position = ?", (positions[place],))
        for verdict in plan.verdicts:
            self._insert(database, verdict)
        for skip in plan.skips:
            self._skip(database, skip)

    def _latest(self, database: sqlite3.Connection) -> list[Ranking]:
        rows = database.execute(
            "SELECT record FROM rankings WHERE position IN (SELECT MAX(position) FROM rankings"
            " WHERE NOT withdrawn GROUP BY annotator, prompt_id) ORDER BY position"
        )
        return [Ranking.model_validate_json(record) for (record,) in rows]


def _shuffled(item: Item, annotator: str, done: int) -> Item:
    """Another order each time that the prompt comes again: where an answer stood is then no help."""
    seed = f"{annotator}\n{item.prompt.id}" + (f"\n{done}" if done else "")
    order = random.Random(seed).sample(item.answers, len(item.answers))
    return Item(prompt=item.prompt, answers=tuple(order), done=done)
