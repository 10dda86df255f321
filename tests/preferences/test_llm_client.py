"""Client of an OpenAI-compatible server: requests, retries, errors, and the key that never shows."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_server import Answer, ChatServer, completion, serving

from lowrank_rlhf.config.endpoint import EndpointConfig
from lowrank_rlhf.errors import Stopped, UserError
from lowrank_rlhf.preferences.judges import llm_client as client_module
from lowrank_rlhf.preferences.judges.llm_client import MOST_BYTES, ChatClient
from lowrank_rlhf.run.progress import StopRequest

KEY = "sk-very-secret-0123456789"
HELLO = Answer(body=completion("hello"))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(lambda _: "hello") as running:
        yield running


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def client(
    server: ChatServer, stop: StopRequest | None = None, said: list[str] | None = None, **settings
) -> ChatClient:
    config = EndpointConfig(url=server.url, model="judge-1", **settings)
    return ChatClient(config, stop or StopRequest(), ([] if said is None else said).append, backoff_seconds=0.01)


def complaint(server: ChatServer, **settings) -> str:
    with pytest.raises(UserError) as caught:
        client(server, **settings).ask("?")
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_what_is_sent(server) -> None:
    asked = client(server, max_tokens=7)
    assert asked.ask("Which?") == ("hello", False, None)
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "model": "judge-1",
            "messages": [{"role": "user", "content": "Which?"}],
            "temperature": 0,
            "max_tokens": 7,
            "stream": False,
        }
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert asked.requests == 1


def test_the_key_comes_from_the_variable_that_is_named_and_may_be_absent(server, monkeypatch, tmp_path) -> None:
    # An HTTP library may take a password for the host from here.
    monkeypatch.setattr(client_module, "_LOOPBACK", ())
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password something\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("MINE", " other-key\n")
    client(server, api_key_variable="MINE").ask("?")
    monkeypatch.setenv("MINE", "")
    client(server, api_key_variable="MINE").ask("?")
    client(server, api_key_variable="NOT_SET_ANYWHERE").ask("?")
    sent = [headers.get("Authorization") for headers in server.headers]
    assert sent == ["Bearer other-key", None, None]
    monkeypatch.setenv("MINE", "sk-\u2013copied")
    with pytest.raises(UserError, match="MINE contains invalid characters") as caught:
        client(server, api_key_variable="MINE")
    assert "copied" not in str(caught.value)


def test_no_proxy_is_asked_for_this_machine(server, monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert client(server, max_attempts=1).ask("?").text == "hello"


@pytest.mark.parametrize("failure", [0, 408, 429, 500, 502, 503, 529])
def test_passing_failures_are_asked_again(server, failure) -> None:
    server.script += [Answer(failure, "busy"), Answer(failure, "busy"), HELLO]
    asked = client(server)
    assert asked.ask("?").text == "hello"
    assert asked.requests == len(server.asked) == 3


def test_a_failure_that_a_gateway_calls_200_is_asked_again(server) -> None:
    server.script += [Answer(body='{"error": {"message": "upstream is busy", "code": 502}}'), HELLO]
    assert client(server).ask("?").text == "hello"
    server.script += [Answer(body='{"error": "overloaded"}')]
    assert "the server answered “overloaded”, in the last of 1 attempts" in complaint(server, max_attempts=1)


def test_pauses_grow_and_vary(server) -> None:
    server.script += [Answer(500) for _ in range(5)]
    slow = ChatClient(client(server).settings, StopRequest(), print, backoff_seconds=0.04)
    slow.ask("?")
    pauses = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    for number, pause in enumerate(pauses):
        assert 0.5 * 0.04 * 2**number <= pause < 0.04 * 2**number + 0.5, pauses


def test_retry_after_is_honoured(server) -> None:
    server.script += [Answer(429, headers={"Retry-After": "1"}), HELLO]
    client(server).ask("?")
    assert 1 <= server.times[1] - server.times[0] < 3
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2.5), usegmt=True)  # cut to whole seconds
    server.script += [Answer(503, headers={"Retry-After": soon}), HELLO]
    client(server).ask("?")
    assert 1.3 <= server.times[3] - server.times[2] < 5
    server.script += [Answer(429, headers={"Retry-After": "next Tuesday"}), HELLO]
    assert client(server).ask("?").text == "hello"


def test_a_long_pause_is_announced_and_a_very_long_one_ends_the_stage(server) -> None:
    said: list[str] = []
    stop = StopRequest()
    threading.Timer(0.3, lambda: setattr(stop, "requested", True)).start()
    server.script += [Answer(429, '{"error": {"message": "slow down"}}', {"Retry-After": "60"})]
    began = time.monotonic()
    with pytest.raises(Stopped, match="all verdicts so far are saved"):
        client(server, stop, said).ask("?")
    assert time.monotonic() - began < 10
    assert said == ["  HTTP 429 Too Many Requests: “slow down”; retrying in 60 s"]
    server.script += [Answer(429, headers={"Retry-After": "86400"})]
    assert "asks to wait 86400 s" in complaint(server)


def test_no_request_after_a_stop(server) -> None:
    stop = StopRequest()
    stop.requested = True
    with pytest.raises(Stopped):
        client(server, stop).ask("?")
    assert server.asked == []


def test_the_pace(server) -> None:
    paced = client(server, requests_per_minute=300)
    for _ in range(4):
        paced.ask("?")
    # Three pauses of 0.2 s, less the time that the first connection took.
    assert 0.5 <= server.times[3] - server.times[0] < 3


@pytest.mark.parametrize("url", [f"http://{'a' * 99}.example/v1", "http://[zz]/v1"])
def test_an_address_that_no_server_can_have(server, url, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    server.url = url
    assert f"invalid address: {url}" in complaint(server)


def test_a_proxy_that_cannot_be_used(server, monkeypatch) -> None:
    monkeypatch.setattr(client_module, "_LOOPBACK", ())
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"gopher://me:{KEY}@127.0.0.1:1")
    assert "cannot use the proxy that HTTP_PROXY" in complaint(server)


def test_a_broken_connection_is_not_a_wrong_certificate(server) -> None:
    """A server without TLS under https:// is an error at once."""
    server.url = server.url.replace("http:", "https:")
    assert "cannot verify the certificate, or the server does not speak TLS" in complaint(server)


def test_giving_up(server) -> None:
    server.script += [Answer(503, "<html>\n<b>down</b>\x1b[2J" + "x" * 999)] * 3
    text = complaint(server, max_attempts=3)
    assert f"{server.url}/chat/completions: HTTP 503 Service Unavailable: “<html> <b>down</b> [2Jxxx" in text
    assert "in the last of 3 attempts. Check that the server is running and that `rank.endpoint.url` is right." in text
    assert len(text) < 600
    assert len(server.asked) == 3


def test_silence_and_nobody_there(server) -> None:
    server.script += [Answer(seconds=0.5), Answer(seconds=0.5)]
    assert "no response within 0.1 s, in the last of 2" in complaint(server, max_attempts=2, timeout_seconds=0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        server.url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        assert "no connection (connection refused), in the last of 2" in complaint(server, max_attempts=2)


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, "Check the model's name, 'judge-1', and the server's message"),
        (401, "the environment variable OPENAI_API_KEY (is set; `rank.endpoint.api_key_variable` names another one)"),
        (403, "the environment variable OPENAI_API_KEY (is set;"),
        (404, "Check `rank.endpoint.url` (it usually ends in /v1) and the model's name, 'judge-1'"),
        (422, "and the server's message"),
    ],
)
def test_a_refusal_is_not_repeated_and_is_explained(server, status, hint) -> None:
    server.script += [Answer(status, json.dumps({"error": {"message": f"no, {KEY} will not do", "type": "x"}}))]
    text = complaint(server)
    assert f"HTTP {status} " in text
    assert "“no, *** will not do”" in text
    assert hint in text
    assert len(server.asked) == 1


def test_a_missing_key_is_named(server, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server.script += [Answer(401, '{"error": "who are you?"}')]
    assert "“who are you?”. Check the key in the environment variable OPENAI_API_KEY (is not set;" in complaint(server)


def test_redirects_are_not_followed(server) -> None:
    with serving(lambda _: "stolen") as other:
        server.script += [Answer(307, headers={"Location": f"{other.url}/chat/completions?key={KEY}"})]
        text = complaint(server)
        assert f"to the API's own address instead of {other.url}/chat/completions?key=***" in text
        assert other.asked == []


@pytest.mark.parametrize(
    "body", ["<html>Welcome</html>", "[]", "{}", '{"choices": []}', '{"choices": [{"text": "A"}]}']
)
def test_no_chat_completion(server, body) -> None:
    server.script += [Answer(body=body)]
    text = complaint(server)
    assert f"not a chat completion: “{body}”. Check `rank.endpoint.url`" in text
    assert len(server.asked) == 1


def test_an_endless_answer(server) -> None:
    server.script += [Answer(body=completion("x" * MOST_BYTES))]
    assert "longer than 1,000,000 bytes" in complaint(server)


def test_thoughts_that_used_up_all_tokens(server) -> None:
    server.script += [Answer(body=completion(None, "length"))]
    assert client(server).ask("?") == ("", True, None)
