"""Answers of the guided path from the files that a person chose."""

import re
from functools import lru_cache
from pathlib import Path

from lowrank_rlhf.config.data import Columns
from lowrank_rlhf.dashboard.guided.models import model_config
from lowrank_rlhf.dashboard.guided.prompt_files import preview
from lowrank_rlhf.dashboard.guided.sizes import DATASET, Answers
from lowrank_rlhf.dashboard.guided.summary import Summary, compared_pairs, summarise
from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.errors import UserError


def answers_from(file: Path, columns: Columns, model: str, ranker: str, comparisons: str | None) -> Answers:
    """Return the answers, named after the file of the prompts.

    Raises `UserError` for a local model that does not exist, and if `file` or `comparisons` cannot be read.
    """
    found = preview(file, columns)
    if found.loaded is None:
        raise UserError(*found.problem)
    summary = summary_of(file, columns, model)
    other = str(Path(comparisons).absolute()) if ranker == DATASET and comparisons else None
    compared = compared_pairs(load_comparisons(other), model_config(model)) if other else summary.compared
    return Answers(
        name=run_name(file.stem),
        file=str(file.absolute()),
        summary=summary,
        model=model,
        ranker=ranker,
        columns=columns,
        comparisons=other,
        compared=compared,
        rows=found.loaded.rows,
        bad_rows=len(found.loaded.problems),
    )


def summary_of(file: Path, columns: Columns, model: str) -> Summary:
    """Return the summary of a file for a model; the last ones are kept in memory, as tokenizing takes long.

    Raises `UserError` for a local model that does not exist, and if the file cannot be read.
    """
    return _summary_of(file, file.stat().st_mtime_ns, tuple(columns.items()), model)


@lru_cache(maxsize=8)
def _summary_of(file: Path, _changed: int, columns: tuple[tuple[str, str | None], ...], model: str) -> Summary:
    found = preview(file, dict(columns))
    if found.loaded is None:
        raise UserError(*found.problem)
    return summarise(found.loaded, model_config(model))


def run_name(text: str) -> str:
    """Return a valid name of a run, as close to the text as possible."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:60] or "mine"
