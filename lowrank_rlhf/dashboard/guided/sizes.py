"""Answers of a person on the guided path, and the amounts that follow from their data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lowrank_rlhf.config.data import Columns
from lowrank_rlhf.dashboard.guided.summary import AnsweredPrompt, Summary
from lowrank_rlhf.data.length_filter import SHORTEST_ANSWER
from lowrank_rlhf.maths.reward_gate import LEAST_PROMPTS, POWER, PROMPTS, expected_passes, prompts_for_power
from lowrank_rlhf.preferences.enough import ASSUMED_ACCURACY

HUMAN, DATASET = "human", "dataset"
"""Rankers that are no judge: people, and a file of comparisons."""
ENGLISH_JUDGES = ("simulated-kind-annotator", "simulated-annotator", "sentiment", "plain-language")
CHINESE_JUDGE = "simulated-kind-annotator-zh"
JUDGES = (*ENGLISH_JUDGES, CHINESE_JUDGE)
"""Judges offered: those that need no settings of their own."""

_LEAST_HELD_OUT, _MOST_HELD_OUT = 4, 256  # twice `ppo.evaluate_prompts`, one half to select, one half to test
LEAST_COMPARED = 2 * LEAST_PROMPTS
"""Ranked prompts with which the reward model's test can show anything."""
LEAST = LEAST_COMPARED + _LEAST_HELD_OUT
"""Different prompts for a run."""
_FEWEST_DEMONSTRATIONS = 8
_TESTS = ((4, 0.2), (4, 0.3), (4, 0.5), (6, 0.5))
"""Answers per prompt with the share of ranked prompts that tests the reward model, the least work first."""
_PEOPLE_SKIP = 1.2  # prompts per ranking that people are asked for: they may skip some
_MOST_RANKED = PROMPTS[-1]
_LONGEST, _STEP = 2048, 16  # tokens of prompt and answer, and multiple to which lengths are rounded up
_SHORTEST_ANSWER, _USUAL_ANSWER, _LONGEST_ANSWER = 32, 128, 512
_MOST_BAD_ROWS = 0.2


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
    compared: tuple[AnsweredPrompt, ...] = ()
    """Prompts with comparisons there, each with its longest answer."""
    rows: int = 0
    """Rows of the prompts' file."""
    bad_rows: int = 0
    """Rows that cannot be read and are left out."""


Reason = Literal[
    "too_few", "too_long", "no_comparisons", "few_comparisons", "long_comparisons", "english_judge", "chinese_judge",
    "bad_rows",
]  # fmt: skip


class Refused(ValueError):
    """A run with these answers would fail or show nothing; `reason` is the key of a text, with its values."""

    def __init__(self, reason: Reason, **values: int) -> None:
        super().__init__(reason, values)
        self.reason, self.values = reason, values


class Sizes(NamedTuple):
    """Numbers that depend on the amount of data."""

    prompts: int
    """Prompts that fit `max_length`."""
    held_out: int
    training: int
    demonstrations: int
    """Responses to imitate that fit."""
    long_responses: int
    """Responses to imitate that do not fit and would be read."""
    compared: int
    """Compared prompts that leave room for an answer."""
    cut: int
    """Those with an answer that is cut."""
    ranked: int
    answers: int
    test: float
    new_tokens: int
    max_length: int

    @property
    def imitates(self) -> bool:
        """Return True if the responses are enough to imitate."""
        return self.demonstrations >= _FEWEST_DEMONSTRATIONS


def sizes_of(answers: Answers, values: dict[str, Any]) -> Sizes:
    """Return the amounts for a model's settings."""
    summary = answers.summary
    readable = [pair for pair in summary.demonstrations if pair.whole <= _LONGEST]
    new = min(max(_rounded(max((pair.answer for pair in readable), default=0)), _SHORTEST_ANSWER), _LONGEST_ANSWER)
    max_length = _max_length(answers, readable, new)
    imitated = [pair for pair in readable if max(pair.prompt + new, pair.whole) <= max_length]
    if len(imitated) < _FEWEST_DEMONSTRATIONS:
        new = max(_USUAL_ANSWER, values.get("sample", {}).get("max_new_tokens", 0))
        max_length = _max_length(answers, [], new)
    fitting = sum(length + new <= max_length for length in summary.lengths)
    held_out = 2 * min(max(fitting // 10, _LEAST_HELD_OUT // 2), _MOST_HELD_OUT // 2)
    training = max(fitting - held_out, 1)
    compared = [pair for pair in answers.compared if pair.prompt + SHORTEST_ANSWER <= max_length]
    if answers.ranker == DATASET:
        ranked = min(len(compared), training) if answers.comparisons is None else len(compared)
    elif answers.ranker == HUMAN:
        ranked = min(training, round(_PEOPLE_SKIP * prompts_for_power(ASSUMED_ACCURACY, *_TESTS[0])))
    else:
        ranked = min(training, _MOST_RANKED)
    tested_answers, test = _test(ranked, answers.ranker)
    return Sizes(
        prompts=fitting,
        held_out=held_out,
        training=training,
        demonstrations=len(imitated),
        long_responses=sum(pair.prompt + new <= max_length < pair.whole for pair in summary.demonstrations),
        compared=len(compared),
        cut=sum(pair.whole > max_length for pair in compared),
        ranked=ranked,
        answers=tested_answers,
        test=test,
        new_tokens=new,
        max_length=max_length,
    )


def check_answers(answers: Answers, sizes: Sizes) -> None:
    """Raise `Refused` if a run with these answers would fail, or could show nothing."""
    summary = answers.summary
    if answers.bad_rows > _MOST_BAD_ROWS * answers.rows:
        raise Refused("bad_rows", count=answers.bad_rows, rows=answers.rows)
    if summary.prompts < LEAST:
        raise Refused("too_few", prompts=summary.prompts, least=LEAST)
    if sizes.prompts < LEAST:
        raise Refused("too_long", prompts=summary.prompts, fitting=sizes.prompts, most=_LONGEST, least=LEAST)
    if answers.ranker in ENGLISH_JUDGES and not summary.english:
        raise Refused("english_judge")
    if answers.ranker == CHINESE_JUDGE and not summary.chinese:
        raise Refused("chinese_judge")
    if answers.ranker != DATASET:
        return
    found = len(answers.compared)
    if not found:
        raise Refused("no_comparisons")
    if found < LEAST_COMPARED:
        raise Refused("few_comparisons", compared=found, least=LEAST_COMPARED)
    if sizes.compared < LEAST_COMPARED:
        raise Refused("long_comparisons", compared=found, fitting=sizes.compared, most=_LONGEST, least=LEAST_COMPARED)


def passes(ranked: int, answers: int, share: float) -> float:
    """Return the expected pass rate of a reward model of `ASSUMED_ACCURACY`, tested with a share of ranked prompts."""
    return 0.0 if ranked < 2 else expected_passes(min(ranked, PROMPTS[-1]), ASSUMED_ACCURACY, answers, share)


def _max_length(answers: Answers, imitated: Sequence[AnsweredPrompt], new_tokens: int) -> int:
    compared = answers.compared if answers.ranker == DATASET else ()
    prompts = (length + new_tokens for length in answers.summary.lengths)
    return min(_rounded(max([new_tokens, *prompts, *(pair.whole for pair in (*imitated, *compared))])), _LONGEST)


def _rounded(tokens: int) -> int:
    return -(-tokens // _STEP) * _STEP


def _test(ranked: int, ranker: str) -> tuple[int, float]:
    """Return the answers per prompt and the tested share with which a good reward model usually passes."""
    tests = [(2, share) for _, share in _TESTS[:3]] if ranker == DATASET else list(_TESTS)
    return next((test for test in tests if passes(ranked, *test) >= POWER), tests[-1])
