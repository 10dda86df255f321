"""Progress bars and lines, `progress.json`, and stop requests."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import rich.progress
from rich.console import Console

from lowrank_rlhf.errors import Stopped, visible
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.files import now
from lowrank_rlhf.run.memory_usage import memory_in_use_bytes
from lowrank_rlhf.run.progress_file import StageProgress, remove_progress, write_progress

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_FILES = 1.0
_ONCE_MORE = b" Press Ctrl-C again to stop immediately."
_STOPPED = "Stopped; {saved}. To resume, rerun the same command."

Later = Callable[[float], float | None]
"""Estimate the seconds of the later stages from the seconds of the running one."""


class Bar:
    """Counter of a task's units, with the latest figures.

    `later` estimates the time of the later stages, for the remaining time of the whole run.
    """

    def __init__(
        self, name: str, total: int, unit: str, done: int, clock: Callable[[], float], later: Later | None = None
    ) -> None:
        self.name, self.total, self.unit, self.count = name, total, unit, done
        self._later = later
        self._done, self._before, self._clock, self._started = done, done, clock, clock()
        self.figures: dict[str, float] = {}
        self.on_change: Callable[[], None] = lambda: None

    def advance(self, count: int = 1, **figures: float) -> None:
        """Count finished units and update figures; `tokens_per_second` is shown as `340 tokens/s`."""
        if self.count == self._done and count < (self.total - self._done) / 20:  # the pace of loading, not of the task
            self._before, self._started = self.count + count, self._clock()
        self.count += count
        self.figures.update(figures)
        self.on_change()

    def details(self) -> str:
        """Return figures, remaining time and memory: `340 tokens/s  ETA 0:21 (run 3:05)  1.2 GiB`."""
        shown = [figure(name, value) for name, value in self.figures.items()]
        return "  ".join([*shown, *self._eta(), memory(memory_in_use_bytes())])

    def line(self) -> str:
        """Return the state as one line of text."""
        width = len(str(self.total))
        share = 100 * self.count // max(self.total, 1)
        return f"{self.name:<8} {self.count:>{width}}/{self.total} {self.unit}  {share:>3}%  {self.details()}"

    def seconds_left(self) -> tuple[float | None, float | None]:
        """Return the estimates for the task and for the run; None until there is a pace, and at the end."""
        fresh = self.count - self._before  # units of an earlier process do not count for this one's pace
        left = self.total - self.count
        if fresh <= 0 or left <= 0:
            return None, None
        pace = (self._clock() - self._started) / fresh
        later = self._later(pace * self.total) if self._later else None
        return pace * left, pace * left + later if later else None

    def _eta(self) -> list[str]:
        own, run = self.seconds_left()
        if own is None:
            return []
        return [f"ETA {duration(own)}" + (f" (run {duration(run)})" if run is not None else "")]


class Progress:
    """Progress display: bars in a terminal, occasional lines elsewhere, and `progress.json` in the run folder."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console()
        self._clock = clock
        self._started = clock()
        self._later: Later | None = None
        self._live = self._console.is_terminal
        self._run: Path | None = None
        self._stage = ""
        self._tasks: list[Bar] = []  # outermost first
        self._written_at: float | None = None

    @classmethod
    def silent(cls) -> Self:
        """Return a display that prints nothing, for tests."""
        return cls(Console(quiet=True, force_terminal=False))

    def __enter__(self) -> Self:
        self._started = self._clock()
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[unit]}  {task.fields[details]}", markup=False),
            console=self._console,
            disable=not self._live,
        )
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line. Control characters are escaped, because the text may come from data files."""
        self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def stage(
        self,
        index: int,
        count: int,
        name: str,
        does: str,
        eta_seconds: float | None = None,
        later: Later | None = None,
        people_rank: bool = False,
    ) -> None:
        """Print a stage's heading: `[3/6] rank: rank the answers, best to worst  (1:02 so far)`.

        `later` is passed to the bars of this stage. `people_rank`: they do so before the run ends.
        """
        self._later, self._stage = later, name
        self._forget()
        times = f"{duration(self._clock() - self._started)} so far"
        if eta_seconds is not None:
            times += f", about {duration(eta_seconds)} to go" + (", without the time to rank" if people_rank else "")
        self.say(f"[{index}/{count}] {name}: {does}  ({times})")

    @contextmanager
    def track(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """Show a task of `total` units, of which `done` were finished earlier. Its last state remains as a line."""
        bar = Bar(name, total, unit, done, self._clock, self._later)
        self._tasks.append(bar)
        try:
            with self._as_bar(bar) if self._live else self._as_lines(bar):
                shown = bar.on_change
                bar.on_change = lambda: self._changed(shown)
                self._record()
                yield bar
        finally:
            self._tasks.remove(bar)

    @contextmanager
    def recorded_in(self, run: Path) -> Iterator[None]:
        """Keep `progress.json` in the run folder up to date; remove it after each stage and at the end of the block."""
        self._run = run
        self._forget()
        try:
            yield
        finally:
            self._forget()
            self._run = None

    def _changed(self, show: Callable[[], None]) -> None:
        show()
        self._record()

    def _record(self) -> None:
        """Write the state of the outermost task, at most once a second."""
        time = self._clock()
        if self._run is None or (self._written_at is not None and time - self._written_at < _SECONDS_BETWEEN_FILES):
            return
        bar, self._written_at = self._tasks[0], time
        own, run = bar.seconds_left()
        state = StageProgress(
            stage=self._stage or bar.name, unit=bar.unit, done=bar.count, total=bar.total, seconds_left=own,
            run_seconds_left=run, figures=bar.figures, updated_at=now(),
        )  # fmt: skip
        write_progress(self._run, state)

    def _forget(self) -> None:
        self._written_at = None
        if self._run is not None:
            remove_progress(self._run)

    @contextmanager
    def _as_bar(self, bar: Bar) -> Iterator[None]:
        fields: dict[str, Any] = {"unit": bar.unit, "details": bar.details()}
        task = self._bars.add_task(bar.name, total=bar.total, completed=bar.count, **fields)
        bar.on_change = lambda: self._bars.update(task, completed=bar.count, details=bar.details())
        try:
            yield
        finally:
            self._bars.remove_task(task)
            self._bars.refresh()
            self.say(bar.line())

    @contextmanager
    def _as_lines(self, bar: Bar) -> Iterator[None]:
        shown_at, shown_count = -_SECONDS_BETWEEN_LINES, -1

        def show(at_least: float) -> None:
            nonlocal shown_at, shown_count
            if self._clock() - shown_at >= at_least and bar.count != shown_count:
                shown_at, shown_count = self._clock(), bar.count
                self.say(bar.line())

        show(0)
        bar.on_change = lambda: show(_SECONDS_BETWEEN_LINES)
        try:
            yield
        finally:
            show(0)


_at_once = False
"""True while the main thread is in a `stop_at_once` block."""


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Let a stop request raise `Stopped` within the block, which polls nothing and leaves nothing half written."""
    global _at_once
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread only
        yield
        return
    _at_once = True
    try:
        yield
    finally:
        _at_once = False


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into `requested`, so that the run stops where its work can be saved.

    The second one raises KeyboardInterrupt immediately. Every forward of the model polls it, so work between two
    forwards should be short. Handlers can only be set in the main thread; in others this is a flag that any code may
    set. Several processes that share the work stop together, at their next barrier.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self.requested = False
        self._group = group or ProcessGroup()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._group.stop = self
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._group.stop = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self, saved: str) -> None:
        """Raise `Stopped` if a stop was requested; `saved` describes the saved work, such as "step 50 is saved"."""
        if self.requested and self._group.can_stop:
            raise Stopped(_STOPPED.format(saved=saved))

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's signature
        several = self._group.processes > 1  # the launcher sends a second signal by itself
        if self.requested and not several:
            raise KeyboardInterrupt
        # A print here could break into another print; a write to the descriptor cannot.
        if not self.requested and self._group.is_main:
            os.write(2, b"\nStopping where the work can be saved." + (b"" if several else _ONCE_MORE) + b"\n")
        self.requested = True
        if _at_once and not several:
            raise Stopped(_STOPPED.format(saved="everything finished so far is saved"))


def duration(seconds: float) -> str:
    """Format seconds as `0:21`, `12:05` or `1:02:33`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def memory(count: float) -> str:
    """Format bytes as `1.2 GiB` or `86 MiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def figure(name: str, value: float) -> str:
    """Format a figure as `340 tokens/s` for a rate, else as `kl 0.31`, with at least three significant digits."""
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    label = name.replace("_", " ")
    if label.endswith(" per second"):
        return f"{digits} {label.removesuffix(' per second')}/s"
    return f"{label} {digits}"
