"""Models that can be compared: the bare base, a run's adapters by name, or any adapter folder. No torch."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.data.readers.rows import counted
from lowrank_rlhf.data.turns import prompt_key
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.run.directory import RunDir, check_adapter
from lowrank_rlhf.run.records import Prompt, read_jsonl

BASE = "base"
RUN_ADAPTERS = ("sft", "policy", "policy-last")
NAMES = (BASE, *RUN_ADAPTERS)


@dataclass(frozen=True)
class ComparedModel:
    """One of two models under comparison."""

    name: str
    """As given by the user."""
    folder: Path | None
    """Folder of the adapter; None for the bare base."""


@dataclass(frozen=True)
class Match:
    """Two models under comparison, the prompts that they answer, and the judge."""

    left: ComparedModel
    right: ComparedModel
    prompts: Sequence[Prompt]
    answers_per_prompt: int
    seed: int
    judge: Judge | None
    """None if the reward model decides."""


def compared_model(run_dir: RunDir, name: str, stages: Mapping[str, str]) -> ComparedModel:
    """Return the base, the run's adapter of that name, or the adapter in the folder of that name.

    `stages` names the stage that writes each adapter. Raises `UserError` for an unknown name and for an adapter that
    the run does not have yet.
    """
    if name == BASE:
        return ComparedModel(name, None)
    if name in RUN_ADAPTERS:
        return ComparedModel(name, run_adapter(run_dir, name, stages[name]))
    folder = Path(name)
    if not os.path.isdir(folder):
        raise UserError(
            f'unknown model "{name}": expected {", ".join(NAMES)}, or the folder of an adapter.'
            f"{suggestion(name, NAMES)}"
        )
    check_adapter(folder)
    return ComparedModel(name, folder)


def run_adapter(run_dir: RunDir, name: str, stage: str) -> Path:
    """Return the folder of the run's adapter of that name.

    Raises `UserError` with the stage that writes it if it is missing or was damaged after the stage finished.
    """
    folder = run_dir.artifact(f"adapters/{name}")
    if folder.is_dir():
        run_dir.check_outputs(f"adapters/{name}")
        return folder
    run, config = run_dir.run, run_dir.run / "config.yaml"
    advice = "Run that stage:"
    if stage not in load_config(config).stages:
        advice = f"Add {stage} to `stages` in {config}, then run it:"
    text = (
        "{run}: adapters/{name} not found; stage {stage} writes it. {advice}\n"
        "  python -m lowrank_rlhf run {config} --runs {runs} --until {stage}"
    )
    values = {"advice": advice, "config": str(config), "runs": str(run.parent)}
    raise UserError(Fault("no_adapter", text, run=str(run), name=name, stage=stage, **values))


def training_overlap(
    training_prompts: Callable[[], Sequence[Prompt]], run_dir: RunDir, prompts: Sequence[Prompt]
) -> list[str]:
    """Return a note if the run was trained on some of these prompts, or if its training prompts cannot be read."""
    ranked = [path for each in run_dir.up_to_this if (path := each.artifact("prompts.jsonl")).is_file()]
    try:
        training = [*training_prompts(), *(prompt for path in ranked for prompt in read_jsonl(path, Prompt))]
    except UserError as error:
        return [f"cannot check whether the run was trained on these prompts: {str(error).splitlines()[0]}"]
    keys = {prompt_key(prompt.messages) for prompt in training}
    count = sum(prompt_key(prompt.messages) in keys for prompt in prompts)
    if not count:
        return []
    return [f"the run was trained on {count} of these {counted(len(prompts), 'prompt')}; others may score lower"]
