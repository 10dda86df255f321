"""Tab Compare: several runs side by side in a real Chromium, and its page as a file."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, page_server, shows, wait_for
from compared_runs import answers, write_run
from dashboard_runs import NASTY, make_run
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.served.curves import POLICY, with_curves
from lowrank_rlhf.dashboard.served.routes import routes
from lowrank_rlhf.dashboard.tabs import compare
from lowrank_rlhf.dashboard.text import html, t, table
from lowrank_rlhf.errors import visible
from lowrank_rlhf.reports.locale import locale
from lowrank_rlhf.reports.run_comparison import comparison_page, read_run
from lowrank_rlhf.run.directory import RunDir

KL = [{"stage": "ppo", "step": step, "objective/kl": step} for step in range(3)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs with prompts in common, and one that has just begun."""
    folder = tmp_path_factory.mktemp("compare") / "runs"
    write_run(folder / "first", metrics=KL, rows=answers([NASTY, "p"], NASTY))
    write_run(folder / "second", metrics=KL, rows=answers([NASTY, "q"]), settings={"seed": 7})
    write_run(folder / "begun", results={"sft": {}})
    return folder


def framed(page: Any, part: str) -> Any:
    return page.frame_locator("#comparison iframe").locator(f"article:visible {part}")


def test_runs_are_chosen_and_stay_in_the_address(runs: Path) -> None:
    with page_server(runs) as (url, _), browser() as opened:
        page = opened.new_page(locale="en-GB", viewport={"width": 1280, "height": 800})
        page.goto(f"{url}/?run=first")
        page.wait_for_selector("#run-list .runs")
        page.click("#tab-compare-button")
        shows(page, "#comparison .empty", t("compare.choose", "en"))
        for name in ("first", "second"):
            page.click("#compared input")
            page.get_by_role("option", name=name, exact=True).click()
        framed(page, "h1").wait_for()
        assert framed(page, "h1").inner_text() == "Comparison of first, second"
        assert framed(page, "td:first-child").filter(has_text=re.compile("^seed$")).count() == 1
        assert framed(page, ".side .answer").all_inner_texts() == [visible(NASTY), "Of course!"]
        assert framed(page, ".plots figure").count() == 1
        assert framed(page, "script, img").count() == 0
        page.wait_for_function("location.search.includes('compare=first%2Csecond')")
        page.click("#tab-watch-button")
        page.go_back()
        page.wait_for_function("location.search.includes('compare=first%2Csecond')")
        address = page.url
        with page.expect_download() as download:
            page.click("#comparison a[download]")
        assert download.value.suggested_filename == "comparison.html"

        phone = opened.new_page(locale="zh-CN", viewport={"width": 390, "height": 844})
        phone.goto(address)
        framed(phone, "h1").wait_for()
        assert framed(phone, "h1").inner_text() == locale("zh")("compare.title", runs="first、second")
        assert phone.locator("#comparison a").first.inner_text() == table("zh")["compare.open"]
        wait_for(lambda: phone.evaluate("document.documentElement.scrollWidth") <= 390, 20)
        phone.set_viewport_size({"width": 320, "height": 700})  # the last tabs are in a menu
        phone.goto(address)
        framed(phone, "h1").wait_for()


@pytest.fixture
def client(runs: Path) -> Iterator[TestClient]:
    with TestClient(Starlette(routes=routes(RunsFolder(runs)))) as found:
        yield found


def test_the_page_is_the_command_s_and_runs_its_curves_alone(client: TestClient, runs: Path) -> None:
    """The saved one has no script at all."""
    page = comparison_page([read_run(RunDir(runs / name), name) for name in ("first", "second")])
    assert "<script" not in page
    assert client.get("/compare?runs=first,second&saved").text == page
    shown = client.get("/compare?runs=first,second")
    assert shown.text == with_curves(page)
    assert shown.text.count("<script") == 1
    assert shown.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize("names", ["", "first", "first,first", "first,nowhere", "first,../compare", "first,a/b"])
def test_other_choices_are_not_found(client: TestClient, names: str) -> None:
    assert client.get("/compare", params={"runs": names}).status_code == 404


def test_what_is_missing_is_a_sentence(runs: Path, client: TestClient) -> None:
    """Of an unfinished run, of runs without a common prompt, and of a name in an old address."""
    page = client.get("/compare?runs=first,begun").text
    for language in ("en", "zh"):
        assert html(locale(language)("compare.samples.too_few")) in page
    assert "begun: not finished: sample, rank, reward, ppo, evaluate." in page
    write_run(runs.parent / "apart" / "one", rows=answers(["p"]))
    write_run(runs.parent / "apart" / "two", rows=answers(["q"]))
    other = TestClient(Starlette(routes=routes(RunsFolder(runs.parent / "apart")))).get("/compare?runs=one,two").text
    assert html(locale("zh")("compare.samples.none")) in other
    gone = compare._refresh(RunsFolder(runs), ["first", f"x{NASTY}"], "en", {})[1]
    assert "invalid run name" in gone
    assert "<script" not in gone


def test_it_is_drawn_again_only_after_a_change(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name)
    folder = RunsFolder(tmp_path)
    *_, seen = compare._refresh(folder, ["a", "b"], "en", {})
    unchanged = compare._refresh(folder, ["a", "b"], "en", seen)
    assert all(update == compare.gr.skip() for update in unchanged)
    make_run(tmp_path, "c")
    choices, shown, seen = compare._refresh(folder, ["a", "b"], "en", seen)
    assert sorted(choices["choices"]) == ["a", "b", "c"]
    assert shown == compare.gr.skip()
    (tmp_path / "a" / "done" / "evaluate.json").unlink()
    assert "iframe" in compare._refresh(folder, ["a", "b"], "en", seen)[1]
