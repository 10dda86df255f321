"""Curves that answer questions, in a real Chromium: values under the pointer, and figures as CSV."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import browser, page_server
from compared_runs import answers, write_run

from lowrank_rlhf.reports.charts import curve_figures
from lowrank_rlhf.reports.locale import locale
from lowrank_rlhf.reports.render import write_report
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import append_line

ROWS = [{"stage": "ppo", "step": step, "objective/scores": step / 8} for step in range(1, 5)]
LONG = [
    {
        "stage": "ppo",
        "step": step,
        "objective/scores": step % 7 - 1.0,
        "objective/kl": step**2 / 100,
        "objective/entropy": 2.5,
        "policy/clipfrac": 0.0,
    }
    for step in range(1, 41)
]
JUDGED = [row | {"eval/score": row["step"] - 2, "eval/kl": row["step"] / 9, "eval/judge": 0.5} for row in ROWS]
OVERLAPS = """(svg) => {
  const texts = [...svg.querySelectorAll(':scope > text')];
  const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]);
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
  return boxes.flatMap(([words, box], at) =>
    boxes.slice(at + 1).filter(([, other]) => !apart(box, other)).map(([more]) => [words, more]));
}"""
EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page for a finished run, and for one in its second round."""
    runs = tmp_path_factory.mktemp("curves") / "runs"
    run = RunDir(write_run(runs / "one", metrics=ROWS, rows=answers(["p"])))
    write_report(run, run.results(), answers(["p"]), run.path)
    report = run.path / "report.html"
    report.write_text(report.read_text(encoding="utf-8").replace("</body>", f"{EVIL}</body>"), encoding="utf-8")
    write_run(runs / "long", metrics=LONG, rows=answers(["p"]))
    write_run(runs / "two", metrics=ROWS, settings={"rounds": 2})
    later = RunDir(runs / "two", 2)
    later.path.mkdir()
    for row in JUDGED:
        append_line(later.metrics.path, row)
    with page_server(runs) as (address, _):
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


def saved(page: Any, link: Any) -> list[list[str]]:
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename.endswith("scores.csv")
    return list(csv.reader(Path(download.value.path()).read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize(("tab", "width"), [("watch", 1280), ("result", 390)])
def test_values_under_the_pointer_and_as_csv(url: str, chromium: Any, tab: str, width: int) -> None:
    page = chromium.new_page(locale="zh-CN", viewport={"width": width, "height": 800})
    page.goto(f"{url}/?run=one&tab={tab}")
    parts = page.locator("#watch-curves") if tab == "watch" else page.frame_locator("iframe.report").locator("#zh")
    figure = parts.locator("figure").filter(has_text=locale("zh")("chart.scores.title"))
    strip = figure.locator(".at").nth(2)
    text = strip.locator("text")
    text.wait_for(state="attached")
    assert not text.is_visible()
    strip.locator("rect").hover()
    text.wait_for(state="visible")
    step, training = (locale("zh")(f"chart.{key}") for key in ("step", "training"))
    assert strip.locator("tspan").all_text_contents() == [f"{step}: 3", f"{training}: 0.375"]
    assert figure.locator("button.log").text_content() == "对数"
    assert saved(page, figure.locator("a.csv")) == [
        [step, training], *([str(row["step"]), str(row["objective/scores"])] for row in ROWS)
    ]  # fmt: skip


def test_a_later_round_is_named_and_stage_names_do_not_wrap(url: str, chromium: Any) -> None:
    page = chromium.new_page(locale="en-GB", viewport={"width": 390, "height": 800})
    page.goto(f"{url}/?run=two&tab=watch")
    page.wait_for_selector("#watch-curves svg")
    titles = page.locator("#watch-curves b").all_inner_texts()
    assert "Policy: score, round 2" in titles
    assert all(title.endswith(", round 2") for title in titles)
    frontier = figure(page, "round-2-frontier")
    frontier.locator("button.log").click()
    assert [text.partition("log · ")[2] for text in labels(frontier) if "log · " in text] == ["2 values ≤ 0"]
    assert frontier.locator("svg").evaluate(OVERLAPS) == []
    page.locator("#watch-earlier summary", has_text="Curves of round 1").click()
    first = page.locator("#watch-earlier figure").filter(has=page.locator('a[download="scores.csv"]'))
    assert first.locator("b").inner_text() == "Policy: score"
    assert first.locator("svg").is_visible()
    names = page.locator(".pipeline b")
    assert "round-2/evaluate" in names.all_inner_texts()
    heights = {round(names.nth(at).bounding_box()["height"]) for at in range(names.count())}
    assert len(heights) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.fixture(scope="module")
def long(url: str, chromium: Any) -> Iterator[Any]:
    """The curves of a run of 40 steps; each test leaves them as it found them."""
    page = chromium.new_page(locale="en-GB", viewport={"width": 1280, "height": 900})
    page.set_default_timeout(20_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{url}/?run=long&tab=watch")
    page.wait_for_function("window.shownRun === 'long'")  # what is drawn before may be drawn again
    page.wait_for_selector("#watch-curves svg[data-curve]")
    page.wait_for_function("document.querySelector('.curve-tools').innerText.startsWith('Smoothing')")
    yield page
    page.close()
    assert errors == []


def figure(page: Any, name: str) -> Any:
    return page.locator("figure").filter(has=page.locator(f'a[download="{name}.csv"]'))


def steps(chart: Any) -> list[int]:
    """Steps whose values can be read."""
    return [int(text.split(": ")[1]) for text in chart.locator(".at tspan:first-child").all_text_contents()]


def labels(chart: Any) -> list[str]:
    return chart.locator("svg > text").all_text_contents()


def smoothing(page: Any, weight: float) -> None:
    page.locator(".curve-tools input").fill(str(weight))


def drag(page: Any, chart: Any, start: float, end: float) -> None:
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg").bounding_box()
    page.mouse.move(box["x"] + start * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()


def test_the_script_draws_what_python_drew(long: Any) -> None:
    """Curves, ticks, labels and values under the pointer, before anything is changed."""
    compared = 0
    for drawn in curve_figures(LONG, locale("en")):
        chart = figure(long, drawn.id)
        expected = long.evaluate_handle("(svg) => new DOMParser().parseFromString(svg, 'text/html').body", drawn.svg)
        for selector in ("text", "tspan", "title"):
            texts = "([root, selector]) => [...root.querySelectorAll(selector)].map((one) => one.textContent)"
            if selector != "title":  # the script has no tooltips
                assert long.evaluate(texts, [chart.locator("svg").element_handle(), selector]) == long.evaluate(
                    texts, [expected, selector]
                )
        points = "(root) => root.querySelector('polyline').getAttribute('points')"
        shown = [float(n) for pair in long.evaluate(points, chart.element_handle()).split() for n in pair.split(",")]
        python = [float(n) for pair in long.evaluate(points, expected).split() for n in pair.split(",")]
        assert shown == pytest.approx(python, abs=0.11)
        compared += 1
    assert compared == 4


def test_a_range_is_zoomed_and_reset(long: Any) -> None:
    """By dragging, by keys, and over a redraw while the run trains; a button, a double click and Esc reset it."""
    chart = figure(long, "kl")
    everything = steps(chart)
    assert not chart.locator("button.reset").is_visible()
    drag(long, chart, 0.4, 0.7)
    part = steps(chart)
    assert part == everything[part[0] - 1 : part[-1]]
    assert 5 < len(part) < 20
    assert labels(chart) != labels(figure(long, "scores"))
    assert steps(figure(long, "scores")) == everything
    long.get_by_text("中文").click()  # draws all curves again
    long.wait_for_function(f"document.body.innerText.includes('{locale('zh')('chart.kl.title')}')")
    long.wait_for_function("document.querySelector('.curve-tools').innerText.startsWith('平滑')")
    assert steps(chart) == part
    chart.locator("button.reset").click()
    assert steps(chart) == everything
    drag(long, chart, 0.4, 0.7)
    chart.locator("svg").dblclick(position={"x": 150, "y": 80})
    assert steps(chart) == everything
    chart.locator("svg").focus()
    for key in ("ArrowLeft", "ArrowLeft", "+", "+"):
        long.keyboard.press(key)
    assert steps(chart) == everything[-10:]  # a quarter, with step 39
    assert long.text_content(".heard").startswith("步: 39, ")
    long.keyboard.press("Escape")
    assert steps(chart) == everything
    long.get_by_text("English").click()
    long.wait_for_function(f"document.body.innerText.includes({locale('en')('chart.kl.title')!r})")
    long.wait_for_function("document.querySelector('.curve-tools').innerText.startsWith('Smoothing')")


def test_smoothing_is_the_unbiased_moving_average_over_the_thin_raw_line(long: Any) -> None:
    smoothing(long, 0.8)
    chart, mean, weight = figure(long, "scores"), 0.0, 0.0
    shown = chart.locator(".at")
    for at, row in enumerate(LONG):
        mean, weight = 0.8 * mean + 0.2 * row["objective/scores"], 0.8 * weight + 0.2
        raw, smoothed = shown.nth(at).locator("tspan").all_text_contents()[1:]
        assert float(raw.split(": ")[1]) == row["objective/scores"]
        assert float(smoothed.removeprefix("smoothed: ")) == pytest.approx(mean / weight, rel=1e-3, abs=1e-9)
    assert chart.locator("polyline").evaluate_all("(all) => all.map((one) => one.getAttribute('class'))") == [
        "c0 thin",
        "c0",
    ]
    smoothing(long, 0)
    assert chart.locator("polyline").count() == 1


def test_a_logarithmic_axis_names_what_it_leaves_out(long: Any) -> None:
    kl, scores = figure(long, "kl"), figure(long, "scores")
    for chart in (kl, scores):
        chart.locator("button.log").click()
    assert {"0.01", "0.1", "1", "10"} <= set(labels(kl))
    points = kl.locator("polyline").get_attribute("points").split()
    heights = [float(points[at - 1].split(",")[1]) for at in (1, 10, 40)]  # 0.01, 1, 16
    assert (heights[0] - heights[1]) / (heights[1] - heights[2]) == pytest.approx(2 / math.log10(16), rel=0.01)
    left_out = sum(row["objective/scores"] <= 0 for row in LONG)
    assert any(f"log · {left_out} at or below 0: not shown" in text for text in labels(scores))
    assert len(steps(scores)) == len(LONG) - left_out
    assert figure(long, "clip_fraction").locator("button.log").is_disabled()
    for chart in (kl, scores):
        chart.locator("button.log").click()
        assert chart.locator("button.log").get_attribute("aria-pressed") == "false"
    assert "0.01" not in labels(kl)


def test_a_drawing_is_saved_as_it_is_shown(long: Any) -> None:
    chart = figure(long, "kl")
    chart.locator("button.log").click()
    with long.expect_download() as download:
        chart.locator("button.svg").click()
    assert download.value.suggested_filename == "kl.svg"
    text = Path(download.value.path()).read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)  # noqa: S314 - drawn here
    assert [child.text for child in root.iter("{http://www.w3.org/2000/svg}text")] == labels(chart)
    assert ".chart polyline" in text
    assert "prefers-color-scheme: dark" in text
    assert 'class="at"' not in text
    assert text.count("<polyline") == 1
    chart.locator("button.log").click()


RESULT, COMPARE = ("?run=one&tab=result", "iframe.report"), ("?compare=one,long&tab=compare", "#comparison iframe")


@pytest.mark.parametrize(("address", "frame"), [RESULT, COMPARE])
def test_a_report_s_curves_do_the_same_on_the_page(url: str, chromium: Any, address: str, frame: str) -> None:
    """At 390 px; nothing else in the report runs, and its file has no script."""
    page = chromium.new_page(locale="en-GB", viewport={"width": 390, "height": 800})
    page.goto(f"{url}/{address}")
    report = page.frame_locator(frame)
    chart = report.locator("#en figure").filter(has=page.locator('a[download="scores.csv"]'))
    chart.locator("svg[data-curve]").wait_for()
    everything = steps(chart)
    drag(page, chart, 0.3, 0.6)
    assert 0 < len(steps(chart)) < len(everything)
    assert report.locator("html").evaluate("(root) => root.scrollWidth") <= 390
    assert report.locator("html").evaluate("() => document.title") != "taken"
    tools = report.locator(".curve-tools:visible, .curve-buttons:visible, a.csv:visible")
    assert tools.count() > 2
    page.emulate_media(media="print")
    assert tools.count() == 0
    assert chart.locator("svg").is_visible()
    page.emulate_media(media="screen")
    if "compare" in address:
        with page.expect_download() as download:
            page.click("#comparison a[download]")
        assert "<script" not in Path(download.value.path()).read_text(encoding="utf-8")
