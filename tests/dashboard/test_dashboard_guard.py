"""Attacks on the running page, and the password."""

import http.client
import json
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
import pytest
from browser import page_server
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from lowrank_rlhf import cli
from lowrank_rlhf.commands import dashboard
from lowrank_rlhf.dashboard import guard
from lowrank_rlhf.dashboard.guard import GradioSessions, Guard, Password
from lowrank_rlhf.errors import UserError



@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A page for a folder of runs, with a file beside it that nobody may have."""
    folder = tmp_path_factory.mktemp("guard")
    runs = folder / "runs"
    (folder / "secret.html").write_text(SECRET)
    for name in ("one", "two"):
        (runs / name / "exports" / "adapters" / "sft").mkdir(parents=True)
        (runs / name / "config.yaml").write_text("name: one\n")
        (runs / name / "report.html").write_text(f"<p>report of {name}</p>")
        (runs / name / "exports" / "adapters" / "sft" / "adapter.safetensors").write_bytes(name.encode() * 700_000)
        (runs / name / "exports" / "adapters" / "README.md").write_text("card")
    (runs / "one" / "exports" / "adapters" / "link.txt").symlink_to(folder / "secret.html")
    (runs / "one" / "report.md").symlink_to(folder / "secret.html")
    (runs / "link").symlink_to(folder)
    (folder / "report.html").write_text(SECRET)
    with page_server(runs) as (url, _):
        yield url, runs


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[", "", "0"])
def test_another_host_name_is_refused(served, host) -> None:
    """DNS rebinding: a name of the attacker's that leads to this computer."""
    assert ask(served[0], "/", Host=host)[0] == 403


def test_this_computers_own_names_are_served(served) -> None:
    port = urlsplit(served[0]).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "localhost"):
        assert ask(served[0], "/", Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},
    ],
)
def test_a_post_from_another_site_is_refused(served, headers) -> None:
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "x"}).encode()
    status, _, _ = ask(served[0], "/gradio_api/queue/join", "POST", body, Content_Type="application/json", **headers)
    assert status == 403


def test_a_link_from_another_site_may_lead_here(served) -> None:
    assert ask(served[0], "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    assert ask(served[0], "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../secret.html",
        "/runs/..%2f..%2fsecret.html",
        "/runs/%2e%2e/report.html",
        "/runs/../report.html",
        "/runs/link/report.html",
        "/runs/.hidden/report.html",
        "/runs/one/../../secret.html",
        "/runs/one/config.yaml",
        "/runs/one/report.md",
        "/runs/one/..%2f..%2fsecret.html",
        "/runs/one/exports/..%2f..%2f..zip",
        "/runs/one/exports/merged.zip",
        "/runs/one/exports/secrets.zip",
        "/runs/three/report.html",
        "/runs/one%00/report.html",
        "//evil.example/report.html",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../secret.html",
        "/gradio_api/file=http://127.0.0.1/",
    ],
)
def test_no_path_leads_to_another_file(served, path) -> None:
    if path.startswith("/gradio_api/file=/"):
        path = f"/gradio_api/file={served[1].parent / 'secret.html'}"
    status, content, _ = ask(served[0], path)
    assert status in (400, 403, 404)
    assert SECRET.encode() not in content


@pytest.mark.parametrize(
    "path", ["info", "openapi.json", "run/predict", "call/predict", "vibe-edit/", "proxy=http://evil.example", "runs"]
)
def test_gradios_other_addresses_are_closed(served, path) -> None:
    for method in ("GET", "POST"):
        assert ask(served[0], f"/gradio_api/{path}", method, b"{}" if method == "POST" else None)[0] == 404
    assert ask(served[0], "/docs")[0] == 404


def test_no_event_has_a_name_that_programs_could_call(served) -> None:
    config = json.loads(ask(served[0], "/config")[1])
    assert len(config["dependencies"]) > 10
    assert {entry["api_visibility"] for entry in config["dependencies"]} == {"private"}


def test_a_report_is_served_but_may_do_nothing(served) -> None:
    status, content, headers = ask(served[0], "/runs/two/report.html")
    assert (status, content) == (200, b"<p>report of two</p>")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "script-src" not in policy


def test_the_page_loads_nothing_from_elsewhere(served) -> None:
    _, _, headers = ask(served[0], "/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http:" not in headers["content-security-policy"]
    assert headers["x-frame-options"] == "SAMEORIGIN"


def test_a_zip_holds_the_export_and_nothing_else(served) -> None:
    status, content, headers = ask(served[0], "/runs/one/exports/adapters.zip")
    assert status == 200
    assert "one-adapters.zip" in headers["content-disposition"]
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert sorted(names) == ["one-adapters/README.md", "one-adapters/sft/adapter.safetensors"]
        assert archive.read("one-adapters/sft/adapter.safetensors") == b"one" * 700_000
    assert SECRET.encode() not in content


def test_the_whole_page_behind_a_password(tmp_path) -> None:
    with page_server(tmp_path / "runs", password=PASSWORD) as (url, _):
        assert [ask(url, path)[0] for path in ("/", "/config", "/runs/one/report.html")] == [303, 401, 401]
        form = {"Content_Type": "application/x-www-form-urlencoded", "Origin": url}
        status, _, headers = ask(url, "/login", "POST", f"password={PASSWORD.replace(' ', '+')}".encode(), **form)
        assert status == 303
        cookie = headers["set-cookie"].partition(";")[0]
        assert [ask(url, path, Cookie=cookie)[0] for path in ("/", "/config")] == [200, 200]
        assert ask(url, "/login")[2]["x-frame-options"] == "SAMEORIGIN"
        form["Origin"] = "http://evil.example"
        assert ask(url, "/login", "POST", b"password=x", **form)[0] == 403


def guarded(password: str | None = None) -> TestClient:
    async def page(_):
        return PlainTextResponse("the page")

    async def taken(request):
        return PlainTextResponse(str(len(await request.body())))

    routes = [Route("/", page), Route("/config", page), Route("/gradio_api/upload", taken, methods=["POST"])]
    stack = [Middleware(Guard, hosts=["testserver"], also={"/login"})]
    if password:
        stack.append(Middleware(Password, password=password))
    return TestClient(Starlette(routes=routes, middleware=stack), follow_redirects=False)


class TestPassword:
    def test_nothing_is_shown_without_it(self) -> None:
        client = guarded(password=PASSWORD)
        assert client.get("/").headers["location"] == "/login"
        assert client.get("/config").status_code == 401
        assert client.post("/gradio_api/upload").status_code == 401
        assert "password" in client.get("/login").text

    def test_a_wrong_one_takes_a_second_and_is_refused(self) -> None:
        client, start = guarded(password=PASSWORD), time.monotonic()
        for wrong in ("", "correct", PASSWORD + " ", "\u00e9" * 20):
            assert client.post("/login", data={"password": wrong}).status_code == 401
        assert time.monotonic() - start >= 4
        assert client.get("/").status_code == 303

    def test_the_right_one_opens_the_page_until_the_session_ends(self, monkeypatch) -> None:
        client = guarded(password=PASSWORD)
        answer = client.post("/login", data={"password": PASSWORD})
        assert answer.status_code == 303
        assert all(word in answer.headers["set-cookie"].lower() for word in ("httponly", "samesite=strict"))
        assert client.get("/").text == "the page"
        now = time.monotonic()
        monkeypatch.setattr(guard.time, "monotonic", lambda: now + guard.SESSION_SECONDS + 1)
        assert client.get("/").status_code == 303

    def test_another_cookie_does_not_help(self) -> None:
        client = guarded(password=PASSWORD)
        client.cookies.set(guard.COOKIE, "x" * 43)
        assert client.get("/").status_code == 303

    def test_a_long_form_is_not_read(self) -> None:
        assert guarded(password=PASSWORD).post("/login", data={"password": "x" * 5000}).status_code == 413


class TestGradioSessions:
    """With Gradio's own login, as the annotators' page has it."""

    @pytest.fixture
    def client(self) -> TestClient:
        with gr.Blocks() as blocks:
            gr.HTML("ranking")
        app = FastAPI()
        app.add_middleware(GradioSessions)
        login = lambda name, given: name == "ann" and given == PASSWORD  # noqa: E731
        gr.mount_gradio_app(app, blocks, path="/", auth=login, ssr_mode=False)
        return TestClient(app)

    def test_who_is_let_in_is_a_stranger_again_after_hours(self, client, monkeypatch) -> None:
        assert client.get("/config").status_code == 401
        assert client.post("/login", data={"username": "ann", "password": PASSWORD}).status_code == 200
        assert any(name.startswith("access-token") for name in client.cookies)
        assert client.get("/config").status_code == 200
        now = time.monotonic()
        monkeypatch.setattr(guard.time, "monotonic", lambda: now + guard.SESSION_SECONDS - 10)
        assert client.get("/config").status_code == 200
        monkeypatch.setattr(guard.time, "monotonic", lambda: now + guard.SESSION_SECONDS + 1)
        assert client.get("/config").status_code == 401
        assert client.post("/login", data={"username": "ann", "password": PASSWORD}).status_code == 200
        assert client.get("/config").status_code == 200

    def test_other_cookies_pass(self) -> None:
        app = Starlette(
            routes=[Route("/", lambda request: PlainTextResponse(request.headers.get("cookie", "none")))],
            middleware=[Middleware(GradioSessions)],
        )
        client = TestClient(app)
        client.cookies.update({"a": "1", "access-token-x": "made up", "b": "2"})
        assert client.get("/").text == "a=1; b=2"
        client.cookies.clear()
        assert client.get("/").text == "none"


def test_a_body_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(guard, "MOST_BYTES", 1000)
    client = guarded()
    assert client.post("/gradio_api/upload", content=b"x" * 1000).text == "1000"
    assert client.post("/gradio_api/upload", content=b"x" * 1001).status_code == 413
    assert client.post("/gradio_api/upload", content=iter([b"x" * 600, b"x" * 600])).status_code == 413


class TestPasswordRule:
    def test_this_computer_needs_none(self, monkeypatch) -> None:
        monkeypatch.delenv("LOWRANK_RLHF_PASSWORD", raising=False)
        assert [dashboard.checked_password(host) for host in dashboard.LOOPBACK] == [None] * 3

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104
    def test_any_other_address_does(self, monkeypatch, host) -> None:
        monkeypatch.delenv("LOWRANK_RLHF_PASSWORD", raising=False)
        with pytest.raises(UserError, match="LOWRANK_RLHF_PASSWORD"):
            dashboard.checked_password(host)
        monkeypatch.setenv("LOWRANK_RLHF_PASSWORD", PASSWORD)
        assert dashboard.checked_password(host) == PASSWORD

    def test_behind_a_proxy_too(self, monkeypatch) -> None:
        monkeypatch.delenv("LOWRANK_RLHF_PASSWORD", raising=False)
        with pytest.raises(UserError, match="--served-as: others could start programs"):
            dashboard.checked_password("127.0.0.1", by_proxy=True)

    @pytest.mark.parametrize("name", ["https://rlhf.example.org", "rlhf.example.org:8443", ""])
    def test_a_proxys_name_is_a_host_name_alone(self, monkeypatch, capsys, name) -> None:
        monkeypatch.setattr("sys.argv", ["lowrank-rlhf", "dashboard", "--served-as", name])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert (caught.value.code, "a host name alone" in capsys.readouterr().err) == (2, True)

    def test_a_short_one_is_refused_everywhere(self, monkeypatch) -> None:
        monkeypatch.setenv("LOWRANK_RLHF_PASSWORD", "x" * 11)
        with pytest.raises(UserError, match="12 characters"):
            dashboard.checked_password("127.0.0.1")


def test_host_names_of_a_page_that_listens_everywhere() -> None:
    everywhere = guard.hosts("0.0.0.0")  # noqa: S104
    assert {"127.0.0.1", "localhost"} <= everywhere
    assert "0.0.0.0" not in everywhere  # noqa: S104
    assert guard.hosts("10.0.0.7") == {"10.0.0.7", "127.0.0.1", "localhost", "::1"}
