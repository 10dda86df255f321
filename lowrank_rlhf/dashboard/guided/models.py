"""Models that the guided path offers, each with the memory that it needs on this machine."""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from lowrank_rlhf.config.loading import load_config, preset_names, preset_path
from lowrank_rlhf.config.schema import Config, ModelConfig
from lowrank_rlhf.dashboard.guided.settings import guided
from lowrank_rlhf.dashboard.guided.sizes import HUMAN, Answers
from lowrank_rlhf.dashboard.guided.summary import Summary
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.planner.compute_cost import ANSWER_SHARE, Amounts
from lowrank_rlhf.planner.fit import SHARE, choices
from lowrank_rlhf.planner.forecast import peak
from lowrank_rlhf.planner.machine import Machine, find_machine
from lowrank_rlhf.sources.model_shape import find_shape

PRESETS = ("quickstart", "small_cpu", "chinese_cpu", "gpu_8gb", "gpu_12gb", "gpu_24gb", "gpu_48gb", "gpu_80gb")
"""Presets by the size of their model, one for each."""

ENGLISH, CHINESE = PRESETS[0], "chinese_cpu"
"""Presets of the smallest models for each language."""


class ModelMemory(NamedTuple):
    """Model of a preset, and its memory in bytes; `needed` is None while the model's dimensions are unknown."""

    model: str
    name: str
    needed: float | None
    free: int
    total: int

    @property
    def fits(self) -> bool:
        """Return True if the forecast is within the free memory."""
        return self.needed is not None and self.needed <= self.free


def default_for(summary: Summary, chosen: str) -> str:
    """Return the smallest model for the language of the prompts, unless another one is chosen."""
    if chosen not in (ENGLISH, CHINESE):
        return chosen
    return CHINESE if summary.chinese else ENGLISH if summary.english else chosen


def model_config(model: str) -> ModelConfig:
    """Return the settings of a preset's model, or of one given as `model.source`."""
    return load_config(preset_path(model)).model if model in preset_names() else ModelConfig(source=model)


def memory_of_each(summary: Summary, models: Iterable[str] = PRESETS) -> list[ModelMemory]:
    """Forecast the memory of a run on these prompts with each model. Raises `Refused` for too few that fit."""
    found = []
    machine: Machine | None = None
    for model in models:
        config = guided(Answers("x", "x", summary, model, HUMAN)).config
        machine = machine or find_machine(config.model)
        found.append(ModelMemory(model, _name(config.model), _needed(config, machine), machine.free, machine.total))
    return found


def _name(config: ModelConfig) -> str:
    """Return the source without what a person need not read: the package and the quantisation of a file."""
    return PurePosixPath(config.source).name.partition(".Q")[0] if config.source.startswith("pypi:") else config.source


def _needed(config: Config, machine: Machine) -> float | None:
    """Return the peak with the settings that `model.memory: auto` would choose."""
    try:
        shape = find_shape(config.model)
    except UserError:
        return None
    if shape is None:
        return None
    counts = _amounts(config)
    peaks = [peak(choice, shape, counts, machine, choice.active_stages) for choice in choices(config)]
    return next((each for each in peaks if each <= SHARE * machine.free), min(peaks))


def _amounts(config: Config) -> Amounts:
    """Return amounts whose longest rows fill `model.max_length`: an upper bound of the memory."""
    answer = float(config.sample.max_new_tokens)
    longest = config.model.max_length - answer
    ranked = config.sample.prompts or 0
    return Amounts(
        training=ranked,
        validation=config.data.validation_prompts,
        test=config.data.held_out - config.data.validation_prompts,
        demonstrations=ranked if config.sft.source == "train" else 0,
        answers=ranked * config.sample.answers_per_prompt,
        prompt_tokens=longest / 2,
        longest_prompt=longest,
        answer_tokens=ANSWER_SHARE * answer,
        longest_demonstration=config.model.max_length,
    )
