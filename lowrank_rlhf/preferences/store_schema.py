"""Tables of the annotation store, and the upgrade of older versions."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.preferences.queue import chance

APPLICATION_ID = 0x4C524C46  # "LRLF" in the file's header marks our databases
VERSION = 5

_FIRST = (
    "CREATE TABLE prompts (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, record TEXT NOT NULL)",
    "CREATE TABLE samples (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,"
    " prompt_id TEXT NOT NULL REFERENCES prompts(id), record TEXT NOT NULL)",
    "CREATE TABLE rankings (position INTEGER PRIMARY KEY AUTOINCREMENT, prompt_id TEXT NOT NULL REFERENCES prompts(id),"
    " annotator TEXT NOT NULL, record TEXT NOT NULL, withdrawn INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE skips (annotator TEXT NOT NULL, prompt_id TEXT NOT NULL REFERENCES prompts(id),"
    " PRIMARY KEY (annotator, prompt_id))",
    f"PRAGMA application_id = {APPLICATION_ID}",
)
_COUNT = (
    "UPDATE prompts SET annotators = (SELECT COUNT(DISTINCT annotator) FROM rankings WHERE prompt_id = NEW.prompt_id"
    " AND NOT withdrawn), ordered = EXISTS (SELECT 1 FROM rankings WHERE prompt_id = NEW.prompt_id AND NOT withdrawn"
    " AND json_array_length(record, '$.tiers') > 0) WHERE id = NEW.prompt_id"
)
# Additions of each version, from the second on.
_LATER = {
    2: (
        # `after`: the newest ranking at that moment, by anyone. Shows whether the skip or a ranking came later.
        "ALTER TABLE skips ADD COLUMN after INTEGER NOT NULL DEFAULT 0",
        # `done`: how often this annotator had ranked the prompt when the lease began; `until`: seconds since 1970.
        "CREATE TABLE leases (annotator TEXT PRIMARY KEY, prompt_id TEXT NOT NULL REFERENCES prompts(id),"
        " done INTEGER NOT NULL, until REAL NOT NULL)",
        "CREATE INDEX rankings_of_a_prompt ON rankings (prompt_id, annotator)",
    ),
    3: (
        # So that no step reads all prompts or rankings. `annotators`: that ranked the prompt; `ordered`: 1 if one of
        # them gave an order; `shared_chance`: from 0 to 1, compared with `rank.shared`.
        "ALTER TABLE prompts ADD COLUMN annotators INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE prompts ADD COLUMN ordered INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE prompts ADD COLUMN shared_chance REAL NOT NULL DEFAULT 1.0",
        "CREATE INDEX samples_of_a_prompt ON samples (prompt_id)",
        "CREATE INDEX rankings_of_an_annotator ON rankings (annotator, withdrawn, position, prompt_id)",
        "CREATE INDEX prompts_by_annotators ON prompts (annotators, shared_chance)",
        "CREATE INDEX prompts_in_order ON prompts (annotators, position)",
        "CREATE INDEX ordered_prompts ON prompts (ordered)",
        f"CREATE TRIGGER ranking_saved AFTER INSERT ON rankings BEGIN {_COUNT}; END",
        f"CREATE TRIGGER ranking_withdrawn AFTER UPDATE OF withdrawn ON rankings BEGIN {_COUNT}; END",
        "UPDATE prompts SET shared_chance = chance('shared', id)",
        "UPDATE rankings SET withdrawn = withdrawn",  # counts the existing ones
    ),
    4: (
        # Texts that annotators were shown, oldest first.
        "CREATE TABLE guidelines (position INTEGER PRIMARY KEY, version TEXT NOT NULL UNIQUE, text TEXT NOT NULL)",
        # Prompts with a known order, as JSON tiers. `source`: the annotator who gave it; NULL for one from a file.
        # `active`: 0 if it is no longer shown.
        "CREATE TABLE checks (prompt_id TEXT PRIMARY KEY REFERENCES prompts(id), tiers TEXT NOT NULL, source TEXT,"
        " active INTEGER NOT NULL DEFAULT 1)",
        # Rankings by the run's owner that replace those of the annotators for training.
        "CREATE TABLE decisions (prompt_id TEXT PRIMARY KEY REFERENCES prompts(id), record TEXT NOT NULL)",
    ),
    5: (),  # rankings may have `unread`, which older versions do not know
}


def schema_version(database: sqlite3.Connection, path: Path) -> int | None:
    """Return the version of the tables; None for an empty file.

    Raises `UserError` for another program's database and for a newer version's.
    """
    if database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0:
        return None
    if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise UserError(Fault("no_store", "{path}: an SQLite database, but not an annotation store", path=path))
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        text = "{path}: written by a newer version (schema {version}); update lowrank_rlhf"
        raise UserError(Fault("newer_store", text, path=path, version=version))
    return version


def create_or_upgrade(database: sqlite3.Connection, path: Path) -> None:
    """Create the tables in an empty file, or add those that an older version lacks; every row is kept.

    Raises as `schema_version`.
    """
    version = schema_version(database, path)
    if version is None:
        for statement in _FIRST:
            database.execute(statement)
        version = 1
    database.create_function("chance", 2, chance, deterministic=True)
    for number in range(version + 1, VERSION + 1):
        for statement in _LATER[number]:
            database.execute(statement)
    if version < VERSION:
        database.execute(f"PRAGMA user_version = {VERSION}")


def enable_wal(path: Path, seconds: float) -> None:
    """Turn on write-ahead logging, so that readers do not wait for a writer; the file remembers it.

    Everything works without it: some file systems cannot do it, and another process may be enabling it right now, which
    is waited for up to `seconds`.
    """
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path, timeout=seconds)) as database:
        database.execute("PRAGMA journal_mode = WAL")
