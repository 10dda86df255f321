"""Settings of a run from a person's prompts, model and ranker, each number with its reason."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lowrank_rlhf.config.loading import changed_values, load_config, preset_names, preset_path
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard.guided.sizes import (
    CHINESE_JUDGE,
    DATASET,
    HUMAN,
    Answers,
    Sizes,
    check_answers,
    passes,
    sizes_of,
)
from lowrank_rlhf.maths.reward_gate import POWER
from lowrank_rlhf.preferences.enough import ASSUMED_ACCURACY, needed

_KIND = ("simulated-kind-annotator", CHINESE_JUDGE)
_KIND_TIE_MARGIN = 0.1
_USUAL_STEPS, _LEAST_STEPS, _PASSES = 20, 6, 4  # limits of the steps, and rollouts of each training prompt


class ChosenSetting(NamedTuple):
    """Number chosen for a setting; `id` is the key of its reason, with the values for that text."""

    id: Literal[
        "bad_rows", "held_out", "too_long", "base", "demonstrations", "length", "answers", "people", "dataset", "cut",
        "test", "test_weak", "steps", "no_judge",
    ]  # fmt: skip
    setting: tuple[str, str]
    values: dict[str, int]


class Guided(NamedTuple):
    """Settings of a run as a config, the values to show, and the reasons for those that were chosen."""

    config: Config
    values: dict[str, Any]
    choices: list[ChosenSetting]


def guided(answers: Answers) -> Guided:
    """Return the settings for a person's answers.

    Raises `Refused` for answers from which no run can be made.
    """
    values = _model_values(answers.model)
    sizes = sizes_of(answers, values)
    check_answers(answers, sizes)
    values["name"] = answers.name
    values["model"] |= {"max_length": sizes.max_length, "memory": "auto"}
    values["data"] = {
        "prompts": answers.file,
        **({"columns": answers.columns} if answers.columns else {}),
        **({"skip_bad_rows": math.ceil(100 * answers.bad_rows / answers.rows) / 100} if answers.bad_rows else {}),
        "held_out": sizes.held_out,
        **({"skip_too_long": True} if _too_long(answers, sizes) else {}),
    }
    values["sft"] = values.get("sft", {}) if sizes.imitates else {"source": "base"}
    values["sample"] = values.get("sample", {}) | {"max_new_tokens": sizes.new_tokens}
    values["rank"], values["evaluate"] = _rank(answers), _evaluate(answers)
    values["reward"] = _reward(values.get("reward", {}), sizes)
    values["ppo"] = _ppo(values.get("ppo", {}), sizes, answers.ranker)
    if answers.ranker != DATASET:
        values["sample"] |= {"prompts": sizes.ranked, "answers_per_prompt": sizes.answers}
    shown = {key: values[key] for key in _ORDER if values.get(key)}
    config = Config.model_validate(shown)
    return Guided(config, shown, list(_choices(answers, config, sizes)))


_ORDER = ("name", "seed", "model", "data", "lora", "sft", "sample", "rank", "reward", "ppo", "evaluate")


def _model_values(model: str) -> dict[str, Any]:
    """Return the settings that suit a model: a preset's, or the defaults with a head that is fitted first."""
    if model in preset_names():
        return changed_values(load_config(preset_path(model)))
    return {
        "seed": 1,
        "model": {"source": model},
        "reward": {"fit_head_first": True},
        "ppo": {"steps": _USUAL_STEPS, "epochs": 2, "minibatches": 2},
    }


def _too_long(answers: Answers, sizes: Sizes) -> dict[str, int]:
    """Return the prompts and responses that `data.skip_too_long` leaves out; empty if all fit."""
    found = {
        "prompts": answers.summary.prompts - sizes.prompts,
        "responses": sizes.long_responses if sizes.imitates else 0,
    }
    return found if any(found.values()) else {}


def _rank(answers: Answers) -> dict[str, Any]:
    if answers.ranker == HUMAN:
        return {"source": HUMAN}
    if answers.ranker == DATASET:
        own = answers.comparisons is None
        columns = {"columns": answers.columns} if own and answers.columns else {}
        return {"source": DATASET, "dataset": answers.file if own else answers.comparisons, **columns}
    margin = {"tie_margin": _KIND_TIE_MARGIN} if answers.ranker in _KIND else {}
    return {"source": "judge", "judge": answers.ranker, **margin}


def _evaluate(answers: Answers) -> dict[str, Any]:
    """Return a second judge that is not the first one; none for a language that it cannot read."""
    if not answers.summary.english:
        return {"second_judge": None}
    return {"second_judge": "simulated-annotator" if answers.ranker == "plain-language" else "plain-language"}


def _reward(values: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key != "head_l2"}  # it was chosen for the preset's data
    return kept | {"held_out": sizes.test}


def _ppo(values: dict[str, Any], sizes: Sizes, ranker: str) -> dict[str, Any]:
    batch = min(values.get("batch_size", 64), 2 ** (sizes.training.bit_length() - 1))
    most = max(values.get("steps", 0), _USUAL_STEPS)
    steps = min(max(-(-_PASSES * sizes.training // batch), _LEAST_STEPS), most)
    chosen = {
        "steps": steps,
        "batch_size": batch,
        "evaluate_every": min(values.get("evaluate_every", 10), steps // 2),
        "evaluate_prompts": min(values.get("evaluate_prompts", 128), sizes.held_out // 2),
    }
    if ranker == DATASET:  # no answers of the SFT model are ranked
        values = {key: value for key, value in values.items() if key != "contrastive"}
    return values | chosen


def _choices(answers: Answers, config: Config, sizes: Sizes) -> Iterator[ChosenSetting]:
    half = sizes.held_out // 2
    shares = {"prompts": sizes.prompts, "held_out": sizes.held_out, "half": half, "training": sizes.training}
    if answers.bad_rows:
        yield ChosenSetting("bad_rows", ("data", "skip_bad_rows"), {"count": answers.bad_rows})
    yield ChosenSetting("held_out", ("data", "held_out"), shares)
    if left_out := _too_long(answers, sizes):
        yield ChosenSetting("too_long", ("data", "skip_too_long"), left_out)
    imitated = {"demonstrations": sizes.demonstrations}
    if sizes.imitates:
        yield ChosenSetting("demonstrations", ("sft", "epochs"), imitated)
    else:
        yield ChosenSetting("base", ("sft", "source"), imitated)
    lengths = {"answer": sizes.new_tokens, "whole": sizes.max_length}
    yield ChosenSetting("length", ("sample", "max_new_tokens"), lengths)
    yield from _ranking_choices(answers, config, sizes)
    yield ChosenSetting("steps", ("ppo", "steps"), {"steps": config.ppo.steps, "batch": config.ppo.batch_size})
    if config.evaluate.second_judge is None:
        yield ChosenSetting("no_judge", ("evaluate", "second_judge"), {})


def _ranking_choices(answers: Answers, config: Config, sizes: Sizes) -> Iterator[ChosenSetting]:
    """Yield how many prompts are ranked, and how often a good reward model passes its test with them."""
    ranked = sizes.ranked
    passed = passes(ranked, sizes.answers, sizes.test)
    if answers.ranker == HUMAN:
        need = needed(config, Path(), ranked)
        ranked, passed = need.prompts, need.passes or 0.0
        yield ChosenSetting("people", ("rank", "source"), {"rankings": ranked, "answers": sizes.answers})
    elif answers.ranker == DATASET:
        yield ChosenSetting("dataset", ("rank", "dataset"), {"compared": ranked})
        if sizes.cut:
            yield ChosenSetting("cut", ("model", "max_length"), {"count": sizes.cut, "whole": sizes.max_length})
    else:
        yield ChosenSetting("answers", ("sample", "answers_per_prompt"), {"ranked": ranked, "answers": sizes.answers})
    accuracy = round(100 * ASSUMED_ACCURACY)
    values = {"share": round(100 * sizes.test), "passes": round(100 * passed), "accuracy": accuracy}
    yield ChosenSetting("test" if passed >= POWER else "test_weak", ("reward", "held_out"), values)
