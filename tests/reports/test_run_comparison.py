"""Comparison of runs: figures by hand, missing ones, settings, prompts in common, curves, languages, escaping."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compared_runs import answers, evaluation, write_run
from html_tags import parse
from synthetic_run import metrics_rows

from lowrank_rlhf.errors import StaleRun, UserError
from lowrank_rlhf.reports.format import MISSING, Table
from lowrank_rlhf.reports.locale import ENGLISH, LANGUAGES, Locale, locale
from lowrank_rlhf.reports.overlay import overlaid_figures
from lowrank_rlhf.reports.run_comparison import (
    SHOWN,
    ComparedRun,
    RunComparison,
    compare_runs,
    comparison_page,
    read_run,
)
from lowrank_rlhf.reports.svg.drawing import COLOURS
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_json, write_json_atomic

EVIL = '<script>alert("x")</script>'
Make = Callable[..., ComparedRun]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(name: str, **contents: Any) -> ComparedRun:
        return read_run(RunDir(write_run(tmp_path / name, **contents)), name)

    return made


def rows(table: Table) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}


def compared(*runs: ComparedRun, texts: Locale = ENGLISH) -> RunComparison:
    return compare_runs(runs, texts)


def test_every_final_figure_has_its_interval(make: Make) -> None:
    other = {"sft": {}, "evaluate": evaluation(0.6, judge="sentiment", mean_shift=None)}
    found = compared(make("a"), make("b", results=other)).final
    assert found.header == ("figure", "a", "b")
    assert rows(found) == {
        "reward model: held-out accuracy": ("80 % [70, 90]", MISSING),
        "reward model: gain over length, points": ("+12.5 [+5.0, +20.0]", MISSING),
        "training steps of the policy": ("50", MISSING),
        "kept step": ("40", MISSING),
        "judge": ("plain-language", "sentiment"),
        "test prompts": ("40", "40"),
        "preferred (win rate)": ("75 % [65, 85]", "60 % [50, 70]"),
        "preferred at equal length": ("70 % [61, 79]", "70 % [61, 79]"),
        "shift of the mean": ("0.50", MISSING),
        "distance from SFT": ("2.50 [2.25, 2.75]", "2.50 [2.25, 2.75]"),
        "distance at temperature 1": ("3.25 [3.00, 3.50]", "3.25 [3.00, 3.50]"),
        "plain-language: mean score": ("0.50 → 0.62", MISSING),
        "second: win rate": ("50 % [40, 60]", "50 % [40, 60]"),
        "length in tokens": ("12.0 → 15.5", "12.0 → 15.5"),
        "answers that end by themselves": ("100 % → 97 %", "100 % → 97 %"),
        "sentiment: mean score": (MISSING, "0.50 → 0.62"),
        "time, without copied stages": ("3:00", "1:00"),
        "peak memory": ("1.5 GiB", "512 MiB"),
    }


def test_time_and_memory_leave_out_stages_copied_from_another_run(make: Make, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "copied")
    path = folder / "done" / "evaluate.json"
    write_json_atomic(path, (read_json(path) or {}) | {"taken_from": "a"})
    found = rows(compared(make("a"), read_run(RunDir(folder), "copied")).final)
    assert found["time, without copied stages"] == ("3:00", "2:30")
    assert found["peak memory"] == ("1.5 GiB", "1.2 GiB")


def test_an_unfinished_run_names_its_stages_and_figures(make: Make) -> None:
    begun = make("begun", results={"sft": {}})
    assert compared(make("done"), begun).notes == [
        "begun: not finished: sample, rank, reward, ppo, evaluate. Missing: reward model: held-out accuracy, reward "
        "model: gain over length, points, training steps of the policy, kept step, judge, test prompts, preferred "
        "(win rate), preferred at equal length, shift of the mean, distance from SFT, distance at temperature 1."
    ]
    reward = {"accuracy": 0.8, "over_length": 0.1}
    (later,) = compared(make("done"), make("later", results={"sft": {}, "reward": reward})).notes
    assert later.startswith("later: not finished: sample, rank, ppo, evaluate. Missing: training steps of the policy,")
    shorter = make("shorter", results={"sft": {}}, settings={"stages": ["sft"]})
    assert compared(make("done"), shorter).notes == []
    assert compared(make("done"), make("new", results={})).final.rows[-1][1:] == ("1.5 GiB", MISSING)
    chinese = compared(make("done"), begun, texts=locale("zh")).notes
    assert len(chinese) == 1
    assert chinese[0].startswith(
        "begun：未完成的阶段：sample、rank、reward、ppo、evaluate。缺少：奖励模型：留出准确率、"
    )


def test_other_judges_and_other_test_prompts_are_named(make: Make) -> None:
    one = make("one", rows=answers(["x", "y", "z"]))
    assert compared(one, make("same", rows=answers(["z", "y", "x"]))).notes == []
    sentiment = {"evaluate": evaluation(judge="sentiment")}
    stages = {"stages": ["evaluate"]}
    other = make("other", results=sentiment, rows=answers(["y", "q"]), settings=stages)
    assert compared(one, other).notes == [
        ENGLISH("compare.other_judges"),
        ENGLISH("compare.other_prompts", common=1),
    ]


def judged(*wins: float) -> list[dict[str, Any]]:
    """An answer of the policy that wins, ties or loses, to each of as many prompts."""
    rows = answers([f"ask {at}" for at in range(len(wins))])
    for row, win in zip(rows, wins, strict=True):
        row |= {"judge_prefers": {1.0: "policy", 0.0: "sft"}.get(win, "tie")}
    return rows


def test_the_difference_of_win_rates_is_paired_over_the_same_prompts(make: Make) -> None:
    """The second run wins where the first does, and on 4 of 40 prompts more: unpaired, chance could explain that."""
    few, more = [1.0, 0.0] * 20, [1.0, 0.0] * 16 + [1.0, 1.0] * 4
    runs = [
        make(name, results={"sft": {}, "evaluate": evaluation(sum(wins) / 40)}, rows=rows)
        for name, wins, rows in (
            ("few", few, judged(*few)),
            ("more", more, judged(*more)[::-1]),
            ("others", more, judged(*more, 0.5)),
            ("unread", more, ()),
        )
    ]
    none, paired, *unpaired = rows(compared(*runs).final)["win rate less that of few, points"]
    assert none == MISSING
    assert re.fullmatch(r"\+10\.0 \[\+2\.5, \+20\.0\]", paired)
    assert unpaired == ["+10.0 [-4.1, +24.1]"] * 2  # 100 sqrt(0.1^2 + 0.1^2) = 14.1
    assert "胜率与 few 之差（百分点）" in rows(compared(*runs, texts=locale("zh")).final)


@pytest.mark.parametrize("judges", [("sentiment", "plain-language"), (None, None), ("rewards", "rewards")])
def test_win_rates_of_different_judges_have_no_difference(make: Make, judges: tuple[str | None, str | None]) -> None:
    """The reward models of two runs are different judges."""
    runs = [
        make(f"run{at}", results={"evaluate": evaluation(judge="x") | {"judge": judge}}, rows=judged(1.0, 0.0))
        for at, judge in enumerate(judges)
    ]
    assert not [label for label in rows(compared(*runs).final) if label.startswith("win rate less")]


@pytest.mark.parametrize(
    ("question", "same"),
    [
        ({}, True),
        ({"timeout_seconds": 9}, True),
        ({"template": "chinese"}, False),
        ({"ask": "pointwise"}, False),
        ({"ask": "pointwise", "rubric": "chinese"}, False),
    ],
)
@pytest.mark.parametrize("judge", ["endpoint:m", "sentiment"])
def test_a_language_model_with_another_question_is_another_judge(
    make: Make, judge: str, question: dict[str, Any], same: bool
) -> None:
    results = {"evaluate": evaluation(judge=judge)}
    runs = [
        make(
            f"run{at}", results=results, rows=judged(1.0, 0.0), settings={"rank": {"judge": "endpoint", "endpoint": of}}
        )
        for at, of in enumerate({"url": "http://127.0.0.1:1/v1", "model": "m"} | more for more in ({}, question))
    ]
    found = compared(*runs)
    comparable = same or judge == "sentiment"  # whatever is asked of the other
    assert any(label.startswith("win rate less") for label in rows(found.final)) is comparable
    assert (ENGLISH("compare.other_judges") not in found.notes) is comparable


def test_only_settings_that_differ_are_listed(make: Make) -> None:
    brief = {"model": {"source": "model"}, "brief": {"source": "length", "maximum": 9}}
    one = make("one", settings={"ppo": {"kl_coef": 0.25}, "data": {"prompts": "x" * 100 + "1"}})
    two = make("two", settings={"seed": 7, "ppo": {"rewards": brief}, "data": {"prompts": "x" * 100 + "2"}})
    table = compared(one, two).settings
    found = rows(table)
    assert found["seed"] == ("1", "7")
    assert found["ppo.kl_coef"] == ("0.25", "0.05")
    assert found["ppo.rewards.brief.source"] == (MISSING, "length")
    assert found["ppo.rewards.brief.maximum"] == (MISSING, "9")
    first, second = found["data.prompts"]  # equal as far as it is shown
    assert first[:101] == second[:101] == "x" * 100 + "…"
    assert first != second
    assert {key for key in found if not key.startswith("ppo.rewards.")} == {"seed", "ppo.kl_coef", "data.prompts"}
    same = compared(
        one, make("three", settings={"name": "three", "ppo": {"kl_coef": 0.25}, "data": {"prompts": "x" * 100 + "1"}})
    )
    assert same.settings.rows == ()
    assert re.fullmatch(r"All \d+ settings are equal, apart from the name\.", same.settings.lead)


def test_alarms_are_named_with_their_run(make: Make) -> None:
    far = metrics_rows()
    far[-1]["objective/kl"] = 31.0
    found = compared(make("near", metrics=metrics_rows()), make("far", metrics=far)).alarms
    assert [(run, alarm.id) for run, alarm in found] == [("far", "far_from_sft")]


def test_an_alarm_names_the_weight_of_the_unfinished_run_s_algorithm(make: Make) -> None:
    far = [row | {"objective/kl": 31.0} for row in metrics_rows() if row["stage"] == "ppo"]
    begun = make("begun", results={"sft": {}}, metrics=far, settings={"align": {"algorithm": "rloo"}})
    (found,) = [alarm for run, alarm in compared(make("a"), begun).alarms if alarm.id == "far_from_sft"]
    assert "align.beta" in found.text(ENGLISH)


def test_answers_to_the_prompts_of_all_evaluated_runs_stand_side_by_side(make: Make) -> None:
    one = make("one", rows=[*answers(["pear", "fig", "plum"], "1"), *answers(["fig"], "second answer")])
    two = make("two", rows=answers(["plum", "kiwi", "fig"], "2", greedy_sft="-", greedy_policy="most likely"))
    found = compared(one, make("begun", results={"sft": {}}), two)
    shown = [
        (row.prompt, [(side.name, [answer.text for answer in side.answers]) for side in row.sides])
        for row in found.samples
    ]
    assert shown == [("fig", [("one", ["1"]), ("two", ["2"])]), ("plum", [("one", ["1"]), ("two", ["2"])])]
    assert found.samples_lead == ENGLISH("compare.samples.lead", count=2, shown=2)
    both = compared(two, make("three", rows=answers(["fig"], "3", greedy_sft="-", greedy_policy="likely"))).samples
    assert [[answer.text for answer in side.answers] for side in both[0].sides] == [
        ["most likely", "2"],
        ["likely", "3"],
    ]
    many = [f"prompt {number:03}" for number in range(99)]
    found = compared(make("x", rows=answers(many)), make("y", rows=answers(many[::-1])))
    assert [row.prompt for row in found.samples] == many[:SHOWN]
    apart = compared(make("p", rows=answers(["a"])), make("q", rows=answers(["b"])))
    assert (apart.samples, apart.samples_lead) == ([], ENGLISH("compare.samples.none"))
    few = compared(one, make("none", results={"sft": {}}))
    assert few.samples_lead == ENGLISH("compare.samples.too_few")


class TestOverlay:
    ROWS = tuple({"stage": "ppo", "step": step, "objective/scores": step, "eval/score": -step} for step in range(3))

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_each_curve_has_a_line_for_each_run(self, language: str) -> None:
        texts = locale(language)
        longer = [row | {"objective/kl": 1.0, "step": 2 * row["step"]} for row in self.ROWS]
        found = {figure.id: figure for figure in overlaid_figures({"one": self.ROWS, "two": longer}, texts)}
        assert list(found) == ["scores", "scores_held_out", "kl"]
        assert re.findall(r"<title>(.*?)</title>", found["scores"].svg) == ["one: 2 (2)", "two: 2 (4)"]
        assert re.findall(r"<title>(.*?)</title>", found["scores_held_out"].svg) == ["one: -2 (2)", "two: -2 (4)"]
        assert re.findall(r"<title>(.*?)</title>", found["kl"].svg) == ["two: 1 (4)"]
        assert '<polyline class="c1"' in found["kl"].svg  # the second run's colour everywhere
        assert 'class="c0"' not in found["kl"].svg
        assert found["scores"].title == texts("chart.scores.title")
        assert found["scores_held_out"].title == texts("overlay.held_out", title=texts("chart.scores.title"))

    def test_a_finished_run_has_every_curve_of_its_report(self) -> None:
        found = [figure.id for figure in overlaid_figures({"a": metrics_rows(), "b": metrics_rows()}, ENGLISH)]
        assert found == [
            *("frontier", "scores", "scores_held_out", "kl", "kl_held_out", "entropy", "length", "clip_fraction"),
            *("reward_loss", "reward_accuracy", "sft_loss"),
        ]

    def test_win_rates_and_own_rewards_are_overlaid(self) -> None:
        rates = [{"stage": "ppo", "step": 1, "eval/win_rate": 0.5, "eval/second_win_rate": 0.25, "reward/brief": 3}]
        found = [figure.id for figure in overlaid_figures({"a": rates, "b": self.ROWS}, ENGLISH)]
        assert found == ["win_rate", "second_win_rate", "scores", "scores_held_out", "reward_brief"]

    def test_the_frontier_is_the_judge_s_score_over_the_root_of_kl(self) -> None:
        rows = [{"stage": "ppo", "step": step, "eval/kl": step**2, "eval/judge": step / 4} for step in (3, 0, 2)]
        (figure,) = (each for each in overlaid_figures({"a": rows, "b": []}, ENGLISH) if each.id == "frontier")
        assert "<title>a: 0.75 (3)</title>" in figure.svg

    def test_more_runs_than_colours_are_dashed_and_a_long_name_keeps_its_end(self) -> None:
        names = [f"{'x' * 60}-seed-{number}" for number in range(COLOURS + 1)]
        svg = next(overlaid_figures(dict.fromkeys(names, self.ROWS), ENGLISH)).svg
        assert svg.count('class="c0"') > 0
        assert svg.count('<polyline class="c0 dashed"') == 2  # line and legend
        assert f">…{'x' * 37}-seed-8</text>" in svg


def test_the_page_has_everything_in_both_languages(make: Make) -> None:
    far = metrics_rows()
    far[-1]["objective/kl"] = 31.0
    runs = [make("one", metrics=far, rows=answers(["Why?"])), make("two", metrics=far, rows=answers(["Why?"]))]
    page = comparison_page(runs)
    tags = parse(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.seen)
    assert not re.search(r"https?://", page)
    assert re.findall(r'<article id="(\w+)" lang="(\w+)">', page) == [("zh", "zh"), ("en", "en")]
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert tags.seen.count("svg") == 11 * len(LANGUAGES)
    for texts in map(locale, LANGUAGES):
        for key in ("compare.figures", "compare.settings", "report.curves", "report.samples", "compare.alarms"):
            assert f"<h2>{texts(key)}</h2>" in page
        assert texts("compare.figures.lead").replace("95 %", "95\N{NO-BREAK SPACE}%") in page.replace("&#39;", "'")
    assert page.count("Of course!") == 2 * len(LANGUAGES)


def test_whatever_a_model_or_person_wrote_is_escaped_on_the_page(make: Make, tmp_path: Path) -> None:
    results = {"sft": {}, "evaluate": evaluation(judge=EVIL)}
    rows = answers([EVIL], EVIL, greedy_sft=EVIL, greedy_policy=EVIL)
    metrics = [{"stage": "ppo", "step": 1, f"reward/{EVIL}": 1.0}]
    contents = {"results": results, "metrics": metrics, "rows": rows}
    first = write_run(tmp_path / "first", **contents, settings={"data": {"prompts": EVIL}})
    page = comparison_page([read_run(RunDir(first), EVIL), make("second", **contents)])
    assert "script" not in parse(page).seen
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 20


def test_a_changed_or_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", rows=answers(["x"]))
    path = folder / "done" / "evaluate.json"
    sums = {"eval.jsonl": {"bytes": 1, "sha256": "0" * 64}}
    write_json_atomic(path, (read_json(path) or {}) | {"outputs": sums})
    with pytest.raises(StaleRun, match=r"eval\.jsonl"):
        read_run(RunDir(folder), "a")
    folder = write_run(tmp_path / "b", rows=[*answers(["x"]), {"prompt": "y"}])
    with pytest.raises(UserError, match=r"eval\.jsonl:2: policy"):
        read_run(RunDir(folder), "b")
