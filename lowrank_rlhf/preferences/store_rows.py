"""SQL of the annotation store: items, rankings and skips, read and written inside a transaction."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable

from lowrank_rlhf.errors import Fault
from lowrank_rlhf.preferences import queue
from lowrank_rlhf.preferences.contents import AttentionCheck, Contents, SavedRanking, Skip
from lowrank_rlhf.preferences.import_plan import ImportPlan
from lowrank_rlhf.preferences.team.guidelines import insert_guidelines, read_guidelines
from lowrank_rlhf.run.records import Prompt, Ranking, Record, Sample


class RowError(Exception):
    """A row that contradicts the store; `AnnotationStore` adds the file's path."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class Item(Record):
    """A prompt to rank, with its answers in the order shown."""

    prompt: Prompt
    answers: tuple[Sample, ...]
    done: int = 0
    """Number of times that this annotator has ranked it before."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Ids of the answers in the order shown, for `Ranking.shown`."""
        return tuple(answer.id for answer in self.answers)


def read_item(database: sqlite3.Connection, prompt_id: str) -> Item:
    """Return a prompt with its answers in the store's order. Raises `RowError` for an unknown id."""
    row = database.execute("SELECT record FROM prompts WHERE id = ?", (prompt_id,)).fetchone()
    if row is None:
        raise RowError(Fault("no_prompt", "no prompt {prompt!r}", prompt=prompt_id))
    rows = database.execute("SELECT record FROM samples WHERE prompt_id = ? ORDER BY position", (prompt_id,))
    answers = tuple(Sample.model_validate_json(record) for (record,) in rows)
    return Item(prompt=Prompt.model_validate_json(row[0]), answers=answers)


def add_item(database: sqlite3.Connection, item: Item) -> None:
    """Add a prompt with its answers, or leave an equal one unchanged. Raises `RowError` if the store's differs."""
    prompt = item.prompt
    if database.execute("SELECT 1 FROM prompts WHERE id = ?", (prompt.id,)).fetchone():
        if read_item(database, prompt.id) != item:
            text = (
                "prompt {prompt!r} is in the store with another text or other answers; "
                "export its rankings and start a new file"
            )
            raise RowError(Fault("other_texts", text, prompt=prompt.id))
        return
    database.execute(
        "INSERT INTO prompts (id, record, shared_chance) VALUES (?, ?, ?)",
        (prompt.id, prompt.model_dump_json(), queue.chance("shared", prompt.id)),
    )
    for answer in item.answers:
        if database.execute("SELECT 1 FROM samples WHERE id = ?", (answer.id,)).fetchone():
            raise RowError(Fault("two_answers", "two answers have the id {answer!r}", answer=answer.id))
        database.execute(
            "INSERT INTO samples (id, prompt_id, record) VALUES (?, ?, ?)",
            (answer.id, prompt.id, answer.model_dump_json()),
        )


def check_ids(database: sqlite3.Connection, ranking: Ranking) -> None:
    """Raise `RowError` if a ranking names a prompt or an answer that is not in the store."""
    known = set(read_item(database, ranking.prompt_id).shown)
    named = {sample for tier in ranking.tiers for sample in tier} | set(ranking.shown)
    if unknown := named - known:
        text = "prompt {prompt!r} has no answer {answer!r}"
        raise RowError(Fault("no_answer", text, prompt=ranking.prompt_id, answer=min(unknown)))


def ranked_by_anyone(database: sqlite3.Connection, prompt_id: str) -> bool:
    """Return True if a ranking of this prompt was not withdrawn."""
    query = "SELECT 1 FROM rankings WHERE prompt_id = ? AND NOT withdrawn"
    return database.execute(query, (prompt_id,)).fetchone() is not None


def any_unranked(database: sqlite3.Connection) -> bool:
    """Return True if nobody has ranked one of the prompts that are no attention checks."""
    query = "SELECT 1 FROM prompts WHERE annotators = 0 AND id NOT IN (SELECT prompt_id FROM checks) LIMIT 1"
    return database.execute(query).fetchone() is not None


def insert_ranking(database: sqlite3.Connection, saved: SavedRanking) -> None:
    """Append a ranking."""
    ranking = saved.ranking
    database.execute(
        "INSERT INTO rankings (prompt_id, annotator, record, withdrawn) VALUES (?, ?, ?, ?)",
        (ranking.prompt_id, ranking.annotator, ranking.model_dump_json(), saved.withdrawn),
    )


def insert_skip(database: sqlite3.Connection, skip: Skip) -> None:
    """Add a skip; an existing one keeps its position in the history."""
    database.execute(
        "INSERT OR IGNORE INTO skips (annotator, prompt_id, after)"
        " VALUES (?, ?, (SELECT COALESCE(MAX(position), 0) FROM rankings))",
        (skip.annotator, skip.prompt_id),
    )


def read_contents(database: sqlite3.Connection) -> Contents:
    """Return everything in the store."""
    prompts = database.execute("SELECT record FROM prompts ORDER BY position")
    answers = database.execute("SELECT record FROM samples ORDER BY position")
    history = database.execute("SELECT record, withdrawn FROM rankings ORDER BY position")
    skips = database.execute(
        "SELECT annotator, prompt_id FROM skips JOIN prompts ON id = prompt_id ORDER BY annotator, position"
    )
    return Contents(
        prompts=tuple(Prompt.model_validate_json(record) for (record,) in prompts),
        answers=tuple(Sample.model_validate_json(record) for (record,) in answers),
        history=_saved(history),
        skips=tuple(Skip(annotator=annotator, prompt_id=prompt_id) for annotator, prompt_id in skips),
        guidelines=read_guidelines(database),
        checks=read_checks(database),
        decisions=read_decisions(database),
    )


def read_latest(database: sqlite3.Connection, count: int) -> Contents:
    """Return the latest rankings, at most `count`, with the answers to their prompts, and all attention checks."""
    (before,) = database.execute("SELECT COALESCE(MAX(position), 0) - ? FROM rankings", (count,)).fetchone()
    history = database.execute("SELECT record, withdrawn FROM rankings WHERE position > ? ORDER BY position", (before,))
    answers = database.execute(
        "SELECT record FROM samples WHERE prompt_id IN (SELECT prompt_id FROM rankings WHERE position > ?)"
        " ORDER BY position",
        (before,),
    )
    return Contents(
        answers=tuple(Sample.model_validate_json(record) for (record,) in answers),
        history=_saved(history),
        checks=read_checks(database),
    )


def _saved(rows: Iterable[tuple[str, int]]) -> tuple[SavedRanking, ...]:
    return tuple(
        SavedRanking(ranking=Ranking.model_validate_json(record), withdrawn=bool(withdrawn))
        for record, withdrawn in rows
    )


def read_checks(database: sqlite3.Connection) -> tuple[AttentionCheck, ...]:
    """Return all attention checks in the order of their prompts."""
    rows = database.execute(
        "SELECT prompt_id, tiers, source, active FROM checks JOIN prompts ON id = prompt_id ORDER BY position"
    )
    return tuple(
        AttentionCheck(prompt_id=prompt_id, tiers=json.loads(tiers), source=source, active=bool(active))
        for prompt_id, tiers, source, active in rows
    )


def insert_check(database: sqlite3.Connection, check: AttentionCheck) -> None:
    """Add an attention check, or replace that of the same prompt."""
    database.execute(
        "INSERT OR REPLACE INTO checks (prompt_id, tiers, source, active) VALUES (?, ?, ?, ?)",
        (check.prompt_id, json.dumps(check.tiers), check.source, check.active),
    )


def latest_rankings(database: sqlite3.Connection) -> list[Ranking]:
    """Return the latest ranking of each prompt by each annotator that was not withdrawn, oldest first.

    Those of attention checks are left out; decisions follow in place of the rankings that they replace.
    """
    rows = database.execute(
        "SELECT record FROM rankings WHERE position IN (SELECT MAX(position) FROM rankings"
        " WHERE NOT withdrawn GROUP BY annotator, prompt_id)"
        " AND prompt_id NOT IN (SELECT prompt_id FROM checks UNION SELECT prompt_id FROM decisions) ORDER BY position"
    )
    annotators = [Ranking.model_validate_json(record) for (record,) in rows]
    checks = {check.prompt_id for check in read_checks(database)}
    return annotators + [one for one in read_decisions(database) if one.prompt_id not in checks]


def read_decisions(database: sqlite3.Connection) -> tuple[Ranking, ...]:
    """Return the owner's decisions in the order of their prompts."""
    rows = database.execute("SELECT decisions.record FROM decisions JOIN prompts ON id = prompt_id ORDER BY position")
    return tuple(Ranking.model_validate_json(record) for (record,) in rows)


def insert_decision(database: sqlite3.Connection, ranking: Ranking) -> None:
    """Add a decision, or replace that on the same prompt."""
    values = (ranking.prompt_id, ranking.model_dump_json())
    database.execute("INSERT OR REPLACE INTO decisions (prompt_id, record) VALUES (?, ?)", values)


def delete_decision(database: sqlite3.Connection, prompt_id: str) -> bool:
    """Delete the decision on a prompt; return False if there is none."""
    return database.execute("DELETE FROM decisions WHERE prompt_id = ?", (prompt_id,)).rowcount > 0


def shared_rankings(database: sqlite3.Connection, prompts: int, rankings: int) -> list[Ranking]:
    """Return rankings of prompts with two annotators or more, oldest first.

    At most `prompts` prompts, with at most `rankings` each.
    """
    rows = database.execute(
        "SELECT record FROM (SELECT record, position,"
        " ROW_NUMBER() OVER (PARTITION BY prompt_id ORDER BY position) AS number FROM rankings"
        " WHERE withdrawn = 0 AND prompt_id IN"
        " (SELECT id FROM prompts WHERE annotators > 1 AND id NOT IN (SELECT prompt_id FROM checks)"
        " ORDER BY annotators, shared_chance LIMIT :prompts))"
        " WHERE number <= :rankings ORDER BY position",
        {"prompts": prompts, "rankings": rankings},
    )
    return [Ranking.model_validate_json(record) for (record,) in rows]


def repeated_rankings(database: sqlite3.Connection, prompts: int) -> list[Ranking]:
    """Return all rankings of prompts that one annotator ranked more than once, oldest first; at most `prompts`."""
    rows = database.execute(
        "SELECT record FROM rankings WHERE withdrawn = 0 AND (annotator, prompt_id) IN"
        " (SELECT annotator, prompt_id FROM rankings WHERE withdrawn = 0"
        " AND prompt_id NOT IN (SELECT prompt_id FROM checks)"
        " GROUP BY annotator, prompt_id HAVING COUNT(*) > 1 LIMIT :prompts) ORDER BY position",
        {"prompts": prompts},
    )
    return [Ranking.model_validate_json(record) for (record,) in rows]


def latest_seconds(database: sqlite3.Connection, annotator: str, count: int) -> list[float]:
    """Return the seconds of the annotator's latest rankings that have them, at most `count`; of a prompt the last."""
    rows = database.execute(
        "SELECT json_extract(record, '$.seconds') AS seconds FROM rankings AS one INDEXED BY rankings_of_an_annotator"
        " WHERE annotator = :annotator AND withdrawn = 0 AND seconds IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM rankings AS later INDEXED BY rankings_of_a_prompt"
        " WHERE later.prompt_id = one.prompt_id"
        " AND later.annotator = :annotator AND NOT later.withdrawn AND later.position > one.position)"
        " ORDER BY position DESC LIMIT :count",
        {"annotator": annotator, "count": count},
    )
    return [seconds for (seconds,) in rows]


def apply_plan(database: sqlite3.Connection, plan: ImportPlan) -> None:
    """Write a checked import."""
    answers = defaultdict(list)
    for answer in plan.answers:
        answers[answer.prompt_id].append(answer)
    for prompt in plan.prompts:
        add_item(database, Item(prompt=prompt, answers=tuple(answers[prompt.id])))
    positions = [position for (position,) in database.execute("SELECT position FROM rankings ORDER BY position")]
    for index in plan.withdrawn:
        database.execute("UPDATE rankings SET withdrawn = 1 WHERE position = ?", (positions[index],))
    for saved in plan.rankings:
        insert_ranking(database, saved)
    for skip in plan.skips:
        insert_skip(database, skip)
    for check in plan.checks:
        insert_check(database, check)
    for ranking in plan.decisions:
        insert_decision(database, ranking)
    for text in plan.guidelines:
        insert_guidelines(database, text)
