"""Who can take part in an evaluation: the bare base, a run's adapters by name, or any adapter's folder. No torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.stages import STAGES

BASE = "base"
OF_RUN = ("sft", "policy", "policy-last")
NAMES = (BASE, *OF_RUN)


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison."""

    name: str
    """As it was asked for."""
    folder: Path | None
    """Its adapter; None is the bare base."""


@dataclass(frozen=True)
class Match:
    """Two contestants, and what they are compared on."""

    left: Contestant
    right: Contestant
    prompts: Sequence[Prompt]
    answers_per_prompt: int
    seed: int
    judge: Judge | None
    """None where only the reward model decides."""
    notes: tuple[str, ...] = ()
    """What to know of the prompts."""


def contestant(run_dir: RunDir, name: str) -> Contestant:
    """The base or the run's adapter of that name, or else the folder of that name.

    Raises `UserError` saying which stage makes an adapter that the run does not have yet.
    """
    if name == BASE:
        return Contestant(name, None)
    if name in OF_RUN:
        return Contestant(name, run_adapter(run_dir, name))
    folder = Path(name)
    if not os.path.isdir(folder):
        raise UserError(
            f'"{name}" is neither {", ".join(NAMES[:-1])} nor {NAMES[-1]}, and no folder either.'
            f"{suggestion(name, NAMES)}"
        )
    return Contestant(name, folder)


def run_adapter(run_dir: RunDir, name: str) -> Path:
    """Folder of the run's adapter of that name. Raises `UserError` saying which stage makes it."""
    output = f"adapters/{name}"
    folder = run_dir.artifact(output)
    if folder.is_dir():
        return folder
    stage = next(stage.name for stage in STAGES if output in stage.writes)
    run, config = run_dir.path, run_dir.path / "config.yaml"
    left_out = stage not in load_config(config).stages
    first = f", which the run leaves out; add {stage} to `stages` in {config}, then" if left_out else ""
    raise UserError(
        f"{run}: no {output} there yet; stage {stage} makes it{first}:\n"
        f"  python -m lowrank_rlhf run {config} --runs {run.parent} --until {stage}"
    )
