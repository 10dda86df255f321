"""The ranking page in a real Chromium, against what the store holds afterwards."""

import random
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from annotators_page import (
    ENVIRONMENT,
    NO_STORAGE,
    PASSWORD,
    Person,
    Server,
    a_run_with_answers,
    chromium,
    served,
    with_guidelines,
)

from lowrank_rlhf.preferences.project import open_project
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.preferences.team.exclusion import exclude
from lowrank_rlhf.preferences.team.guidelines import version_of
from lowrank_rlhf.preferences.team.invitations import FILE, Invitations
from lowrank_rlhf.run.records import Ranking

Row = tuple[str, str, str, tuple[str, ...], bool, str | None, int]


def rows(store: AnnotationStore, annotator: str) -> list[Row]:
    """Every ranking ever saved, from the file itself: prompt, order by place on the screen, flags, partial, written,
    withdrawn. The order shown must be the annotator's own, which is found here a second time."""
    with sqlite3.connect(store.path) as database:
        found = database.execute(
            "SELECT record, withdrawn FROM rankings WHERE annotator = ? ORDER BY position", (annotator,)
        ).fetchall()
    result = []
    for record, withdrawn in found:
        ranking = Ranking.model_validate_json(record)
        ids = [f"{ranking.prompt_id}-{k}" for k in range(4)]
        assert list(ranking.shown) == random.Random(f"{annotator}\n{ranking.prompt_id}").sample(ids, 4)
        assert ranking.seconds is not None
        assert 0 <= ranking.seconds < 60
        order = ">".join("=".join(str(ranking.shown.index(name) + 1) for name in tier) for tier in ranking.tiers)
        result.append((ranking.prompt_id, order, ranking.flags, ranking.partial, ranking.written, withdrawn))
    return result


def test_ten_prompts_by_keyboard(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 12)
    with served(tmp_path) as (server, browser):
        ann = Person(browser, server.url, "ann")
        assert not ann.page.locator(".rk-expand").is_visible()  # no long answers
        ann.press("2", "1", "=", "3", "Enter")
        ann.press("4", "Enter")  # the best only
        ann.press("s")
        ann.press("1", "2", "u", "3", "=", "2", "4", "Enter")
        ann.press("b", "Enter")
        ann.press("3", "2", "1", "4", "!", "Enter")
        for key in ("Enter", "=", "9", "z"):  # all refused
            ann.press(key)
            assert ann.page.locator(".rk-refused").count() == 1
        assert ann.order() == ""
        ann.press("1", "2", "3", "4", "Enter")
        ann.press("w")
        ann.page.keyboard.type("2 = 1: sub\n")  # keys are off while one types
        ann.press("Escape", "Enter")
        ann.press("f", "1", "1", "=", "2", "=", "3", "=", "4", "Enter")
        ann.press("u")  # takes the saved one back
        assert (ann.prompt(), ann.order(), ann.text(".rk-flagged")) == ("Tell me 8", "1=2=3=4", "unsure")
        ann.press(*["Backspace"] * 7, "4", "Enter")
        ann.press("2", "1", "Enter")
        ann.press("s", "u")
        assert ann.prompt() == "Tell me 10"
        ann.press("3", "1", "4", "2", "Enter")
        assert ann.prompt() == "Tell me 11"
        assert "you: 10 ranked, 1 skipped" in ann.text(".rk-line")
        assert ann.errors == []
    assert rows(store, "ann") == [
        ("p0", "2>1=3>4", (), False, None, 0),
        ("p1", "4>1=2=3", (), True, None, 0),
        ("p3", "1>3=2>4", (), False, None, 0),
        ("p4", "", ("all answers bad",), False, None, 0),
        ("p5", "3>2>1>4", ("harmful",), False, None, 0),
        ("p6", "1>2>3>4", (), False, None, 0),
        ("p7", "", (), False, "2 = 1: sub", 0),
        ("p8", "1=2=3=4", ("unsure",), False, None, 1),
        ("p8", "4>1=2=3", ("unsure",), True, None, 0),
        ("p9", "2>1>3=4", (), True, None, 0),
        ("p10", "3>1>4>2", (), False, None, 0),
    ]
    assert [(skip.annotator, skip.prompt_id) for skip in store.contents().skips] == [("ann", "p2")]


def test_two_people_at_once(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 4)
    with served(tmp_path) as (server, browser):
        ann, li = Person(browser, server.url, "ann"), Person(browser, server.url, "李")
        assert (ann.prompt(), li.prompt()) == ("Tell me 0", "Tell me 1")
        li.press("1", "Enter")
        ann.press("2", "Enter")
        assert (ann.prompt(), li.prompt()) == ("Tell me 3", "Tell me 2")
        assert "ranking as 李" in li.text(".rk-line")
        li.press("3", "Enter")
        assert "3 of 3 prompts ranked" in li.text(".rk-line")
        assert "Enough prompts are ranked" in li.text(".rk-next")
        assert "lowrank_rlhf" not in li.text(".rk-next")
        li.press("s")  # p0, which ann has ranked
        assert li.page.locator(".rk-end").is_visible()  # ann holds the last one
        li.press("u")
        assert li.prompt() == "Tell me 0"
        replay_a_badge(ann, li)
        exclude(store, "李")
        li.press("1", "Enter")
        assert "Your rankings are set aside at the moment" in li.text(".rk-end")
        assert not li.page.locator(".rk-end [data-key]:visible").count()
        exclude(store, "李", excluded=False)
        assert (ann.errors, li.errors) == ([], [])
    assert [row[:2] for row in rows(store, "ann")] == [("p0", "2>1=3=4")]
    assert [row[:2] for row in rows(store, "李")] == [("p1", "1>2=3=4"), ("p2", "3>1=2=4")]


def replay_a_badge(ann: Person, li: Person) -> None:
    """A step of ann's page, sent with her cookie and with another person's."""
    with ann.page.expect_request("**/component_server/**") as sent:
        ann.press("1")
    step = sent.value.post_data_json
    assert step["data"]["badge"]["annotator"] == "ann"
    step["data"] |= {"do": "open"}

    def send(page: Any) -> Any:
        return page.request.post(sent.value.url, data=step, headers={"Origin": ann.url})

    assert send(ann.page).json()["item"]["prompt_id"] == "p3"
    assert list(send(li.page).json()) == ["error"]
    assert "logged in as 李" in send(li.page).json()["error"]


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 5)
    with served(tmp_path) as (server, browser):
        ann = Person(browser, server.url, "ann")
        ann.press("1", "Enter", "2", "Enter", "3", "=", "4")
        server.kill()
        assert [row[:2] for row in rows(store, "ann")] == [("p0", "1>2=3=4"), ("p1", "2>1=3=4")]
        ann.press("Enter")
        assert "is not saved yet" in ann.text(".rk-error")
        again = Server(tmp_path, server.port)
        try:
            ann.log_in()
            assert (ann.prompt(), ann.order()) == ("Tell me 2", "3=4")
            ann.press("Enter")
        finally:
            again.kill()
    assert [row[:2] for row in rows(store, "ann")][2:] == [("p2", "3=4>1=2")]


HOSTILE = (
    "<script>window.pwned = 1; alert(1)</script><img src=x onerror='window.pwned = 2'>",
    "**bold** # no heading\n- no list\n    indented [link](javascript:alert(1)) ${7*7} {{value}}",
    "left \u202eesrever\u202c \u2066x\u2069 \u200f right",
    "before\n```html\n<b>kept</b>\n  as it is\n```\nafter",
)


GUIDELINES = f"{HOSTILE[0]}\n\n- Be **kind**\n- not long\n\n[x](javascript:alert(1))"


def test_whatever_an_answer_or_the_guidelines_hold_is_text(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 2, HOSTILE)
    with served(tmp_path) as (server, browser):
        ann = Person(browser, server.url, "ann")
        bodies = {one.text_content() for one in ann.page.locator(".rk-card > .rk-text").all()}
        assert bodies == {
            HOSTILE[0],
            HOSTILE[1],
            "left \\u202eesrever\\u202c \\u2066x\\u2069 \\u200f right",
            HOSTILE[3],
        }
        assert ann.page.locator(".rk-card script, .rk-card img, .rk-card b, .rk-card a, .rk-card strong").count() == 0
        assert ann.page.locator(".rk-card code").text_content() == "```html\n<b>kept</b>\n  as it is\n```\n"
        assert not ann.page.locator(".rk-guide").is_visible()
        with_guidelines(tmp_path, GUIDELINES)
        ann.press("1", "Enter")
        parts = ann.page.locator(".rk-guide > div").locator("p, li").all_inner_texts()
        assert parts == [HOSTILE[0], "Be kind", "not long", "[x](javascript:alert(1))"]
        assert ann.page.locator(".rk-guide strong").inner_text() == "kind"
        assert ann.page.locator(".rk-guide").locator("script, img, a").count() == 0
        guide, prompt = ann.page.locator(".rk-guide"), ann.page.locator(".rk-prompt")
        assert guide.bounding_box()["x"] > prompt.bounding_box()["x"] + prompt.bounding_box()["width"]
        ann.press("g")
        assert guide.get_attribute("open") is None
        ann.name = None  # still logged in
        ann.log_in()
        assert guide.get_attribute("open") is None  # remembered
        with_guidelines(tmp_path, "Be brief.")
        ann.press("2", "Enter")
        assert guide.get_attribute("open") is not None  # another text
        assert "changed" in ann.text(".rk-guide summary")
        assert ann.page.evaluate("window.pwned") is None
        assert ann.errors == []
    assert [ranking.guidelines for ranking in store.rankings()] == [None, version_of(GUIDELINES)]


def test_the_browsers_language_and_the_switch(tmp_path: Path) -> None:
    a_run_with_answers(tmp_path, 2)
    with served(tmp_path) as (server, browser):
        ann = Person(browser, server.url, "ann", locale="zh-CN")
        ann.page.get_by_text("给回答排序").wait_for()
        ann.page.get_by_text("保存，下一个").wait_for()
        ann.press("2")
        assert "最好" in ann.text(".rk-best .rk-place")
        ann.page.get_by_text("English").click()
        ann.page.get_by_text("Save, next").wait_for()
        ann.wait()
        assert (ann.order(), ann.text(".rk-best .rk-place")) == ("2", "best")
        assert "中" not in ann.text(".rk")
        ann.press("Enter")
        assert ann.prompt() == "Tell me 1"
        ann.press("3")
        ann.page.locator(".rk-write textarea").fill("a better one")
        ann.page.get_by_text("中文").click()
        ann.page.get_by_text("保存，下一个").wait_for()
        ann.wait()
        assert (ann.order(), ann.page.locator(".rk-write textarea").input_value()) == ("3", "a better one")


# The page as the dashboard has it: nobody logs in, and a button goes on with the run.
DASHBOARD = '''
import sys
from pathlib import Path
import gradio as gr
from lowrank_rlhf.dashboard.tabs import rank
def go_on(run):
    Path("went on").write_text(run)
    return "The run goes on."
with gr.Blocks(analytics_enabled=False) as blocks:
    run = gr.Textbox("people", elem_id="run")
    rank.build(Path("runs"), run, gr.State("en"), resume=go_on)
    blocks.load(None, None, None, js="""() => {
      window.shownRun = 'people';
      window.dispatchEvent(new Event('run-known'));
    }""")
_, url, _ = blocks.launch(server_port=int(sys.argv[1]), prevent_thread_lock=True, quiet=True, ssr_mode=False)
print(url.rstrip("/"), flush=True)
blocks.block_thread()
'''


def test_inside_the_dashboard_with_a_name_and_a_button_to_go_on(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 3, minimum_rankings=2)
    with chromium() as browser:
        server = Server(tmp_path, command=["-c", DASHBOARD])
        try:
            ann = Person(browser, server.url, None)
            call_oneself(ann, "ann 1", "ranking as ann 1")
            ann.page.locator(".rk-prompt").click()  # leaves the field
            button = ann.page.get_by_role("button", name="Resume the run")
            call_oneself(ann, "", "not a valid name")
            ann.page.get_by_role("button", name="Retry").click()
            ann.press("1", "Enter")
            assert (ann.page.locator(".rk-item").is_visible(), store.rankings()) == (False, [])
            call_oneself(ann, "ann 1", "ranking as ann 1")
            ann.page.locator(".rk-prompt").click()
            ann.press("1", "Enter")
            assert not button.is_visible()
            ann.press("1", "Enter")
            ann.page.reload()
            ann.page.get_by_text("ranking as ann 1").first.wait_for()  # the name is kept in the browser
            assert ann.page.locator("#ranking-name input, #ranking-name textarea").input_value() == "ann 1"
            with sqlite3.connect(store.path) as database:  # none for the login, which nobody ranks as
                assert database.execute("SELECT DISTINCT annotator FROM leases").fetchall() == [("ann 1",)]
            button.click()
            ann.page.get_by_text("The run goes on.").wait_for()
            assert (tmp_path / "went on").read_text() == "people"
            decide_a_disagreement(ann, store)
            exclude_an_annotator(ann, store)
            set_the_team_s_settings(ann, tmp_path / "runs" / "people")
            ann.page.locator("#run textarea, #run input").fill("nowhere")
            ann.page.get_by_text("Run not found.").wait_for()
            assert not ann.page.locator(".rk-item").is_visible()
        finally:
            server.kill()
    # The first prompt did not stay with the login name, under which the page had opened.
    assert [row[:2] for row in rows(store, "ann 1")] == [("p0", "1>2=3=4"), ("p1", "1>2=3=4")]


def set_the_team_s_settings(owner: Person, run: Path) -> None:
    """The owner writes guidelines, which may look like HTML, and a share; and copies a command."""
    section = owner.page.locator(".rk-team")
    section.locator("summary").click()
    section.get_by_label("Guidelines for all annotators").fill(GUIDELINES)
    section.get_by_label("Prompts for each annotator").fill("7")
    section.get_by_role("button", name="Save").click()
    section.get_by_text("Saved. Annotators see it").wait_for()
    owner.page.locator(".rk-guide strong").wait_for()
    owner.wait()
    assert "your share: 2 of 7" in owner.text(".rk-line")
    settings = open_project(run).settings
    assert (settings.guidelines, settings.quota, settings.deadline) == (GUIDELINES, 7, None)
    assert section.get_by_label("Guidelines for all annotators").input_value() == GUIDELINES
    commands = section.locator("code").all_inner_texts()
    assert "python -m lowrank_rlhf annotations invite runs/people NAME" in commands
    section.get_by_role("button", name="Copy").nth(1).click()
    section.get_by_role("button", name="Copied").wait_for()
    assert owner.page.evaluate("String(getSelection())") == commands[1]
    assert owner.page.evaluate("window.pwned") is None
    assert owner.errors == []


def exclude_an_annotator(owner: Person, store: AnnotationStore) -> None:
    """The owner excludes an annotator under the figures, whose row stays, and restores the rankings."""
    fold = owner.page.locator(".rk-figures")
    fold.locator("summary").click()
    assert [one.annotator for one in store.contents().current()] == ["ann 1", "ann 1", "bob <b>"]
    fold.get_by_role("button", name="Exclude: bob <b>", exact=True).click()
    fold.get_by_text("excluded; rankings kept and not counted: 1").wait_for()
    assert [one.annotator for one in store.contents().current()] == ["ann 1", "ann 1"]
    assert fold.locator("dt").all_inner_texts()[-2:] == ["ann 1", "bob <b>"]
    fold.get_by_role("button", name="Restore: bob <b>", exact=True).click()
    fold.get_by_role("button", name="Exclude: bob <b>", exact=True).wait_for()
    assert [one.annotator for one in store.contents().current()] == ["ann 1", "ann 1", "bob <b>"]
    fold.locator("summary").click()
    assert owner.errors == []


def decide_a_disagreement(owner: Person, store: AnnotationStore) -> None:
    """The owner takes an order, types another one, and undoes it."""
    (p0,) = [one for one in store.rankings() if one.prompt_id == "p0"]
    tiers = (tuple(p0.tiers[1]), p0.tiers[0])
    store.save(p0.model_copy(update={"annotator": "bob <b>", "tiers": tiers, "partial": False, "flags": ("unsure",)}))
    owner.page.locator(".rk-disputes summary").click()
    box = owner.page.locator(".rk-dispute")
    box.get_by_role("button", name="Take this order").nth(1).wait_for()
    assert box.count() == 1
    assert box.locator(".rk-orders > div").nth(1).inner_text().splitlines()[::2] == ["bob <b>", "unsure"]
    box.get_by_role("button", name="Take this order").nth(1).click()
    box.locator(".rk-decided").wait_for()
    assert [one.tiers for one in store.rankings() if one.prompt_id == "p0"] == [tiers]
    box.get_by_role("button", name="Undo the decision").click()
    box.get_by_label("Another order").fill("nonsense")
    box.get_by_role("button", name="Decide").click()
    owner.page.get_by_text("Not an order of these answers: nonsense").wait_for()
    box.get_by_label("Another order").fill("4 > 1 = 2")
    owner.page.keyboard.press("Enter")
    box.locator(".rk-decided").wait_for()
    (decided,) = [one for one in store.rankings() if one.prompt_id == "p0"]
    assert (decided.annotator, decided.tiers) == ("ann 1", (("p0-3",), ("p0-0", "p0-1"), ("p0-2",)))
    assert owner.errors == []


def test_an_unsaved_order_and_text_survive_a_reload(tmp_path: Path) -> None:
    """And end with the ranking: the next prompt begins without them."""
    store = a_run_with_answers(tmp_path, 3, minimum_rankings=2)
    with served(tmp_path) as (server, browser):
        ann = Person(browser, server.url, "ann")
        ann.press("2", "1")
        ann.page.locator(".rk-write textarea").fill("A better one.")
        ann.page.reload()
        ann.page.wait_for_function("document.querySelector('.rk-write textarea')?.value === 'A better one.'")
        assert ann.order() == "2>1"
        ann.wait()
        ann.press("Enter")
        ann.page.wait_for_function("document.querySelector('.rk-write textarea').value === ''")
        ann.page.reload()
        ann.page.locator(".rk-item").wait_for()
        ann.wait()
        assert (ann.prompt(), ann.order(), ann.page.input_value(".rk-write textarea")) == ("Tell me 1", "", "")
    [(prompt, order, _, _, written, _)] = rows(store, "ann")
    assert (prompt, order[:3], written) == ("p0", "2>1", "A better one.")


def test_a_draft_stays_in_the_browser_until_the_server_has_accepted_it(tmp_path: Path) -> None:
    """A reload before the first reply does not lose it. Retry drops one that the server refuses."""
    a_run_with_answers(tmp_path, 3)
    key = "lowrank-draft people ann"
    with served(tmp_path) as (server, browser):
        ann = Person(browser, server.url, "ann")
        ann.press("2", "1")
        ann.page.route("**/component_server/**", lambda _: None)  # no reply
        with ann.page.expect_request("**/component_server/**"):
            ann.page.reload()
        ann.page.unroute("**/component_server/**")
        ann.page.reload()
        ann.page.locator(".rk-item").wait_for()
        ann.wait()
        assert ann.order() == "2>1"
        ann.page.evaluate('key => localStorage.setItem(key, \'{"prompt_id": "gone", "keys": ["1"]}\')', key)
        ann.page.reload()
        ann.page.get_by_role("button", name="Retry").click()
        ann.page.locator(".rk-item").wait_for()
        ann.wait()
        assert (ann.order(), ann.page.evaluate("key => localStorage.getItem(key)", key)) == ("", None)


def test_ranking_without_the_browser_s_storage(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 3)
    with served(tmp_path) as (server, browser):
        ann = Person(browser, server.url, "ann")
        ann.page.add_init_script(NO_STORAGE)
        ann.page.reload()
        ann.page.locator(".rk-item").wait_for()
        ann.wait()
        ann.press("2", "1", "Enter")
        assert (ann.prompt(), ann.errors) == ("Tell me 1", [])
    assert [row[0] for row in rows(store, "ann")] == ["p0"]


def call_oneself(person: Person, name: str, seen: str) -> None:
    """Give another name, again where Gradio's late answer to leaving the field has put the old one back."""
    for _ in range(10):
        person.page.locator("#ranking-name textarea, #ranking-name input").fill(name)
        person.page.keyboard.press("Enter")
        for _ in range(30):
            if person.page.get_by_text(seen).is_visible():
                person.wait()
                return
            person.page.wait_for_timeout(100)
    pytest.fail(f"{seen!r} is not seen")


def test_nothing_without_the_password(tmp_path: Path) -> None:
    a_run_with_answers(tmp_path, 1)
    with served(tmp_path) as (server, browser):
        for path, code in (("/config", 401), ("/gradio_api/component_server/", 401), ("/gradio_api/info", 404)):
            assert refused(server.url + path, b"{}" if "component" in path else None) == code
        page = browser.new_page()
        page.goto(server.url)
        page.locator("input[type=password]").fill(PASSWORD[:-1])
        page.locator("input").first.fill("ann")
        page.keyboard.press("Enter")
        page.get_by_text("Incorrect password.").wait_for()
        assert page.locator(".rk").count() == 0
        assert "Tell me" not in page.content()
        follow_a_link(tmp_path, server, page)


def follow_a_link(folder: Path, server: Server, page: Any) -> None:
    """A person invited by the owner ranks without the password, until the link is revoked."""
    words = ("annotations", "invite", "people", "安娜", "--page", f"{server.url}/")
    command = [sys.executable, "-m", "lowrank_rlhf", *words]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    link = done.stdout.split()[-1]
    token = link.partition("#invite=")[2]
    assert len(token) == 43
    page.goto(link)
    page.get_by_text("ranking as 安娜").wait_for()
    assert page.url == f"{server.url}/"
    assert token not in page.content() + server.log.read_text() + (folder / "runs/people" / FILE).read_text()
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.locator(".rk-end").wait_for()
    assert Invitations(folder / "runs" / "people").revoke("安娜")
    page.keyboard.press("u")
    page.locator("#session-ended").wait_for()
    page.goto(link)
    page.get_by_text("This link is no longer valid.").wait_for()
    assert token not in page.url + page.content()
    assert [one.annotator for one in AnnotationStore(folder / "runs/people/annotations.sqlite").rankings()] == ["安娜"]


def test_another_site_reaches_nothing(tmp_path: Path) -> None:
    """DNS rebinding and cross-site posts are refused before anybody is asked for a password."""
    a_run_with_answers(tmp_path, 1)
    server = Server(tmp_path, options=["--served-as", "rank.example.org"])
    try:
        assert refused(server.url, Host="evil.example") == 403
        proxy = {"Host": "rank.example.org", "Origin": "https://rank.example.org"}
        assert refused(server.url + "/config", **proxy) == 401
        assert refused(server.url + "/config", **(proxy | {"Origin": "https://example.org"})) == 403
        assert refused(server.url + "/login", b"username=ann&password=x", Origin="http://evil.example") == 403
        assert refused(server.url + "/login", b"username=ann&password=x", Origin=server.url) == 401
        with urllib.request.urlopen(server.url) as answer:  # noqa: S310
            assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert refused(server.url + "/login", b"username=ann&password=" + b"x" * 5000) == 413
    finally:
        server.kill()


def refused(url: str, data: bytes | None = None, **headers: str) -> int:
    """The status of an answer that must be an error."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, data, headers))  # noqa: S310
    return caught.value.code


def test_clicks_and_drags(tmp_path: Path) -> None:
    store = a_run_with_answers(tmp_path, 1)
    with served(tmp_path) as (server, browser):
        ann = Person(browser, server.url, "ann")
        card = [ann.page.locator(f".rk-card[data-answer='{k}']") for k in range(4)]

        def after(act: Any) -> str:
            act()
            ann.wait()
            return ann.order()

        assert after(card[2].click) == "3"
        assert after(card[0].click) == "3>1"
        assert after(card[2].click) == "1"  # takes it out again
        assert after(lambda: card[3].drag_to(ann.page.locator(".rk-gap[data-gap='0']"))) == "4>1"
        assert after(lambda: card[1].drag_to(ann.page.locator(".rk-tier[data-tier='1']"))) == "4>1=2"
        assert after(lambda: card[2].drag_to(card[3])) == "4=3>1=2"
        assert (
            after(
                lambda: ann.page.locator(".rk-chip[data-answer='3']").drag_to(
                    ann.page.locator(".rk-left, .rk-gap").last
                )
            )
            == "3>1=2>4"
        )
        after(ann.page.locator(".rk-save").click)
        assert ann.errors == []
    assert [row[:2] for row in rows(store, "ann")] == [("p0", "3>1=2>4")]


def test_on_a_telephone_prompt_and_tools_stay_in_sight(tmp_path: Path) -> None:
    """And rankings name the long answers that were never scrolled to their end, also after a reload and an undo."""
    store = a_run_with_answers(tmp_path, 2, tuple(f"{k} " + "a long answer " * 400 for k in range(4)))
    with served(tmp_path) as (server, browser):
        ann = Person(browser, server.url, "ann", viewport={"width": 390, "height": 780})
        assert ann.page.evaluate("document.documentElement.scrollWidth") <= 390
        body = ann.page.locator(".rk-card > .rk-text").first
        assert body.evaluate("node => node.scrollHeight > node.clientHeight + 100")
        assert ann.page.locator(".rk-below").count() == 4
        unread = ann.page.locator(".rk-unread:visible")
        assert unread.count() == 0  # before there is an order
        ann.press("1")
        assert unread.all_inner_texts() == ["not read to the end"] * 4
        body.evaluate("node => node.scrollTo(0, node.scrollHeight)")
        ann.page.wait_for_function("document.querySelectorAll('.rk-below').length === 3")
        assert unread.count() == 3
        ann.page.reload()
        ann.page.locator(".rk-item").wait_for()
        ann.wait()
        assert unread.count() == 3
        ann.press("Enter", "u", "Enter", "e", "1")
        assert unread.count() == 0  # all of the second prompt are expanded
        ann.press("u")
        assert body.evaluate("node => node.scrollHeight <= node.clientHeight + 2")
        assert ann.page.locator(".rk-below").count() == 0
        ann.page.locator(".rk-expand").click()
        assert ann.page.locator(".rk-below").count() >= 3
        assert ann.errors == []
        for to in (0, 700, 1200):
            ann.page.evaluate(f"window.scrollTo(0, {to})")
            for part in (".rk-prompt", ".rk-save"):
                box = ann.page.locator(part).bounding_box()
                assert -1 <= box["y"] <= 780 - box["height"] + 1, (to, part, box)
        ann.press("2", "Enter")
    first, second = store.rankings()
    assert (first.unread, second.unread) == (first.shown[1:], ())
