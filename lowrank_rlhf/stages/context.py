"""What every stage's `run` receives."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_rlhf.artifacts import MetricLog, RunDir
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.prompts import load_prompts
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.progress import Progress, StopRequest
from lowrank_rlhf.records import Prompt

if TYPE_CHECKING:
    from lowrank_rlhf.models.base import Base
    from lowrank_rlhf.models.roles import Roles


@dataclass
class Context:
    """One run in this process: its settings, its folder, where progress goes, and the base model, loaded once."""

    config: Config
    run_dir: RunDir
    progress: Progress
    stop: StopRequest
    metrics: MetricLog

    @cached_property
    def roles(self) -> "Roles":
        """The adapters on the base, which is loaded on first use and shared by all stages of the run."""
        from lowrank_rlhf.models.base import load_base
        from lowrank_rlhf.models.roles import Roles

        self.progress.say(f"loading {self.config.model.source}")
        return Roles(load_base(self.config.model, self.progress), self.config.lora, self.config.reward.layers)

    @property
    def base(self) -> "Base":
        """The quantised base with its tokenizer."""
        return self.roles.base

    @cached_property
    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """Training prompts and held-out prompts, in seeded order."""
        return load_prompts(self.config.data, self.config.seed)

    def seed(self, *place: str | int) -> int:
        """A seed of its own for each random choice: `seed("ppo", step)`."""
        return derive_seed(self.config.seed, *place)

    def work(self, stage: str) -> Path:
        """The stage's work folder; what it writes there under the names it declares becomes the run's at its end."""
        return self.run_dir.work(stage)
