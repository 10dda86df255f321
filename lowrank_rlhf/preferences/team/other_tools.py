"""Exchange with other annotation tools: prompts to rank as their tasks, and their finished annotations as rankings."""

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.contents import Contents, SavedRanking, Skip
from lowrank_rlhf.preferences.import_file import FileRow, refuse
from lowrank_rlhf.preferences.labelling import annotator_name
from lowrank_rlhf.run.records import Prompt, Ranking, Sample

QUESTION = "ranking"
"""Name of the ranking question in Argilla, whose options are `answer_1`, `answer_2`, ..., the names of the fields."""

_NO_QUESTION = f"no question `{QUESTION}`"
_OPTION = re.compile(r"answer_\d+")


class Tool(StrEnum):
    """Annotation tool."""

    ARGILLA = "argilla"
    LABEL_STUDIO = "label-studio"


class AnnotationTask(NamedTuple):
    """A prompt to rank, with its answers in the order in which the tool shows them."""

    prompt: Prompt
    answers: tuple[Sample, ...]


def to_tasks(contents: Contents, tool: Tool) -> str:
    """Return the prompts that nobody has ranked or decided as the tool's JSON; empty if none is left.

    Attention checks are left out.
    """
    done = {saved.ranking.prompt_id for saved in contents.history if not saved.withdrawn}
    done |= {ranking.prompt_id for ranking in contents.decisions} | {check.prompt_id for check in contents.checks}
    row = {Tool.ARGILLA: _argilla_record, Tool.LABEL_STUDIO: _label_studio_task}[tool]
    rows = [row(task) for name, task in _tasks(contents).items() if name not in done]
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n" if rows else ""


def _tasks(contents: Contents) -> dict[str, AnnotationTask]:
    """Return all tasks by prompt; the order of the answers is random, and the same for export and import."""
    answers = defaultdict(list)
    for answer in contents.answers:
        answers[answer.prompt_id].append(answer)
    return {
        prompt.id: AnnotationTask(
            prompt, tuple(random.Random(prompt.id).sample(answers[prompt.id], len(answers[prompt.id])))
        )
        for prompt in contents.prompts
    }


def _options(task: AnnotationTask) -> dict[str, Sample]:
    """Return the answers by the names of their fields, which are the options of the question."""
    return {f"answer_{place}": answer for place, answer in enumerate(task.answers, 1)}


def _argilla_record(task: AnnotationTask) -> dict[str, Any]:
    empty: dict[str, Any] = {"metadata": {}, "suggestions": {}, "responses": {}, "vectors": {}}
    texts = {name: answer.text for name, answer in _options(task).items()}
    return {"id": task.prompt.id, "fields": {"prompt": task.prompt.conversation, **texts}, **empty}


def _label_studio_task(task: AnnotationTask) -> dict[str, Any]:
    items = [
        {"id": answer.id, "title": str(place), "body": answer.text} for place, answer in enumerate(task.answers, 1)
    ]
    return {"data": {"prompt_id": task.prompt.id, "prompt": task.prompt.conversation, "items": items}}


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


class _Result(BaseModel):
    type: str
    ranker: dict[str, list[str]] = Field({}, validation_alias=AliasPath("value", "ranker"))

    @field_validator("ranker", mode="before")
    @classmethod
    def _older(cls, given: Any) -> Any:
        return {QUESTION: given} if isinstance(given, list) else given


class _Annotation(BaseModel):
    result: list[_Result]
    completed_by: Annotated[str, Field(coerce_numbers_to_str=True)]
    was_cancelled: bool | None = None
    lead_time: FiniteFloat | None = None

    @field_validator("completed_by", mode="before")
    @classmethod
    def _person(cls, given: Any) -> Any:
        return given.get("email") or given.get("id") if isinstance(given, dict) else given

    @field_validator("lead_time")
    @classmethod
    def _measured(cls, seconds: float | None) -> float | None:
        return None if seconds is None or seconds < 0 else seconds


class _Shown(BaseModel):
    id: str
    body: str


class _Data(BaseModel):
    prompt_id: str
    items: list[_Shown]


class _LabelStudioTask(BaseModel):
    data: _Data
    annotations: list[_Annotation] = []


def read_tasks(path: Path, tool: Tool, contents: Contents) -> list[FileRow]:
    """Return the finished annotations of a tool's JSON file as rankings and skips of the store's prompts.

    Raises `UserError` that lists the wrong items, each with its number from 1 and its key.
    """
    rows_of = {Tool.ARGILLA: _argilla_rows, Tool.LABEL_STUDIO: _label_studio_rows}[tool]
    known, rows, errors = _tasks(contents), [], []
    for number, item in enumerate(_items(path), 1):
        where = f"{path}: item {number}"
        try:
            rows += [FileRow(f"{where}: {key}", record) for key, record in rows_of(item, known)]
        except ValidationError as error:
            errors.append(f"{where}: {_fault(error)}")
        except ValueError as error:
            errors.append(f"{where}: {error}")
    if errors:
        refuse(errors)
    if not rows:
        raise UserError(f"{path}: no finished annotations in the file. Export it from {tool} with the annotations")
    return rows


def _fault(error: ValidationError) -> str:
    """Return the place and the words of the first fault."""
    first = error.errors()[0]
    words = "not an object" if first["type"] == "model_type" else first["msg"]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), words)))


def _items(path: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}. Export the annotations as JSON") from None
    found = found.get("items") if isinstance(found, dict) else found  # the API of Argilla's server
    if not isinstance(found, list):
        raise UserError(f"{path}: not a list of tasks. Export the annotations as JSON")
    return found


def _argilla_rows(item: Any, known: dict[str, AnnotationTask]) -> Iterator[tuple[str, SavedRanking | Skip]]:
    record = _ArgillaRecord.model_validate(item)
    task = _task(record.id, known, "id")
    options = _options(task)
    if wrong := [name for name, answer in options.items() if record.fields.get(name) != answer.text]:
        raise ValueError(f"fields.{wrong[0]}: not the answer of prompt {record.id!r} in the store")
    for place, given in enumerate(record.responses.get(QUESTION, [])):
        key = f"responses.{QUESTION}.{place}"
        if given.status == "draft":
            continue
        name = _annotator(key, given.user_id)
        if given.status == "discarded":
            yield key, Skip(annotator=name, prompt_id=record.id)
        else:
            ranks: defaultdict[int, list[str]] = defaultdict(list)
            for at, one in enumerate(given.value):
                if one.value in options:
                    ranks[at if one.rank is None else one.rank].append(options[one.value].id)
                elif not _OPTION.fullmatch(one.value):  # of a prompt with more answers
                    raise ValueError(f"{key}.value: unknown option {one.value!r}. Options are {', '.join(options)}")
            yield key, _saved(key, task, [ranks[rank] for rank in sorted(ranks)], name)


def _label_studio_rows(item: Any, known: dict[str, AnnotationTask]) -> Iterator[tuple[str, SavedRanking | Skip]]:
    found = _LabelStudioTask.model_validate(item)
    task = _task(found.data.prompt_id, known, "data.prompt_id")
    texts = {answer.id: answer.text for answer in task.answers}
    for place, shown in enumerate(found.data.items):
        if texts.get(shown.id) != shown.body:
            raise ValueError(f"data.items.{place}: not an answer of prompt {task.prompt.id!r} in the store")
    for place, given in enumerate(found.annotations):
        key = f"annotations.{place}"
        name = _annotator(key, given.completed_by)
        if given.was_cancelled:
            yield key, Skip(annotator=name, prompt_id=task.prompt.id)
            continue
        orders = [result.ranker for result in given.result if result.type == "ranker"]
        if len(orders) != 1:
            raise ValueError(f"{key}.result: {len(orders)} results of type 'ranker', 1 is required")
        if len(orders[0]) != 1:
            raise ValueError(f"{key}.result: buckets have no order. Use a Ranker without a Bucket")
        (order,) = orders[0].values()
        yield key, _saved(key, task, [[answer] for answer in order], name, given.lead_time)


def _task(prompt_id: str, known: dict[str, AnnotationTask], key: str) -> AnnotationTask:
    if prompt_id not in known:
        raise ValueError(f"{key}: unknown prompt {prompt_id!r}")
    return known[prompt_id]


def _annotator(key: str, name: str) -> str:
    """Return the annotator's name. Raises `ValueError` for an invalid one."""
    try:
        return annotator_name(name)
    except UserError as error:
        raise ValueError(f"{key}: {error}") from None


def _saved(
    key: str, task: AnnotationTask, tiers: list[list[str]], annotator: str, seconds: float | None = None
) -> SavedRanking:
    """Return an order as a ranking. Raises `ValueError` for one that is none."""
    if not tiers:
        raise ValueError(f"{key}: no answer is ranked")
    fields = {"prompt_id": task.prompt.id, "tiers": tiers, "seconds": seconds, "annotator": annotator}
    try:
        ranking = Ranking.model_validate({**fields, "shown": [one.id for one in task.answers]})
        return SavedRanking(ranking=ranking)
    except ValidationError as error:
        raise ValueError(f"{key}: {error.errors()[0]['msg']}") from None
