"""Raw HTTP requests to a running page, as an attacker would send them."""

import contextlib
import http.client
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_plus, urlsplit

from annotators_page import Server, a_run_with_answers
from browser import page_server

PASSWORD = "correct horse battery"
SECRET = "this file is nobody's business"
FORM = {"Content_Type": "application/x-www-form-urlencoded"}


def ask(url: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
    """Status, body and headers, from exactly this path: no client normalises it first."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, {name.lower(): value for name, value in answer.getheaders()}


def log_in(url: str, name: str = "") -> str:
    """Log in and return the session's cookie."""
    body = f"username={quote_plus(name)}&password={quote_plus(PASSWORD)}".encode()
    status, _, headers = ask(url, "/login", "POST", body, **FORM, Origin=url)
    assert status == 303
    return headers["set-cookie"].partition(";")[0]


def stream(url: str, path: str, pieces: Iterable[bytes], **headers: str) -> int:
    """The status after a body without a length; the server may close the connection before its end."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", path, iter(pieces), sent)
        return connection.getresponse().status


class Visitor(NamedTuple):
    """A visitor of a running page, logged in if it requires a password."""

    url: str
    cookie: str = ""

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
        """Status, body and headers of a response, as `ask`."""
        return ask(self.url, path, method, body, **({"Cookie": self.cookie} if self.cookie else {}), **headers)


PAGES = ("dashboard", "annotators")


@contextlib.contextmanager
def running(page: str, folder: Path, password: str | None = None) -> Iterator[str]:
    """The URL of a running page: the dashboard for `folder/runs`, or the annotators' page, which needs its password."""
    if page == "dashboard":
        with page_server(folder / "runs", password=password) as (url, _):
            yield url
        return
    a_run_with_answers(folder, 1)
    server = Server(folder)
    try:
        yield server.url
    finally:
        server.kill()


@contextlib.contextmanager
def visited(page: str, folder: Path) -> Iterator[Visitor]:
    """A visitor of a running page."""
    with running(page, folder) as url:
        yield Visitor(url, log_in(url, "ann") if page == "annotators" else "")
