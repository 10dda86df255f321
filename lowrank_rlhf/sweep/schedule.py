"""Runs of a sweep that wait for a place, and those at work."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import duration
from lowrank_rlhf.sweep.grid import Combination, Sweep
from lowrank_rlhf.sweep.launch import Job, Outcome
from lowrank_rlhf.sweep.share import signatures, take_over

Start = Callable[[Combination, int], Job]
"""Starts a run in one of the places, which are numbered from 0."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class _AtWork:
    place: int
    job: Job
    begun: float


@dataclass(frozen=True)
class _Refused:
    """A run that could not be started."""

    outcome: Outcome

    def poll(self) -> Outcome:
        return self.outcome

    def stop(self) -> None:
        """Nothing is at work."""

    def end(self) -> None:
        """Nothing is at work."""


class Schedule:
    """Runs in the order of the sweep, as many at once as there are places.

    A run that shares a stage with one at work waits until the stage is done, and copies it. Leaving the `with` block
    by an error ends all runs at once.
    """

    def __init__(self, sweep: Sweep, runs: Path, start: Start, say: Say, places: int) -> None:
        self._sweep, self._runs, self._start, self._say, self._places = sweep, runs, start, say, places
        self._stages = [signatures(combination.config) for combination in sweep.combinations]
        self._waiting: list[int] = []
        self._at_work: dict[int, _AtWork] = {}
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run in self._at_work.values() if error else ():
            run.job.end()

    @property
    def busy(self) -> bool:
        """True until every run has ended."""
        return bool(self._waiting or self._at_work)

    def add(self, index: int) -> None:
        """Let a run of the sweep wait for its turn."""
        self._waiting.append(index)

    def start(self) -> None:
        """Start waiting runs in free places, if no stage that they share is still being made."""
        for index in list(self._waiting):
            free = [place for place in range(self._places) if place not in {r.place for r in self._at_work.values()}]
            if free and self._ready(index):
                self._waiting.remove(index)
                self._at_work[index] = _AtWork(free[0], self._begin(index, free[0]), time.monotonic())

    def ended(self) -> Iterator[tuple[int, Outcome]]:
        """Yield runs that have ended since the last call, with their outcomes."""
        for index, run in list(self._at_work.items()):
            if outcome := run.job.poll():
                del self._at_work[index]
                yield index, outcome
                self._say(f"{self.title(index)}: {_words(outcome)} after {duration(time.monotonic() - run.begun)}")

    def stop(self) -> None:
        """Start no more runs, and ask those at work once to save and end."""
        self._waiting.clear()
        for run in self._at_work.values() if not self._stopped else ():
            run.job.stop()
        self._stopped = True

    def title(self, index: int) -> str:
        """Return the number of a run and its settings: `[2/6] kl_coef=0.05 seed=2`."""
        return f"[{index + 1}/{len(self._sweep.combinations)}] {self._sweep.combinations[index].label}"

    def _ready(self, index: int) -> bool:
        """Return True if no run at work is still making a stage that this one shares."""
        return all(
            self._stages[other].get(stage) != signature or self._made(other, stage)
            for stage, signature in self._stages[index].items()
            for other in self._at_work
        )

    def _made(self, index: int, stage: str) -> bool:
        return RunDir(self._runs / self._sweep.combinations[index].config.name).mark(stage) is not None

    def _begin(self, index: int, place: int) -> Job:
        """Copy the stages that other runs of the sweep share, then start the rest."""
        combination = self._sweep.combinations[index]
        self._say(f"{self.title(index)}: {combination.config.name}")
        donors = [other.config.name for other in self._sweep.combinations if other is not combination]
        try:
            taken = take_over(combination.config, self._runs, donors)
        except UserError as error:
            self._say(f"  {error}")
            return _Refused(Outcome(int(error.exit_code), str(error)))
        for stage, donor in taken.items():
            self._say(f"  {stage}: same as in {donor}; copied and verified by hashes")
        return self._start(combination, place)


def _words(outcome: Outcome) -> str:
    return f"exit code {outcome.code}; recorded" if outcome.code else "done"
