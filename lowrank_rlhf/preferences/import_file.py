"""Reader of annotation files: exports, bare rankings, and comparisons with their texts and ids."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from pydantic import ValidationError

from lowrank_rlhf.errors import HALF_A_CHARACTER, UserError, is_whole
from lowrank_rlhf.preferences.contents import AttentionCheck, Decision, Pair, SavedRanking, Skip
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.preferences.export_file import VERSION, Header
from lowrank_rlhf.preferences.team.guidelines import Guidelines
from lowrank_rlhf.run.records import Prompt, Ranking, Record, Sample

R = TypeVar("R", bound=Record)

ERRORS_SHOWN = 10


Row = Prompt | Sample | SavedRanking | Skip | Pair | Guidelines | AttentionCheck | Decision


class FileRow(NamedTuple):
    """A row of a file; `where` is its position for error messages, such as `mine.jsonl:12`."""

    where: str
    record: Row


def read_rows(path: Path) -> list[FileRow]:
    """Return the rows of an export, of bare rankings, or of comparisons with their texts and ids.

    Raises `UserError` that lists the wrong lines of the file, the first ten of them at most.
    """
    rows, errors = [], []
    for number, content in _content(path):
        where = f"{path}:{number}"
        try:
            record = _record(content)
        except ValueError as error:
            errors.append(f"{where}: {error}")
            continue
        if not isinstance(record, Header):
            rows.append(FileRow(where, record))
    if errors:
        refuse(errors)
    if not rows:
        raise UserError(f"{path}: the file is empty")
    return rows


def refuse(errors: Sequence[str]) -> NoReturn:
    """Raise `UserError` with the first errors and the number of the others."""
    more = [f"... and {len(errors) - ERRORS_SHOWN} more"] if len(errors) > ERRORS_SHOWN else []
    raise UserError("\n".join([*errors[:ERRORS_SHOWN], *more, "Nothing was imported."]))


def _content(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    # On bytes: str.splitlines also splits at U+2028, which JSON allows inside a string.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            yield number, line


def _record(content: bytes) -> Header | Row:
    """Parse a line. Raises `ValueError` that names the error."""
    fields = _fields(content)
    kind = fields.pop("kind", None) or ("ranking" if "tiers" in fields else "comparison" if "chosen" in fields else "")
    match kind:
        case "header":
            return _header(fields)
        case "prompt":
            return _with_a_turn(_validated(Prompt, fields))
        case "answer":
            return _validated(Sample, fields)
        case "ranking":
            withdrawn = fields.pop("withdrawn", False)
            return _validated(SavedRanking, {"ranking": fields, "withdrawn": withdrawn})
        case "skip":
            return _validated(Skip, fields)
        case "check":
            return _with_an_order(_validated(AttentionCheck, fields))
        case "decision":
            return _decided(_validated(Decision, {"ranking": fields}))
        case "guidelines":
            return _genuine(_validated(Guidelines, fields))
        case "comparison":
            return _pair(fields)
    raise ValueError(f"{f'unknown kind of row: {kind!r}' if kind else 'the row has no kind'}; see docs/annotations.md")


def _fields(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content.decode(), parse_constant=_not_json)
        whole = is_whole(json.dumps(fields, ensure_ascii=False))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("invalid JSON (nested too deeply)") from None
    if not whole:
        raise ValueError(HALF_A_CHARACTER)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return fields


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _header(fields: dict[str, Any]) -> Header:
    header = _validated(Header, fields)
    if header.version > VERSION:
        raise ValueError(f"written by a newer version (format {header.version}); update lowrank_rlhf")
    return header


def _pair(fields: dict[str, Any]) -> Pair:
    if missing := [key for key in ("prompt_id", "chosen_id", "rejected_id", "annotator") if key not in fields]:
        raise ValueError(
            f"a comparison without {', '.join(missing)} cannot be matched with the run's answers; "
            "to train on such a file, set rank.dataset to it and rank.source=dataset"
        )
    return _validated(Pair, fields)


def _with_a_turn(prompt: Prompt) -> Prompt:
    if not prompt.messages:
        raise ValueError("messages: must not be empty")
    return prompt


def _with_an_order(check: AttentionCheck) -> AttentionCheck:
    ordered = [name for tier in check.tiers for name in tier]
    if len(ordered) != len(set(ordered)):
        raise ValueError("tiers: an answer appears twice")
    if len(check.tiers) < 2 or not all(check.tiers):
        raise ValueError("tiers: an attention check needs two tiers, none of them empty")
    return check


def _decided(decision: Decision) -> Decision:
    if not decision.ranking.tiers:
        raise ValueError("tiers: a decision needs an order")
    return decision


def _genuine(guidelines: Guidelines) -> Guidelines:
    if not guidelines.genuine:
        raise ValueError(f"version {guidelines.version!r} is not that of the text; rankings would name another text")
    return guidelines


def _validated(model: type[R], fields: dict[str, Any]) -> R:
    try:
        return model.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "ranking")
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def rankings_from_pairs(rows: Iterable[tuple[str, Pair]]) -> list[tuple[str, Ranking]]:
    """Reconstruct rankings from their comparisons, each with the position of its first row.

    The tiers are recovered exactly; a ranking of ties alone has no comparison and cannot be recovered. Raises
    `ValueError` with the position if one annotator's comparisons of a prompt are not all those of one ranking.
    """
    groups: defaultdict[tuple[str, str], list[tuple[str, Pair]]] = defaultdict(list)
    for where, pair in rows:
        groups[pair.prompt_id, pair.annotator].append((where, pair))
    return [(group[0][0], _ranking(group)) for group in groups.values()]


def _ranking(group: list[tuple[str, Pair]]) -> Ranking:
    """Sort answers into tiers: the depth of an answer is its widest gap to a better one."""
    depth: defaultdict[str, int] = defaultdict(int)
    for _, pair in group:
        depth[pair.chosen_id] += 0
        depth[pair.rejected_id] = max(depth[pair.rejected_id], pair.tier_gap)
    tiers = [tuple(name for name in depth if depth[name] == level) for level in sorted(set(depth.values()))]
    where, first = group[0]
    ranking = Ranking(prompt_id=first.prompt_id, tiers=tuple(tiers), annotator=first.annotator)
    expected = sorted((pair.chosen, pair.rejected, pair.tier_gap) for pair in compare(ranking))
    if sorted((pair.chosen_id, pair.rejected_id, pair.tier_gap) for _, pair in group) != expected:
        raise ValueError(
            f"{where}: the comparisons of prompt {first.prompt_id!r} by {first.annotator!r} are not all those of one "
            "ranking; to train on such a file, set rank.dataset to it and rank.source=dataset"
        )
    return ranking
