"""Process of one run of a sweep, so that its memory is freed when the run ends and several can run at once."""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from lowrank_rlhf.planner.machine import cores, gpus

_LINES_KEPT = 3
_SECONDS_FOR_LAST_LINES = 1
"""A process that the command started may hold its stderr open for longer."""
_SECONDS_BETWEEN_SIGNALS = (1, 10)
_THREADS, _DEVICES = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"


class Outcome(NamedTuple):
    """Exit code of a command; `message`: the last lines it wrote to stderr."""

    code: int
    message: str


class Job(Protocol):
    """A run at work."""

    def poll(self) -> Outcome | None:
        """Return None until the run has ended."""

    def stop(self) -> None:
        """Ask the run to save its work and end."""

    def end(self) -> None:
        """End the run at once, and wait until it has ended."""


def command_of(source: str, overrides: Sequence[str], runs: Path) -> list[str]:
    """Return the command of one run as arguments of a process, never of a shell."""
    return [sys.executable, "-m", "lowrank_rlhf", "run", source, *overrides, "--runs", str(runs)]


def share_of(place: int, places: int, on_gpu: bool) -> dict[str, str]:
    """Return the environment of one of `places` runs at once: one of the GPUs, else its share of the CPU's threads.

    More runs than GPUs share these in turn. A number of threads that the user chose stays.
    """
    if places == 1:
        return {}
    if on_gpu and (found := gpus()):
        return {_DEVICES: found[place % len(found)]}
    return {} if _THREADS in os.environ else {_THREADS: str(max(1, cores() // places))}


class Launched:
    """Process of a command.

    Args:
        command: program and arguments.
        environment: variables beside this process's own.
        log: file for all output, appended; without one, output goes to the terminal.
        quiet: send stdout to stderr.
    """

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], log: Path | None = None, quiet: bool = False
    ) -> None:
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        output = log.open("a", encoding="utf-8") if log else sys.stderr
        self._process = subprocess.Popen(
            command,
            stdout=output if log or quiet else None,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | environment,
            # In its own process group the command gets no Ctrl-C from the terminal, only the SIGTERM of `stop`.
            process_group=0 if os.name == "posix" else None,
        )
        assert self._process.stderr is not None  # noqa: S101 - a pipe, see above
        passed_on = (self._process.stderr, self._lines.append, output)
        self._reader = threading.Thread(target=_pass_on, args=passed_on, daemon=True)
        self._reader.start()

    def poll(self) -> Outcome | None:
        """Return the outcome, or None until the process has ended."""
        if self._process.poll() is None:
            return None
        self._reader.join(_SECONDS_FOR_LAST_LINES)
        return Outcome(self._process.returncode, "".join(self._lines).strip())

    def stop(self) -> None:
        """Send SIGTERM, on which a run saves its work and ends."""
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Send SIGTERM twice, which ends a run without saving, then SIGKILL; wait until the process has ended."""
        for seconds in _SECONDS_BETWEEN_SIGNALS:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self._process.kill()
        self._process.wait()


def _pass_on(stream: IO[str], keep: Callable[[str], None], target: IO[str]) -> None:
    with stream, nullcontext() if target is sys.stderr else target:
        for line in stream:
            keep(line)
            target.write(line)
            target.flush()
