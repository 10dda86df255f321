"""What every stage's `run` receives."""

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, PositiveInt

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.prompts import PromptData
from lowrank_rlhf.data.run_data import RunData, read_commits
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.models.backend import Backend, take_backend
from lowrank_rlhf.run.directory import RunDir, StepLog, read_record, write_json_atomic
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.sources.fetch import fetch_model

if TYPE_CHECKING:
    from lowrank_rlhf.models.base import Base
    from lowrank_rlhf.models.batch_limits import BatchLimits
    from lowrank_rlhf.models.roles import Roles


class _Halved(BaseModel):
    tokens: PositiveInt
    rows: PositiveInt | None


@dataclass
class Session:
    """One run in this process: its settings, its folder, where progress goes, and the base model, loaded once."""

    config: Config
    run_dir: RunDir
    progress: Progress
    stop: StopRequest
    group: ProcessGroup = field(default_factory=ProcessGroup)
    """Processes that share the work of the stages."""
    backend: Backend = "transformers"
    """What runs the model. Only the pipeline takes another one: whoever merges, streams or fills roles with adapters of
    any shape works on plain layers."""
    loading_seconds: float = 0.0
    """Time that loading the base took, conversion included."""

    @property
    def metrics(self) -> StepLog:
        """Where every stage notes its figures."""
        return self.run_dir.metrics

    def take_backend(self) -> None:
        """Decide what runs the model. Call it when that is fetched and before anything imports transformers."""
        self.backend = take_backend(self.config, self.run_dir.path, self.progress)

    @cached_property
    def roles(self) -> "Roles":
        """The adapters on the base, which is loaded on first use and shared by all stages of the run."""
        from lowrank_rlhf.models.pinned_precision import load_in_the_runs_format
        from lowrank_rlhf.models.roles import Roles

        self.progress.say(f"loading {self.config.model.source}")
        start = time.monotonic()
        model = self.config.model.model_copy(update={"backend": self.backend})
        base = load_in_the_runs_format(model, self.run_dir.path, self.progress, self.group)
        roles = Roles(base, self.config.lora, self.config.reward.layers)
        # Every forward polls, TRL's and generation's too: a stop waits for no step's or evaluation's end.
        roles.poll = lambda: self.stop.check("everything before this stage is saved")
        self._remember_limits(base.limits)
        self.loading_seconds = time.monotonic() - start
        return roles

    def _remember_limits(self, limits: "BatchLimits") -> None:
        """Where memory ran out once, the run goes on with what was halved then, in a new process too."""
        path = self.run_dir.path / "room.json"

        def halved(what: str) -> None:
            self.progress.say(f"  {what}")
            self.run_dir.event("halved", what=what)
            write_json_atomic(path, {"schema": 1, "tokens": limits.tokens, "rows": limits.rows})

        if found := read_record(path, _Halved):
            limits.tokens, limits.rows = min(limits.tokens, found["tokens"]), found["rows"]
        limits.on_halved = halved

    @property
    def base(self) -> "Base":
        """The quantised base with its tokenizer."""
        return self.roles.base

    @cached_property
    def data(self) -> RunData:
        """What the config names, as it was read."""
        return RunData(self.config, read_commits(self.run_dir))

    @cached_property
    def fitting(self) -> PromptData:
        """The prompts and demonstrations that the model has room for. Says what was left out.

        Raises `UserError` with those that are too long, unless `data.skip_too_long` leaves them out.
        """
        from lowrank_rlhf.data.length_filter import TokenCounter, fitting
        from lowrank_rlhf.sources.tokenizer import prompt_tokens, read_tokenizer

        unheard = Progress.silent()  # the model is fetched aloud elsewhere
        tokenizer = read_tokenizer(fetch_model(self.config.model, unheard), self.config.model, unheard)
        count = TokenCounter(
            prompt=lambda prompt: len(prompt_tokens(tokenizer, prompt)),
            response=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1,
        )
        found = fitting(self.data.prompts, count, self.config)
        for note in found.notes[len(self.data.prompts.notes) :]:
            self.progress.say(f"  {note}")
        return found

    @cached_property
    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """Training prompts and held-out prompts, in seeded order; without too long ones if they may be left out."""
        found = self.fitting if self.config.data.skip_too_long else self.data.prompts
        return found.training, found.held_out

    def read_data(self) -> None:
        """Read what the config names and say so: a mistake in it is told before anything takes time."""
        prompts, comparisons = self.data.prompts, self.data.comparisons
        builtin = self.config.data.prompts.startswith("builtin:")
        own = [] if builtin else [*prompts.notes, *prompts.training_notes]
        for note in [*own, *(comparisons.notes if comparisons else [])]:
            self.progress.say(f"  {note}")

    def check_lengths(self) -> None:
        """Raise `UserError` if a prompt or demonstration is too long for the model, before anything takes time."""
        _ = self.fitting

    def seed(self, *place: str | int) -> int:
        """A seed of its own for each random choice: `seed("ppo", step)`."""
        return derive_seed(self.config.seed, *place)

    def work(self, stage: str) -> Path:
        """The stage's work folder; what it writes there under the names it declares becomes the run's at its end."""
        return self.run_dir.work(stage)
