"""Annotations as files: JSON lines that hold all there is, and comparisons with their texts for other programs."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

from pydantic import ValidationError

from lowrank_rlhf.errors import HALF_A_CHARACTER, UserError, is_whole
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Record, Sample

Text = str | tuple[Message, ...]
R = TypeVar("R", bound=Record)

VERSION = 2  # 2: `partial` and `written` of a ranking
ERRORS_SHOWN = 10


class Header(Record):
    """The first line of an export."""

    format: Literal["lowrank_rlhf annotations"] = "lowrank_rlhf annotations"
    version: int = VERSION


class Verdict(Record):
    """A ranking as it was once saved. One that was taken back counts for nothing."""

    ranking: Ranking
    withdrawn: bool = False


class Skip(Record):
    """An annotator does not want to rank this prompt."""

    annotator: str
    prompt_id: str


class Pair(Record):
    """A comparison together with its texts, which are messages in files where a prompt has several turns."""

    prompt: Text
    chosen: Text
    rejected: Text
    prompt_id: str
    chosen_id: str
    rejected_id: str
    annotator: str
    tier_gap: int = 1


@dataclass(frozen=True)
class Contents:
    """Everything in a store, in its order; `verdicts` oldest first, `skips` by annotator."""

    prompts: tuple[Prompt, ...] = ()
    answers: tuple[Sample, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    skips: tuple[Skip, ...] = ()

    def current(self) -> list[Ranking]:
        """The latest ranking of each prompt by each annotator that was not withdrawn, oldest first."""
        return current_rankings(self.verdicts)


class Line(NamedTuple):
    """A row of a file; `where` is what an error message starts with, such as `mine.jsonl:12`."""

    where: str
    record: Prompt | Sample | Verdict | Skip | Pair


def current_rankings(verdicts: Iterable[Verdict]) -> list[Ranking]:
    """Of verdicts, oldest first, the latest of each annotator on each prompt that was not withdrawn."""
    latest: dict[tuple[str, str], Ranking] = {}
    for ranking, withdrawn in ((verdict.ranking, verdict.withdrawn) for verdict in verdicts):
        if not withdrawn:
            latest.pop((ranking.annotator, ranking.prompt_id), None)  # so that it comes last
            latest[ranking.annotator, ranking.prompt_id] = ranking
    return list(latest.values())


def to_jsonl(contents: Contents) -> str:
    """The whole of a store as JSON lines, from which `read_lines` makes the same again."""
    rows = [("header", Header().model_dump(mode="json"))]
    rows += [("prompt", prompt.model_dump(mode="json")) for prompt in contents.prompts]
    rows += [("answer", answer.model_dump(mode="json")) for answer in contents.answers]
    for verdict in contents.verdicts:
        rows.append(("ranking", verdict.ranking.model_dump(mode="json") | {"withdrawn": verdict.withdrawn}))
    rows += [("skip", skip.model_dump(mode="json")) for skip in contents.skips]
    return "".join(json_line({"kind": kind} | fields) for kind, fields in rows)


def comparisons_to_jsonl(contents: Contents, rankings: Sequence[Ranking] | None = None) -> str:
    """Every comparison of these rankings, or of those that count, with its texts: prompt, chosen, rejected, and where
    they are from.

    If one prompt has several turns or a system message, all rows hold messages instead of text.
    """
    prompts = {prompt.id: prompt for prompt in contents.prompts}
    answers = {answer.id: answer.text for answer in contents.answers}
    talks = in_messages(contents.prompts)
    counted = contents.current() if rankings is None else rankings
    rows = []
    for pair in (pair for ranking in counted for pair in compare(ranking)):
        row = Pair(
            prompt=prompt_field(prompts[pair.prompt_id], talks),
            chosen=answer_field(answers[pair.chosen], talks),
            rejected=answer_field(answers[pair.rejected], talks),
            prompt_id=pair.prompt_id,
            chosen_id=pair.chosen,
            rejected_id=pair.rejected,
            annotator=pair.annotator,
            tier_gap=pair.tier_gap,
        )
        rows.append(row.model_dump(mode="json"))
    return "".join(map(json_line, rows))


def in_messages(prompts: Iterable[Prompt]) -> bool:
    """True if a prompt of these is more than one thing that the user said."""
    return any(len(prompt.messages) > 1 or prompt.messages[0].role != "user" for prompt in prompts)


def prompt_field(prompt: Prompt, talks: bool) -> Text:
    """A prompt as text or, with `talks`, as messages."""
    return prompt.messages if talks else prompt.text


def answer_field(text: str, talks: bool) -> Text:
    """An answer as text or, with `talks`, as the assistant's message."""
    return (Message(role="assistant", content=text),) if talks else text


def json_line(fields: dict[str, Any]) -> str:
    """A row of a file."""
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[Line]:
    """The rows of an export, of bare rankings, or of comparisons with their texts and ids.

    Raises `UserError` that names each wrong line of the file, the first ten of them at least.
    """
    lines, errors = [], []
    for number, content in _content(path):
        where = f"{path}:{number}"
        try:
            record = _record(content)
        except ValueError as error:
            errors.append(f"{where}: {error}")
            continue
        if not isinstance(record, Header):
            lines.append(Line(where, record))
    if errors:
        refuse(errors)
    if not lines:
        raise UserError(f"{path}: nothing in it")
    return lines


def refuse(errors: Sequence[str]) -> NoReturn:
    """Raises `UserError` with the first errors, how many more there are, and that nothing was imported."""
    more = [f"... and {len(errors) - ERRORS_SHOWN} more"] if len(errors) > ERRORS_SHOWN else []
    raise UserError("\n".join([*errors[:ERRORS_SHOWN], *more, "Nothing was imported."]))


def _content(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    # Bytes, since of text splitlines would also cut at U+2028, which JSON allows inside a string.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            yield number, line


def _record(content: bytes) -> Header | Prompt | Sample | Verdict | Skip | Pair:
    """The record in a line; `ValueError` says what is wrong with it."""
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
            return _validated(Verdict, {"ranking": fields, "withdrawn": withdrawn})
        case "skip":
            return _validated(Skip, fields)
        case "comparison":
            return _pair(fields)
    raise ValueError(f"{'no kind of row' if not kind else f'unknown kind of row: {kind!r}'}; see docs/annotations.md")


def _fields(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content.decode(), parse_constant=_not_json)
        whole = is_whole(json.dumps(fields, ensure_ascii=False))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("broken JSON (nested too deeply)") from None
    if not whole:
        raise ValueError(HALF_A_CHARACTER)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return fields


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _header(fields: dict[str, Any]) -> Header:
    header = _validated(Header, fields)
    if header.version > VERSION:
        raise ValueError(f"written by a newer version (format {header.version}); update lowrank_rlhf")
    return header


def _pair(fields: dict[str, Any]) -> Pair:
    if missing := [key for key in ("prompt_id", "chosen_id", "rejected_id", "annotator") if key not in fields]:
        raise ValueError(
            f"a comparison without {', '.join(missing)} cannot be matched with the run's answers; "
            "to learn from such a file, give it as rank.dataset with rank.source=dataset"
        )
    return _validated(Pair, fields)


def _with_a_turn(prompt: Prompt) -> Prompt:
    if not prompt.messages:
        raise ValueError("messages: is empty")
    return prompt


def _validated(model: type[R], fields: dict[str, Any]) -> R:
    try:
        return model.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "ranking")
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def rankings_from_pairs(lines: Iterable[tuple[str, Pair]]) -> list[tuple[str, Ranking]]:
    """The rankings that comparisons follow from, each with the place of its first one; their tiers are found again
    exactly (nothing but ties gives no comparison, and so no ranking). Raises `ValueError` that names the place if the
    comparisons of a prompt by one annotator are not all the comparisons of one ranking.
    """
    groups: defaultdict[tuple[str, str], list[tuple[str, Pair]]] = defaultdict(list)
    for where, pair in lines:
        groups[pair.prompt_id, pair.annotator].append((where, pair))
    return [(group[0][0], _ranking(group)) for group in groups.values()]


def _ranking(group: list[tuple[str, Pair]]) -> Ranking:
    """By depth: an answer stands as many tiers below the best as the widest gap to a better one says."""
    depth: defaultdict[str, int] = defaultdict(int)
    for _, pair in group:
        depth[pair.chosen_id] += 0
        depth[pair.rejected_id] = max(depth[pair.rejected_id], pair.tier_gap)
    tiers = [tuple(name for name in depth if depth[name] == level) for level in sorted(set(depth.values()))]
    _, first = group[0]
    ranking = Ranking(prompt_id=first.prompt_id, tiers=tuple(tiers), annotator=first.annotator)
    expected = sorted((pair.chosen, pair.rejected, pair.tier_gap) for pair in compare(ranking))
    if sorted((pair.chosen_id, pair.rejected_id, pair.tier_gap) for _, pair in group) != expected:
        raise ValueError(
            f"{group[0][0]}: the comparisons by {first.annotator!r} of prompt {first.prompt_id!r} are not all those "
            "of one ranking; to learn from such a file, give it as rank.dataset with rank.source=dataset"
        )
    return ranking
