"""Charts: scales, ticks and points by hand, the catalogue, and escaping."""

import csv
import re
from urllib.parse import unquote

import pytest
from synthetic_run import all_summaries, results

from lowrank_rlhf.reports.charts import chart_figure, curve_figures, distance_and_gold, of_round, run_figures
from lowrank_rlhf.reports.locale import ENGLISH, LANGUAGES, locale
from lowrank_rlhf.reports.svg.axes import fitted, tick_label, ticks
from lowrank_rlhf.reports.svg.drawing import Chart, ChartBar, Guide, Line, draw, figures_csv


def line_chart(points: list[tuple[float, float]], name: str = "a") -> str:
    return draw(Chart("title", "step", lines=[Line(name, points)]))


def test_ticks() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.5, 1])
    assert ticks(0.13, 0.31) == pytest.approx([0.15, 0.2, 0.25, 0.3])
    assert ticks(-3, 17) == pytest.approx([0, 5, 10, 15])


def test_tick_labels() -> None:
    values = [0.25, 1.5, 0, 12345, 0.00012, -3]
    assert list(map(tick_label, values)) == ["0.25", "1.5", "0", "12.3k", "1.2e-4", "-3"]


def test_points_are_where_they_should_be() -> None:
    """By hand: x from 46 to 348, y from 184 up to 22 with a margin of 6 % above, and none below 0."""
    points = re.search(r'points="([^"]*)"', line_chart([(0, 0), (10, 100)]))
    assert points
    assert points[1] == f"46.0,184.0 348.0,{184 - 162 * 100 / 106:.1f}"


@pytest.mark.parametrize(
    ("values", "axis"),
    [((0, 0), (0, 1)), ((2, 2), (1.8, 2.2)), ((-2, -2), (-2.2, -1.8)), ((0.1, 1.1), (0.04, 1.16)),
     ((-1, 1), (-1.12, 1.12)), ((0.01, 1.01), (0, 1.07)), ((-1.01, -0.01), (-1.07, 0))],
)  # fmt: skip
def test_an_axis_has_a_margin_but_does_not_cross_zero(values, axis) -> None:
    scale = fitted(values, 184, 22)
    assert (scale.low, scale.high) == pytest.approx(axis)
    assert (scale(axis[0]), scale(axis[1])) == pytest.approx((184, 22))


@pytest.mark.parametrize("value", [2.5, -0.01, 1e6])
def test_a_constant_curve_has_room_around_it(value: float) -> None:
    """Also with rounding errors, which would fill the axis with equal labels."""
    for values in ([value], [value] * 3, [value, value * (1 + 2e-16), value * (1 - 4e-11)]):
        scale = fitted(values, 184, 22)
        assert (scale.low, scale.high) == pytest.approx(sorted((0.9 * value, 1.1 * value)), rel=1e-6)
        labels = [tick_label(tick) for tick in ticks(scale.low, scale.high)]
        assert len(set(labels)) == len(labels) > 1


def test_steps_have_whole_ticks() -> None:
    assert ticks(0, 2, 5) == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert ticks(0, 2, 5, whole=True) == [0, 1, 2]
    labels = re.findall(r'text-anchor="middle">([^<]*)<', line_chart([(1, 0.5), (2, 0.6)]))
    assert labels == ["1", "2", "step"]
    assert "1.5" in re.findall(r'text-anchor="middle">([^<]*)<', line_chart([(1, 0.5), (2.5, 0.6)]))


def strips(svg: str) -> list[tuple[float, float, list[str]]]:
    """Left edge, width and lines of each strip that reads out."""
    return [
        (float(re.search(r'<rect x="([^"]*)"', body)[1]), float(re.search(r'width="([^"]*)"', body)[1]),
         re.findall(r"<tspan[^>]*>([^<]*)</tspan>", body))
        for body in re.findall(r'<g class="at">(.*?)</g>', svg)
    ]  # fmt: skip


def test_every_point_is_read_out_where_it_is() -> None:
    """By hand: x from 46 to 314, left of the second axis; the strips meet halfway between the points."""
    lines = [Line("a", [(0, 1.0), (5, 0.12345), (10, 3.0)]), Line("<b>", [(10, 7.0)], colour=1, right=True)]
    found = strips(draw(Chart("title", "step", lines=lines)))
    assert [(left, width) for left, width, _ in found] == [(46, 67), (113, 134), (247, 67)]
    assert [text for *_, text in found] == [
        ["step: 0", "a: 1"], ["step: 5", "a: 0.1235"], ["step: 10", "a: 3", "&lt;b&gt;: 7"],
    ]  # fmt: skip


def test_a_long_curve_is_read_out_in_part_and_written_in_full() -> None:
    chart = Chart("title", "step", lines=[Line("a", [(n, n / 7) for n in range(1001)])])
    assert 50 < len(strips(draw(chart))) <= 102
    assert strips(draw(chart))[-1][2] == ["step: 1000", "a: 142.9"]
    assert len(figures_csv(chart).splitlines()) == 1002


def test_the_csv_has_all_figures_of_all_curves() -> None:
    lines = [
        Line('a, "b"', [(1, 0.1), (2, float("nan")), (3, 1 / 3)]),
        Line("c", [(3, 5.0), (2, 4.0), (2, 4.5)], dots=True),
    ]
    text = figures_csv(Chart("title", "step", lines=lines))
    assert list(csv.reader(text.splitlines())) == [
        ["step", 'a, "b"', "c"], ["1", "0.1", ""], ["2", "", "4.0"], ["2", "", "4.5"], ["3", repr(1 / 3), "5.0"],
    ]  # fmt: skip
    assert figures_csv(Chart("title", "x", bars=[ChartBar("a", 0, 1, 2)])) == ""
    figure = next(chart_figure("x", Chart("title", "step", lines=lines)))
    assert unquote(figure.csv_link.removeprefix("data:text/csv;charset=utf-8,")) == text
    assert not set(figure.csv_link) & set(' "<>#\n')


@pytest.mark.parametrize("language", LANGUAGES)
def test_curves_of_a_later_round_name_it(language: str) -> None:
    texts = locale(language)
    first, later = (list(of_round(curve_figures(ROWS, texts), number, texts)) for number in (1, 2))
    assert first == list(curve_figures(ROWS, texts))
    title = texts("chart.scores.title")
    assert (later[0].id, later[0].title) == ("round-2-scores", texts("chart.of_round", title=title, round=2))


def test_bars_intervals_and_guides_are_where_they_should_be() -> None:
    chart = Chart(
        "title", "x", bars=[ChartBar("a", 1, 3, 0.5, interval=(0.25, 0.75))], guides=[Guide((None, None), (0.5, 0.5))],
        x_range=(0, 4), y_range=(0, 1),
    )  # fmt: skip
    svg = draw(chart)
    assert '<rect class="c0" x="121.5" y="103.0" width="151.0" height="81.0"/>' in svg
    assert '<line class="axis" x1="197.0" y1="143.5" x2="197.0" y2="62.5"/>' in svg
    assert '<line class="guide" x1="46.0" y1="103.0" x2="348.0" y2="103.0"/>' in svg


def test_gaps_and_single_points() -> None:
    assert line_chart([(0, float("nan"))]) == draw(Chart("title", "step")) == ""
    assert "<circle" in line_chart([(3, 5.0)])


def test_long_series_are_thinned_and_keep_their_end() -> None:
    points = re.search(r'points="([^"]*)"', line_chart([(n, n) for n in range(5001)]))
    assert points
    assert len(points[1].split()) <= 402
    assert points[1].split()[-1].startswith("348.0,")


def test_names_are_escaped_and_a_standalone_file_has_its_style() -> None:
    chart = Chart("<b>", "<i>", lines=[Line("<script>", [(0, 1), (1, 2)])], legend=True)
    for svg in (draw(chart), draw(chart, standalone=True)):
        assert not re.search("<(b|i|script)>", svg)
    assert "prefers-color-scheme: dark" in draw(chart, standalone=True)


ROWS = [{"stage": "ppo", "step": n, "objective/scores": n, "objective/kl": n} for n in range(3)]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("role", ["judge", "second_judge"])
def test_all_curves_of_a_run(language: str, role: str) -> None:
    texts = locale(language)
    rows = [*ROWS, *({"stage": "ppo", "step": n, "eval/kl": n, "eval/score": n, f"eval/{role}": -n} for n in (0, 2))]
    found = list(curve_figures(rows, texts))
    assert [figure.id for figure in found] == ["frontier", "scores", "kl"]  # without win rates
    assert texts("chart.frontier.title") == found[0].title
    assert texts(f"chart.gold.{role}") in found[0].svg
    assert distance_and_gold(rows) == {0: (0.0, 0.0), 2: (pytest.approx(2**0.5), -2.0)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_second_judge_is_drawn_beside_proxy_and_gold(language: str) -> None:
    texts = locale(language)
    followed = {"eval/kl": (0.0, 4.0), "eval/score": (0.0, 1.0), "eval/judge": (0.1, 0.9), "eval/second_judge": (7, 6)}
    rates = {"eval/win_rate": (0.5, 0.75), "eval/second_win_rate": (0.5, 0.25)}
    rows = [
        {"stage": "ppo", "step": step, **{key: values[place] for key, values in (followed | rates).items()}}
        for place, step in enumerate((0, 2))
    ]
    found = {figure.id: figure for figure in curve_figures(rows, texts, None, "simulated-annotator", "plain-language")}
    assert list(found)[:3] == ["frontier", "frontier_second", "win_rates"]
    assert "plain-language" in found["frontier_second"].hint
    assert "plain-language" not in found["frontier"].hint
    assert texts("chart.second_judge") in found["frontier_second"].svg
    assert texts("chart.second_judge") not in found["frontier"].svg
    assert f"{texts('chart.second_judge')}: 0.25" in found["win_rates"].svg or "0.25" in found["win_rates"].svg
    assert "plain-language" in found["win_rates"].hint
    assert distance_and_gold(rows) == {0: (0.0, 0.1), 2: (2.0, 0.9)}
    alone = [{key: value for key, value in row.items() if "second" not in key} for row in rows]
    found = {figure.id: figure for figure in curve_figures(alone, texts)}
    assert list(found)[:2] == ["frontier", "win_rates"]
    assert found["win_rates"].hint == texts("chart.win_rates.hint", judge=texts("judge.some"))


def test_every_margin_is_in_the_histogram() -> None:
    summaries = all_summaries()
    summaries["reward"]["margins"] = [-1.0, 0.0, 0.1, 2.0, 2.0]
    (margins,) = (figure for figure in run_figures([], results(summaries), ENGLISH) if figure.id == "margins")
    counts = re.findall(r"<title>pairs: (\d+)</title>", margins.svg)
    assert list(map(int, counts)) == [1, 2, 0, 0, 2]
