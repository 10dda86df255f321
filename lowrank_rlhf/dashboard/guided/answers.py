"""Answers of the guided path from the files that a person chose."""

import re
from pathlib import Path

from lowrank_rlhf.config.data import Columns
from lowrank_rlhf.dashboard.guided.models import model_config
from lowrank_rlhf.dashboard.guided.sizes import DATASET, Answers
from lowrank_rlhf.dashboard.guided.summary import compared_pairs, summarise
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
        compared = compared_pairs(load_comparisons(comparisons), model_config(model))
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
