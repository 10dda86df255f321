"""The figures and the text of an evaluation, from pairs made by hand."""

from dataclasses import replace
from typing import Any

import pytest

from lowrank_rlhf.evaluation.answer_pair import COMMAND_SIDES, STAGE_SIDES, AnswerPair, Verdict
from lowrank_rlhf.evaluation.match_metrics import MatchFigures, longer_side, longer_side_in_words, match_figures
from lowrank_rlhf.reports.evaluation_text import evaluation_text
from lowrank_rlhf.run.records import Message, Prompt, Sample


def pair(name: str, left: str, right: str, verdicts: dict[str, tuple[float, float]], **changes: Any) -> AnswerPair:
    """Answers of two tokens and of five, of which the second does not end."""
    given = {
        "kl": 1.5,
        "tokens": (2, 5),
        "finished": (True, False),
    } | changes
    baseline, candidate = (
        Sample(id=name, prompt_id=name, text=text, finished=finished, tokens=(7,) * count)
        for text, finished, count in zip((left, right), given["finished"], given["tokens"], strict=True)
    )
    prompt = Prompt(id=name, messages=(Message(role="user", content=f"ask \x1b[31m{name}"),))
    judged = {key: Verdict(0.5 if a == b else float(b > a), (a, b)) for key, (a, b) in verdicts.items()}
    return AnswerPair(prompt, baseline, candidate, given["kl"], judged)


def two_pairs() -> list[AnswerPair]:
    """Two prompts: the right answer wins one and ties in the other."""
    return [
        pair(name, "no", "say :smile: [b]this[/b] \x1b]0;title\x07" + name, {"judge": (0.1, score)})
        for name, score in (("a", 0.4), ("b", 0.1))
    ]


def figures_of(pairs: list[AnswerPair], answers_per_prompt: int = 1) -> MatchFigures:
    return match_figures(pairs, answers_per_prompt, {"judge": "sentiment"}, 1000, 0)


def a_match() -> dict[str, Any]:
    """The command's JSON for `two_pairs`."""
    pairs, sides = two_pairs(), {"left": "sft", "right": "my[red]one", "prompts_from": "held out by the run"}
    figures = match_figures(pairs, 1, {"judge": "sentiment"}, 100, 0)
    note = longer_side_in_words(1, figures, COMMAND_SIDES)
    answers = [pair.row(COMMAND_SIDES, lengths=True) for pair in pairs]
    return {**sides, **figures.json(COMMAND_SIDES), "notes": [note], "answers": answers}


def test_figures_by_hand() -> None:
    """Two prompts with two pairs each."""
    pairs = [
        pair(
            "p",
            "a b",
            "a b c",
            {"judge": judged, "score": (0.0, 1.0)},
            tokens=(3, 4 + number),
            finished=(True, number < 3),
            kl=float(number),
        )
        for number, judged in enumerate([(0, 1), (1, 0), (0, 0), (0, 1)])
    ]
    found = figures_of(pairs, 2)
    assert (found.prompts, found.win_rate, found.ties) == (2, (0.5 + 0.75) / 2, 1)
    assert found.win_rate_interval == (0.5, 0.75)  # of two prompts: 1/4 both times the first, 1/4 the second
    assert (found.kl_per_answer, found.kl_interval) == (1.5, (0.5, 2.5))
    assert {(figure.id, figure.judge): figure.values for figure in found.table} == {
        ("win_rate", "sentiment"): (0.375, 0.625),
        ("mean_score", "sentiment"): (0.25, 0.5),
        ("win_rate", "reward model"): (0, 1),
        ("mean_score", "reward model"): (0, 1),
        ("length_tokens", None): (3, 5.5),
        ("length_characters", None): (3, 5),
        ("eos_rate", None): (1, 0.75),
        ("distinct_2", None): (0.25, 0.25),
        ("top_opener", None): (1, 1),
    }


def test_rows_name_the_sides() -> None:
    scored, compared = Verdict(0.0, (2.0, 1.0)), Verdict(0.5)
    one = replace(pair("a", "no", "yes", {}), verdicts={"score": scored, "judge": compared})
    assert one.row(STAGE_SIDES) == {
        "prompt_id": "a",
        "prompt": "ask \x1b[31ma",
        "sft": "no",
        "policy": "yes",
        "score_sft": 2.0,
        "score_policy": 1.0,
        "kl": 1.5,
        "judge_prefers": "tie",
    }
    lengths = {"tokens_left": 2, "finished_left": True, "tokens_right": 5, "finished_right": False}
    assert lengths.items() <= one.row(COMMAND_SIDES, lengths=True).items()


@pytest.mark.parametrize(("win", "preferred"), [(1.0, "policy"), (0.0, "sft"), (0.5, "tie")])
def test_a_judge_that_only_compares_prefers_a_side(win, preferred) -> None:
    assert Verdict(win).columns("second", STAGE_SIDES) == {"second_prefers": preferred}


def test_a_judge_that_likes_length_has_a_coefficient_above_zero() -> None:
    longer, shorter = (pair("a", "no", text, {"judge": (0.0, score)}) for text, score in (("n" * 9, 1.0), ("", -1.0)))
    found = figures_of([longer, shorter] * 3)
    assert found.length_coefficient > 0.5
    assert (found.longer_share, found.win_rate) == (0.5, 0.5)


def test_text() -> None:
    text = evaluation_text({"match": a_match(), "accuracy": None, "reward_bench": None, "benchmarks": None})
    assert "my[red]one against sft on 2 prompts (held out by the run): the judge “sentiment” prefers" in text
    assert "in 75 % of the pairs (95 % interval" in text
    assert "1 tie among them, counting half" in text
    assert "\x1b" not in text
    assert "say :smile: [b]this[/b]" in text
    assert "Note: the right answer is" in text
    row = next(line for line in text.splitlines() if line.startswith("sentiment: win rate"))
    assert row.split()[3:7] == ["25", "%", "75", "%"]


def test_lengths_that_hardly_overlap() -> None:
    figures = figures_of(two_pairs())
    assert (figures.longer_share, longer_side(figures)) == (1, 1)
    assert longer_side(replace(figures, longer_share=0.0)) == 0
    assert longer_side(replace(figures, longer_share=0.5)) is None


def test_a_long_name_leaves_the_figures_room() -> None:
    name = "/somewhere/far/away/runs/another/adapters/policy"
    text = evaluation_text(
        {"match": a_match() | {"right": name}, "accuracy": None, "reward_bench": None, "benchmarks": None}
    )
    assert f"{name} against sft on" in text
    heading = next(line for line in text.splitlines() if "left: sft" in line)
    assert heading.split() == ["left:", "sft", "right"]
    assert any(line.startswith("answers that end by themselves  ") for line in text.splitlines())
