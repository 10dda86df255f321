"""`model.memory: auto`: micro-batches and checkpointing that fit this machine, as numbers in the place of the word."""

from collections.abc import Iterator

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.planner.compute_cost import amounts
from lowrank_rlhf.planner.forecast import changed, peak
from lowrank_rlhf.planner.machine import look
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import memory
from lowrank_rlhf.sources.model_shape import find_shape
from lowrank_rlhf.sources.tokenizer import local_tokenizer

SHARE = 0.8
"""Of the free memory: the rest is for what the forecast does not know, and for other programs."""
ENOUGH, LEAST = 256, 64
"""Tokens of a micro-batch below which checkpointing is tried first, and below which nothing is tried."""


def fitted(config: Config, run_dir: RunDir) -> tuple[Config, str]:
    """The config with numbers where it said `auto`, and what to tell about them.

    A run that has begun keeps its numbers, which are in its config.yaml. For a new one the first choice of `choices`
    is taken whose forecast is within four fifths of the free memory, or else the one that needs least. Without `auto`,
    and while the model's shape is not known, the config comes back as it is, with nothing to tell.

    Raises `UserError` for bad data, and where the run's own config cannot be read.
    """
    if config.model.memory != "auto":
        return config, ""
    begun = run_dir.path / "config.yaml"
    if begun.is_file():
        kept = load_config(begun).model
        taken = _with(config, kept.micro_batch_tokens, kept.gradient_checkpointing)
        return taken, f"{_said(taken)}, as the run began"
    shape = find_shape(config.model)
    if shape is None:
        return config, ""
    machine = look(config.model)
    counts = amounts(config, run_dir, RunData(config), local_tokenizer(config.model))
    needs = [(peak(choice, shape, counts, machine, choice.stages), choice) for choice in choices(config)]
    fitting = (entry for entry in needs if entry[0] <= SHARE * machine.free)
    needed, taken = next(fitting, min(needs, key=lambda entry: entry[0]))
    return taken, f"{_said(taken)}, which need about {memory(needed)} of {memory(machine.free)} free"


def choices(config: Config) -> Iterator[Config]:
    """What `auto` tries in turn: micro-batches halved down to 256 tokens, then all with checkpointing, halved to 64.

    `micro_batch_tokens` is the most that is tried, and checkpointing that is set stays on.
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


def _said(config: Config) -> str:
    model = config.model
    checkpointing = "true" if model.gradient_checkpointing else "false"
    return (
        f"model.memory: auto takes micro_batch_tokens {model.micro_batch_tokens} and gradient_checkpointing "
        f"{checkpointing}"
    )
