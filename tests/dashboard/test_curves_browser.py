"""Curves that answer questions, in a real Chromium: values under the pointer, and figures as CSV."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, page_server
from compared_runs import answers, write_run

from lowrank_rlhf.reports.locale import locale
from lowrank_rlhf.reports.render import write_report
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import append_line

ROWS = [{"stage": "ppo", "step": step, "objective/scores": step / 8} for step in range(1, 5)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page for a finished run, and for one in its second round."""
    runs = tmp_path_factory.mktemp("curves") / "runs"
    run = RunDir(write_run(runs / "one", metrics=ROWS, rows=answers(["p"])))
    write_report(run, run.results(), answers(["p"]), run.path)
    write_run(runs / "two", metrics=ROWS, settings={"rounds": 2})
    later = RunDir(runs / "two", 2)
    later.path.mkdir()
    for row in ROWS:
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
    assert saved(page, figure.locator("a.csv")) == [
        [step, training], *([str(row["step"]), str(row["objective/scores"])] for row in ROWS)
    ]  # fmt: skip


def test_a_later_round_is_named_and_stage_names_do_not_wrap(url: str, chromium: Any) -> None:
    page = chromium.new_page(locale="en-GB", viewport={"width": 390, "height": 800})
    page.goto(f"{url}/?run=two&tab=watch")
    page.wait_for_selector("#watch-curves svg")
    assert page.locator("#watch-curves b").all_inner_texts() == ["Policy: score, round 2"]
    names = page.locator(".pipeline b")
    assert "round-2/evaluate" in names.all_inner_texts()
    heights = {round(names.nth(at).bounding_box()["height"]) for at in range(names.count())}
    assert len(heights) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
