"""Which prompt an annotator is given next, and that nobody else is given it meanwhile."""

import hashlib
import math
import sqlite3
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from lowrank_rlhf.preferences.exchange import Skip
from lowrank_rlhf.run.records import Ranking, Score

LEASE_SECONDS = 600.0
"""How long a prompt stays with an annotator who does nothing."""

REPEAT_AFTER = 8
"""So many other prompts lie at least between the two times that one annotator ranks the same prompt."""


@dataclass(frozen=True)
class Policy:
    """How prompts are given out. `shared`: the share of prompts that a second annotator ranks too, as soon as one has;
    `repeated`: the share that the same annotator ranks twice; `uncertainty`: of the reward model, by prompt."""

    shared: float = 0.0
    repeated: float = 0.0
    uncertainty: Mapping[str, float] = field(default_factory=dict)


class Candidate(NamedTuple):
    """A prompt that may be given to an annotator: how often it was ranked by this one and by how many others; `since`:
    how many rankings this annotator has made after the last one of it."""

    prompt_id: str
    own: int
    others: int
    since: int


def choose(candidates: Sequence[Candidate], policy: Policy) -> Candidate | None:
    """The one to give out: one that is due again, else a shared one that waits for its second annotator, else one that
    fewest have ranked, of those the one on which the reward model is least certain, of those the first."""
    due = [one for one in candidates if one.own == 1 and one.since >= REPEAT_AFTER]
    due = [one for one in due if _chance("repeated", one.prompt_id) < policy.repeated]
    if due:
        return max(due, key=lambda one: one.since)

    def rank(one: Candidate) -> tuple[bool, int, float]:
        waits = one.others == 1 and _chance("shared", one.prompt_id) < policy.shared
        return not waits, one.others, -policy.uncertainty.get(one.prompt_id, 0.0)

    return min((one for one in candidates if one.own == 0), key=rank, default=None)


def _chance(purpose: str, prompt_id: str) -> float:
    """A number from 0 to 1 that everybody finds for this prompt, spread evenly over prompts."""
    digest = hashlib.sha256(f"{purpose}\n{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def uncertainties(scores: Iterable[Score]) -> dict[str, float]:
    """For each prompt the mean of 4 p (1 - p) over its pairs of answers, p being the Bradley-Terry probability that
    one is better: 1 where the reward model cannot tell, near 0 where it is sure. Prompts with one score are left out.
    """
    by_prompt = defaultdict(list)
    for score in scores:
        by_prompt[score.prompt_id].append(score.score)
    return {
        prompt: sum(_doubt(one - other) for one, other in combinations(group, 2)) / math.comb(len(group), 2)
        for prompt, group in by_prompt.items()
        if len(group) > 1
    }


def _doubt(difference: float) -> float:
    """4 p (1 - p) for p = sigmoid(difference), written so that nothing overflows."""
    small = math.exp(-abs(difference))
    return 4 * small / (1 + small) ** 2


def lease(database: sqlite3.Connection, annotator: str, now: float, policy: Policy) -> tuple[str, int] | None:
    """The prompt that this annotator holds, or a newly chosen one, held from now on, and how often this annotator has
    ranked it; None if there is none left."""
    if held := _held(database, annotator, now):
        hold(database, annotator, held, now)
        return held, times_ranked(database, annotator, held)
    chosen = choose(_candidates(database, annotator, now), policy)
    if chosen is None:
        return None
    hold(database, annotator, chosen.prompt_id, now)
    return chosen.prompt_id, chosen.own


def hold(database: sqlite3.Connection, annotator: str, prompt_id: str, now: float) -> None:
    """Gives this prompt to this annotator, for some minutes, in place of the one that was held."""
    done = times_ranked(database, annotator, prompt_id)
    database.execute(
        "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", (annotator, prompt_id, done, now + LEASE_SECONDS)
    )


def keep(database: sqlite3.Connection, annotator: str, prompt_id: str, done: int, now: float) -> None:
    """Holds this prompt for some minutes more, unless somebody else has been given it since, or this annotator has
    ranked it (other than `done` times) or skipped it in another window."""
    given = "SELECT 1 FROM leases WHERE prompt_id = ? AND annotator != ? AND until > ?"
    skipped = "SELECT 1 FROM skips WHERE prompt_id = ? AND annotator = ?"
    if times_ranked(database, annotator, prompt_id) != done:
        return
    if database.execute(given, (prompt_id, annotator, now)).fetchone():
        return
    if not database.execute(skipped, (prompt_id, annotator)).fetchone():
        hold(database, annotator, prompt_id, now)


def give_back(database: sqlite3.Connection, annotator: str, prompt_id: str | None = None) -> None:
    """This annotator no longer holds that prompt, or any."""
    database.execute(
        "DELETE FROM leases WHERE annotator = :annotator AND prompt_id = COALESCE(:prompt_id, prompt_id)",
        {"annotator": annotator, "prompt_id": prompt_id},
    )


def times_ranked(database: sqlite3.Connection, annotator: str, prompt_id: str) -> int:
    """How many rankings of this prompt by this annotator count or were replaced, and were not taken back."""
    query = "SELECT COUNT(*) FROM rankings WHERE prompt_id = ? AND annotator = ? AND NOT withdrawn"
    return int(database.execute(query, (prompt_id, annotator)).fetchone()[0])


def take_back(database: sqlite3.Connection, annotator: str) -> Ranking | Skip | None:
    """Withdraws this annotator's latest ranking or deletes the latest skip, whichever is later, and returns it."""
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


def _held(database: sqlite3.Connection, annotator: str, now: float) -> str | None:
    row = database.execute(
        "SELECT prompt_id, done FROM leases WHERE annotator = :annotator AND until > :now"
        " AND prompt_id NOT IN (SELECT prompt_id FROM skips WHERE annotator = :annotator)",
        {"annotator": annotator, "now": now},
    ).fetchone()
    return row[0] if row and times_ranked(database, annotator, row[0]) == row[1] else None


def _candidates(database: sqlite3.Connection, annotator: str, now: float) -> list[Candidate]:
    """Every prompt that was not skipped and that nobody else holds, in their order."""
    rows = database.execute(
        "SELECT id, COUNT(CASE WHEN annotator = :annotator THEN 1 END),"
        " COUNT(DISTINCT CASE WHEN annotator != :annotator THEN annotator END),"
        " MAX(CASE WHEN annotator = :annotator THEN rankings.position END)"
        " FROM prompts LEFT JOIN rankings ON prompt_id = id AND NOT withdrawn"
        " WHERE id NOT IN (SELECT prompt_id FROM skips WHERE annotator = :annotator)"
        " AND id NOT IN (SELECT prompt_id FROM leases WHERE annotator != :annotator AND until > :now)"
        " GROUP BY prompts.position ORDER BY prompts.position",
        {"annotator": annotator, "now": now},
    ).fetchall()
    query = "SELECT position FROM rankings WHERE annotator = ? AND NOT withdrawn ORDER BY position"
    own = [position for (position,) in database.execute(query, (annotator,))]
    return [
        Candidate(prompt_id, times, others, since=len(own) - bisect_right(own, last) if last else 0)
        for prompt_id, times, others, last in rows
    ]
