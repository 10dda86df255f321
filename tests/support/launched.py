"""Two processes with the environment that a launcher gives them."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from forked import Forked

LIMIT = 120
"""Seconds after which a launch hangs."""


class Launched:
    """Processes with the environment that a launcher gives them; `said` is what the first said, then the second."""

    def __init__(self, folder: Path, *command: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        (folder / "tmp").mkdir(exist_ok=True)
        self.logs = [folder / "said-0.txt", folder / "said-1.txt"]  # two writers of one file may cut each other's lines
        self.all = []
        for rank, log in enumerate(self.logs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TMPDIR": str(folder / "tmp")}
            self.all.append(Forked(command, log, {**os.environ, **place, **own}))

    @property
    def said(self) -> str:
        return "".join(log.read_text(encoding="utf-8") for log in self.logs)

    def wait(self, seconds: float = LIMIT) -> list[int]:
        """Their exit codes, after at most these seconds each."""
        try:
            return [process.wait(seconds) for process in self.all]
        finally:
            for process in self.all:
                process.kill()

    def wait_for(self, found: Callable[[], bool], seconds: float = LIMIT) -> None:
        since = time.monotonic()
        while not found():
            assert all(process.poll() is None for process in self.all), self.said
            assert time.monotonic() - since < seconds
            time.sleep(0.01)
