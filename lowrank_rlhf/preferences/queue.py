"""Queue of prompts: the next one for an annotator, leased so that no one else ranks it meanwhile."""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lowrank_rlhf.preferences.contents import Skip
from lowrank_rlhf.run.records import Ranking

LEASE_SECONDS = 600.0
"""Length of a lease without any activity of the annotator."""

REPEAT_AFTER = 8
"""Least number of other rankings between the two times that one annotator ranks the same prompt."""


@dataclass(frozen=True)
class AssignmentRules:
    """Rules of assigning prompts.

    `shared`: share of prompts that a second annotator ranks too; `repeated`: share that the same annotator ranks twice;
    `checks`: share of attention checks among the prompts shown.
    """

    shared: float = 0.0
    repeated: float = 0.0
    checks: float = 0.0


class Candidate(NamedTuple):
    """A prompt that may be assigned to an annotator.

    `own`: times that this annotator ranked it; `others`: annotators that ranked it; `since`: rankings that this
    annotator has made after the last one of it.
    """

    prompt_id: str
    own: int
    others: int
    since: int


def choose(candidates: Sequence[Candidate], rules: AssignmentRules) -> Candidate | None:
    """Choose the prompt to assign.

    A repeated one that is due; else a shared one that waits for its second annotator; else the first of those that the
    fewest have ranked. Prompts are in random order, and no other order is shown to be better (decision 0031).
    """
    due = [one for one in candidates if one.own == 1 and one.since >= REPEAT_AFTER]
    due = [one for one in due if chance("repeated", one.prompt_id) < rules.repeated]
    if due:
        return max(due, key=lambda one: one.since)

    def rank(one: Candidate) -> tuple[bool, int]:
        waits = one.others == 1 and chance("shared", one.prompt_id) < rules.shared
        return not waits, one.others

    return min((one for one in candidates if one.own == 0), key=rank, default=None)


def chance(purpose: str, prompt_id: str) -> float:
    """Return a number from 0 to 1, uniform over prompts and the same for every annotator."""
    digest = hashlib.sha256(f"{purpose}\n{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def assign(database: sqlite3.Connection, annotator: str, now: float, rules: AssignmentRules) -> tuple[str, int] | None:
    """Return the annotator's leased prompt, or lease the next one, and the times that the annotator has ranked it.

    None if no prompt is left.
    """
    if leased := _leased(database, annotator, now):
        set_lease(database, annotator, leased, now)
        return leased, times_ranked(database, annotator, leased)
    chosen = choose(_candidates(database, annotator, now, rules), rules)
    if check := _check(database, annotator, rules.checks, last=chosen is None):
        set_lease(database, annotator, check, now)
        return check, 0
    if chosen is None:
        return None
    set_lease(database, annotator, chosen.prompt_id, now)
    return chosen.prompt_id, chosen.own


def set_lease(database: sqlite3.Connection, annotator: str, prompt_id: str, now: float) -> None:
    """Lease a prompt to an annotator, in place of any other one."""
    done = times_ranked(database, annotator, prompt_id)
    database.execute(
        "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", (annotator, prompt_id, done, now + LEASE_SECONDS)
    )


def renew_lease(database: sqlite3.Connection, annotator: str, prompt_id: str, done: int, now: float) -> None:
    """Renew a lease if the prompt is still the annotator's.

    It is not if another annotator has leased it since (unless it is an attention check, which several may have), or if
    the annotator has ranked it (other than `done` times) or skipped it in another window.
    """
    given = (
        "SELECT 1 FROM leases WHERE prompt_id = ? AND annotator != ? AND until > ?"
        " AND prompt_id NOT IN (SELECT prompt_id FROM checks)"
    )
    skipped = "SELECT 1 FROM skips WHERE prompt_id = ? AND annotator = ?"
    if times_ranked(database, annotator, prompt_id) != done:
        return
    if database.execute(given, (prompt_id, annotator, now)).fetchone():
        return
    if not database.execute(skipped, (prompt_id, annotator)).fetchone():
        set_lease(database, annotator, prompt_id, now)


def end_lease(database: sqlite3.Connection, annotator: str, prompt_id: str | None = None) -> None:
    """End the annotator's lease of that prompt, or any lease."""
    database.execute(
        "DELETE FROM leases WHERE annotator = :annotator AND prompt_id = COALESCE(:prompt_id, prompt_id)",
        {"annotator": annotator, "prompt_id": prompt_id},
    )


def others_active(database: sqlite3.Connection, annotator: str, now: float) -> int:
    """Return the number of other annotators with a prompt on their screen, active in the last `LEASE_SECONDS`."""
    query = "SELECT COUNT(*) FROM leases WHERE annotator != ? AND until > ?"
    return int(database.execute(query, (annotator, now)).fetchone()[0])


def times_ranked(database: sqlite3.Connection, annotator: str, prompt_id: str) -> int:
    """Return the number of rankings of this prompt by this annotator that were not withdrawn."""
    query = (
        "SELECT COUNT(*) FROM rankings INDEXED BY rankings_of_a_prompt"
        " WHERE prompt_id = ? AND annotator = ? AND NOT withdrawn"
    )
    return int(database.execute(query, (prompt_id, annotator)).fetchone()[0])


def undo_latest(database: sqlite3.Connection, annotator: str) -> Ranking | Skip | None:
    """Withdraw the annotator's latest ranking or delete the latest skip, whichever is later, and return it."""
    ranked = database.execute(
        "SELECT position, record FROM rankings WHERE annotator = ? AND NOT withdrawn ORDER BY position DESC LIMIT 1",
        (annotator,),
    ).fetchone()
    skipped = database.execute(
        "SELECT prompt_id, after FROM skips WHERE annotator = ? ORDER BY after DESC, rowid DESC LIMIT 1", (annotator,)
    ).fetchone()
    if skipped and not (ranked and ranked[0] > skipped[1]):
        database.execute("DELETE FROM skips WHERE annotator = ? AND prompt_id = ?", (annotator, skipped[0]))
        return Skip(annotator=annotator, prompt_id=skipped[0])
    if ranked:
        database.execute("UPDATE rankings SET withdrawn = 1 WHERE position = ?", (ranked[0],))
        return Ranking.model_validate_json(ranked[1])
    return None


def _leased(database: sqlite3.Connection, annotator: str, now: float) -> str | None:
    row = database.execute(
        "SELECT prompt_id, done FROM leases WHERE annotator = :annotator AND until > :now"
        " AND prompt_id NOT IN (SELECT prompt_id FROM skips WHERE annotator = :annotator)",
        {"annotator": annotator, "now": now},
    ).fetchone()
    return row[0] if row and times_ranked(database, annotator, row[0]) == row[1] else None


# Prompts that the annotator has neither ranked nor skipped and no one else has leased. SQLite without statistics would
# take the index by annotator, and read all of the annotator's rankings for each prompt.
_FREE = (
    "NOT EXISTS (SELECT 1 FROM rankings INDEXED BY rankings_of_a_prompt"
    " WHERE prompt_id = id AND annotator = :annotator AND NOT withdrawn)"
    " AND NOT EXISTS (SELECT 1 FROM skips WHERE annotator = :annotator AND prompt_id = id)"
    " AND NOT EXISTS (SELECT 1 FROM checks WHERE prompt_id = id)"
    " AND NOT EXISTS (SELECT 1 FROM leases WHERE annotator != :annotator AND until > :now AND prompt_id = id)"
)
_WAITING = (
    f"SELECT id FROM prompts WHERE annotators = 1 AND shared_chance < :shared AND {_FREE}"  # noqa: S608
    " ORDER BY position"
)
_RANKED_BY = (
    f"SELECT id FROM prompts WHERE annotators = :others AND {_FREE}"  # noqa: S608
    " ORDER BY position LIMIT 1"
)
_OWN = (
    "SELECT prompt_id FROM rankings WHERE annotator = :annotator AND withdrawn = 0"
    " AND prompt_id NOT IN (SELECT prompt_id FROM checks) ORDER BY position"
)
_CHECKS = (
    "SELECT prompt_id FROM checks AS one WHERE active = 1 AND NOT EXISTS (SELECT 1 FROM rankings"
    " INDEXED BY rankings_of_a_prompt WHERE prompt_id = one.prompt_id AND annotator = :annotator AND NOT withdrawn)"
    " AND NOT EXISTS (SELECT 1 FROM skips WHERE annotator = :annotator AND prompt_id = one.prompt_id)"
)
_STEPS = (
    "SELECT (SELECT COUNT(*) FROM rankings WHERE annotator = :annotator AND withdrawn = 0)"
    " + (SELECT COUNT(*) FROM skips WHERE annotator = :annotator)"
)
_TAKEN = (
    "SELECT prompt_id FROM skips WHERE annotator = :annotator"
    " UNION SELECT prompt_id FROM leases WHERE annotator != :annotator AND until > :now"
)


def _candidates(database: sqlite3.Connection, annotator: str, now: float, rules: AssignmentRules) -> list[Candidate]:
    """Return the prompts among which `choose` decides, in the store's order.

    The annotator has not skipped them and no one else has leased them. They are the repeated ones that are due, the
    shared ones that wait for a second annotator and, if none does, the first that the fewest annotators have ranked.
    """
    who = {"annotator": annotator, "now": now}
    waiting = database.execute(_WAITING, who | {"shared": rules.shared}).fetchall()
    candidates = [Candidate(prompt_id, 0, 1, 0) for (prompt_id,) in waiting] or _least_ranked(database, who)
    return [*_due(database, who, rules), *candidates] if rules.repeated else candidates


def _check(database: sqlite3.Connection, annotator: str, share: float, last: bool) -> str | None:
    """Return the attention check that is due, if one is: at random steps, and at the end those that are left.

    Several annotators may rank one at the same time.
    """
    who = {"annotator": annotator}
    left = [prompt_id for (prompt_id,) in database.execute(_CHECKS, who)] if share else []
    if not left:
        return None
    (step,) = database.execute(_STEPS, who).fetchone()
    due = last or chance("check", f"{annotator}\n{step}") < share
    return min(left, key=lambda prompt_id: chance(annotator, prompt_id)) if due else None


def _least_ranked(database: sqlite3.Connection, who: Mapping[str, object]) -> list[Candidate]:
    """Return the first of the prompts that the fewest annotators have ranked, if there is one."""
    (most,) = database.execute("SELECT COALESCE(MAX(annotators), 0) FROM prompts").fetchone()
    for others in range(most + 1):
        if found := database.execute(_RANKED_BY, {**who, "others": others}).fetchone():
            return [Candidate(found[0], 0, others, 0)]
    return []


def _due(database: sqlite3.Connection, who: Mapping[str, object], rules: AssignmentRules) -> list[Candidate]:
    """Return the prompts that the annotator has ranked once, long enough ago, and is to rank again."""
    own = [prompt_id for (prompt_id,) in database.execute(_OWN, who)]
    times, taken = Counter(own), {prompt_id for (prompt_id,) in database.execute(_TAKEN, who)}
    return [
        Candidate(prompt_id, 1, 0, since=len(own) - place)
        for place, prompt_id in enumerate(own[:-REPEAT_AFTER], 1)
        if times[prompt_id] == 1 and prompt_id not in taken and chance("repeated", prompt_id) < rules.repeated
    ]
