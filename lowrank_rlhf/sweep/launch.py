"""One run of a sweep in a process of its own: its memory is gone when it ends."""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.run.progress import StopRequest

_SECONDS_BETWEEN_LOOKS = 0.1
_LINES_KEPT = 3


class Outcome(NamedTuple):
    """How a command ended; `message` is the last that it wrote to stderr."""

    code: int
    message: str


def command_of(source: str, overrides: Sequence[str], runs: Path) -> list[str]:
    """The command of one run, as a list for a process, never for a shell."""
    return [sys.executable, "-m", "lowrank_rlhf", "run", source, *overrides, "--runs", str(runs)]


def launch(command: Sequence[str], stop: StopRequest, quiet: bool) -> Outcome:
    """Run a command to its end; a stop that is asked for is passed on to it, once, and then again.

    With `quiet` what it says goes to stderr. Raises `Stopped` when it has ended because of the stop.
    """
    # In a process group of its own Ctrl-C reaches it through us only, and therefore once.
    group = 0 if os.name == "posix" else None
    with subprocess.Popen(
        command,
        stdout=sys.stderr if quiet else None,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=group,
    ) as process:
        assert process.stderr is not None  # noqa: S101 - asked for above
        lines: deque[str] = deque(maxlen=_LINES_KEPT)
        reader = threading.Thread(target=_pass_on, args=(process.stderr, lines), daemon=True)
        reader.start()
        try:
            _wait(process, stop)
        except BaseException:  # a second Ctrl-C, or a bug here: leave nothing behind that goes on by itself
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        reader.join()
    message = "".join(lines).strip()
    if stop.requested:
        raise Stopped("The sweep stops here; finished runs and stages are saved. The same command goes on.")
    return Outcome(process.returncode, message)


def _wait(process: subprocess.Popen, stop: StopRequest) -> None:
    told = False
    while process.poll() is None:
        if stop.requested and not told:
            process.send_signal(signal.SIGTERM)
            told = True
        try:
            process.wait(_SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            continue


def _pass_on(stream: IO[str], lines: deque[str]) -> None:
    for line in stream:
        lines.append(line)
        sys.stderr.write(line)
        sys.stderr.flush()
