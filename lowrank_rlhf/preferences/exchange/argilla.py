"""Records of Argilla: fields, and a ranking question whose options are the names of the answers' fields."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from pydantic import AliasChoices, AliasPath, BaseModel, Field, field_validator, model_validator

from lowrank_rlhf.preferences.contents import SavedRanking, Skip
from lowrank_rlhf.preferences.exchange.tasks import AnnotationTask, find_task, named, saved
from lowrank_rlhf.run.records import Ranking, Sample

QUESTION = "ranking"
"""Name of the ranking question in Argilla, whose options are `answer_1`, `answer_2`, ..., the names of the fields."""

_NO_QUESTION = f"no question `{QUESTION}`"
_OPTION = re.compile(r"answer_\d+")


def record(task: AnnotationTask) -> dict[str, Any]:
    """Return a task as a record without responses."""
    empty: dict[str, Any] = {"metadata": {}, "suggestions": {}, "responses": {}, "vectors": {}}
    texts = {name: answer.text for name, answer in _options(task).items()}
    return {"id": task.prompt.id, "fields": {"prompt": task.prompt.conversation, **texts}, **empty}


def ranked(task: AnnotationTask, rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Return a task with rankings as the server's API takes them: ranks from 1, of which equal ones are ties.

    Its client writes no ranks, and the server takes no finished response without them.
    """
    names = {answer.id: name for name, answer in _options(task).items()}
    responses = [
        {
            "values": {
                QUESTION: {
                    "value": [
                        {"value": names[answer], "rank": rank}
                        for rank, tier in enumerate(ranking.tiers, 1)
                        for answer in tier
                    ]
                }
            },
            "user_id": ranking.annotator,
            "status": "submitted",
        }
        for ranking in rankings
    ]
    return {"external_id": task.prompt.id, "fields": record(task)["fields"], "responses": responses}


def holds(task: AnnotationTask, ranking: Ranking) -> bool:
    """Return True if a response can have this order: the server requires a rank for every answer."""
    return sum(map(len, ranking.tiers)) == len(task.answers)


def knows(name: str) -> bool:
    """Return True if this can be a user of the tool."""
    try:
        return str(UUID(name)) == name.lower()
    except ValueError:
        return False


def _options(task: AnnotationTask) -> dict[str, Sample]:
    """Return the answers by the names of their fields, which are the options of the question."""
    return {f"answer_{place}": answer for place, answer in enumerate(task.answers, 1)}


class _Ranked(BaseModel):
    value: str
    rank: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_rank(cls, given: Any) -> Any:
        return {"value": given} if isinstance(given, str) else given


class _ArgillaResponse(BaseModel):
    """One person's order of the options: best first, or with their ranks, of which equal ones are ties.

    It is read only if it is submitted.
    """

    value: list[_Ranked] = Field([], validation_alias=AliasChoices("value", AliasPath("values", QUESTION, "value")))
    user_id: str
    status: Literal["submitted", "draft", "discarded"] = "submitted"

    @model_validator(mode="before")
    @classmethod
    def _submitted(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("status", "submitted") != "submitted":
            return {key: given[key] for key in ("user_id", "status") if key in given}
        values = given.get("values")
        if "value" not in given and not (isinstance(values, dict) and QUESTION in values):
            raise ValueError(_NO_QUESTION)
        return given


class _ArgillaRecord(BaseModel):
    """Record as `to_json` of Argilla's client writes it, or with a list of responses as its server's API gives it."""

    id: str = Field(validation_alias=AliasChoices("external_id", "id"))
    fields: dict[str, Any]
    responses: dict[str, list[_ArgillaResponse]] = {}

    @field_validator("responses", mode="before")
    @classmethod
    def _of_question(cls, given: Any) -> Any:
        if isinstance(given, list):
            return {QUESTION: given}
        if given and isinstance(given, dict):
            if QUESTION not in given:
                raise ValueError(_NO_QUESTION)
            return {QUESTION: given[QUESTION]}
        return {} if given is None else given


def rows(item: Any, known: Mapping[str, AnnotationTask]) -> Iterator[tuple[str, SavedRanking | Skip]]:
    """Yield key and content of each finished response of a found. Raises `ValueError` for an invalid one."""
    found = _ArgillaRecord.model_validate(item)
    task = find_task(found.id, known, "id")
    options = _options(task)
    if wrong := [name for name, answer in options.items() if found.fields.get(name) != answer.text]:
        raise ValueError(f"fields.{wrong[0]}: not the answer of prompt {found.id!r} in the store")
    for place, given in enumerate(found.responses.get(QUESTION, [])):
        key = f"responses.{QUESTION}.{place}"
        if given.status == "draft":
            continue
        name = named(key, given.user_id)
        if given.status == "discarded":
            yield key, Skip(annotator=name, prompt_id=found.id)
        else:
            ranks: defaultdict[int, list[str]] = defaultdict(list)
            for at, one in enumerate(given.value):
                if one.value in options:
                    ranks[at if one.rank is None else one.rank].append(options[one.value].id)
                elif not _OPTION.fullmatch(one.value):  # of a prompt with more answers
                    raise ValueError(f"{key}.value: unknown option {one.value!r}. Options are {', '.join(options)}")
            yield key, saved(key, task, [ranks[rank] for rank in sorted(ranks)], name)
