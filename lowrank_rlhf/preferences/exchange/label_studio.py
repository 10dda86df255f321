"""Tasks of Label Studio, ranked by its tag Ranker without buckets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AliasPath, BaseModel, Field, FiniteFloat, field_validator

from lowrank_rlhf.preferences.contents import SavedRanking, Skip
from lowrank_rlhf.preferences.exchange.tasks import AnnotationTask, find_task, named, saved
from lowrank_rlhf.run.records import Ranking


def record(task: AnnotationTask) -> dict[str, Any]:
    """Return a task without annotations."""
    items = [
        {"id": answer.id, "title": str(place), "body": answer.text} for place, answer in enumerate(task.answers, 1)
    ]
    return {"data": {"prompt_id": task.prompt.id, "prompt": task.prompt.conversation, "items": items}}


def ranked(task: AnnotationTask, rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Return a task with rankings as its annotations."""
    annotations = [
        {
            "completed_by": {"email": ranking.annotator},
            "lead_time": ranking.seconds,
            "was_cancelled": False,
            "result": [
                {
                    "id": str(number),
                    "from_name": "rank",
                    "to_name": "answers",
                    "type": "ranker",
                    "value": {"ranker": {"rank": [answer for tier in ranking.tiers for answer in tier]}},
                }
            ],
        }
        for number, ranking in enumerate(rankings, 1)
    ]
    return record(task) | {"annotations": annotations}


def holds(_task: AnnotationTask, ranking: Ranking) -> bool:
    """Return True if an annotation can have this order: a Ranker has no ties."""
    return bool(ranking.tiers) and all(len(tier) == 1 for tier in ranking.tiers)


def knows(name: str) -> bool:
    """Return True if this can be a user of the tool."""
    return "@" in name


class _Result(BaseModel):
    type: str
    ranker: dict[str, list[str]] = Field({}, validation_alias=AliasPath("value", "ranker"))

    @field_validator("ranker", mode="before")
    @classmethod
    def _older(cls, given: Any) -> Any:
        return {"": given} if isinstance(given, list) else given


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


def rows(item: Any, known: Mapping[str, AnnotationTask]) -> Iterator[tuple[str, SavedRanking | Skip]]:
    """Yield key and content of each annotation of a task. Raises `ValueError` for an invalid one."""
    found = _LabelStudioTask.model_validate(item)
    task = find_task(found.data.prompt_id, known, "data.prompt_id")
    texts = {answer.id: answer.text for answer in task.answers}
    for place, shown in enumerate(found.data.items):
        if texts.get(shown.id) != shown.body:
            raise ValueError(f"data.items.{place}: not an answer of prompt {task.prompt.id!r} in the store")
    for place, given in enumerate(found.annotations):
        key = f"annotations.{place}"
        name = named(key, given.completed_by)
        if given.was_cancelled:
            yield key, Skip(annotator=name, prompt_id=task.prompt.id)
            continue
        orders = [result.ranker for result in given.result if result.type == "ranker"]
        if len(orders) != 1:
            raise ValueError(f"{key}.result: {len(orders)} results of type 'ranker', 1 is required")
        if len(orders[0]) != 1:
            raise ValueError(f"{key}.result: buckets have no order. Use a Ranker without a Bucket")
        (order,) = orders[0].values()
        yield key, saved(key, task, [[answer] for answer in order], name, given.lead_time)
