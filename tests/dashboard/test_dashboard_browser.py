"""The page in a real Chromium: a tiny run from start to end, talk, languages, and texts that would like to be code."""

import json
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accessibility import findings
from annotators_page import NO_STORAGE, a_run_with_answers
from browser import browser, go_to, page_server, shows, texts, wait_for
from dashboard_runs import NASTY, finish, holding, make_run
from platforms import posix

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.browser import address
from lowrank_rlhf.dashboard.ranking.text import texts as texts_of_ranking
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.talk import kept
from lowrank_rlhf.dashboard.text import LANGUAGE_LABEL, table
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.reports.locale import locale
from lowrank_rlhf.run.files import append_line

SECONDS = 60_000
STEPS = 120


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def open_page(chromium) -> Iterator[Callable[..., Any]]:
    """`open_page(url, locale=)`: a page that must not meet an error of its own."""
    contexts, errors = [], []

    def opened(url: str, locale: str = "en-GB", init: str = "", **settings: Any) -> Any:
        contexts.append(chromium.new_context(locale=locale, **settings))
        contexts[-1].add_init_script(init)
        page = contexts[-1].new_page()
        page.set_default_timeout(SECONDS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda request: errors.append(request.url) if not request.url.startswith(("blob:", "data:", url)) else None,
        )
        page.goto(url)
        page.wait_for_selector("#tab-runs-button")
        page.wait_for_selector("#run-list .runs, #run-list .empty")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


def test_a_run_from_start_to_end(tmp_path, tiny_folder, open_page) -> None:
    """Start, reload, stop, resume, finish: the training is a process that the page only looks at."""
    from tiny_run import make_config, write_prompts

    prompts = write_prompts(tmp_path / "prompts.jsonl")
    config = make_config(
        tiny_folder(), prompts, ppo__steps=STEPS, ppo__evaluate_every=STEPS, evaluate__second_judge=None
    )
    folder = tmp_path / "runs"
    run = folder / "tiny"
    with page_server(folder) as (url, _):
        page = open_page(url)
        assert "There are no runs yet" in page.inner_text("#run-list")
        page.get_by_role("button", name="New run").click()
        editor = page.locator("#yaml .cm-content")
        editor.fill(json.dumps(config.model_dump(mode="json")).replace('"threads": 1', '"threads": "many"'))
        page.wait_for_selector("#verdict .note.bad")
        assert re.search(r"editor:1:\d+: model.threads: must be", page.inner_text("#verdict"))
        editor.fill(json.dumps(config.model_dump(mode="json")))
        page.wait_for_selector("#verdict .note.good")
        assert page.is_disabled("#start")
        page.click("#plan")
        page.wait_for_selector("#start:not([disabled])")
        planned = page.inner_text("#planned")
        assert all(word in planned for word in ("Memory", "Disk", "ppo", "to do"))
        assert f"python -m lowrank_rlhf run {run}/logs/start.yaml --runs {folder}" in planned
        assert not run.exists()

        page.click("#start")
        page.wait_for_selector("#start[disabled]")
        wait_for(lambda: jobs.holder(run), 60)
        page.reload()
        page.wait_for_selector('[data-run="tiny"] .badge.running')
        metrics = run / "metrics.jsonl"
        wait_for(
            lambda: metrics.exists() and '"ppo"' in metrics.read_text(), 120, lambda: jobs.log_path(run).read_text()
        )
        page.wait_for_selector("#stop:not([disabled])")
        answers_at_once(url)  # while it trains
        page.click("#stop")
        page.wait_for_selector('[data-run="tiny"] .badge.stopped')
        page.wait_for_function("document.querySelector('#run-about').textContent.includes('ppo is saved')")
        assert jobs.working(run) is None
        assert RunsFolder(folder).status("tiny").stage == "ppo"

        page.wait_for_selector("#resume:not([disabled])")
        page.click("#resume")
        page.wait_for_selector('[data-run="tiny"] .badge.finished', timeout=6 * SECONDS)
        steps = [row["step"] for row in map(json.loads, metrics.read_text().splitlines()) if "policy/ratio" in row]
        assert steps == list(range(1, STEPS + 1))
        go_to(page, "watch")
        page.wait_for_selector("#watch-curves svg polyline:visible")  # one of two points at the same KL has no width
        wait_for(lambda: len(texts(page, "#watch-samples table:first-of-type tbody tr")) == 2, 20)
        go_to(page, "result")
        frame = page.frame_locator("iframe.report")
        assert "Report of run" in frame.locator("h1:visible").inner_text()
        page.click("#export-adapters")
        with page.expect_download() as download:
            page.click("#export-ready a")
        assert download.value.suggested_filename == "tiny-adapters.zip"
        assert Path(download.value.path()).read_bytes()[:2] == b"PK"


@posix
def test_the_page_dies_and_the_run_goes_on(tmp_path, open_page) -> None:
    """kill -9 of the server; a new one finds the run, and stops it."""
    folder = tmp_path / "runs"
    run = make_run(folder)
    with page_server(folder) as (_, server):
        jobs.start(run, [sys.executable, "-c", "import time; print('lowrank_rlhf'); time.sleep(100)"])
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert jobs.working(run)
    with page_server(folder) as (url, _):
        page = open_page(url)
        page.wait_for_selector('[data-run="one"] .badge.starting')
        page.click("#stop:not([disabled])")
        wait_for(lambda: jobs.working(run) is None, 20)


def test_talk_and_vote(tmp_path, tiny_folder, open_page) -> None:
    from tiny_finished import finished_run

    finished_run(tiny_folder(), tmp_path)
    folder = tmp_path / "runs"
    with page_server(folder) as (url, _):
        page = open_page(url, permissions=["clipboard-read", "clipboard-write"])
        go_to(page, "talk")
        page.click("#talk-more button")
        shows(page, "#speakers label", ["Base", "SFT", "Aligned"])
        policy = folder / "tiny" / "adapters" / "policy"
        policy.rename(tmp_path / "policy")
        for tab in ("runs", "talk"):
            go_to(page, tab)
        shows(page, "#speakers label", ["Base", "SFT"])
        (tmp_path / "policy").rename(policy)  # a run makes its models while the tab is open
        page.fill("#question textarea", f"question {NASTY[:20]}")
        for _ in range(2):  # twice is once
            page.press("#question textarea", "Enter")
        answered = """(count) => {
            const notes = [...document.querySelectorAll('.card .soft')].map((note) => note.innerText);
            return notes.length == count && notes.every((note) => note.includes('reward'));
        }"""
        page.wait_for_function(answered, arg=3)
        assert texts(page, ".card h3") == ["Base", "SFT", "Aligned"]
        assert all(re.search(r"reward [+-]\d", text) for text in texts(page, ".card .soft"))
        assert texts(page, ".card .question") == [f"question {NASTY[:20]}"] * 3
        questions_while_the_models_load(page, answered)
        shows(page, "#speakers label", ["Base", "SFT", "Aligned"])

        page.check("#blind input")
        page.fill("#question textarea", "question")
        page.press("#question textarea", "Shift+Enter")
        page.type("#question textarea", "2")
        assert page.input_value("#question textarea") == "question\n2"
        page.press("#question textarea", "Enter")
        page.wait_for_selector("#vote-first")
        for language, label in (("中文", table("zh")["talk.first"]), ("English", table("en")["talk.first"])):
            page.get_by_text(language, exact=True).click()
            shows(page, "#vote-first", label)
        page.click("#vote-first")
        page.wait_for_selector("#talk-status .note.good")
        assert re.search(r"A was (SFT|Aligned), B was (SFT|Aligned)", page.inner_text("#talk-status"))
        page.uncheck("#blind input")
        store = AnnotationStore(folder / "tiny" / "talk" / "annotations.sqlite")
        (ranking,) = store.rankings()
        assert ranking.tiers == ((ranking.shown[0],), (ranking.shown[1],))

        with holding(folder / "tiny"):
            page.fill("#question textarea", "question 3")
            page.click("#ask")
            page.wait_for_selector("#talk-status .note.bad")
            assert "is training and needs this machine" in page.inner_text("#talk-status")
        assert len(page.locator(".card .question").all()) == 2
        talk_on(page, folder)


def questions_while_the_models_load(page: Any, answered: str) -> None:
    """A second question is asked once the first is answered; what is only typed stays in the box."""
    page.click("#restart-talk")
    wait_for(lambda: page.locator(".card").count() == 0, 20)
    page.fill("#question textarea", "first")
    page.click("#ask")
    page.fill("#question textarea", "second")
    page.press("#question textarea", "Enter")
    page.wait_for_function(answered, arg=6)
    assert texts(page, ".card .question") == ["first", "second"] * 3
    wait_for(lambda: page.input_value("#question textarea") == "", 20)


def talk_on(page: Any, folder: Path) -> None:
    """Copy, regenerate, edit, a reload, another run, and files, after a blind vote on one question."""
    questions = page.locator(".card .question")
    finished = "document.querySelectorAll('.card .copy').length == 2 && !document.querySelector('.edited')"
    before = texts(page, ".card .answer")
    page.click(".card button.copy")
    page.wait_for_function("document.querySelector('.card button.copy').innerText == 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()").split() == page.inner_text(".card .answer").split()
    own = [page.input_value(f"#{name} input") for name in ("temperature", "top-p", "answer-length")]
    assert own == ["1", "1", "6"]  # the run's
    page.fill("#system-prompt textarea", "Be brief.")
    page.locator("#speakers label").filter(has_text="Base").locator("input").uncheck()
    page.fill("#question textarea", "")
    page.click("#edit-question")
    page.wait_for_selector(".edited")
    page.fill("#question textarea", "changed")
    page.click("#ask")
    page.wait_for_function(finished)
    assert questions.all_inner_texts() == ["changed"] * 2
    assert texts(page, ".card h3") == ["SFT", "Aligned"]
    page.fill("#question textarea", "typed")
    page.click("#ask-again")
    page.wait_for_function("""() => {
      const {attempt, turns} = JSON.parse(JSON.parse(localStorage.getItem('lowrank-talks')).tiny);
      return attempt === 1 && turns[0][1].policy.tokens;
    }""")
    page.wait_for_function(finished)
    after = texts(page, ".card .answer")
    assert after != before
    page.reload()
    go_to(page, "talk")
    page.wait_for_function(finished)
    assert (questions.all_inner_texts(), texts(page, ".card .answer")) == (["changed"] * 2, after)
    page.click("#talk-more button")
    kept = [page.input_value(f"#{name} textarea") for name in ("question", "system-prompt")]
    assert kept == ["typed", "Be brief."]
    for button, name in (("talk", "tiny-talk.jsonl"), ("votes", "tiny-votes.jsonl")):
        with page.expect_download() as download:
            page.click(f"#save-{button}")
        assert download.value.suggested_filename == name
        rows = [json.loads(line) for line in Path(download.value.path()).read_text(encoding="utf-8").splitlines()]
        turns = [[turn["content"] for turn in row["messages"][:2]] for row in rows if button == "talk"]
        assert turns in ([["Be brief.", "changed"]] * 2, [])
        assert [row["prompt"] for row in rows if button == "votes"] in (["question\n2"], [])
    make_run(folder, "other")
    page.reload()
    go_to(page, "talk")
    page.wait_for_function(finished)
    page.click("#run input")
    page.get_by_role("option", name="other", exact=True).click()
    wait_for(lambda: questions.count() == 0, 30)
    page.click("#run input")
    page.get_by_role("option", name="tiny", exact=True).click()
    page.wait_for_function(finished)
    page.click("#restart-talk")
    page.wait_for_function("localStorage.getItem('lowrank-talks') == '{}'")
    page.fill("#question textarea", "")
    page.evaluate("navigator.clipboard.writeText('pasted '.repeat(2000))")
    page.press("#question textarea", "Control+v")
    assert len(page.input_value("#question textarea")) == 14_000
    page.click("#ask")
    page.wait_for_function(
        f"document.querySelector('#talk-cards').innerText.includes({table('en')['talk.too_long']!r})"
    )


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page for a run that is full of texts that would like to be code."""
    folder = tmp_path_factory.mktemp("nasty") / "runs"
    run = make_run(folder)
    finish(run, "sft", "sample")
    row = {"prompt": NASTY, "sft": NASTY, "policy": f"<img src=x onerror=\"document.title='taken'\">{NASTY}"}
    append_line(run / "eval.jsonl", row | {"score_sft": 0.5, "score_policy": 1.5})
    for step in range(5):
        append_line(run / "metrics.jsonl", {"stage": "ppo", "step": step, "objective/scores": step})
    append_line(run / "events.jsonl", {"time": "2026-01-01T00:00:00+00:00", "kind": "ended early", "error": NASTY})
    (run / "logs").mkdir()
    (run / "logs" / "x.log").write_text(NASTY + "\n")
    (run / "logs" / "job.json").write_text(json.dumps({"log": "x.log", "exit_code": 1, "since": "2026-02"}))
    with page_server(folder) as (url, _):
        yield url


def test_each_tab_keeps_the_conversations_of_the_others(nasty, open_page) -> None:
    tabs = [open_page(nasty)]
    tabs.append(tabs[0].context.new_page())
    tabs[1].goto(nasty)

    def keep(tab: Any, run: str) -> None:
        tab.evaluate(f"({kept.KEEP})", json.dumps({"run": run, "turns": ["x"]}))

    def fetched(tab: Any, run: str) -> str:
        given = tab.evaluate(f"(run) => ({kept.FETCH})(run, 'en')", run)[0]
        return json.loads(given)["text"]

    for number, run in enumerate(("a", "b", "constructor")):
        assert fetched(tabs[number % 2], run) == ""
        keep(tabs[number % 2], run)
    assert all(fetched(tab, run) for tab in tabs for run in ("a", "b", "constructor"))
    assert fetched(tabs[0], "toString") == ""
    blocked = open_page(nasty, init=NO_STORAGE)
    for run in ("a", "b"):
        keep(blocked, run)
    assert all(fetched(blocked, run) for run in ("a", "b"))


def test_what_a_model_wrote_is_text(nasty, open_page) -> None:
    page = open_page(nasty)
    page.wait_for_selector("#run-about pre")
    assert "<script>document.title='taken'</script>" in page.inner_text("#run-about")
    go_to(page, "watch")
    page.wait_for_selector("#watch-samples td")
    shown = page.inner_text("#watch-samples tbody")
    assert shown.count("<script>document.title='taken'</script> **bold** ${1+1} {{value}} \\u202eabc") == 3
    assert "<img src=x onerror=" in shown
    assert "<script>" in page.inner_text("#watch-log")
    page.wait_for_function("document.title === 'one · Watch · lowrank_rlhf'")
    assert page.locator("#watch-samples img, #watch-samples strong").count() == 0
    search = "#answer-search input, #answer-search textarea"
    page.fill(search, "<script> absent")
    page.wait_for_selector("#watch-samples .empty")
    page.fill(search, "<SCRIPT> bold")
    page.wait_for_selector("#watch-samples td")
    assert not page.locator("#answer-step").is_hidden()


def test_the_language_switches_everything(nasty, open_page) -> None:
    page = open_page(nasty)
    english, chinese = table("en"), table("zh")
    names = ("runs", "rank", "watch", "talk", "result", "compare")
    for name in names:
        shows(page, f"#tab-{name}-button", english[f"tab.{name}"])
    page.get_by_text("中文").click()
    for name in names:
        shows(page, f"#tab-{name}-button", chinese[f"tab.{name}"])
    page.wait_for_function(f"document.querySelector('#run-list').innerText.includes('{chinese['state.failed']}')")
    go_to(page, "watch")
    page.wait_for_function(
        f"document.querySelector('#watch-curves').innerText.includes('{locale('zh')('chart.scores.title')}')"
    )
    page.reload()  # it is remembered
    shows(page, "#tab-runs-button", chinese["tab.runs"])
    assert page.evaluate("document.documentElement.lang") == "zh"


NAMES_SEEN = """setInterval(() => {
  window.namesSeen = (window.namesSeen || new Set()).add(document.querySelector('#ranking-name')?.innerText || '');
}, 5)"""


def test_a_chinese_browser_gets_chinese(nasty, open_page) -> None:
    """The name box of tab Rank from its first moment."""
    page = open_page(nasty, locale="zh-CN", init=NAMES_SEEN)
    shows(page, "#tab-talk-button", table("zh")["tab.talk"])
    shows(page, "#stop", table("zh")["runs.stop"])
    page.click("#tab-rank-button")
    page.reload()
    name = texts_of_ranking("zh")["page.name"]
    page.wait_for_function(f"document.querySelector('#ranking-name')?.innerText.includes('{name}')")
    assert all(name in seen for seen in page.evaluate("[...window.namesSeen].filter(Boolean)"))


def test_a_phone_can_use_it(nasty, open_page) -> None:
    """390 px wide: nothing sticks out, and every button can be reached."""
    page = open_page(nasty, viewport={"width": 390, "height": 844})
    for name in ("runs", "rank", "watch", "talk", "result", "compare"):
        if not page.locator(f"#tab-{name}-button").is_visible():
            page.locator(".overflow-menu button").first.click()
        go_to(page, name)
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    go_to(page, "runs")
    for button in ("#stop", "#resume", '[data-run="one"]'):
        box = page.locator(button).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_a_page_answers_at_once_while_others_look(nasty, open_page) -> None:
    open_page(nasty)
    answers_at_once(nasty)


def answers_at_once(url: str) -> None:
    """100 ms for the page and for its settings; the best of ten, for this machine has other work too."""
    for path in ("/", "/config"):
        took = []
        for _ in range(10):
            start = time.perf_counter()
            with urllib.request.urlopen(url + path) as answer:  # noqa: S310
                answer.read()
            took.append(time.perf_counter() - start)
        assert min(took) < 0.1, (path, took)


def test_nothing_is_sent_twice(nasty, open_page) -> None:
    """Where nothing has changed a tick brings no HTML."""
    page = open_page(nasty)
    go_to(page, "watch")
    page.wait_for_selector("#watch-curves svg")
    page.evaluate("document.querySelector('#watch-curves svg').dataset.kept = 'yes'")
    page.wait_for_timeout(5000)
    assert page.evaluate("document.querySelector('#watch-curves svg').dataset.kept") == "yes"


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page for 100 runs."""
    runs = tmp_path_factory.mktemp("hundred") / "runs"
    for number in range(100):
        make_run(runs, f"run{number}")
    with page_server(runs) as (url, _):
        yield url


def shown(page: Any) -> tuple[str, str]:
    """The chosen run and the open tab."""
    tab = page.get_attribute('#tabs [role="tab"][aria-selected="true"]', "id")
    return page.input_value("#run input"), tab.removeprefix("tab-").removesuffix("-button")


def wait_until_shown(page: Any, run: str, tab: str) -> None:
    wait_for(lambda: shown(page) == (run, tab), 30, lambda: f"{shown(page)} at {page.url}")


def test_run_and_tab_are_in_the_address(hundred, open_page) -> None:
    """A reload, a second window and the back button show them; the title names them."""
    page = open_page(hundred)
    page.wait_for_function("location.search.includes('run=')")  # the newest
    first = page.input_value("#run input")
    page.click('[data-run="run7"]')
    page.wait_for_function("location.search.includes('run=run7')")
    go_to(page, "watch")
    page.wait_for_function("location.search.includes('tab=watch')")
    assert page.title() == "run7 · Watch · lowrank_rlhf"
    page.reload()
    wait_until_shown(page, "run7", "watch")
    second = open_page(hundred)
    second.goto(page.url)
    wait_until_shown(second, "run7", "watch")
    page.go_back()
    wait_until_shown(page, "run7", "runs")
    page.go_back()
    wait_until_shown(page, first, "runs")
    wait_for(lambda: page.title().startswith(f"{first} "), 30)  # the page has settled
    page.go_forward()
    wait_until_shown(page, "run7", "runs")


def test_enter_saves_a_ranking_after_a_click_on_the_tab(tmp_path, open_page) -> None:
    """Once there are answers, which the page finds by itself."""
    store = a_run_with_answers(tmp_path, 3)
    file, elsewhere = tmp_path / "runs" / "people" / "annotations.sqlite", tmp_path / "elsewhere"
    file.rename(elsewhere)
    with page_server(tmp_path / "runs") as (url, _):
        page = open_page(url)
        wait_until_shown(page, "people", "runs")
        go_to(page, "rank")
        page.locator(".rk-error:visible").wait_for()
        elsewhere.rename(file)
        page.locator(".rk-item").wait_for()
        assert findings(page) == []
        for key in ("2", "Enter"):
            page.keyboard.press(key)
            page.wait_for_function("document.querySelector('.rk').ariaBusy === 'false'")
        wait_for(lambda: len(store.rankings()) == 1, 10)
        page.locator(".rk-team summary").click()
        page.locator(".rk-team code").first.wait_for()
        assert findings(page) == []


def test_a_run_made_after_the_server_started_is_found_by_its_address(tmp_path, open_page) -> None:
    make_run(tmp_path / "runs", "early")
    with page_server(tmp_path / "runs") as (url, _):
        make_run(tmp_path / "runs", "later")
        page = open_page(url)
        page.goto(f"{url}?run=early")
        wait_until_shown(page, "early", "runs")
        page.goto(f"{url}?run=later&tab=watch")
        wait_until_shown(page, "later", "watch")
        a_run_with_answers(tmp_path, 1)
        page.add_init_script(LOOK_FOR_ERRORS)
        page.goto(f"{url}?run=people&tab=rank")
        page.locator(".rk-item").wait_for()
        assert page.evaluate("window.seen") == []  # neither of no run nor of another one while the page loads


LOOK_FOR_ERRORS = """
  window.seen = [];
  setInterval(() => document.querySelectorAll('.rk-error').forEach((one) => {
    if (one.getClientRects().length) window.seen.push(one.innerText);
  }), 20);
"""


def test_an_address_of_no_run_keeps_the_chosen_one(hundred, open_page) -> None:
    page = open_page(hundred)
    page.wait_for_function("location.search.includes('run=')")
    page.click('[data-run="run7"]')
    page.wait_for_function("location.search.includes('run=run7')")
    page.evaluate("history.pushState(null, '', '?run=nowhere&tab=watch')")
    page.evaluate("history.pushState(null, '', '?run=run8')")
    page.go_back()
    wait_until_shown(page, "run7", "watch")
    page.wait_for_timeout(1000)
    assert shown(page) == ("run7", "watch")


def test_a_tab_opened_while_the_page_loads_stays_open(hundred, open_page) -> None:
    """The script that restores the address runs last, and on a slow machine late."""
    page = open_page(hundred)
    page.wait_for_function("location.search.includes('run=')")
    page.evaluate("delete window.keepAddress")
    go_to(page, "talk")
    page.evaluate(f"({address.restore([])})()")
    assert shown(page)[1] == "talk"
    page.evaluate("history.replaceState(null, '', '?run=run8')")
    sent = [page.evaluate(f"[({address.OF_RUN_SHOWN})('run7', 'en'), delete window.shownRun]")[0] for _ in range(2)]
    assert sent == [["run7", "en"], ["run8", "en"]]  # a button acts on the address's run until it is shown


def test_all_runs_are_listed_below_the_form_for_a_new_one(hundred, open_page) -> None:
    page = open_page(hundred)
    wait_for(lambda: page.locator("#run-list [data-run]").count() == 100, 30)
    tops = [page.locator(part).bounding_box()["y"] for part in ("#new-run", "#run-list", "#resume")]
    assert tops == sorted(tops)
    assert tops[-1] < 800  # the buttons need no scrolling
    page.fill("#run-search input, #run-search textarea", "run9")
    page.wait_for_function("document.querySelectorAll('[data-run]').length === 11")
    page.fill("#run-search input, #run-search textarea", "")
    page.wait_for_function("document.querySelectorAll('[data-run]').length === 100")


def test_a_deleted_run_comes_back(tmp_path, open_page) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / "runs", name)
    with page_server(tmp_path / "runs") as (url, _):
        page = open_page(url)
        page.wait_for_selector(".run.chosen")
        page.click("#deleting > button")
        page.click("#delete-run")
        page.wait_for_selector("#delete-asks .note")
        assert page.locator("[data-run]").count() == 2
        page.click("#delete-yes")
        page.wait_for_function("document.querySelectorAll('[data-run]').length === 1")
        assert page.locator(".toast-body").count() == 0
        page.click("#restore-run")
        page.wait_for_function("document.querySelectorAll('[data-run]').length === 2")


def test_edited_settings_are_kept_and_replaced_only_after_a_question(hundred, open_page) -> None:
    page, answers = open_page(hundred), []
    page.on("dialog", lambda dialog: dialog.accept() if answers.pop() else dialog.dismiss())
    editor = page.locator("#yaml .cm-content")

    def choose(preset: str) -> None:
        page.click("#preset input")
        page.get_by_role("option", name=preset, exact=True).click()

    page.click("#new-run button")
    choose("quickstart")  # over an empty editor, without a question
    wait_for(lambda: "name: quickstart" in editor.inner_text(), 30)
    page.wait_for_function("localStorage.getItem('lowrank-new-run').includes('quickstart') && window.loadedYaml")
    page.reload()
    page.click("#new-run button")
    wait_for(lambda: "name: quickstart" in editor.inner_text(), 30)
    choose("small_cpu")  # nothing was edited
    wait_for(lambda: "name: small-cpu" in editor.inner_text(), 30)
    editor.fill("name: mine")
    page.wait_for_selector("#verdict .note.bad")
    page.wait_for_function("localStorage.getItem('lowrank-new-run').includes('mine')")
    page.reload()
    page.click("#new-run button")
    wait_for(lambda: editor.inner_text().strip() == "name: mine", 30, editor.inner_text)
    answers.append(False)
    choose("quickstart")
    wait_for(lambda: answers == [], 30)
    page.wait_for_timeout(1000)
    assert editor.inner_text().strip() == "name: mine"
    answers.append(True)
    choose("human_preferences")
    wait_for(lambda: "name: human-preferences" in editor.inner_text(), 30, editor.inner_text)


def test_the_page_works_without_the_browser_s_storage(hundred, open_page) -> None:
    """Blocked or full storage costs what would have been kept, no more."""
    page = open_page(hundred, locale="zh-CN", init=NO_STORAGE)
    shows(page, "#tab-runs-button", table("zh")["tab.runs"])
    page.get_by_text("English").click()
    shows(page, "#tab-runs-button", table("en")["tab.runs"])
    page.click("#theme")
    page.click("#new-run button")
    page.locator("#yaml .cm-content").fill("name: mine")
    page.wait_for_selector("#verdict .note.bad")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_tab_can_be_read_by_all(nasty, open_page, scheme) -> None:
    """Names, roles, contrast: no serious finding of axe-core, with everything of the tab Runs unfolded."""
    page = open_page(nasty, color_scheme=scheme)
    for block in ("start-here", "new-run", "again", "deleting"):
        page.click(f"#{block} > button")
    page.click("#own-prompts")
    page.locator("#make-settings").wait_for()
    for tab in ("runs", "rank", "watch", "talk", "result", "compare"):
        go_to(page, tab)
        page.wait_for_timeout(500)  # its first answer from the server
        assert findings(page) == [], tab


def test_a_keyboard_shows_where_it_is(nasty, open_page) -> None:
    """Each stop of the Tab key in the page's head and the list of runs has a ring."""
    page = open_page(nasty)
    for _ in range(14):
        page.keyboard.press("Tab")
        assert page.evaluate(RING), page.evaluate("document.activeElement.outerHTML")


RING = """() => {
  const own = document.activeElement;
  return [own, own.closest('label'), own.closest('.wrap'), own.closest('.block')].filter(Boolean).some((one) => {
    const style = getComputedStyle(one);
    const outline = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0;
    return outline || (style.boxShadow !== 'none' && !style.boxShadow.startsWith('rgba(0, 0, 0, 0)'));
  });
}"""


def test_what_a_screen_reader_hears_are_words(hundred, open_page) -> None:
    """Gradio calls a group of choices Radio, and has no word for the end of an event."""
    page = open_page(hundred)
    assert page.text_content('#language [data-testid="block-info"]') == LANGUAGE_LABEL
    page.evaluate(HEAR)
    page.click("#deleting > button")
    page.click("#restore-run")
    wait_for(lambda: "Done" in page.evaluate("window.heard"), 30, lambda: page.evaluate("window.heard"))
    assert not [words for words in page.evaluate("window.heard") if "common" in words]


HEAR = """() => {
  window.heard = [];
  setInterval(() => document.querySelectorAll('[aria-live]').forEach((one) => window.heard.push(one.textContent)), 50);
}"""
