"""Guidelines for annotators: every text that was shown, under its version, so that rankings can name theirs."""

import hashlib
import sqlite3

from lowrank_rlhf.run.records import Record


class Guidelines(Record):
    """Markdown text that annotators see beside the prompts. `version` names it in rankings."""

    version: str
    text: str

    @property
    def genuine(self) -> bool:
        """Return True if the version is that of the text."""
        return self.version == version_of(self.text)


def version_of(text: str) -> str:
    """Return the version of a text: the first 12 digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_guidelines(database: sqlite3.Connection) -> tuple[Guidelines, ...]:
    """Return all texts in the order in which they were first shown."""
    rows = database.execute("SELECT version, text FROM guidelines ORDER BY position")
    return tuple(Guidelines(version=version, text=text) for version, text in rows)


def insert_guidelines(database: sqlite3.Connection, guidelines: Guidelines) -> None:
    """Add a text; an existing one stays."""
    database.execute(
        "INSERT OR IGNORE INTO guidelines (version, text) VALUES (?, ?)", (guidelines.version, guidelines.text)
    )
