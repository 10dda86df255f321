"""Python in processes forked from one that has imported the libraries.

The page starts in 1.4 s of CPU time instead of 4.4; a run saves the 6.5 s of its imports. Tests of imports and of
starting itself use real starts.
"""

import atexit
import gc
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path

import pytest
from garbage import collect_nothing

if sys.platform == "win32":
    pytest.skip("needs fork, which Windows lacks", allow_module_level=True)

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["gradio", "transformers.trainer", "peft", "bitsandbytes", "datasets", "trl.trainer.sft_trainer"]
)


class Forked:
    """`python` with `-m MODULE` or `-c CODE` and more arguments, with the part of `subprocess.Popen` that tests need.

    Output and errors are written to `log`.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path | None = None
    ) -> None:
        log.write_bytes(b"")  # there from the start
        settings = list(arguments), str(log), dict(environment), str(folder or Path.cwd())
        self._process = _FORKS.Process(target=_python, args=settings)
        self._process.start()
        self.pid: int = self._process.pid or 0

    def poll(self) -> int | None:
        """Exit code, or minus the signal's number; None if it has not ended."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """Exit code, after at most these seconds."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("python", seconds or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def _python(arguments: list[str], log: str, environment: dict[str, str], folder: str) -> None:
    output = os.open(log, os.O_WRONLY)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        os.dup2(output, number)
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # chosen again, by TMPDIR
    os.chdir(folder)
    sys.path.insert(0, folder)
    collect_nothing()
    gc.freeze()
    option, what, *rest = arguments
    sys.argv = [what, *rest]
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})  # noqa: S102 - the test's own code
    finally:
        atexit._run_exitfuncs()  # multiprocessing does not
