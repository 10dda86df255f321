"""Attention checks: prompts with a known order, mixed in among the others and never learned from."""

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from lowrank_rlhf.errors import HALF_A_CHARACTER, UserError, is_whole
from lowrank_rlhf.maths.pairs import ordered_pairs
from lowrank_rlhf.preferences.carelessness import Attention
from lowrank_rlhf.preferences.contents import AttentionCheck, Contents, current_rankings
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.preferences.import_file import refuse
from lowrank_rlhf.preferences.labelling import LABELS
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.preferences.store_rows import Item, add_item, insert_check, read_checks
from lowrank_rlhf.run.records import Message, Prompt, Record, Sample


class CheckRow(Record):
    """Line of a file of checks: a prompt, its answers, and the rank of each; 1 is the best, equal ranks are ties."""

    prompt: Annotated[str, Field(min_length=1)]
    answers: Annotated[tuple[str, ...], Field(min_length=2, max_length=len(LABELS))]
    ranks: tuple[int, ...]


def read_checks_file(path: Path) -> list[tuple[Item, AttentionCheck]]:
    """Return the checks of a JSONL file. Raises `UserError` that lists the wrong lines."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    found, errors = [], []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                found.append(_check(CheckRow.model_validate_json(line, strict=True)))
        except ValidationError as error:
            first = error.errors()[0]
            place = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
            errors.append(f"{path}:{number}: {place}{first['msg']}")
        except ValueError as error:
            errors.append(f"{path}:{number}: {error}")
    if errors:
        refuse(errors)
    if not found:
        raise UserError(f"{path}: the file is empty")
    return found


def _check(row: CheckRow) -> tuple[Item, AttentionCheck]:
    if len(row.ranks) != len(row.answers):
        raise ValueError(f"{len(row.answers)} answers, but {len(row.ranks)} ranks")
    if len(set(row.ranks)) == 1:
        raise ValueError("all ranks are equal, so there is no order to check")
    if not is_whole("".join((row.prompt, *row.answers))):
        raise ValueError(HALF_A_CHARACTER)
    digest = hashlib.sha256(json.dumps([row.prompt, row.answers]).encode()).hexdigest()
    prompt = Prompt(id=f"p{digest[:10]}", messages=(Message(role="user", content=row.prompt),))
    samples = tuple(
        Sample(id=f"{prompt.id}-{place}", prompt_id=prompt.id, text=text) for place, text in enumerate(row.answers)
    )
    ranked = sorted(zip(row.ranks, samples, strict=True), key=lambda pair: pair[0])
    tiers = tuple(tuple(sample.id for _, sample in tier) for _, tier in groupby(ranked, key=lambda pair: pair[0]))
    return Item(prompt=prompt, answers=samples), AttentionCheck(prompt_id=prompt.id, tiers=tiers)


def add_checks(store: AnnotationStore, checks: Sequence[tuple[Item, AttentionCheck]]) -> tuple[int, int]:
    """Add checks from a file; return how many are shown that were not, and how many have another order than before."""
    with store.transaction(write=True) as database:
        before = {check.prompt_id: check for check in read_checks(database)}
        for item, check in checks:
            add_item(database, item)
            insert_check(database, check)
    given = {check.prompt_id: check for _, check in checks}
    known = [before[name] for name in given if name in before]
    changed = sum(check.tiers != given[check.prompt_id].tiers for check in known)
    return len(given) - sum(check.active for check in known), changed


def checks_from_rankings(store: AnnotationStore, annotator: str, number: int | None = None) -> int:
    """Make checks of the prompts that this annotator ordered, the oldest first; return their number.

    No ranking of them is learned from any more. At most `number`; all by default.
    """
    own = [ranking for ranking in store.rankings() if ranking.annotator == annotator and compare(ranking)]
    with store.transaction(write=True) as database:
        for ranking in own[:number]:
            check = AttentionCheck(prompt_id=ranking.prompt_id, tiers=ranking.tiers, source=annotator)
            insert_check(database, check)
    return len(own[:number])


def remove_checks(store: AnnotationStore) -> tuple[int, int]:
    """Remove all checks: those from a file are shown no longer, those from rankings are ordinary prompts again.

    Return the number of both. Annotators' results stay on those from a file, and are gone on those from rankings.
    """
    with store.transaction(write=True) as database:
        retired = database.execute("UPDATE checks SET active = 0 WHERE source IS NULL AND active = 1").rowcount
        restored = database.execute("DELETE FROM checks WHERE source IS NOT NULL").rowcount
    return retired, restored


def attention(contents: Contents) -> dict[str, Attention]:
    """Return the results of each annotator who ranked a check, except of those whose order it is."""
    known = {check.prompt_id: check for check in contents.checks}
    found: dict[str, Attention] = {}
    for ranking in current_rankings(contents.history):
        check = known.get(ranking.prompt_id)
        expected = _pairs(check.tiers) if check and ranking.annotator != check.source else None
        if expected:
            before = found.get(ranking.annotator, Attention(0, 0, 0))
            right = before.right + len(expected & _pairs(ranking.tiers))
            found[ranking.annotator] = Attention(before.checks + 1, right, before.pairs + len(expected))
    return found


def _pairs(tiers: Sequence[Sequence[str]]) -> set[tuple[str, str]]:
    return {(better, worse) for better, worse, _ in ordered_pairs(tiers)}
