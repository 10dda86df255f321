"""Process of one run of a sweep, so that its memory is freed when the run ends."""

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
    """Exit code of a command; `message`: the last lines it wrote to stderr."""

    code: int
    message: str


def command_of(source: str, overrides: Sequence[str], runs: Path) -> list[str]:
    """Return the command of one run as arguments of a process, never of a shell."""
    return [sys.executable, "-m", "lowrank_rlhf", "run", source, *overrides, "--runs", str(runs)]


def launch(command: Sequence[str], stop: StopRequest, quiet: bool) -> Outcome:
    """Run a command to its end. A stop request sends it SIGTERM, a second Ctrl-C ends it at once.

    With `quiet`, its stdout goes to stderr. Raises `Stopped` after a stop request, when the command has ended.
    """
    # In its own process group the command gets no Ctrl-C from the terminal, only the one SIGTERM sent here.
    group = 0 if os.name == "posix" else None
    with subprocess.Popen(
        command,
        stdout=sys.stderr if quiet else None,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=group,
    ) as process:
        assert process.stderr is not None  # noqa: S101 - a pipe, see above
        lines: deque[str] = deque(maxlen=_LINES_KEPT)
        reader = threading.Thread(target=_pass_on, args=(process.stderr, lines), daemon=True)
        reader.start()
        try:
            _wait(process, stop)
        except BaseException:  # a second Ctrl-C, or a bug: leave no process running
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        reader.join()
    message = "".join(lines).strip()
    if stop.requested:
        raise Stopped("Sweep stopped. Finished runs and stages are saved; the same command resumes.")
    return Outcome(process.returncode, message)


def _wait(process: subprocess.Popen, stop: StopRequest) -> None:
    signalled = False
    while process.poll() is None:
        if stop.requested and not signalled:
            process.send_signal(signal.SIGTERM)
            signalled = True
        try:
            process.wait(_SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            continue


def _pass_on(stream: IO[str], lines: deque[str]) -> None:
    for line in stream:
        lines.append(line)
        sys.stderr.write(line)
        sys.stderr.flush()
