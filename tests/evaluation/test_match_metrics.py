"""The figures and the text of an evaluation, from rows made by hand."""

from typing import Any

from lowrank_rlhf.evaluation.match_metrics import length_note, match_figures
from lowrank_rlhf.reports.evaluation_text import evaluation_text


def a_match() -> dict[str, Any]:
    """Two prompts: the right answer wins one and ties in the other."""
    rows = [
        {
            "prompt_id": name,
            "prompt": f"ask \x1b[31m{name}",
            "left": "no",
            "right": "say :smile: [b]this[/b] \x1b]0;title\x07" + name,
            "tokens_left": 2,
            "tokens_right": 5,
            "finished_left": True,
            "finished_right": False,
            "kl": 1.5,
            "judge_left": 0.1,
            "judge_right": score,
        }
        for name, score in (("a", 0.4), ("b", 0.1))
    ]
    match = match_figures(rows, 1, "sentiment", 100, 0)
    sides = {"left": "sft", "right": "my[red]one", "prompts_from": "held out by the run"}
    return {**sides, **match, "notes": [length_note(match)], "answers": rows}


def test_figures_by_hand() -> None:
    """Two prompts with two pairs each."""
    judged = [(0, 1), (1, 0), (0, 0), (0, 1)]
    rows = [
        {
            "left": "a b",
            "right": "a b c",
            "tokens_left": 3,
            "tokens_right": 4 + number,
            "finished_left": True,
            "finished_right": number < 3,
            "kl": float(number),
            "judge_left": left,
            "judge_right": right,
            "score_left": 0.0,
            "score_right": 1.0,
        }
        for number, (left, right) in enumerate(judged)
    ]
    found = match_figures(rows, 2, "sentiment", 1000, 0)
    assert (found["prompts"], found["win_rate"], found["ties"]) == (2, (0.5 + 0.75) / 2, 1)
    assert found["win_rate_interval"] == (0.5, 0.75)  # of two prompts: 1/4 both times the first, 1/4 the second
    assert (found["kl_per_answer"], found["kl_interval"]) == (1.5, (0.5, 2.5))
    table = {row["figure"]: (row["left"], row["right"]) for row in found["table"]}
    assert table == {
        "sentiment: win rate": (0.375, 0.625),
        "sentiment: mean score": (0.25, 0.5),
        "reward model: win rate": (0, 1),
        "reward model: mean score": (0, 1),
        "length in tokens": (3, 5.5),
        "length in characters": (3, 5),
        "answers that end by themselves": (1, 0.75),
        "distinct-2": (0.25, 0.25),
        "commonest opener's share": (1, 1),
    }


def test_a_judge_that_likes_length_has_a_coefficient_above_zero() -> None:
    row = a_match()["answers"][0] | {"judge_left": 0.0}
    longer, shorter = ({**row, "right": text, "judge_right": score} for text, score in (("n" * 9, 1.0), ("", -1.0)))
    found = match_figures([longer, shorter] * 3, 1, "sentiment", 100, 0)
    assert found["length_coefficient"] > 0.5
    assert (found["longer_share"], found["win_rate"]) == (0.5, 0.5)


def test_text() -> None:
    text = evaluation_text({"match": a_match(), "accuracy": None})
    assert "my[red]one against sft on 2 prompts (held out by the run): the judge “sentiment” prefers" in text
    assert "in 75 % of the pairs (95 % interval" in text
    assert "1 tie among them, counting half" in text
    assert "\x1b" not in text
    assert "say :smile: [b]this[/b]" in text
    assert "Note: the right answer is" in text
    row = next(line for line in text.splitlines() if line.startswith("sentiment: win rate"))
    assert row.split()[3:7] == ["25", "%", "75", "%"]


def test_lengths_that_never_meet_are_pointed_out() -> None:
    match = a_match()
    assert match["longer_share"] == 1
    assert length_note(match).startswith("the right answer is the longer one in 100% of the pairs")
    assert length_note(match | {"longer_share": 0.0}).startswith("the left answer")
    assert length_note(match | {"longer_share": 0.5}) is None


def test_a_long_name_leaves_the_figures_room() -> None:
    name = "/somewhere/far/away/runs/another/adapters/policy"
    text = evaluation_text({"match": a_match() | {"right": name}, "accuracy": None})
    assert f"{name} against sft on" in text
    heading = next(line for line in text.splitlines() if "left: sft" in line)
    assert heading.split() == ["left:", "sft", "right"]
    assert any(line.startswith("answers that end by themselves  ") for line in text.splitlines())
