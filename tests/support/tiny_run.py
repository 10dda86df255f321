"""Runs on a tiny model: config, data, and a stage's session without the pipeline."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tiny import DEVICE, random_tokens

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample, write_jsonl
from lowrank_rlhf.session import Session

WORDS = (
    "the",
    "user",
    "asks",
    "question",
    "and",
    "assistant",
    "gives",
    "answer",
    "that",
    "is",
    "short",
    "kind",
    "point",
)
STAGES = ("sft", "sample", "rank", "reward", "ppo", "evaluate")


def make_config(folder: Path, data: Path | None = None, quantization: str = "nf4", **changes: Any) -> Config:
    """Make a small config; `changes` are dotted keys with `__` for the dot, such as ppo__steps=3."""
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "source": str(folder),
            "quantization": quantization,
            "compute_dtype": "float32",
            "device": DEVICE,
            "threads": 1,
            "max_length": 60,
            "micro_batch_tokens": 240,
        },
        "lora": {"rank": 4, "alpha": 8},
        "data": {"prompts": str(data), "held_out": 5} if data else {},
        "sft": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2},
        "sample": {"prompts": 8, "answers_per_prompt": 3, "max_new_tokens": 6, "batch_size": 12},
        "rank": {},
        "reward": {"epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "held_out": 0.3},
        "ppo": {
            "steps": 4,
            "batch_size": 4,
            "epochs": 1,
            "learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
            "target_kl": None,
            "evaluate_every": 2,
            "evaluate_prompts": 3,
            "missing_eos": "keep",
            "accept_weak_reward": True,
        },
        "align": {},
        "evaluate": {"bootstrap_samples": 100},
        "chat": {},
    }
    top: dict[str, Any] = {"name": "tiny", "seed": 1}
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if field:
            sections[section][field] = value
        else:
            top[key] = value
    if sections["data"].get("held_out") == 5:
        sections["data"].setdefault("validation", 3)  # as many as `ppo.evaluate_prompts`
    return Config.model_validate(top | sections)


def make_session(config: Config, runs: Path) -> Session:
    """The session that the pipeline would pass to a stage."""
    run_dir = RunDir(runs / config.name)
    run_dir.path.mkdir(parents=True, exist_ok=True)
    return Session(config, run_dir, Progress.silent(), StopRequest(), unfinished=config.stages)


def limit_tokens(base: Base, tokens: int) -> None:
    """Set `model.micro_batch_tokens` of a loaded base."""
    base.limits.tokens = tokens


def write_prompts(path: Path, count: int = 20) -> Path:
    """Write prompts of words in the tiny tokenizer's vocabulary; every second one has a response."""
    generator = random.Random(0)
    rows = []
    for number in range(count):
        row = {"id": f"p{number:02d}", "prompt": f"question {number}: {' '.join(generator.choices(WORDS, k=3))}"}
        if number % 2 == 0:
            row["response"] = " ".join(generator.choices(WORDS, k=2 + number // 3))
        rows.append(row)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def save_sft(session: Session) -> None:
    """Write an SFT adapter, as the sft stage does."""
    session.load_roles().reset(Role.POLICY, torch.Generator().manual_seed(0))
    save_role(session.load_roles(), Role.POLICY, session.run_dir.artifact("adapters/sft"))


def write_ranked(session: Session, prompts: list[Prompt], samples: list[Sample], rankings: list[Ranking]) -> None:
    """Write the outputs of the rank stage."""
    path = session.run_dir.artifact
    write_jsonl(path("prompts.jsonl"), prompts)
    write_jsonl(path("answers.jsonl"), samples)
    write_jsonl(path("rankings.jsonl"), rankings)
    write_jsonl(path("comparisons.jsonl"), [pair for ranking in rankings for pair in compare(ranking)])


def separable(count: int, good: int = 200) -> tuple[list[Prompt], list[Sample], list[Ranking]]:
    """Four random answers to each prompt; the two that contain the token `good` are preferred."""
    generator = random.Random(1)
    prompts, samples, rankings = [], [], []
    for number in range(count):
        name = f"p{number:03d}"
        prompts.append(Prompt(id=name, messages=(Message(role="user", content=f"question {number}"),)))
        tokens = random_tokens(number, [generator.randint(3, 8) for _ in range(4)])
        tokens = [[token for token in row if token != good] or [5] for row in tokens]
        for row in tokens[:2]:
            row.insert(generator.randint(0, len(row)), good)
        names = [f"{name}-{k}" for k in range(4)]
        for sample, row in zip(names, tokens, strict=True):
            samples.append(Sample(id=sample, prompt_id=name, text="x" * len(row), tokens=(*row, 2)))
        rankings.append(Ranking(prompt_id=name, tiers=(tuple(names[:2]), tuple(names[2:])), annotator="rule"))
    return prompts, samples, rankings
