"""Process that loads a run's models and answers questions: the page itself loads no model."""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

from lowrank_rlhf.dashboard.jobs import environment
from lowrank_rlhf.errors import UserError

_IDLE_SECONDS = 600.0
_CLOSING_SECONDS = 5.0
_STDERR_CHARACTERS = 2000


class ChatUnavailable(UserError):
    """The models cannot answer now.

    `kind` is `busy` while they answer another visitor, `exited` if the process has exited, and `failed` if it exited
    with the error in the message.
    """

    def __init__(self, kind: Literal["busy", "exited", "failed"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ChatWorker:
    """Process with the models of at most one run, loaded at the first question and closed after ten idle minutes."""

    def __init__(self) -> None:
        self.run: Path | None = None
        self.ready: dict[str, Any] = {}
        """First message of the process: `voices`, `temperature`, ..."""
        self._process: subprocess.Popen[str] | None = None
        self._stderr: IO[bytes] | None = None
        self._asking = threading.Lock()
        self._timer: threading.Timer | None = None

    def ask(self, run: Path, requests: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the messages of each answer as they arrive, with the index of its request. A stop skips the rest.

        Raises `ChatUnavailable` while another visitor is being answered, or if the process fails.
        """
        if not self._asking.acquire(blocking=False):
            raise ChatUnavailable("busy", "The models are answering another visitor. Retry in a moment.")
        try:
            self._open(run)
            for index, request in enumerate(requests):
                self._send(request)
                message: dict[str, Any] = {}
                for message in self._messages():
                    yield index, message
                if message.get("answer", {}).get("stopped"):
                    return
        except GeneratorExit:  # the visitor has left: stop the answer and drain its messages
            self.stop()
            for _ in self._messages():
                pass
            raise
        finally:
            self._asking.release()
            self._start_idle_timer()

    def open(self, run: Path) -> dict[str, Any]:
        """Load the run's models if necessary and return the process's first message. Raises `ChatUnavailable`."""
        with self._asking:
            self._open(run)
        return self.ready

    def stop(self) -> None:
        """Stop the answer that is being generated, if any."""
        with suppress(UserError):
            self._send({"stop": True})

    def close(self) -> None:
        """End the process and free its memory."""
        self.stop()
        process, self._process, self.run = self._process, None, None
        if process is None:
            return
        with suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr] # the process exits at the end of its input
        try:
            process.wait(_CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.terminate()  # the second SIGTERM ends it immediately
            process.wait()

    def _open(self, run: Path) -> None:
        if self.run == run and self._process and self._process.poll() is None:
            return
        self.close()
        if self._stderr:
            self._stderr.close()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lowrank_rlhf", "chat", run.name, "--lines", "--runs", str(run.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env=environment(),
        )
        self.ready = self._read()
        self.run = run

    def _send(self, message: dict[str, Any]) -> None:
        try:
            stdin = self._process.stdin  # type: ignore[union-attr]
            stdin.write(json.dumps(message) + "\n")  # type: ignore[union-attr]
            stdin.flush()  # type: ignore[union-attr]
        except (AttributeError, OSError, ValueError):
            raise self._failure() from None

    def _read(self) -> dict[str, Any]:
        process = self._process
        line = process.stdout.readline() if process and process.stdout else ""
        if not line:
            failure = self._failure()
            self.close()
            raise failure
        message: dict[str, Any] = json.loads(line)
        return message

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Yield messages up to the end of one answer."""
        while True:
            message = self._read()
            yield message
            if "answer" in message or "error" in message:
                return

    def _failure(self) -> ChatUnavailable:
        """Return the process's error, as it wrote it to stderr."""
        if self._stderr is None or self._stderr.closed:
            return ChatUnavailable("exited", "The process with the models has exited.")
        self._stderr.seek(0)
        written = self._stderr.read().decode(errors="replace")[-_STDERR_CHARACTERS:].strip()
        if not written:
            return ChatUnavailable("exited", "The process with the models has exited.")
        return ChatUnavailable("failed", written)

    def _start_idle_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = threading.Timer(_IDLE_SECONDS, self._close_if_idle)
        self._timer.daemon = True
        self._timer.start()

    def _close_if_idle(self) -> None:
        if self._asking.acquire(blocking=False):
            try:
                self.close()
            finally:
                self._asking.release()
