"""A session that has ended, in a real Chromium: the page says so with a link, and nothing typed is lost."""

from pathlib import Path
from typing import Any

from accessibility import findings
from browser import browser, free_port, page_server, wait_for
from dashboard_runs import make_run
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from lowrank_rlhf.dashboard.access.login import COOKIE, Login

PASSWORD = "correct horse battery"
QUESTION = "half a question"


def log_in(page: Any) -> None:
    page.fill("#password", PASSWORD)
    page.click("button")
    page.wait_for_selector("#question textarea")


def log_in_again(page: Any) -> None:
    with page.context.expect_page() as opened:
        page.click("#session-ended a")
    log_in(opened.value)
    assert "run=first&tab=talk" in opened.value.url
    opened.value.close()


def typed(page: Any) -> str:
    return page.input_value("#question textarea") if page.locator("#question textarea").count() else ""


def test_a_page_whose_session_ended_says_so_and_keeps_what_is_typed(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_run(tmp_path / "runs", name)
    port = free_port()
    with browser() as opened:
        page = opened.new_page(locale="zh-CN", viewport={"width": 390, "height": 800})
        page.set_default_timeout(60_000)
        with page_server(tmp_path / "runs", password=PASSWORD, port=port) as (url, _):
            page.goto(f"{url}/?run=first&tab=talk")
            assert findings(page) == []
            assert page.title() == page.inner_text("h1") == "lowrank_rlhf"
            log_in(page)
            page.wait_for_function("window.draftsRestored?.['lowrank-question']")
            page.fill("#question textarea", QUESTION)
            page.wait_for_function(f"localStorage.getItem('lowrank-question') === '{QUESTION}'")
            page.context.clear_cookies()  # as after twelve hours
            page.wait_for_selector("#session-ended")
            assert page.inner_text("#session-ended") == "登录已失效。您输入的内容仍保留在本页。重新登录"
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            log_in_again(page)
            page.wait_for_selector("#session-ended", state="detached")
            wait_for(lambda: typed(page) == QUESTION, 60, lambda: typed(page))  # Gradio may have reloaded the page
            page.evaluate("window.same = true")
        page.wait_for_timeout(6000)  # Gradio's page looks for a lost server every few seconds
        with page_server(tmp_path / "runs", password=PASSWORD, port=port):  # restarted
            page.wait_for_selector("#session-ended")
            assert typed(page) == QUESTION
            log_in_again(page)
            page.wait_for_function("!window.same")  # Gradio reloads the page of another server
            wait_for(lambda: typed(page) == QUESTION, 60, lambda: typed(page))
            page.wait_for_timeout(3000)
            assert typed(page) == QUESTION


def test_the_address_comes_back_after_the_login_and_nothing_else_does() -> None:
    page = Route("/", lambda request: PlainTextResponse(str(request.url.query)))
    client = TestClient(Starlette(routes=[page], middleware=[Middleware(Login, password=PASSWORD)]))
    query = "run=a&tab=watch"
    asked = client.get(f"/?{query}", follow_redirects=False)
    assert asked.headers["location"] == f"/login?{query}"
    assert 'action="/login?run=a&amp;tab=watch"' in client.get(f"/login?{query}").text
    assert "><i>" not in client.get('/login?"><i>').text
    wrong = client.post(f"/login?{query}", data={"password": "x"})
    assert 'action="/login?run=a&amp;tab=watch"' in wrong.text
    for given in (query, "//evil.example", "next=https://evil.example", "x%0d%0aSet-Cookie:a=b"):
        answer = client.post(f"/login?{given}", data={"password": PASSWORD}, follow_redirects=False)
        assert answer.headers["location"].startswith("/?")
        assert list(answer.cookies) == [COOKIE]
    assert client.get(f"/?{query}").text == query
