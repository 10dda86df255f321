"""A run's models in a process of their own that answers questions: the page itself holds no model."""

import atexit
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lowrank_rlhf.dashboard.jobs import environment
from lowrank_rlhf.errors import UserError

_IDLE_SECONDS = 600.0
_CLOSING_SECONDS = 5.0


class Talker:
    """At most one run's models, loaded when first asked, gone after ten minutes without a question."""

    def __init__(self) -> None:
        self.run: Path | None = None
        self.about: dict[str, Any] = {}
        """What the models said of themselves: `voices`, `temperature`, ..."""
        self._process: subprocess.Popen[str] | None = None
        self._complaints: IO[bytes] | None = None
        self._asking = threading.Lock()
        self._timer: threading.Timer | None = None

    def ask(self, run: Path, requests: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each request's answers, piece by piece, with its place among them; after a stop the rest are not asked.

        Raises `UserError` while somebody else asks (`busy`), and where the models cannot be loaded.
        """
        if not self._asking.acquire(blocking=False):
            raise UserError("busy")
        try:
            self._open(run)
            for place, request in enumerate(requests):
                self._send(request)
                last: dict[str, Any] = {}
                for last in self._answers():
                    yield place, last
                if last.get("answer", {}).get("stopped"):
                    return
        except GeneratorExit:  # whoever asked has gone: end the answer, and read it to its end
            self.stop()
            for _ in self._answers():
                pass
            raise
        finally:
            self._asking.release()
            self._rest()

    def open(self, run: Path) -> dict[str, Any]:
        """Load the run's models, unless they are, and return what they say of themselves. Raises `UserError`."""
        with self._asking:
            self._open(run)
        return self.about

    def stop(self) -> None:
        """End the answer that is being written, if one is."""
        with suppress(UserError):
            self._send({"stop": True})

    def close(self) -> None:
        """Let the models go."""
        self.stop()
        process, self._process, self.run = self._process, None, None
        if process is None:
            return
        with suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr] # the end of its input ends it
        try:
            process.wait(_CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.terminate()  # the second one ends it at once
            process.wait()

    def _open(self, run: Path) -> None:
        if self.run == run and self._process and self._process.poll() is None:
            return
        self.close()
        if self._complaints:
            self._complaints.close()
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lowrank_rlhf", "chat", run.name, "--lines", "--runs", str(run.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env=environment(),
        )
        self.about = self._read()
        self.run = run

    def _send(self, message: dict[str, Any]) -> None:
        try:
            stdin = self._process.stdin  # type: ignore[union-attr]
            stdin.write(json.dumps(message) + "\n")  # type: ignore[union-attr]
            stdin.flush()  # type: ignore[union-attr]
        except (AttributeError, OSError, ValueError):
            raise UserError(self._last_words()) from None

    def _read(self) -> dict[str, Any]:
        process = self._process
        line = process.stdout.readline() if process and process.stdout else ""
        if not line:
            words = self._last_words()
            self.close()
            raise UserError(words)
        message: dict[str, Any] = json.loads(line)
        return message

    def _answers(self) -> Iterator[dict[str, Any]]:
        """Messages up to the end of an answer."""
        while True:
            message = self._read()
            yield message
            if "answer" in message or "error" in message:
                return

    def _last_words(self) -> str:
        """The end of what the process wrote to stderr; `gone` where there is nothing."""
        if self._complaints is None or self._complaints.closed:
            return "gone"
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace")[-2000:].strip() or "gone"

    def _rest(self) -> None:
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


TALKER = Talker()
"""The page's own: two loaded bases would be one too many for a small machine."""
atexit.register(TALKER.close)
