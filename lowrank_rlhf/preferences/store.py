"""Store of people's rankings: one SQLite file that several annotators and processes share."""

import random
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from lowrank_rlhf.errors import CannotFit, Fault, UserError
from lowrank_rlhf.preferences.contents import Contents, SavedRanking, Skip
from lowrank_rlhf.preferences.import_file import FileRow, refuse
from lowrank_rlhf.preferences.import_plan import ImportPlan, plan_import
from lowrank_rlhf.preferences.queue import (
    AssignmentRules,
    assign,
    end_lease,
    renew_lease,
    set_lease,
    times_ranked,
    undo_latest,
)
from lowrank_rlhf.preferences.store_rows import (
    Item,
    RowError,
    add_item,
    apply_plan,
    check_ids,
    insert_ranking,
    insert_skip,
    latest_rankings,
    latest_seconds,
    read_contents,
    read_item,
    shared_rankings,
)
from lowrank_rlhf.preferences.store_schema import VERSION, create_or_upgrade, enable_wal, schema_version
from lowrank_rlhf.preferences.team.guidelines import Guidelines, insert_guidelines, read_guidelines
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.run.records import Prompt, Ranking, Sample

BUSY_SECONDS = 30.0
_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)


class AnnotationCounts(NamedTuple):
    """Numbers of prompts: all, ranked and skipped by one annotator, and ranked (with an order) by anyone.

    Attention checks that are shown count in all four, so that none of them moves when one is ranked as others are not.
    """

    prompts: int
    ranked: int
    skipped: int
    ranked_by_anyone: int


class AnnotationStore:
    """Prompts, answers and rankings in one SQLite file, created if missing.

    Keeps no connection open, so any thread and any number of processes may use it; each method is one transaction, on
    disk when it returns. A file of an older version is upgraded. `clock` gives seconds since 1970. Raises `UserError`
    for another program's database, a newer version's, or a file that stays locked.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = path, clock
        with self.transaction() as database:
            version = schema_version(database, path)
        if version != VERSION:  # opened often: waits for no writer
            with self.transaction(write=True) as database:
                create_or_upgrade(database, path)
            enable_wal(path, BUSY_SECONDS)

    def add_items(self, prompts: Iterable[Prompt], samples: Iterable[Sample]) -> None:
        """Add prompts with their answers; existing ones stay. Prompts with fewer than two answers are left out.

        Raises `UserError` for an answer without its prompt, and if a stored prompt has another text or other answers:
        its rankings would then refer to texts that no annotator saw.
        """
        answers: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            answers[sample.prompt_id].append(sample)
        items = {prompt.id: prompt for prompt in prompts}
        if unknown := answers.keys() - items.keys():
            text = "{path}: answers to an unknown prompt: {prompt!r}"
            raise UserError(Fault("unknown_prompt", text, path=self.path, prompt=min(unknown)))
        with self.transaction(write=True) as database:
            for prompt in items.values():
                if len(answers[prompt.id]) > 1:
                    add_item(database, Item(prompt=prompt, answers=tuple(answers[prompt.id])))

    def next_item(self, annotator: str, rules: AssignmentRules | None = None) -> Item | None:
        """Return the prompt leased to this annotator or the next one by `rules`; None if none is left.

        Prompts that the annotator ranked or skipped are left out. Nobody else gets it until it is saved, skipped or
        released, or for `queue.LEASE_SECONDS`. Its answers are shuffled, reproducibly for each annotator.
        """
        with self.transaction(write=True) as database:
            assigned = assign(database, annotator, self._clock(), rules or AssignmentRules())
            if assigned is None:
                return None
            prompt_id, done = assigned
            return _shuffled(read_item(database, prompt_id), annotator, done)

    def renew(self, annotator: str, prompt_id: str, done: int) -> None:
        """Extend the annotator's lease of this prompt.

        `done`: as in the item on the screen; one that was ranked since, in another window, is not leased again.
        """
        with self.transaction(write=True) as database:
            read_item(database, prompt_id)
            renew_lease(database, annotator, prompt_id, done, self._clock())

    def spelling(self, name: str) -> str:
        """Return the name as an earlier annotator spelled it, ignoring case, or unchanged if it is new."""
        with self.transaction() as database:
            rows = database.execute("SELECT annotator FROM rankings UNION SELECT annotator FROM skips").fetchall()
        known = [row[0] for row in rows]
        return name if name in known else next((one for one in known if one.casefold() == name.casefold()), name)

    def release(self, annotator: str) -> None:
        """End this annotator's lease."""
        with self.transaction(write=True) as database:
            end_lease(database, annotator)

    def item(self, annotator: str, prompt_id: str) -> Item:
        """Return that prompt as `next_item` shows it to this annotator."""
        with self.transaction() as database:
            return _shuffled(read_item(database, prompt_id), annotator, times_ranked(database, annotator, prompt_id))

    def save(self, ranking: Ranking, done: int | None = None) -> bool:
        """Save a ranking; it is committed when this returns. Raises `UserError` for ids that are not in the store.

        `done`: as in the item that was ranked. If the annotator has ranked it since, in another window or because a
        reply was lost on the way, nothing is saved and the result is False.
        """
        with self.transaction(write=True) as database:
            check_ids(database, ranking)
            if done not in (None, times_ranked(database, ranking.annotator, ranking.prompt_id)):
                return False
            insert_ranking(database, SavedRanking(ranking=ranking))
            end_lease(database, ranking.annotator, ranking.prompt_id)
        return True

    def skip(self, annotator: str, prompt_id: str) -> None:
        """Stop showing this prompt to this annotator."""
        with self.transaction(write=True) as database:
            read_item(database, prompt_id)
            insert_skip(database, Skip(annotator=annotator, prompt_id=prompt_id))
            end_lease(database, annotator, prompt_id)

    def unskip(self, annotator: str, prompt_id: str | None = None) -> None:
        """Undo this annotator's skip of a prompt, or all skips."""
        with self.transaction(write=True) as database:
            database.execute(
                "DELETE FROM skips WHERE annotator = :annotator AND prompt_id = COALESCE(:prompt_id, prompt_id)",
                {"annotator": annotator, "prompt_id": prompt_id},
            )

    def undo(self, annotator: str) -> Ranking | Skip | None:
        """Undo this annotator's latest step, a ranking or a skip, and return it; None if there is none.

        A withdrawn ranking stays in the file, marked. Its prompt is leased to the annotator again.
        """
        with self.transaction(write=True) as database:
            step = undo_latest(database, annotator)
            if step:
                set_lease(database, annotator, step.prompt_id, self._clock())
        return step

    def rankings(self) -> list[Ranking]:
        """Return the rankings to learn from: the latest of each prompt by each annotator, in the order of saving.

        Those of attention checks are left out, and those of prompts that the owner decided are replaced.
        """
        with self.transaction() as database:
            return latest_rankings(database)

    def shared_rankings(self, prompts: int, rankings: int) -> list[Ranking]:
        """Return rankings of prompts that several annotators ranked, oldest first: at most so many of each."""
        with self.transaction() as database:
            return shared_rankings(database, prompts, rankings)

    def guidelines(self) -> tuple[Guidelines, ...]:
        """Return all guidelines that annotators were shown, in the order in which they were first shown."""
        with self.transaction() as database:
            return read_guidelines(database)

    def add_guidelines(self, guidelines: Guidelines) -> None:
        """Keep guidelines that annotators are shown."""
        with self.transaction(write=True) as database:
            insert_guidelines(database, guidelines)

    def ranked_prompts(self) -> int:
        """Return the number of prompts to learn from: with an order, ties included, by anyone; no attention checks."""
        with self.transaction() as database:
            query = (
                "SELECT (SELECT COUNT(*) FROM prompts WHERE ordered = 1)"
                " + (SELECT COUNT(*) FROM decisions JOIN prompts ON id = prompt_id WHERE ordered = 0)"
                " - (SELECT COUNT(*) FROM checks JOIN prompts ON id = prompt_id"
                " WHERE ordered = 1 OR id IN (SELECT prompt_id FROM decisions))"
            )
            return int(database.execute(query).fetchone()[0])

    def trainable_prompts(self) -> int:
        """Return the number of prompts that are no attention checks."""
        with self.transaction() as database:
            query = "SELECT (SELECT COUNT(*) FROM prompts) - (SELECT COUNT(*) FROM checks)"
            return int(database.execute(query).fetchone()[0])

    def counts(self, annotator: str, checks: bool = True) -> AnnotationCounts:
        """Return the progress of this annotator and of all annotators together; `checks`: they are shown."""
        hidden = "SELECT prompt_id FROM checks WHERE active = 0 OR NOT :checks"
        with self.transaction() as database:
            row = database.execute(
                f"SELECT (SELECT COUNT(*) FROM prompts) - (SELECT COUNT(*) FROM ({hidden})),"  # noqa: S608
                " (SELECT COUNT(DISTINCT prompt_id) FROM rankings WHERE annotator = :annotator AND withdrawn = 0"
                f" AND prompt_id NOT IN ({hidden})),"
                " (SELECT COUNT(*) FROM prompts WHERE ordered = 1)"
                f" - (SELECT COUNT(*) FROM prompts WHERE ordered = 1 AND id IN ({hidden})),"
                f" (SELECT COUNT(*) FROM skips WHERE annotator = :annotator AND prompt_id NOT IN ({hidden}))",
                {"annotator": annotator, "checks": checks},
            ).fetchone()
        return AnnotationCounts(prompts=row[0], ranked=row[1], ranked_by_anyone=row[2], skipped=row[3])

    def latest_seconds(self, annotator: str, count: int) -> list[float]:
        """Return the seconds of this annotator's latest rankings that have them, at most `count`."""
        with self.transaction() as database:
            return latest_seconds(database, annotator, count)

    def contents(self) -> Contents:
        """Return everything in the file."""
        with self.transaction() as database:
            return read_contents(database)

    def merge(self, rows: Sequence[FileRow], new_items: bool = False) -> ImportPlan:
        """Add the rows of a file, all or none; existing rows stay. Return what was added.

        Raises `UserError` that lists the wrong rows. Only with `new_items` may the file have new prompts.
        """
        with self.transaction(write=True) as database:
            plan = plan_import(read_contents(database), rows, new_items)
            if plan.errors:
                refuse(plan.errors)
            apply_plan(database, plan)
        return plan

    @contextmanager
    def transaction(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """Open one transaction, on disk when the block ends; an exception in it rolls back."""
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as database:
                database.execute("PRAGMA foreign_keys = ON")
                database.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, too
                # Take the write lock at once: SQLite cannot upgrade a read transaction while another one writes.
                database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield database
                fault_points.point("annotations: before the commit")
                database.execute("COMMIT")  # closing without it rolls back
                fault_points.point("annotations: committed")
        except RowError as error:
            raise UserError(Fault("store", "{path}: {reason}", path=self.path, reason=error.fault)) from None
        except sqlite3.IntegrityError:
            raise  # a bug, not a user error
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in _DISK:
                text = (
                    "{path}: {reason}; everything saved before is safe. "
                    "Free disk space or make the file writable, then retry"
                )
                raise CannotFit(Fault("store_disk", text, path=self.path, reason=str(error))) from error
            raise UserError(Fault("store", "{path}: {reason}", path=self.path, reason=str(error))) from error


def _shuffled(item: Item, annotator: str, done: int) -> Item:
    """Shuffle the answers, differently each time the prompt is repeated, so that positions cannot be remembered."""
    seed = f"{annotator}\n{item.prompt.id}" + (f"\n{done}" if done else "")
    order = random.Random(seed).sample(item.answers, len(item.answers))
    return Item(prompt=item.prompt, answers=tuple(order), done=done)
