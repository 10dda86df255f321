"""What every stage's `run` receives."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_rlhf.artifacts import MetricLog, RunDir
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.comparisons import ComparisonData, load_comparisons, without_prompts
from lowrank_rlhf.data.prompts import load_prompt_data
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
        """Training prompts and held-out prompts, in seeded order. Says what was read, unless it is a built-in set."""
        data = load_prompt_data(self.config.data, self.config.seed)
        if not self.config.data.prompts.startswith("builtin:"):
            for note in (*data.notes, *data.training_notes):
                self.progress.say(f"  {note}")
        return data.training, data.held_out

    @cached_property
    def comparisons(self) -> ComparisonData:
        """What `rank.dataset` holds, but for held-out prompts. Says what was read."""
        rank = self.config.rank
        data = load_comparisons(str(rank.dataset), rank.format, self.config.data.skip_bad_rows)
        data = without_prompts(data, self.prompts[1])
        for note in data.notes:
            self.progress.say(f"  {note}")
        return data

    def read_data(self) -> None:
        """Read what the config names, so that a mistake in it is told before anything takes time."""
        _ = self.prompts
        if self.config.rank.source == "dataset":
            _ = self.comparisons

    def seed(self, *place: str | int) -> int:
        """A seed of its own for each random choice: `seed("ppo", step)`."""
        return derive_seed(self.config.seed, *place)

    def work(self, stage: str) -> Path:
        """The stage's work folder; what it writes there under the names it declares becomes the run's at its end."""
        return self.run_dir.work(stage)
