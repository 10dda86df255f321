"""Runs on a tiny model that train the policy with TRL: settings, and a run finished up to that stage."""

import shutil
from pathlib import Path
from typing import Any

from tiny_run import make_config, make_session, write_prompts

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.session import Session

SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {"align__epochs": 2},
    "rloo": {"align__steps": 5, "align__answers_per_prompt": 3},
    "grpo": {"align__steps": 5, "align__answers_per_prompt": 3},
}
COMMON = {"align__batch_size": 6, "align__learning_rate": 1e-2, "model__micro_batch_tokens": 100}
READY = ("adapters/sft", "adapters/reward", "prompts.jsonl", "answers.jsonl", "rankings.jsonl", "comparisons.jsonl")


class Ready:
    """A run finished up to the reward stage, and copies that continue from there."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.prompts = write_prompts(folder / "prompts.jsonl")
        self.whole = pipeline.run(self.config("ppo"), folder / "runs", until="reward", progress=Progress.silent())

    def config(self, algorithm: str, **changes: Any) -> Config:
        """The run's config with that algorithm."""
        return make_config(
            self.model,
            self.prompts,
            **{
                "align__algorithm": algorithm,
                "model__micro_batch_tokens": 100,
                **(SETTINGS[algorithm] | COMMON if algorithm != "ppo" else {}),
                **changes,
            },
        )

    def runs(self, folder: Path) -> Path:
        """A folder with a copy of the run in it."""
        shutil.copytree(self.whole.path, folder / self.whole.path.name)
        return folder

    def session(self, folder: Path, algorithm: str, **changes: Any) -> Session:
        """The session of the stage, in a copy of the run."""
        return make_session(self.config(algorithm, **changes), self.runs(folder))


def with_sft(session: Session) -> Session:
    """The same session, with SFT loaded as the reference."""
    load_role(session.load_roles(), Role.REFERENCE, session.run_dir.artifact("adapters/sft"))
    return session
