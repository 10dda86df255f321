"""Runs that wait for people to rank, without a model."""

from pathlib import Path

from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.preferences.labelling import LABELS
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample


def a_run(name: str = "people", minimum: int = 2, prompts: int = 3) -> AnnotationStore:
    """A run that waits for people."""
    run_dir = RunDir(Path("runs") / name)
    rank = {"source": "human", "minimum_rankings": minimum}
    any_reward = {"accept_weak_reward": True}  # so few rankings are enough
    run_dir.open(dump_config(Config(name=name, model={"source": "x"}, rank=rank, ppo=any_reward)))
    store = AnnotationStore(run_dir.path / "annotations.sqlite")
    asked = [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Tell me {i}"),)) for i in range(prompts)]
    answers = [
        Sample(id=f"p{i}-{k}", prompt_id=f"p{i}", text=f"answer {k}" * (k + 1), tokens=(k,))
        for i in range(prompts)
        for k in range(3)
    ]
    store.add_items(asked, answers)
    return store


def a_ranking(prompt: int, order: str, annotator: str = "ann", **fields) -> Ranking:
    """`a_ranking(1, "20")`: answer 2 of prompt 1 above answer 0."""
    tiers = tuple((f"p{prompt}-{k}",) for k in order)
    return Ranking(prompt_id=f"p{prompt}", tiers=tiers, annotator=annotator, **fields)


def tiers_as_shown(store: AnnotationStore) -> list[list[list[str]]]:
    """Each valid ranking, by the keys of its answers in the order shown."""
    return [
        [[LABELS[ranking.shown.index(name)] for name in tier] for tier in ranking.tiers] for ranking in store.rankings()
    ]
