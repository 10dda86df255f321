"""`model.memory: auto`: choose a micro-batch size and checkpointing that fit this machine's free memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.planner.assumed_data import planned_amounts
from lowrank_rlhf.planner.forecast import changed, peak
from lowrank_rlhf.planner.machine import Machine, find_machine
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import memory
from lowrank_rlhf.sources.model_shape import find_shape

SHARE = 0.8
"""Usable share of the free memory; the rest covers errors of the forecast and other programs."""
ENOUGH, LEAST = 256, 64
"""Micro-batch tokens below which checkpointing is tried first, and the smallest number tried."""


@dataclass(frozen=True)
class MemoryChoice:
    """Values that `model.memory: auto` resolved to. Sizes in bytes, None where a run's own config gave the values."""

    micro_batch_tokens: int
    gradient_checkpointing: bool
    needed: float | None = None
    free: float | None = None

    @property
    def message(self) -> str:
        """One line for the terminal."""
        values = (
            f"model.memory: auto selected micro_batch_tokens {self.micro_batch_tokens} and gradient_checkpointing "
            f"{'true' if self.gradient_checkpointing else 'false'}"
        )
        if self.needed is None or self.free is None:
            return f"{values} when the run started"
        return f"{values}: about {memory(self.needed)} needed, {memory(self.free)} free"


def fit_to_memory(
    config: Config, run_dir: RunDir, data: RunData, other: Machine | None = None
) -> tuple[Config, MemoryChoice | None]:
    """Replace `model.memory: auto` by explicit settings, and return them.

    A started run keeps the settings in its config.yaml. A new run gets the first of `choices` whose forecast is
    at most `SHARE` of the free memory, or the one that needs least. The config is returned unchanged without `auto`,
    and while the model's shape is unknown. `other` replaces this machine.

    Raises:
        UserError: The data is invalid, or the run's own config cannot be read.
    """
    if config.model.memory != "auto":
        return config, None
    existing = run_dir.path / "config.yaml"
    if existing.is_file():
        kept = load_config(existing).model
        choice = MemoryChoice(kept.micro_batch_tokens, kept.gradient_checkpointing)
        return _with(config, choice.micro_batch_tokens, choice.gradient_checkpointing), choice
    shape = find_shape(config.model)
    if shape is None:
        return config, None
    machine = other or find_machine(config.model)
    counts = planned_amounts(config, run_dir, data).counts
    needs = [(peak(choice, shape, counts, machine, choice.stages), choice) for choice in choices(config)]
    within = (entry for entry in needs if entry[0] <= SHARE * machine.free)
    needed, taken = next(within, min(needs, key=lambda entry: entry[0]))
    model = taken.model
    return taken, MemoryChoice(model.micro_batch_tokens, model.gradient_checkpointing, needed, machine.free)


def choices(config: Config) -> Iterator[Config]:
    """Yield configs to try in order: micro-batches halved down to 256 tokens, then with checkpointing down to 64.

    `micro_batch_tokens` of the config is the upper limit, and checkpointing stays on if set.
    """
    most, checkpointing = config.model.micro_batch_tokens, config.model.gradient_checkpointing
    if not checkpointing:
        yield from (_with(config, tokens, False) for tokens in _halves(most, ENOUGH))
    yield from (_with(config, tokens, True) for tokens in _halves(most, LEAST))


def _halves(most: int, least: int) -> Iterator[int]:
    tokens = most
    while tokens >= least or tokens == most:
        yield tokens
        tokens //= 2


def _with(config: Config, tokens: int, checkpointing: bool) -> Config:
    numbers = {"micro_batch_tokens": tokens, "gradient_checkpointing": checkpointing, "memory": "as_set"}
    return changed(config, {f"model.{name}": value for name, value in numbers.items()})
