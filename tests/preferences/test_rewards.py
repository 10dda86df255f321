"""Rewards of one's own: rules by hand-written answers, and functions that misbehave."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lowrank_rlhf.config.rewards import RewardTerm, weighted_sum
from lowrank_rlhf.errors import RewardFailed, Stopped
from lowrank_rlhf.preferences.rewards.functions import OwnFunction
from lowrank_rlhf.preferences.rewards.loading import open_rewards
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Message, Prompt, Sample


def asked(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"question {i}"),)) for i in range(count)]


def answered(*texts: str) -> list[Sample]:
    return [
        Sample(id=f"s{i}", prompt_id=f"p{i}", text=text, tokens=tuple(range(len(text.split()) + 1)))
        for i, text in enumerate(texts)
    ]


def scores_of(texts: Sequence[str], right: dict[str, str] | None = None, **term: Any) -> list[float]:
    terms = {"own": RewardTerm(**term)}
    reward = open_rewards(terms, {"own": right or {}}, None, Path(), Progress.silent(), StopRequest())["own"]
    return reward.score(asked(len(texts)), answered(*texts))


@pytest.mark.parametrize(
    ("term", "answers"),
    [
        ({"source": "length", "unit": "words", "minimum": 2, "maximum": 4},
         {"": 0.0, "one": 0.5, "one two": 1.0, "a b c d": 1.0, "a b c d e": 0.8, "a b c d e f g h": 0.5}),
        ({"source": "length", "maximum": 3}, {"one two": 1.0, "one two three": 0.75}),  # with the end of the turn
        ({"source": "length", "unit": "characters", "minimum": 4}, {"ab": 0.5, "a b ": 1.0}),
        ({"source": "overlong", "unit": "words", "maximum": 6, "buffer": 4},
         {"": 0.0, "a b": 0.0, "a b c": -0.25, "a b c d e": -0.75, "a b c d e f": -1.0, "a b c d e f g h": -1.0}),
        ({"source": "pattern", "pattern": r"\?$"}, {"Why?": 1.0, "Why? Because.": 0.0, "": 0.0}),
        ({"source": "json"}, {'{"a": 1}': 1.0, "[1, 2]": 1.0, "3": 1.0, "{'a': 1}": 0.0, "NaN": 0.0, "": 0.0,
                              'Here: {"a": 1}': 0.0}),
        ({"source": "json", "keys": ["a", "b"]}, {'{"a": 1, "b": null}': 1.0, '{"a": 1}': 0.0, '["a", "b"]': 0.0}),
        ({"source": "banned", "phrases": ["as an AI", "sorry"]},
         {"Fine.": 1.0, "As an ai model": 0.0, "SORRY!": 0.0, "sorrys": 1.0, "": 1.0}),
    ],
)  # fmt: skip
def test_a_rule_scores_as_by_hand(term, answers) -> None:
    assert scores_of(list(answers), **term) == pytest.approx(list(answers.values()))


@pytest.mark.parametrize(
    ("text", "right", "pattern", "expected"),
    [
        ("Paris.", "paris", None, 1),
        ("It is Paris", "Paris", None, 0),
        ("1,000.0", "1000", None, 1),
        ("1,0", "10", None, 0),  # not a thousands separator
        ("$12", "12", None, 1),
        ("007", "7", None, 1),
        ("Answer: 41. No, wait. Answer: 42", "42", r"Answer: (\d+)", 1),  # the last one counts
        ("Answer: 42. No, wait. Answer: 41", "42", r"Answer: (\d+)", 0),
        ("42", "42", r"Answer: (\d+)", 0),
    ],
)
def test_the_exact_answer(text, right, pattern, expected) -> None:
    assert scores_of([text], {"p0": right}, source="exact", column="answer", pattern=pattern) == [expected]


def own(function: Callable[[list[str], list[str]], Any], seconds: float = 5.0) -> OwnFunction:
    return OwnFunction("ppo.rewards.mine", "my_file:mine", function, seconds, lambda: None)


def test_a_function_gets_prompts_and_answers_in_one_call() -> None:
    calls = []

    def mine(prompts: list[str], answers: list[str]) -> Iterator[float]:
        calls.append((prompts, answers))
        return (float(len(answer)) for answer in answers)

    assert own(mine).score(asked(2), answered("ab", "abc")) == [2.0, 3.0]
    assert calls == [(["question 0", "question 1"], ["ab", "abc"])]
    assert own(mine).score([], []) == []


def raises_for_the_second(_prompts: list[str], answers: list[str]) -> list[float]:
    if "bad" in answers:
        raise ValueError("no bad answers, please")
    return [0.0] * len(answers)


def yields_until_the_second(prompts: list[str], answers: list[str]) -> Iterator[float]:
    yield from raises_for_the_second(prompts, answers)


def leaves(*_: Any) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (raises_for_the_second, "raised ValueError: no bad answers, please, for prompt 'p1'"),
        (yields_until_the_second, "raised ValueError: no bad answers, please, for prompt 'p1'"),
        (leaves, "raised SystemExit: 3, for prompt 'p0'"),
        (
            lambda _prompts, answers: [1.0] * (len(answers) + 1),
            "returned 4 scores for 3 answers, in a call with 3 answers",
        ),
        (lambda *_: None, "returned None instead of a list of scores"),
        (lambda *_: [1.0, math.nan, 1.0], "returned nan, which is not a finite float32 number, for prompt 'p1'"),
        (lambda *_: [1.0, 1.0, math.inf], "returned inf, which is not a finite float32 number, for prompt 'p2'"),
        (lambda *_: [1.0, -1e300, 1.0], "returned -1e+300, which is not a finite float32 number, for prompt 'p1'"),
        (lambda *_: [1.0, "2", 1.0], "returned '2', which is not a finite float32 number, for prompt 'p1'"),
        (lambda *_: [None, 1.0, 1.0], "returned None, which is not a finite float32 number, for prompt 'p0'"),
        (lambda *_: "abc", "returned 'a', which is not a finite float32 number, for prompt 'p0'"),
    ],
)
def test_a_function_that_misbehaves_is_one_sentence(function, expected) -> None:
    with pytest.raises(RewardFailed) as caught:
        own(function).score(asked(3), answered("good", "bad", "good"))
    message = str(caught.value)
    assert message.startswith(f"ppo.rewards.mine: my_file:mine {expected}"), message
    assert message.endswith("; then the same command resumes the run")
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_failure_costs_few_more_calls_and_finds_the_answer() -> None:
    calls = []

    def mine(prompts: list[str], answers: list[str]) -> list[float]:
        calls.append(len(answers))
        return raises_for_the_second(prompts, answers)

    for place in (0, 40, 63):
        calls.clear()
        with pytest.raises(RewardFailed, match=f"no bad answers, please, for prompt 'p{place}'"):
            own(mine).score(asked(64), answered(*("bad" if i == place else "good" for i in range(64))))
        assert len(calls) <= 8
    calls.clear()
    with pytest.raises(RewardFailed, match="please, in a call with 1000 answers"):
        own(mine).score(asked(1000), answered(*["bad"] * 1000))
    assert len(calls) == 9


def test_a_hang_after_a_failure_does_not_hide_it() -> None:
    def mine(_: list[str], answers: list[str]) -> list[float]:
        if len(answers) < 4:
            time.sleep(60)
        raise ValueError("the cause")

    with pytest.raises(RewardFailed, match="raised ValueError: the cause, in a call with 4 answers"):
        own(mine, seconds=0.3).score(asked(4), answered(*"abcd"))


def test_a_generator_has_the_same_time() -> None:
    def mine(*_: Any) -> Iterator[float]:
        time.sleep(60)
        yield 1.0

    start = time.monotonic()
    with pytest.raises(RewardFailed, match=r"did not return within 0\.3 s"):
        own(mine, seconds=0.3).score(asked(1), answered("a"))
    assert time.monotonic() - start < 5


def test_a_function_that_hangs_is_left_after_its_time() -> None:
    start = time.monotonic()
    with pytest.raises(
        RewardFailed, match=r"did not return within 0\.3 s, in a call with 2 answers, the first to prompt 'p0'"
    ):
        own(lambda *_: time.sleep(60), seconds=0.3).score(asked(2), answered("a", "b"))
    assert time.monotonic() - start < 5


def test_a_stop_request_need_not_wait_for_a_function() -> None:
    def stop() -> None:
        raise Stopped("stopped")

    start, slow = time.monotonic(), own(lambda *_: time.sleep(60), seconds=60)
    with pytest.raises(Stopped):
        slow._replace(poll=stop).score(asked(1), answered("a"))
    assert time.monotonic() - start < 5


def test_the_sum_in_words() -> None:
    rule = {"source": "pattern", "pattern": "x"}
    terms = {
        "model": RewardTerm(source="model"),
        "brief": RewardTerm(**rule, weight=0.5),
        "rude": RewardTerm(**rule, weight=-1),
    }
    assert weighted_sum(terms) == "model + 0.5 brief - rude"
    assert weighted_sum({"rude": terms["rude"]}) == "- rude"
