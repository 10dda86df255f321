"""An OpenAI-compatible server on this machine that replies as a test requires and records the requests."""

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_TEXTS = re.compile(r"<text-(\w+)>\n(.*?)\n</text-\1>", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """Reply of the server. `status` 0 closes the connection without a reply."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def completion(text: str | None, finish_reason: str = "stop") -> str:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})


def first_token(tokens: Mapping[str, float]) -> str:
    """The body of a chat completion of one token with the probabilities of the most probable ones, as llama.cpp's."""
    listed = [{"token": token, "logprob": math.log(share)} for token, share in tokens.items()]
    content = [{**listed[0], "top_logprobs": listed}]
    message = {"role": "assistant", "content": listed[0]["token"]}
    choice = {"index": 0, "message": message, "finish_reason": "length", "logprobs": {"content": content}}
    return json.dumps({"choices": [choice]})


def texts(question: str) -> list[str]:
    """Prompt, first and second answer, as delimited by the tags of a question."""
    return [text for _, text in _TEXTS.findall(question)]


@dataclass
class ChatServer:
    """`script` is sent first, one answer for each request; then `decide` maps each question to a reply, or to the
    probabilities of its first token."""

    url: str
    decide: Callable[[str], str | Mapping[str, float]]
    script: list[Answer] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def answer(self, body: dict) -> Answer:
        """The next answer of the script, or a completion."""
        question = body["messages"][-1]["content"]
        self.asked.append(question)
        if self.script:
            return self.script.pop(0)
        reply = self.decide(question)
        return Answer(body=completion(reply) if isinstance(reply, str) else first_token(reply))


def longer(question: str) -> str:
    """A judge that prefers the longer answer."""
    _, first, second = texts(question)
    return "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"


@contextmanager
def serving(decide: Callable[[str], str | Mapping[str, float]] = longer) -> Iterator[ChatServer]:
    """A server on a free port of this machine, while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.times.append(time.monotonic())
            server.paths.append(self.path)
            server.headers.append(dict(self.headers))
            server.bodies.append(body)
            answer = server.answer(body)
            time.sleep(answer.seconds)
            if answer.status == 0:
                self.close_connection = True
                return
            content = answer.body.encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    listener.handle_error = lambda *_: None  # a client that gave up waiting is part of the tests
    server = ChatServer(f"http://127.0.0.1:{listener.server_port}/v1", decide)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
