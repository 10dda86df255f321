"""Heartbeats of the processes of a run: one that no longer answers is found while the others wait for it.

A thread in each process counts up in the launcher's store and reads the others' counts. It does so while the process
computes or waits for people, and stops with it: killed, suspended, or stuck in a call that never returns to Python.
Silence is counted in beats and polls of this process, not on a clock: a machine that slept has missed none.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import psutil

from lowrank_rlhf.errors import StageFailed

SECONDS = 3.0
"""Time between two beats."""
POLL = 1.0
"""Time between two looks at the others while this process waits for them; signals are handled then too."""
MISSED_BEATS = 15
"""Beats without a change after which a process counts as lost."""
STORE_POLLS = 45
"""Polls without an answer of the store after which the main process, which may hold it, counts as lost."""
STORE_SECONDS = 30.0
"""Limit for calls of the store outside the thread of the beats: most of them have none of their own."""
_ERROR_KEY = "error"
_RESUMES = "the same command resumes from the last checkpoint"


class ProcessLost(StageFailed):
    """Another process of the group has ended or no longer answers, and this one cannot continue without it."""


@dataclass(frozen=True)
class _Peer:
    pid: int
    machine: int
    """Rank of the first process on its machine."""
    host: str


class Heartbeat:
    """Beats of this process, and the silence of the others.

    Args:
        store: key-value store that all processes share.
        rank: number of this process.
        processes: number of processes.
        machine: number of the first process on this machine.
    """

    def __init__(self, store: Any, rank: int, processes: int, machine: int = 0) -> None:
        store.set_timeout(timedelta(seconds=STORE_SECONDS))  # of `get`, which waits for the other processes here
        self._store, self._rank, self._machine = store, rank, machine
        store.set(f"process/{rank}", json.dumps(asdict(_Peer(os.getpid(), machine, socket.gethostname()))))
        others = [peer for peer in range(processes) if peer != rank]
        self._peers = {peer: _Peer(**json.loads(store.get(f"process/{peer}"))) for peer in others}
        self._missed = dict.fromkeys(self._peers, 0)
        self._cycles = self._seen = self._polls = 0
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def wait(self, work: Any) -> None:
        """Wait for an operation with all processes.

        Raises `ProcessLost`, which names the process, if one ended or no longer answers; one on this machine is killed
        then.
        """
        silent = None
        try:
            while not _completed(work):
                if silent is None and (silent := self._silent()) is not None:
                    self._kill(silent)  # the pending operation fails then
        except RuntimeError:
            if silent is None:
                raise ProcessLost(self._lost()) from None
            raise ProcessLost(
                f"process {silent} of this run no longer answers (suspended, or its machine is stuck) and was killed; "
                f"{_RESUMES}"
            ) from None

    def leave_error(self, error: BaseException) -> None:
        """Store the error for the other processes, which raise it as `ProcessLost` at their next wait."""
        text = f"process {self._rank}: {str(error) or type(error).__name__}"
        _answer(lambda: self._store.set(_ERROR_KEY, text))

    def end(self) -> None:
        """Stop beating."""
        self._ended.set()

    def _silent(self) -> int | None:
        """Return the number of a process that no longer answers, or None."""
        cycles = self._cycles
        self._polls = 0 if cycles != self._seen else self._polls + 1
        self._seen = cycles
        if self._polls >= STORE_POLLS and self._rank:
            return 0
        return next((peer for peer, missed in self._missed.items() if missed >= MISSED_BEATS), None)

    def _kill(self, peer: int) -> None:
        """Kill a silent process, so that pending operations with it fail and it does not wake up into an ended run.

        Raises `ProcessLost` for one on another machine, where it fails at its next wait if it wakes up.
        """
        found = self._peers[peer]
        if found.machine != self._machine:
            raise ProcessLost(
                f"process {peer} of this run, on {found.host}, no longer answers (suspended, or its machine is stuck "
                f"or cut off from the network). End it there (process id {found.pid}); {_RESUMES}"
            )
        with suppress(psutil.NoSuchProcess):
            psutil.Process(found.pid).kill()

    def _lost(self) -> str:
        """Return the sentence for a process that has ended: its own error, or its number."""
        if sentence := _answer(self._sentence_from_store):
            return sentence
        if 0 in self._peers:
            return f"process 0 of this run, on {self._peers[0].host}, has ended; {_RESUMES}"  # and with it the store
        return f"another process of this run has ended; {_RESUMES}"

    def _sentence_from_store(self) -> str:
        if self._store.check([_ERROR_KEY]):
            return str(self._store.get(_ERROR_KEY).decode())
        self._store.set(f"ended/{self._rank}", "")  # this process ends because of another one
        before = {peer: self._count(peer) for peer in self._peers}
        time.sleep(3 * SECONDS)
        silent = [peer for peer, count in before.items() if self._count(peer) == count]
        dead = [peer for peer in silent if not self._store.check([f"ended/{peer}"])]
        if not dead:
            return f"another process of this run has ended; {_RESUMES}"
        names = ", ".join(f"process {peer} of this run, on {self._peers[peer].host}," for peer in dead)
        return f"{names} was killed or crashed; {_RESUMES}"

    def _count(self, peer: int) -> int:
        return int(self._store.add(f"beat/{peer}", 0))

    def _beat(self) -> None:
        counts = dict.fromkeys(self._peers, 0)
        with suppress(RuntimeError):  # the store has ended with the process that held it
            while not self._ended.wait(SECONDS):
                self._store.add(f"beat/{self._rank}", 1)
                for peer, before in counts.items():
                    counts[peer] = self._count(peer)
                    self._missed[peer] = 0 if counts[peer] != before else self._missed[peer] + 1
                self._cycles += 1


def _answer(call: Callable[[], str | None]) -> str | None:
    """Return the store's answer, or None if the store ended or gives no answer within `STORE_SECONDS`."""
    found: list[str | None] = []

    def ask() -> None:
        with suppress(RuntimeError):
            found.append(call())

    asking = threading.Thread(target=ask, name="store", daemon=True)  # a call of a lost machine never returns
    asking.start()
    asking.join(STORE_SECONDS)
    return found[0] if found else None


def _completed(work: Any) -> bool:
    """Wait for an operation for a moment, in which no signal is handled. Raises `RuntimeError` if it failed."""
    try:
        work.wait(timedelta(seconds=POLL))
    except RuntimeError:
        if work.is_completed():
            raise
        return False
    return True
