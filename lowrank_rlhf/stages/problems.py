"""What is wrong with a valid config on this machine, told before a run. Imports no torch of its own."""

import contextlib

from lowrank_rlhf.config.messages import Key
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.shape import find_shape, layer_problems
from lowrank_rlhf.ranking.judges import ENDPOINT, load_judge


def problems(config: Config) -> list[tuple[Key, str]]:
    """Keys and sentences: judges that cannot be loaded, and layers that the model has not, if it is here.

    A user's judge is imported for that, as the run would.
    """
    return [*_judge_problems(config), *_layer_problems(config)]


def _judge_problems(config: Config) -> list[tuple[Key, str]]:
    judges: dict[Key, str | None] = {}
    if config.rank.source == "judge" and {"rank", "ppo", "evaluate"} & set(config.stages):
        judges["rank", "judge"] = config.rank.judge
    if "evaluate" in config.stages:
        judges["evaluate", "second_judge"] = config.evaluate.second_judge
    found = []
    for key, judge in judges.items():
        if judge and judge != ENDPOINT:
            try:
                load_judge(judge)
            except UserError as error:
                found.append((key, str(error)))
    return found


def _layer_problems(config: Config) -> list[tuple[Key, str]]:
    with contextlib.suppress(UserError):  # a source that is not there is told by whatever needs the model
        if shape := find_shape(config.model):
            return [*layer_problems(config.lora, config.reward.layers, shape.layers)]
    return []
