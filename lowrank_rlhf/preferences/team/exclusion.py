"""Exclusion of an annotator by the run's owner: the rankings are kept and do not count; with undo."""

from lowrank_rlhf.preferences.queue import end_lease
from lowrank_rlhf.preferences.store import AnnotationStore

_EXCLUDED = 2
"""Value of `rankings.withdrawn` for a ranking that the run's owner withdrew; 1 if its annotator did."""


def exclude(store: AnnotationStore, annotator: str, excluded: bool = True) -> int:
    """Withdraw all rankings of an annotator, or with `excluded` False restore them; return their number.

    Rankings that the annotator undid stay undone.
    """
    before, after = (0, _EXCLUDED) if excluded else (_EXCLUDED, 0)
    with store.transaction(write=True) as database:
        if excluded:
            end_lease(database, annotator)
        query = "UPDATE rankings SET withdrawn = ? WHERE annotator = ? AND withdrawn = ?"
        return database.execute(query, (after, annotator, before)).rowcount


def is_excluded(store: AnnotationStore, annotator: str) -> bool:
    """Return True if the owner has withdrawn rankings of this annotator."""
    query = "SELECT 1 FROM rankings WHERE annotator = ? AND withdrawn = ? LIMIT 1"
    with store.transaction() as database:
        return database.execute(query, (annotator, _EXCLUDED)).fetchone() is not None


def excluded_rankings(store: AnnotationStore) -> dict[str, int]:
    """Return the number of withdrawn rankings of each excluded annotator."""
    query = "SELECT annotator, COUNT(*) FROM rankings WHERE withdrawn = ? GROUP BY annotator ORDER BY annotator"
    with store.transaction() as database:
        return dict(database.execute(query, (_EXCLUDED,)).fetchall())
