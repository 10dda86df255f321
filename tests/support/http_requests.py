"""Raw HTTP requests to a running page, as an attacker would send them."""

import contextlib
import http.client
from collections.abc import Iterable
from urllib.parse import quote_plus, urlsplit

PASSWORD = "correct horse battery"
SECRET = "this file is nobody's business"
FORM = {"Content_Type": "application/x-www-form-urlencoded"}


def ask(url: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
    """Status, body and headers, from exactly this path: no client tidies it up first."""
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
    """The status after a body that does not say how long it is; the server may hang up before its end."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", path, iter(pieces), sent)
        return connection.getresponse().status
