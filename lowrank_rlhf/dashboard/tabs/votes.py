"""Blind votes between two answers, kept as annotations: `annotations export RUN/talk FILE` writes them out."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample

ANNOTATOR = "dashboard"
Verdict = Literal["first", "tie", "second"]


@dataclass(frozen=True)
class Said:
    """One model's answer."""

    voice: str
    text: str
    finished: bool


def save_vote(run: Path, question: str, first: Said, second: Said, verdict: Verdict, seconds: float) -> None:
    """Keep a vote in the run's `talk/annotations.sqlite`: a store of its own, whose prompts are no prompts of the run.

    Raises `UserError` where the store cannot be written.
    """
    folder = run / "talk"
    folder.mkdir(exist_ok=True)
    name = f"talk-{uuid.uuid4().hex[:12]}"
    samples = [
        Sample(id=f"{name}-{said.voice}", prompt_id=name, text=said.text, finished=said.finished)
        for said in (first, second)
    ]
    shown = tuple(sample.id for sample in samples)
    tiers = {"first": (shown[:1], shown[1:]), "second": (shown[1:], shown[:1]), "tie": (shown,)}[verdict]
    store = AnnotationStore(folder / "annotations.sqlite")
    store.add_items([Prompt(id=name, messages=(Message(role="user", content=question),))], samples)
    store.save(Ranking(prompt_id=name, tiers=tiers, annotator=ANNOTATOR, seconds=round(seconds, 1), shown=shown))
