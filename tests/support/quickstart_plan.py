"""The quickstart's model, data and machine as the planner reads them."""

from pathlib import Path

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.planner import machine
from lowrank_rlhf.planner.compute_cost import Amounts
from lowrank_rlhf.planner.memory import Device
from lowrank_rlhf.sources.model_shape import Shape

GB = 10**9
SMOLLM = Shape(
    "llama", layers=30, hidden=576, mlp=1536, query=576, key_value=192, vocabulary=49_152, tied=True,
    file_bytes=269_060_552,
)  # fmt: skip
COUNTS = Amounts(
    training=492, validation=64, test=64, demonstrations=240, answers=1280, prompt_tokens=14, longest_prompt=18,
    answer_tokens=20,
    longest_demonstration=40,
)  # fmt: skip
CPU = machine.Machine(Device(cuda=False, width=2), 20 * GB, 24 * GB, 1e12, "bfloat16")

FORMER = (
    "data.prompts=builtin:everyday",
    "data.held_out=140",
    "sample.prompts=480",
    "sample.max_new_tokens=64",
    "reward.epochs=0",
    "reward.learning_rate=1e-4",
    "ppo.steps=16",
    "ppo.batch_size=72",
    "ppo.epochs=1",
    "ppo.minibatches=1",
    "ppo.evaluate_every=2",
    "ppo.evaluate_prompts=128",
    "evaluate.answers_per_prompt=2",
)
"""Sizes of the preset when its stages were measured (docs/performance/memory.json)."""


def quickstart(*overrides: str) -> Config:
    """Return the preset, with the sizes for which the tests' figures were computed and measured."""
    return load_config(
        Path("quickstart"),
        [*FORMER, "model.quantization=nf4", "sample.max_new_tokens=48", "ppo.batch_size=48", *overrides],
    )
