"""Prompts to rank as tasks of another tool, and what a person did with one."""

import random
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import ValidationError

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.contents import Contents, SavedRanking
from lowrank_rlhf.preferences.labelling import annotator_name
from lowrank_rlhf.run.records import Prompt, Ranking, Sample


class AnnotationTask(NamedTuple):
    """A prompt to rank, with its answers in the order in which the tool shows them."""

    prompt: Prompt
    answers: tuple[Sample, ...]


def tasks_of(contents: Contents) -> dict[str, AnnotationTask]:
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


def find_task(prompt_id: str, known: Mapping[str, AnnotationTask], key: str) -> AnnotationTask:
    """Return the task of a prompt. Raises `ValueError` with the key for an unknown one."""
    if prompt_id not in known:
        raise ValueError(f"{key}: unknown prompt {prompt_id!r}")
    return known[prompt_id]


def named(key: str, name: str) -> str:
    """Return the annotator's name. Raises `ValueError` for an invalid one."""
    try:
        return annotator_name(name)
    except UserError as error:
        raise ValueError(f"{key}: {error}") from None


def saved(
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
