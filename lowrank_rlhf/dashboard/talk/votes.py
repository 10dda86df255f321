"""Blind votes between two answers, saved as annotations: `annotations export RUN/talk FILE` exports them."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowrank_rlhf.dashboard.runs_folder import cannot_write
from lowrank_rlhf.preferences.contents import Contents
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample

ANNOTATOR = "dashboard"
_STORE = Path("talk", "annotations.sqlite")
Vote = Literal["first", "tie", "second"]


@dataclass(frozen=True)
class VotedAnswer:
    """One model's answer in a blind vote."""

    voice: str
    text: str
    finished: bool


def save_vote(
    run: Path,
    question: str,
    first: VotedAnswer,
    second: VotedAnswer,
    vote: Vote,
    seconds: float,
    system: Sequence[Message] = (),
) -> None:
    """Save a vote in the run's `talk/annotations.sqlite`, apart from the rankings of the run's own prompts.

    `system`: messages before the question.

    Raises `UserError` if the store cannot be written.
    """
    path = run / _STORE
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:  # another visitor may have deleted the run
        raise cannot_write(run, error) from None
    name = f"talk-{uuid.uuid4().hex[:12]}"
    samples = [
        Sample(id=f"{name}-{answer.voice}", prompt_id=name, text=answer.text, finished=answer.finished)
        for answer in (first, second)
    ]
    shown = tuple(sample.id for sample in samples)
    tiers = {"first": (shown[:1], shown[1:]), "second": (shown[1:], shown[:1]), "tie": (shown,)}[vote]
    store = AnnotationStore(path)
    store.add_items([Prompt(id=name, messages=(*system, Message(role="user", content=question)))], samples)
    store.save(Ranking(prompt_id=name, tiers=tiers, annotator=ANNOTATOR, seconds=round(seconds, 1), shown=shown))


def stored_votes(run: Path) -> Contents | None:
    """Return the run's votes; None if there are none. Raises `UserError` if the store cannot be read."""
    return AnnotationStore(run / _STORE).contents() if (run / _STORE).is_file() else None
