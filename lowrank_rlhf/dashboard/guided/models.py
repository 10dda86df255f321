"""Models that the guided path offers, each with the memory that it needs on this machine."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard.guided.settings import Answers, guided
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.planner.compute_cost import ANSWER_SHARE, Amounts
from lowrank_rlhf.planner.fit import SHARE, choices
from lowrank_rlhf.planner.forecast import peak
from lowrank_rlhf.planner.machine import Machine, find_machine
from lowrank_rlhf.sources.model_shape import find_shape

PRESETS = ("quickstart", "small_cpu", "gpu_8gb", "gpu_12gb", "gpu_24gb", "gpu_48gb", "gpu_80gb")
"""Presets by the size of their model, one for each."""


class Verdict(NamedTuple):
    """Model of a preset, and its memory in bytes; `needed` is None while the model's dimensions are unknown."""

    model: str
    source: str
    needed: float | None
    free: int
    total: int

    @property
    def fits(self) -> bool:
        """Return True if the forecast is within the free memory."""
        return self.needed is not None and self.needed <= self.free


def verdicts(answers: Answers, models: Sequence[str] = PRESETS) -> list[Verdict]:
    """Forecast the memory of a person's run with each model.

    Raises:
        TooFewPrompts: The file has fewer different prompts than a reward model can be tested with.
    """
    found = []
    machine: Machine | None = None
    for model in models:
        config = guided(replace(answers, model=model)).config
        machine = machine or find_machine(config.model)
        found.append(Verdict(model, config.model.source, _needed(config, machine), machine.free, machine.total))
    return found


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
