"""One run in this process, as every stage's `run` receives it."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, PositiveInt

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.prompts import PromptData, Splits
from lowrank_rlhf.data.requirements import check_amounts
from lowrank_rlhf.data.run_data import RunData, divides_held_out, read_commits
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.models.backend import Backend, take_backend
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.files import read_record, write_json_atomic
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.sources.fetch import fetch_model

if TYPE_CHECKING:
    from lowrank_rlhf.models.batch_limits import BatchLimits
    from lowrank_rlhf.models.roles import Roles


class _Halved(BaseModel):
    tokens: PositiveInt
    rows: PositiveInt | None


@dataclass
class Session:
    """Settings, folder, progress and stop request of a run, with its data and its model, each loaded once."""

    config: Config
    run_dir: RunDir
    """Folder of the round of the running stage."""
    progress: Progress
    stop: StopRequest
    group: ProcessGroup = field(default_factory=ProcessGroup)
    """Processes that share the stages' work."""
    unfinished: Collection[str] = ()
    """Stages that this run, or a later one with the same config, will run: the responses that they read are checked."""
    backend: Backend = "transformers"
    """Library that runs the model. Only the pipeline sets another one: merging, streaming and adapters of any shape
    need plain layers."""
    data_is_shared: bool = False
    """True when the other processes have the data."""
    loading_seconds: float = 0.0
    """Seconds spent loading the base, conversion included."""
    _roles: "Roles | None" = field(default=None, init=False, repr=False)
    _fitting: PromptData | None = field(default=None, init=False, repr=False)

    @property
    def metrics(self) -> StepLog:
        """Log of all stages' figures."""
        return self.run_dir.metrics

    def take_backend(self) -> None:
        """Choose the library that runs the model, after the model is fetched and before transformers is imported."""
        self.backend = take_backend(self.config, self.run_dir.run, self.progress)

    @property
    def has_roles(self) -> bool:
        """True once the base is loaded."""
        return self._roles is not None

    def load_roles(self) -> "Roles":
        """Load the base with its adapters on the first call; return the same object afterwards."""
        if self._roles is None:
            self._roles = self._load_roles()
        return self._roles

    def _load_roles(self) -> "Roles":
        from lowrank_rlhf.models.loading.training_check import check_training
        from lowrank_rlhf.models.pinned_precision import load_with_pinned_precision
        from lowrank_rlhf.models.roles import Roles

        self.progress.say(f"loading {self.config.model.source}")
        start = time.monotonic()
        model = self.config.model.model_copy(update={"backend": self.backend})
        base = load_with_pinned_precision(model, self.run_dir.run, self.progress, self.group)
        roles = Roles(base, self.config.lora, self.config.reward.layers, self.config.reward.members)
        check_training(roles)
        # Every forward polls, in TRL and generation too: a stop need not wait for the end of a step or an evaluation.
        roles.poll = lambda: self.stop.check("everything before this stage is saved")
        self._remember_limits(base.limits)
        self.loading_seconds = time.monotonic() - start
        return roles

    def _remember_limits(self, limits: "BatchLimits") -> None:
        """Apply the limits that an earlier out-of-memory error halved, and record each further halving."""
        run_dir = self.run_dir.round(1)
        path = run_dir.path / "room.json"

        def halved(what: str) -> None:
            self.progress.say(f"  {what}")
            run_dir.event("halved", what=what)
            write_json_atomic(path, {"schema": 1, "tokens": limits.tokens, "rows": limits.rows})

        if found := read_record(path, _Halved):
            limits.tokens, limits.rows = min(limits.tokens, found["tokens"]), found["rows"]
        limits.on_halved = halved

    @cached_property
    def data(self) -> RunData:
        """Prompts and comparisons that the config names."""
        return RunData(self.config, read_commits(self.run_dir))

    def filter_lengths(self) -> PromptData:
        """Return the prompts and demonstrations that fit the model, and print the number of those left out.

        Raises `UserError` that names prompts with control tokens, unless `data.control_tokens` is `escape`, and those
        too long, unless `data.skip_too_long` is set.
        """
        if self._fitting is None:
            self._fitting = self._filter_lengths()
        return self._fitting

    def _filter_lengths(self) -> PromptData:
        from lowrank_rlhf.data.length_filter import TextReader, fitting_data
        from lowrank_rlhf.sources.chat_template import ChatTemplate
        from lowrank_rlhf.sources.tokenizer import control_tokens, prompt_tokens, read_tokenizer, response_tokens

        silent = Progress.silent()  # fetching the model has shown its progress already
        tokenizer = read_tokenizer(fetch_model(self.config.model, silent), self.config.model, silent)
        reader = TextReader(
            prompt=lambda prompt: len(prompt_tokens(tokenizer, prompt)),
            responses=lambda texts: response_tokens(tokenizer, texts),
            template=ChatTemplate.of(tokenizer),
            control_tokens=control_tokens(tokenizer),
        )
        found, notes = fitting_data(self.data.prompts, self.data.comparisons, reader, self.config, self.unfinished)
        for note in notes:
            self.progress.say(f"  {note}")
        return found

    @property
    def prompts(self) -> Splits:
        """Training, validation and test prompts, in seeded order; without those too long if `data.skip_too_long`."""
        found = self.filter_lengths() if self.config.data.skip_too_long else self.data.prompts
        return found.splits(divides_held_out(self.run_dir))

    def read_data(self) -> None:
        """Read the data and print the notes on it: its errors come before any long work."""
        prompts, comparisons = self.data.prompts, self.data.comparisons
        check_amounts(prompts, comparisons, self.config)
        builtin = self.config.data.prompts.startswith("builtin:")
        own = [] if builtin else [*prompts.notes, *prompts.training_notes]
        for note in [*own, *(comparisons.notes if comparisons else [])]:
            self.progress.say(f"  {note}")

    @property
    def round_seed(self) -> int:
        """Seed of the sampling and training of this round: the run's in the first one."""
        number = self.run_dir.number
        return self.config.seed if number == 1 else derive_seed(self.config.seed, "round", number)

    def seed(self, *place: str | int) -> int:
        """Return the seed of one random choice: `seed("ppo", step)`."""
        return derive_seed(self.config.seed, *place)

    def work(self, stage: str) -> Path:
        """Create and return the stage's work folder; its declared outputs are moved into the run when it ends."""
        return self.run_dir.work(stage)
