"""Annotations as JSON lines: the whole store, comparisons with their texts, or demonstrations."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from lowrank_rlhf.preferences.contents import Contents, Pair, Text, answer_field, needs_messages, prompt_field
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.records import Ranking, Record

VERSION = 4  # 2: `partial` and `written` of a ranking. 3: its `guidelines`; guidelines, checks, decisions. 4: `unread`


class Header(Record):
    """First line of an export."""

    format: Literal["lowrank_rlhf annotations"] = "lowrank_rlhf annotations"
    version: int = VERSION


def to_jsonl(contents: Contents) -> str:
    """Return a whole store as JSON lines; `import_file.read_rows` reads them back without loss."""
    rows = [("header", Header().model_dump(mode="json"))]
    rows += [("prompt", prompt.model_dump(mode="json")) for prompt in contents.prompts]
    rows += [("answer", answer.model_dump(mode="json")) for answer in contents.answers]
    rows += [("guidelines", text.model_dump(mode="json")) for text in contents.guidelines]
    for saved in contents.history:
        rows.append(("ranking", saved.ranking.model_dump(mode="json") | {"withdrawn": saved.withdrawn}))
    rows += [("check", check.model_dump(mode="json")) for check in contents.checks]
    rows += [("decision", ranking.model_dump(mode="json")) for ranking in contents.decisions]
    rows += [("skip", skip.model_dump(mode="json")) for skip in contents.skips]
    return "".join(_json_line({"kind": kind} | fields) for kind, fields in rows)


def comparisons_to_jsonl(contents: Contents, rankings: Sequence[Ranking] | None = None) -> str:
    """Return every comparison of `rankings` (default: those to learn from) with its texts and ids.

    If any prompt has several turns or a system message, all rows have messages instead of text.
    """
    prompts = {prompt.id: prompt for prompt in contents.prompts}
    answers = {answer.id: answer.text for answer in contents.answers}
    as_messages = needs_messages(contents.prompts)
    counted = contents.learned() if rankings is None else rankings
    decisions, rows = set(contents.decisions), []
    for comparison, decided in ((one, ranking in decisions) for ranking in counted for one in compare(ranking)):
        row = Pair(
            prompt=prompt_field(prompts[comparison.prompt_id], as_messages),
            chosen=answer_field(answers[comparison.chosen], as_messages),
            rejected=answer_field(answers[comparison.rejected], as_messages),
            prompt_id=comparison.prompt_id,
            chosen_id=comparison.chosen,
            rejected_id=comparison.rejected,
            annotator=comparison.annotator,
            tier_gap=comparison.tier_gap,
            decision=decided,
        )
        rows.append(row.model_dump(mode="json", exclude=None if decisions else {"decision"}))
    return "".join(map(_json_line, rows))


def demonstrations_to_jsonl(contents: Contents) -> str:
    """Return every answer that an annotator wrote, with its prompt, as `data.prompts` takes it.

    Rows have TRL's fields `prompt` and `completion`, and `prompt_id` and `annotator` as provenance. If any prompt has
    several turns or a system message, all rows have messages instead of text.
    """
    prompts = {prompt.id: prompt for prompt in contents.prompts}
    written = [ranking for ranking in contents.current() if ranking.written]
    as_messages = needs_messages(prompts[ranking.prompt_id] for ranking in written)
    return "".join(
        _json_line(
            {
                "prompt": _plain(prompt_field(prompts[ranking.prompt_id], as_messages)),
                "completion": _plain(answer_field(ranking.written or "", as_messages)),
                "prompt_id": ranking.prompt_id,
                "annotator": ranking.annotator,
            }
        )
        for ranking in written
    )


def _plain(text: Text) -> str | list[dict[str, str]]:
    return text if isinstance(text, str) else [message.model_dump() for message in text]


def _json_line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"
