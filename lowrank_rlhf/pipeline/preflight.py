"""Checks of a valid config against this machine before a run. Imports no torch itself."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lowrank_rlhf.config.messages import Key
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.readers.sources import resolve
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.judges.loading import ENDPOINT, load_judge
from lowrank_rlhf.preferences.rewards.loading import load_function
from lowrank_rlhf.preferences.team.reliability import reliability_problem
from lowrank_rlhf.run import launcher
from lowrank_rlhf.run.tracking import tracking_problem
from lowrank_rlhf.sources.checks import BadModel, check_folder
from lowrank_rlhf.sources.gguf import check_gguf
from lowrank_rlhf.sources.local_template import check_local_template
from lowrank_rlhf.sources.model_shape import find_shape, layer_problems
from lowrank_rlhf.sources.template_checks import BadTemplate

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def problems(config: Config) -> list[tuple[Key, str]]:
    """Return key and message of each problem found.

    Covers missing data, adapters and packages, judges that cannot be loaded, truncated weights and missing layers of
    a local model, and chat templates that are missing there or fail. A user's judge or reward is imported, as in the
    run; no data is read.
    """
    tracker, weights = tracking_problem(config), reliability_problem(config)
    return [
        *_data_problems(config),
        *_weight_problems(config),
        *_adapter_problems(config),
        *_judge_problems(config),
        *_reward_problems(config),
        *_layer_problems(config),
        *_template_problems(config),
        *_sharing_problems(config),
        *([(("tracking",), tracker)] if tracker else []),
        *([(("reward", "annotator_weights"), weights)] if weights else []),
    ]


def _data_problems(config: Config) -> Iterator[tuple[Key, str]]:
    sources: dict[Key, str | None] = {
        ("data", "prompts"): config.data.prompts,
        ("rank", "dataset"): config.rank.dataset,
    }
    for key, source in sources.items():
        try:
            if source:
                resolve(source)
        except UserError as error:
            yield key, str(error)


def _weight_problems(config: Config) -> Iterator[tuple[Key, str]]:
    """Yield the fault in the headers of a local model's weights; a folder without weights can still be planned."""
    source = config.model.source
    path = Path(source).expanduser()
    try:
        if config.model.is_gguf and os.path.isfile(path):
            check_gguf(path, source)
        elif os.path.isdir(path) and any(path.glob("*.safetensors*")):
            check_folder(path, source)
    except BadModel as error:
        yield ("model", "source"), error.problem


def _adapter_problems(config: Config) -> Iterator[tuple[Key, str]]:
    if config.sft.adapter is None or "sft" not in config.stages:
        return
    folder = Path(config.sft.adapter)
    if not os.path.isdir(folder):
        fault = "expected a folder, got a file" if os.path.isfile(folder) else "folder not found"
        yield ("sft", "adapter"), f"{folder}: {fault}. Relative paths start at {Path.cwd()}"
    elif missing := [name for name in ADAPTER_FILES if not os.path.isfile(folder / name)]:
        yield (
            ("sft", "adapter"),
            f"{folder}: {missing[0]} not found. An adapter is a folder saved by PEFT in safetensors",
        )


def judges_in_use(config: Config) -> dict[Key, str | None]:
    """Return the judges that the config's stages ask, by their keys."""
    judges: dict[Key, str | None] = {}
    if config.ranking_judge and {"rank", "ppo", "evaluate"} & set(config.active_stages):
        judges["rank", "judge"] = config.ranking_judge
    if "evaluate" in config.stages or (not config.ranking_judge and "ppo" in config.stages):
        judges["evaluate", "second_judge"] = config.evaluate.second_judge
    return judges


def _judge_problems(config: Config) -> list[tuple[Key, str]]:
    found = []
    for key, judge in judges_in_use(config).items():
        if judge and judge != ENDPOINT:
            try:
                load_judge(judge)
            except UserError as error:
                found.append((key, str(error)))
    return found


def _reward_problems(config: Config) -> Iterator[tuple[Key, str]]:
    for name, term in config.ppo.rewards.items():
        if term.is_function and {"ppo", "evaluate"} & set(config.stages):
            try:
                load_function(name, term)
            except UserError as error:
                yield ("ppo", "rewards", name, "source"), str(error)


def _sharing_problems(config: Config) -> Iterator[tuple[Key, str]]:
    count, size = launcher.launched_processes(), config.sft.batch_size
    if size % count and "sft" in config.stages and config.sft.source == "train":
        yield ("sft", "batch_size"), f"{size} rows cannot be divided evenly among {count} processes. Set a multiple"
    if count > 1 and config.model.device == "mps":
        yield ("model", "device"), "mps supports one process only: gloo and nccl do not reach an Apple GPU"
    if count > 1 and config.model.memory == "auto":
        yield (
            ("model", "memory"),
            "auto supports one process only. Set model.memory=as_set and use the numbers that `plan` prints",
        )


def require_processes(config: Config) -> None:
    """Raise `UserError` for `model.shard` in one process, in which there is nothing to divide."""
    if config.model.shard and launcher.launched_processes() == 1:
        raise UserError(
            "model.shard: one process cannot divide the base. Start several, `torchrun --nproc_per_node 2 -m "
            "lowrank_rlhf ...` (docs/more_than_one_gpu.md), or set model.shard: false"
        )


def _layer_problems(config: Config) -> list[tuple[Key, str]]:
    with contextlib.suppress(UserError):  # a source that is not there is told by whatever needs the model
        if shape := find_shape(config.model):
            return [*layer_problems(config.lora, config.reward.layers, shape.layers)]
    return []


def _template_problems(config: Config) -> Iterator[tuple[Key, str]]:
    try:
        check_local_template(config.model)
    except BadTemplate as error:
        yield ("model", "chat_template"), error.problem
    except UserError:  # a missing source is reported by the code that needs the model
        return
