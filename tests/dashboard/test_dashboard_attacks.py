"""More attacks on the running page: sessions that are over, bodies without end, every address that Gradio has."""

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from browser import ROOT, page_server
from http_requests import FORM, PAGES, PASSWORD, SECRET, Visitor, ask, log_in, running, stream, visited

from lowrank_rlhf.dashboard import annotators, app
from lowrank_rlhf.dashboard.access import login
from lowrank_rlhf.dashboard.chat_worker import ChatWorker
from lowrank_rlhf.dashboard.runs_folder import RunsFolder

NEEDED = {
    *("/", "/config", "/favicon.ico", "/manifest.json", "/theme.css", "/assets/{path:path}", "/static/{path:path}"),
    *("/svelte/{path:path}", "/gradio_api/theme.css", "/gradio_api/startup-events", "/gradio_api/app_id"),
    *("/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/reset"),
    *("/gradio_api/heartbeat/{session_hash}", "/gradio_api/component_server", "/gradio_api/component_server/"),
}
"""Of Gradio's addresses those that the page in the browser asks for, and its style."""


@pytest.fixture(scope="module", params=PAGES)
def visitor(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """A visitor of each page, with a run whose config and samples nobody may fetch."""
    folder = tmp_path_factory.mktemp("attacks")
    run = folder / "runs" / "one"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: one\nmodel: {source: x}\n")
    (run / "samples.jsonl").write_text(SECRET)
    with visited(request.param, folder) as visitor:
        yield visitor


def test_a_session_ends_on_the_running_page(tmp_path: Path) -> None:
    first = "from lowrank_rlhf.dashboard.access import login; login.SESSION_SECONDS = 3"
    with page_server(tmp_path / "runs", password=PASSWORD, first=first) as (url, _):
        cookie = log_in(url)
        began = time.monotonic()
        assert ask(url, "/config", Cookie=cookie)[0] == 200
        time.sleep(max(0.0, 3.1 - (time.monotonic() - began)))
        assert ask(url, "/config", Cookie=cookie)[0] == 401
        assert ask(url, "/", Cookie=cookie)[0] == 303
        assert ask(url, "/config", Cookie=log_in(url))[0] == 200
        assert ask(url, "/config", Cookie=cookie)[0] == 401  # another's login does not bring it back
        assert ask(url, "/config", Cookie=f"{login.COOKIE}=")[0] == 401


@pytest.mark.parametrize("page", PAGES)
def test_without_the_password_no_body_is_read_and_tries_are_bounded(tmp_path: Path, page: str) -> None:
    with running(page, tmp_path, PASSWORD) as url:
        for path in ("/gradio_api/queue/join", "/gradio_api/component_server/"):
            assert ask(url, path, "POST", b"{}", Origin=url)[0] == 401
        assert stream(url, "/login", [b"x" * 1024] * 64, Origin=url, **FORM) == 413
        assert ask(url, "/login", "POST", b"password=" + b"x" * 5000, Origin=url, **FORM)[0] == 413
        tries = [
            ask(url, "/login", "POST", b"password=wrong", Origin=url, X_Forwarded_For=f"10.0.0.{i}", **FORM)[0]
            for i in range(22)
        ]
        assert tries == [401] * 20 + [429] * 2  # from one address, whatever the visitor writes


MULTIPART = {"Content_Type": "multipart/form-data; boundary=b"}
FILE = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jsonl"\r\n\r\n'


def test_no_file_is_taken_and_a_body_is_bounded_on_the_running_page(visitor: Visitor) -> None:
    endless = [FILE, *[b"x" * 2**20] * 65]
    same = {"Origin": visitor.url, "Cookie": visitor.cookie}
    assert stream(visitor.url, "/gradio_api/upload", endless, **same, **MULTIPART) == 404
    assert stream(visitor.url, "/gradio_api/queue/join", [b"[" * 2**20] * 2, **same) == 413
    whole = FILE + b"{}\r\n--b--\r\n"
    for path in ("component_server", "component_server/", "queue/join"):
        assert visitor.ask(f"/gradio_api/{path}", "POST", whole, Origin=visitor.url, **MULTIPART)[0] == 415
    assert visitor.ask("/gradio_api/upload", "POST", whole, Origin=visitor.url, **MULTIPART)[0] == 404


def addresses(routes: Iterable[Any]) -> Iterator[str]:
    """Paths of all routes, those of routers inside too."""
    for route in routes:
        router = getattr(route, "original_router", None)
        yield from addresses(router.routes) if router else [route.path]


def test_every_other_address_of_gradios_is_closed(visitor: Visitor, tmp_path: Path) -> None:
    """All that this version of Gradio has, and not a list of those that somebody thought of."""
    blocks = annotators.build(tmp_path) if visitor.cookie else app.build(RunsFolder(tmp_path), ChatWorker())
    found = set(addresses(gr.routes.App.create_app(blocks).routes)) - login.PATHS
    assert len(found) > 60
    assert "/gradio_api/queue/join" in found
    for path in sorted(found - NEEDED):
        real = re.sub(r"{[^}]*}", "x", path)
        for method in ("GET", "POST"):
            status = visitor.ask(real, method, b"{}" if method == "POST" else None, Origin=visitor.url)[0]
            assert status in (403, 404), f"{method} {path}"


@pytest.mark.parametrize("file", ["runs/one/samples.jsonl", "runs/one/config.yaml", "pyproject.toml", ".env"])
def test_no_file_of_a_run_or_of_the_servers_own_folder_is_served(visitor: Visitor, file: str, tmp_path_factory) -> None:
    folders = [ROOT, *tmp_path_factory.getbasetemp().glob("attacks*")]
    for folder in folders:
        for path in (f"/gradio_api/file={folder / file}", f"/static/{folder / file}", f"/assets/..%2f..%2f{file}"):
            status, content, _ = visitor.ask(path)
            assert status in (400, 403, 404), path
            assert SECRET.encode() not in content
