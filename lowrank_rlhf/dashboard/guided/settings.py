"""Settings of a run from a person's prompts, model and ranker, each number with its reason."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lowrank_rlhf.config.data import Columns
from lowrank_rlhf.config.loading import changed_values, load_config, preset_names, preset_path
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard.guided.summary import Summary
from lowrank_rlhf.maths.reward_gate import LEAST_PROMPTS, POWER, PROMPTS, expected_passes, prompts_for_power
from lowrank_rlhf.preferences.enough import ASSUMED_ACCURACY, needed

HUMAN, DATASET = "human", "dataset"
"""Rankers that are no judge: people, and a file of comparisons."""
ENGLISH_JUDGES = ("simulated-kind-annotator", "simulated-annotator", "sentiment", "plain-language")
CHINESE_JUDGE = "simulated-kind-annotator-zh"
JUDGES = (*ENGLISH_JUDGES, CHINESE_JUDGE)
"""Judges offered: those that need no settings of their own."""
_KIND = ("simulated-kind-annotator", CHINESE_JUDGE)
_KIND_TIE_MARGIN = 0.1

_LEAST_HELD_OUT, _MOST_HELD_OUT = 4, 256  # twice `ppo.evaluate_prompts`, one half to select, one half to test
LEAST = 2 * LEAST_PROMPTS + _LEAST_HELD_OUT
"""Different prompts with which the reward model's test can show anything."""
_FEWEST_DEMONSTRATIONS = 8
_TESTS = ((4, 0.2), (4, 0.3), (4, 0.5), (6, 0.5))
"""Answers per prompt with the share of ranked prompts that tests the reward model, the least work first."""
_PEOPLE_SKIP = 1.2  # prompts per ranking that people are asked for: they may skip some
_MOST_RANKED = PROMPTS[-1]
_LONGEST, _STEP = 2048, 16  # tokens of prompt and answer, and multiple to which lengths are rounded up
_SHORTEST_ANSWER, _USUAL_ANSWER, _LONGEST_ANSWER = 32, 128, 512
_PASSES, _LEAST_STEPS, _USUAL_STEPS = 4, 6, 20  # rollouts of each training prompt, and limits of the steps


@dataclass(frozen=True)
class Answers:
    """A person's answers to the questions of the guided path."""

    name: str
    file: str
    """Source for `data.prompts`."""
    summary: Summary
    model: str
    """A preset, for its model with the settings that suit it, or a value of `model.source`."""
    ranker: str
    """`HUMAN`, `DATASET` or a judge."""
    columns: Columns = field(default_factory=dict)
    comparisons: str | None = None
    """Source for `rank.dataset`; the prompts' own file by default."""
    compared: int = 0
    """Prompts with comparisons there."""
    rows: int = 0
    """Rows of the prompts' file."""
    bad_rows: int = 0
    """Rows that cannot be read and are left out."""


class ChosenSetting(NamedTuple):
    """Number chosen for a setting; `id` is the key of its reason, with the values for that text."""

    id: Literal[
        "bad_rows", "held_out", "too_long", "base", "demonstrations", "length", "answers", "people", "dataset", "test",
        "test_weak", "steps", "no_judge",
    ]  # fmt: skip
    setting: tuple[str, str]
    values: dict[str, int]


class Guided(NamedTuple):
    """Settings of a run as a config, the values to show, and the reasons for those that were chosen."""

    config: Config
    values: dict[str, Any]
    choices: list[ChosenSetting]


class TooFewPrompts(ValueError):
    """The file has fewer different prompts that fit than `LEAST`."""

    def __init__(self, prompts: int) -> None:
        super().__init__(prompts)
        self.prompts = prompts


class NoComparisons(ValueError):
    """The prompts' own file is to be the file of comparisons, and it has none."""


class _Sizes(NamedTuple):
    """Numbers that depend on the amount of data."""

    prompts: int
    """Prompts that fit `max_length`."""
    held_out: int
    training: int
    ranked: int
    answers: int
    test: float
    new_tokens: int
    max_length: int


def guided(answers: Answers) -> Guided:
    """Return the settings for a person's answers.

    Raises:
        TooFewPrompts: The file has fewer different prompts than a reward model can be tested with.
        NoComparisons: The ranker is a file of comparisons, and there is none.
    """
    values = _model_values(answers.model)
    sizes = _sizes(answers, values)
    if sizes.prompts < LEAST:
        raise TooFewPrompts(sizes.prompts)
    if answers.ranker == DATASET and not answers.compared:
        raise NoComparisons
    values["name"] = answers.name
    values["model"] |= {"max_length": sizes.max_length, "memory": "auto"}
    values["data"] = {
        "prompts": answers.file,
        **({"columns": answers.columns} if answers.columns else {}),
        **({"skip_bad_rows": math.ceil(100 * answers.bad_rows / answers.rows) / 100} if answers.bad_rows else {}),
        "held_out": sizes.held_out,
        **({"skip_too_long": True} if sizes.prompts < answers.summary.prompts else {}),
    }
    values["sft"] = _sft(answers.summary, values.get("sft", {}))
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


def _sizes(answers: Answers, values: dict[str, Any]) -> _Sizes:
    summary = answers.summary
    new = max(_USUAL_ANSWER, values.get("sample", {}).get("max_new_tokens", 0))
    if _imitates(summary):
        new = min(max(_rounded(summary.longest_response), _SHORTEST_ANSWER), _LONGEST_ANSWER)
    longest = max(max(summary.lengths, default=0) + new, summary.longest_demonstration)
    max_length = min(_rounded(longest), _LONGEST)
    fitting = sum(length + new <= max_length for length in summary.lengths)
    held_out = 2 * min(max(fitting // 10, _LEAST_HELD_OUT // 2), _MOST_HELD_OUT // 2)
    training = max(fitting - held_out, 1)
    if answers.ranker == DATASET:
        ranked = min(answers.compared, training) if answers.comparisons is None else answers.compared
    elif answers.ranker == HUMAN:
        ranked = min(training, round(_PEOPLE_SKIP * prompts_for_power(ASSUMED_ACCURACY, *_TESTS[0])))
    else:
        ranked = min(training, _MOST_RANKED)
    return _Sizes(fitting, held_out, training, ranked, *_test(ranked, answers.ranker), new, max_length)


def _rounded(tokens: int) -> int:
    return -(-tokens // _STEP) * _STEP


def _test(ranked: int, ranker: str) -> tuple[int, float]:
    """Return the answers per prompt and the tested share with which a good reward model usually passes."""
    tests = [(2, share) for _, share in _TESTS[:3]] if ranker == DATASET else list(_TESTS)
    return next((test for test in tests if _passes(ranked, *test) >= POWER), tests[-1])


def _passes(ranked: int, answers: int, share: float) -> float:
    return 0.0 if ranked < 2 else expected_passes(min(ranked, PROMPTS[-1]), ASSUMED_ACCURACY, answers, share)


def _imitates(summary: Summary) -> bool:
    return summary.demonstrations >= _FEWEST_DEMONSTRATIONS


def _sft(summary: Summary, values: dict[str, Any]) -> dict[str, Any]:
    return values if _imitates(summary) else {"source": "base"}


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


def _reward(values: dict[str, Any], sizes: _Sizes) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key != "head_l2"}  # it was chosen for the preset's data
    return kept | {"held_out": sizes.test}


def _ppo(values: dict[str, Any], sizes: _Sizes, ranker: str) -> dict[str, Any]:
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


def _choices(answers: Answers, config: Config, sizes: _Sizes) -> Iterator[ChosenSetting]:
    summary, half = answers.summary, sizes.held_out // 2
    shares = {"prompts": sizes.prompts, "held_out": sizes.held_out, "half": half, "training": sizes.training}
    if answers.bad_rows:
        yield ChosenSetting("bad_rows", ("data", "skip_bad_rows"), {"count": answers.bad_rows})
    yield ChosenSetting("held_out", ("data", "held_out"), shares)
    if left_out := summary.prompts - sizes.prompts:
        yield ChosenSetting("too_long", ("data", "skip_too_long"), {"count": left_out})
    if config.sft.source == "base":
        yield ChosenSetting("base", ("sft", "source"), {"demonstrations": summary.demonstrations})
    else:
        yield ChosenSetting("demonstrations", ("sft", "epochs"), {"demonstrations": summary.demonstrations})
    lengths = {"answer": sizes.new_tokens, "whole": sizes.max_length}
    yield ChosenSetting("length", ("sample", "max_new_tokens"), lengths)
    yield from _ranking_choices(answers, config, sizes)
    yield ChosenSetting("steps", ("ppo", "steps"), {"steps": config.ppo.steps, "batch": config.ppo.batch_size})
    if config.evaluate.second_judge is None:
        yield ChosenSetting("no_judge", ("evaluate", "second_judge"), {})


def _ranking_choices(answers: Answers, config: Config, sizes: _Sizes) -> Iterator[ChosenSetting]:
    """Yield how many prompts are ranked, and how often a good reward model passes its test with them."""
    ranked = sizes.ranked
    passes = _passes(ranked, sizes.answers, sizes.test)
    if answers.ranker == HUMAN:
        need = needed(config, Path(), ranked)
        ranked, passes = need.prompts, need.passes or 0.0
        yield ChosenSetting("people", ("rank", "source"), {"rankings": ranked, "answers": sizes.answers})
    elif answers.ranker == DATASET:
        yield ChosenSetting("dataset", ("rank", "dataset"), {"compared": ranked})
    else:
        yield ChosenSetting("answers", ("sample", "answers_per_prompt"), {"ranked": ranked, "answers": sizes.answers})
    accuracy = round(100 * ASSUMED_ACCURACY)
    values = {"share": round(100 * sizes.test), "passes": round(100 * passes), "accuracy": accuracy}
    yield ChosenSetting("test" if passes >= POWER else "test_weak", ("reward", "held_out"), values)
