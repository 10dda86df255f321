"""Process that loads a run's models and answers questions: the page itself loads no model."""

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from lowrank_rlhf.dashboard.jobs import environment
from lowrank_rlhf.errors import UserError

_IDLE_SECONDS = 600.0
_CLOSING_SECONDS = 5.0
_STDERR_CHARACTERS = 2000


class ChatUnavailable(UserError):
    """The models cannot answer now.

    `kind` is `busy` while they answer another visitor, `no_model` if a chosen one is missing, `exited` if the process
    has exited, and `failed` if it exited with the error in the message.
    """

    def __init__(self, kind: Literal["busy", "no_model", "exited", "failed"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


def chat_command(run: Path) -> list[str]:
    """Return the command of the process with a run's models."""
    return [sys.executable, "-m", "lowrank_rlhf", "chat", run.name, "--lines", "--runs", str(run.parent)]


class _Answering:
    """A question being answered, shared by the visitor's stream and the thread that reads the process."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[tuple[int, dict[str, Any]] | UserError | None] = queue.SimpleQueue()
        """Messages with the index of their request, then an error if there was one, then None."""
        self.stopped = threading.Event()
        """Set to stop the answer."""


class ChatWorker:
    """Process with the models of at most one run, loaded at the first question and closed after ten idle minutes.

    Only the thread that answers a question waits for the process. A visitor's stream may be closed at any message, on
    the server's event loop, which must not block.
    """

    def __init__(self) -> None:
        self.run: Path | None = None
        """Run whose models are loaded, or being loaded."""
        self.ready: dict[str, Any] = {}
        """First message of the process: `voices`, `temperature`, ..."""
        self._process: subprocess.Popen[str] | None = None
        self._stderr: IO[bytes] | None = None
        self._asking = threading.Lock()
        self._answering = _Answering()
        self._timer: threading.Timer | None = None

    def ask(self, run: Path, requests: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the messages of each answer as they arrive, with the index of its request. A stop skips the rest.

        Raises `ChatUnavailable` while another visitor is being answered, or if the process fails.
        """
        answering = self._begin()
        threading.Thread(target=self._answer, args=(run, requests, answering), daemon=True).start()
        try:
            while arrived := answering.messages.get():
                if isinstance(arrived, UserError):
                    raise arrived
                yield arrived
        finally:
            answering.stopped.set()  # the visitor may have left: the thread stops the answer and reads its end

    def open(self, run: Path) -> dict[str, Any]:
        """Load the run's models if necessary and return the process's first message. Raises `ChatUnavailable`."""
        self._begin()
        try:
            self._open(run)
        except Exception as error:
            raise self._for_visitor(error) from error
        finally:
            self._end()
        return self.ready

    def stop(self) -> None:
        """Stop the current answer, if any, after its next piece."""
        self._answering.stopped.set()

    def close(self) -> None:
        """End the process and free its memory."""
        self.stop()
        self._end_process()

    def _end_process(self) -> None:
        process, self._process, self.run = self._process, None, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _begin(self) -> _Answering:
        if not self._asking.acquire(blocking=False):
            raise ChatUnavailable("busy", "The models are answering another visitor. Retry in a moment.")
        self._answering = _Answering()
        return self._answering

    def _end(self) -> None:
        self._asking.release()
        self._start_idle_timer()

    def _answer(self, run: Path, requests: Sequence[dict[str, Any]], answering: _Answering) -> None:
        """Send the requests and pass on their messages until the last answer ends or one is stopped."""
        failure: UserError | None = None
        try:
            self._open(run)
            for index, request in enumerate(requests):
                if answering.stopped.is_set():
                    break
                self._send(request)
                for message in self._messages(answering):
                    answering.messages.put((index, message))
        except Exception as error:  # whatever it is, the visitor is waiting for a message
            failure = self._for_visitor(error)
        finally:
            self._end()  # before the last message: whoever has that may ask again
            if failure:
                answering.messages.put(failure)
            answering.messages.put(None)

    def _for_visitor(self, error: Exception) -> UserError:
        """Return the error as a message; after an unexpected one the process's next lines may belong to this answer."""
        if isinstance(error, UserError):
            return error
        self._end_process()
        return ChatUnavailable("failed", f"{type(error).__name__}: {error}")

    def _open(self, run: Path) -> None:
        if self.run == run and self._process and self._process.poll() is None:
            return
        self._end_process()
        if self._stderr:
            self._stderr.close()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(
            chat_command(run),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env=environment(),
        )
        self.run = run
        self.ready = self._read()

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

    def _messages(self, answering: _Answering) -> Iterator[dict[str, Any]]:
        """Yield messages up to the end of one answer. A stop is sent after a message, so that it reaches its answer."""
        asked_to_stop = False
        while True:
            message = self._read()
            yield message
            if "answer" in message or "error" in message:
                return
            if answering.stopped.is_set() and not asked_to_stop:
                asked_to_stop = True
                self._send({"stop": True})

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
