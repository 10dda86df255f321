"""A page served by this process, and a visitor's browser reduced to its requests: events, streams, and leaving them."""

import contextlib
import http.client
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from http_requests import ask

from lowrank_rlhf.dashboard import server
from lowrank_rlhf.dashboard.server import Address

SECONDS = 20.0


class PageClient:
    """A visitor with a session of their own at a running page."""

    def __init__(self, url: str, blocks: gr.Blocks) -> None:
        self.url, self._blocks, self._session = url, blocks, uuid.uuid4().hex

    def answers(self, path: str = "/config") -> bool:
        """Return True if the server answers a request at all."""
        try:
            return ask(self.url, path)[0] in (200, 404)
        except OSError:
            return False

    def stream(self, name: str, values: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Yield the messages of an event, by the name of its function. Closing the iterator closes the browser."""
        event = next(key for key, event in self._blocks.fns.items() if event.name == name)
        body = {"data": list(values), "fn_index": event, "session_hash": self._session, "trigger_id": None}
        status, content, _ = ask(
            self.url, "/gradio_api/queue/join", "POST", json.dumps(body).encode(), Content_Type="application/json"
        )
        assert status == 200, content
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", f"/gradio_api/queue/data?session_hash={self._session}")
            with connection.getresponse() as stream:
                while line := stream.readline():
                    if line.startswith(b"data: "):
                        message = json.loads(line[6:])
                        yield message
                        if message["msg"] in ("process_completed", "close_stream"):
                            return


@contextlib.contextmanager
def served_here(blocks: gr.Blocks, routes: Sequence[Any] = (), password: str | None = None) -> Iterator[str]:
    """The URL of a page that this process serves."""
    address = Address("127.0.0.1", 0).checked()
    blocks.block_thread = lambda: None
    try:
        server.serve(blocks, address, server.middleware(address, password), "", lambda: None, routes)
        yield address.url
    finally:
        blocks.close(verbose=False)
