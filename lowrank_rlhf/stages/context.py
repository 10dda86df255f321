"""What every stage's `run` receives."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_rlhf.artifacts import MetricLog, RunDir
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.prompts import load_prompts
from lowrank_rlhf.progress import Progress, StopRequest
from lowrank_rlhf.records import Prompt

if TYPE_CHECKING:
    from lowrank_rlhf.models.base import BaseModel


@dataclass
class Context:
    """One run in this process: its settings, its folder, where progress goes, and the base model, loaded once."""

    config: Config
    run_dir: RunDir
    progress: Progress
    stop: StopRequest
    metrics: MetricLog

    @cached_property
    def base(self) -> "BaseModel":
        """The quantised base with its tokenizer, loaded on first use and shared by all stages of the run."""
        from lowrank_rlhf.models.base import load_base

        return load_base(self.config.model, self.progress)

    @cached_property
    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """Training prompts and held-out prompts, in seeded order."""
        return load_prompts(self.config.data, self.config.seed)

    def work(self, stage: str) -> Path:
        """The stage's work folder; what it writes there under the names it declares becomes the run's at its end."""
        return self.run_dir.work(stage)
