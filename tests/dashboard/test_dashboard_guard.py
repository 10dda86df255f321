"""Attacks on the running pages, and the login."""

import base64
import hashlib
import json
import re
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import page_server
from http_requests import PAGES, PASSWORD, SECRET, Visitor, ask, visited
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from lowrank_rlhf import cli
from lowrank_rlhf.dashboard.access import guard, login, password
from lowrank_rlhf.dashboard.access.guard import RequestGuard
from lowrank_rlhf.dashboard.access.login import PATHS, Login
from lowrank_rlhf.dashboard.server import Address
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.labelling import annotator_name
from lowrank_rlhf.preferences.team.invitations import FILE, Invitations

ROOT = Path(__file__).parents[2]


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


@pytest.fixture(scope="module", params=PAGES)
def visitor(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """A visitor of each page."""
    with visited(request.param, tmp_path_factory.mktemp("pages")) as visitor:
        yield visitor


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil@127.0.0.1",
        "127.0.0.1/x",
        "127.0.0.1?x",
        "127.0.0.1:1:2",
        "127.0.0.1#",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "[",
        "",
        "0",
    ],
)
def test_another_host_name_is_refused(visitor, host) -> None:
    """DNS rebinding: a name of the attacker's that leads to this computer."""
    assert visitor.ask("/", Host=host)[0] == 403


def test_this_computers_own_names_are_served(visitor) -> None:
    port = urlsplit(visitor.url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", "localhost"):
        assert visitor.ask("/", Host=host)[0] == 200


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
def test_a_post_from_another_site_is_refused(visitor, headers) -> None:
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "x"}).encode()
    status, _, _ = visitor.ask("/gradio_api/queue/join", "POST", body, Content_Type="application/json", **headers)
    assert status == 403


def test_a_link_from_another_site_may_lead_here(visitor) -> None:
    assert visitor.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    assert visitor.ask("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403


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
def test_gradios_other_addresses_are_closed(visitor, path) -> None:
    for method in ("GET", "POST"):
        assert visitor.ask(f"/gradio_api/{path}", method, b"{}" if method == "POST" else None)[0] == 404
    assert visitor.ask("/docs")[0] == 404


def test_no_event_has_a_name_that_programs_could_call(visitor) -> None:
    config = json.loads(visitor.ask("/config")[1])
    assert len(config["dependencies"]) >= 4
    assert {entry["api_visibility"] for entry in config["dependencies"]} == {"private"}


def test_a_report_is_served_but_may_only_draw_its_curves(served) -> None:
    """It is a page of no origin, in which one script of this package runs and nothing is loaded."""
    status, content, headers = ask(served[0], "/runs/two/report.html")
    report, script = content.decode().split("<script>")
    assert (status, report) == (200, "<p>report of two</p>")
    digest = base64.b64encode(hashlib.sha256(script.removesuffix("</script>").encode()).digest()).decode()
    policy = [part.split() for part in headers["content-security-policy"].split("; ")]
    assert ["default-src", "'none'"] in policy
    assert ["sandbox", "allow-downloads", "allow-scripts"] in policy
    assert ["script-src", f"'sha256-{digest}'"] in policy


def test_the_page_loads_nothing_from_elsewhere(visitor) -> None:
    _, _, headers = visitor.ask("/")
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


def guarded(given: str | None = None, named: bool = False, invitations: Invitations | None = None) -> TestClient:
    async def page(request):
        return PlainTextResponse(f"the page of {request.scope['user'].display_name!r}" if given else "the page")

    async def taken(request):
        return PlainTextResponse(str(len(await request.body())))

    routes = [Route("/", page), Route("/config", page), Route("/gradio_api/queue/join", taken, methods=["POST"])]
    stack = [Middleware(RequestGuard, hosts=["testserver"], login_paths=PATHS)]
    if given:
        name = annotator_name if named else None
        stack.append(Middleware(Login, password=given, checked_name=name, invitations=invitations))
    return TestClient(Starlette(routes=routes, middleware=stack), follow_redirects=False)


@pytest.mark.parametrize("named", [False, True])
class TestLogin:
    def test_nothing_is_shown_without_it(self, named) -> None:
        client = guarded(PASSWORD, named)
        assert client.get("/").headers["location"] == "/login"
        assert client.get("/config").status_code == 401
        assert client.post("/gradio_api/queue/join").status_code == 401
        form = client.get("/login").text
        assert ('name="password"' in form, 'name="username"' in form) == (True, named)

    def test_a_wrong_password_is_refused(self, named) -> None:
        client = guarded(PASSWORD, named)
        for wrong in ("", "correct", PASSWORD + " ", "\u00e9" * 20):
            assert client.post("/login", data={"username": "ann", "password": wrong}).status_code == 401
        assert client.get("/").status_code == 303

    def test_the_right_password_passes_at_once_after_forty_wrong_ones(self, named) -> None:
        client, began = guarded(PASSWORD, named), time.monotonic()
        wrong = [client.post("/login", data={"username": "ann", "password": "wrong"}) for _ in range(40)]
        assert [answer.status_code for answer in wrong] == [401] * 20 + [429] * 20
        assert 0 < int(wrong[-1].headers["retry-after"]) <= password.WINDOW_SECONDS
        assert "Too many wrong passwords" in wrong[-1].text
        assert client.post("/login", data={"username": "ann", "password": PASSWORD}).status_code == 303
        assert time.monotonic() - began < 10  # 40 s when each wrong one waited

    def test_the_right_one_opens_the_page_until_the_session_ends(self, named, monkeypatch) -> None:
        client = guarded(PASSWORD, named)
        answer = client.post("/login", data={"username": "ann", "password": PASSWORD})
        assert answer.status_code == 303
        assert all(word in answer.headers["set-cookie"].lower() for word in ("httponly", "samesite=strict"))
        assert client.get("/").text == f"the page of {'ann' if named else ''!r}"
        now = time.monotonic()
        monkeypatch.setattr(login.time, "monotonic", lambda: now + login.SESSION_SECONDS - 10)
        assert client.get("/").status_code == 200
        monkeypatch.setattr(login.time, "monotonic", lambda: now + login.SESSION_SECONDS + 1)
        assert client.get("/").status_code == 303

    def test_another_cookie_does_not_help(self, named) -> None:
        client = guarded(PASSWORD, named)
        for cookie in ("x" * 43, ""):
            client.cookies.set(login.COOKIE, cookie)
            assert client.get("/").status_code == 303

    def test_logging_out_ends_the_session_on_the_server(self, named) -> None:
        client = guarded(PASSWORD, named)
        client.post("/login", data={"username": "ann", "password": PASSWORD})
        cookie = client.cookies[login.COOKIE]
        assert client.get("/logout").headers["location"] == "/login"
        client.cookies.set(login.COOKIE, cookie)
        assert client.get("/").status_code == 303

    def test_a_long_form_is_not_read(self, named) -> None:
        assert guarded(PASSWORD, named).post("/login", data={"password": "x" * 5000}).status_code == 413


class TestInvitations:
    @pytest.fixture
    def invitations(self, tmp_path: Path) -> Invitations:
        return Invitations(tmp_path)

    def follow(self, client: TestClient, token: str) -> int:
        return client.post("/login", data={"invitation": token}).status_code

    def test_a_link_opens_the_page_under_its_own_name_alone(self, invitations) -> None:
        anna, bob = invitations.invite("安娜"), invitations.invite("bob")
        client = guarded(PASSWORD, True, invitations)
        answer = client.post("/login", data={"invitation": anna, "username": "bob"})
        assert (answer.status_code, client.get("/").text) == (303, "the page of '安娜'")
        assert self.follow(client, bob) == 303
        assert client.get("/").text == "the page of 'bob'"
        text = invitations.path.read_text()
        assert not any(secret in text for secret in (anna, bob))
        assert anna not in answer.text + str(answer.headers)

    def test_revoking_ends_the_sessions_and_keeps_the_name(self, invitations) -> None:
        first, client = invitations.invite("anna"), guarded(PASSWORD, True, invitations)
        assert self.follow(client, first) == 303
        assert Invitations(invitations.path.parent).revoke("Anna")  # by another process
        assert (client.get("/config").status_code, client.get("/").status_code) == (401, 303)
        assert self.follow(client, first) == 401
        by_password = client.post("/login", data={"username": "ANNA", "password": PASSWORD})
        assert by_password.status_code == 401
        assert "personal link" in by_password.text
        second = invitations.invite("anna")
        assert (self.follow(client, first), self.follow(client, second)) == (401, 303)
        third = invitations.invite("anna")
        assert client.get("/config").status_code == 401
        assert (self.follow(client, second), self.follow(client, third)) == (401, 303)
        assert [tuple(each) for each in invitations.all()] == [("anna", False)]

    @pytest.mark.parametrize("name", ["anna", "Anna", " anna", "ＡＮＮＡ"])
    def test_nobody_takes_an_invited_name_by_the_password(self, invitations, name) -> None:
        client = guarded(PASSWORD, True, invitations)
        form = {"username": name, "password": PASSWORD}
        assert client.post("/login", data=form).status_code == 303
        assert client.get("/").status_code == 200
        invitations.invite("anna")
        assert client.get("/").status_code == 303  # the session from before
        assert client.post("/login", data=form).status_code == 401
        assert client.post("/login", data=form | {"username": "bob"}).status_code == 303
        assert client.post("/login", data=form | {"password": "wrong"}).text.count("personal link") == 0

    def test_guessed_tokens_are_bounded_as_passwords_are(self, invitations) -> None:
        token, client = invitations.invite("anna"), guarded(PASSWORD, True, invitations)
        codes = [self.follow(client, f"{number:043}") for number in range(password.MAX_FROM_ADDRESS)]
        assert codes == [401] * password.MAX_WRONG + [429] * (password.MAX_FROM_ADDRESS - password.MAX_WRONG)
        answer = client.post("/login", data={"invitation": token})
        assert (answer.status_code, "Too many wrong passwords or links" in answer.text) == (429, True)

    def test_every_digest_is_compared_in_constant_time(self, invitations, monkeypatch) -> None:
        token = invitations.invite("anna")
        for name in ("bob", "eve"):
            invitations.invite(name)
        invitations.revoke("eve")
        compared = []
        monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append(other) or one == other)
        assert (invitations.annotator_of(token), len(compared)) == ("anna", 3)
        assert (invitations.annotator_of("x"), invitations.annotator_of("")) == (None, None)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"anna": 1}'])
    def test_a_damaged_file_admits_nobody(self, invitations, content) -> None:
        client = guarded(PASSWORD, True, invitations)
        token = invitations.invite("anna")
        assert self.follow(client, token) == 303
        invitations.path.write_text(content)
        assert client.get("/config").status_code == 401
        answer = client.post("/login", data={"invitation": token})
        assert (answer.status_code, FILE in answer.text) == (503, False)
        assert client.post("/login", data={"username": "bob", "password": PASSWORD}).status_code == 503
        with pytest.raises(UserError, match=r"invitations\.json: damaged"):
            invitations.invite("bob")
        assert invitations.path.read_text() == content


def test_wrong_passwords_are_counted_by_address_and_by_name(monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(password.time, "monotonic", lambda: now[0])
    wrong = password.WrongPasswords()
    assert [wrong.add("10.0.0.1", f"name {i}") > 0 for i in range(21)] == [False] * 20 + [True]
    assert wrong.add("10.0.0.2", "name 1") == 0
    assert [wrong.add(f"10.1.0.{i}", "Ann") > 0 for i in range(21)] == [False] * 20 + [True]
    assert wrong.add("10.0.0.3", "ann") > 0
    assert wrong.add("10.0.0.3", "") == 0
    assert [wrong.add(f"2001:db8::{i:x}", "") > 0 for i in range(21)] == [False] * 20 + [True]
    assert wrong.seconds_blocked("10.0.0.1") == 0
    for _ in range(200):
        wrong.add("10.0.0.1", "")
    assert wrong.seconds_blocked("10.0.0.1") == password.WINDOW_SECONDS
    assert wrong.seconds_blocked("10.0.0.2") == 0
    now[0] += password.WINDOW_SECONDS - 1
    assert wrong.seconds_blocked("10.0.0.1") == 1
    now[0] += 1
    assert wrong.seconds_blocked("10.0.0.1") == 0
    assert wrong.add("10.0.0.1", "ann") == 0
    for i in range(11_000):
        wrong.add(f"host {i}", "")
    assert len(wrong._times) == 10_000


def test_guessing_without_end_is_refused_unread() -> None:
    client = guarded(PASSWORD)
    for _ in range(200):
        client.post("/login", data={"password": "wrong"})
    assert client.post("/login", data={"password": PASSWORD}).status_code == 429


def test_the_recipe_for_nginx_sends_the_visitors_own_address() -> None:
    """The server believes a proxy: the header must not be one that the visitor sent, nor contain it."""
    recipe = re.findall(r"proxy_set_header ([\w-]+) (\$\w+);", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert dict(recipe) == {"Host": "$host", "X-Forwarded-Proto": "$scheme", "X-Forwarded-For": "$remote_addr"}


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 101])
def test_a_name_that_is_none_is_refused(name) -> None:
    client = guarded(PASSWORD, named=True)
    assert client.post("/login", data={"username": name, "password": PASSWORD}).status_code == 401
    assert client.get("/").status_code == 303


def test_the_login_form_shows_a_name_as_text() -> None:
    answer = guarded(PASSWORD, named=True).post("/login", data={"username": "<b>" * 50, "password": PASSWORD})
    assert "<b><b>" not in answer.text


def test_a_body_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY_BYTES", 1000)
    client = guarded()
    assert client.post("/gradio_api/queue/join", content=b"x" * 1000).text == "1000"
    assert client.post("/gradio_api/queue/join", content=b"x" * 1001).status_code == 413
    assert client.post("/gradio_api/queue/join", content=iter([b"x" * 600, b"x" * 600])).status_code == 413


class TestPasswordRule:
    def test_this_computer_needs_none(self, monkeypatch) -> None:
        monkeypatch.delenv("LOWRANK_RLHF_PASSWORD", raising=False)
        assert [password.password_for(host) for host in password.LOOPBACK] == [None] * 3

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104
    def test_any_other_address_does(self, monkeypatch, host) -> None:
        monkeypatch.delenv("LOWRANK_RLHF_PASSWORD", raising=False)
        with pytest.raises(UserError, match="LOWRANK_RLHF_PASSWORD"):
            password.password_for(host)
        monkeypatch.setenv("LOWRANK_RLHF_PASSWORD", PASSWORD)
        assert password.password_for(host) == PASSWORD

    def test_behind_a_proxy_too(self, monkeypatch) -> None:
        monkeypatch.delenv("LOWRANK_RLHF_PASSWORD", raising=False)
        with pytest.raises(UserError, match="--served-as: others could start programs"):
            password.password_for("127.0.0.1", by_proxy=True)

    @pytest.mark.parametrize("name", ["https://rlhf.example.org", "rlhf.example.org:8443", ""])
    def test_a_proxys_name_is_a_host_name_alone(self, monkeypatch, capsys, name) -> None:
        monkeypatch.setattr("sys.argv", ["lowrank-rlhf", "dashboard", "--served-as", name])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert (caught.value.code, "must be a host name" in capsys.readouterr().err) == (2, True)

    def test_a_short_one_is_refused_everywhere(self, monkeypatch) -> None:
        monkeypatch.setenv("LOWRANK_RLHF_PASSWORD", "x" * 11)
        with pytest.raises(UserError, match="at least 12 characters"):
            password.password_for("127.0.0.1")


def test_host_names_of_a_page_that_listens_everywhere() -> None:
    everywhere = Address("0.0.0.0", 1).host_names()  # noqa: S104
    assert {"127.0.0.1", "localhost"} <= everywhere
    assert "0.0.0.0" not in everywhere  # noqa: S104
    assert Address("10.0.0.7", 1).host_names() == {"10.0.0.7", "127.0.0.1", "localhost", "::1"}
