"""Answers of the guided path from the files that a person chose."""

import re
from pathlib import Path

from lowrank_rlhf.config.data import Columns
from lowrank_rlhf.dashboard.guided.models import model_config
from lowrank_rlhf.dashboard.guided.settings import DATASET, Answers
from lowrank_rlhf.dashboard.guided.summary import summarise
from lowrank_rlhf.data.comparisons import load_comparisons
from lowrank_rlhf.data.loading import Loaded


def answers_from(
    file: Path, loaded: Loaded, columns: Columns, model: str, ranker: str, comparisons: str | None
) -> Answers:
    """Return the answers, named after the file of the prompts.

    Raises `UserError` for a local model that does not exist, and if `comparisons` cannot be read.
    """
    summary = summarise(loaded, model_config(model))
    compared = summary.compared
    if ranker == DATASET and comparisons:
        compared = len({ranking.prompt_id for ranking in load_comparisons(comparisons).rankings})
    return Answers(
        name=run_name(file.stem),
        file=str(file),
        summary=summary,
        model=model,
        ranker=ranker,
        columns=columns,
        comparisons=comparisons if ranker == DATASET else None,
        compared=compared,
        rows=loaded.rows,
        bad_rows=len(loaded.problems),
    )


def run_name(text: str) -> str:
    """Return a valid name of a run, as close to the text as possible."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:60] or "mine"
