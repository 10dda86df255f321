"""Heartbeats of the processes of a run: one that no longer answers is found while the others wait for it.

A thread in each process counts up in the launcher's store and reads the others' counts. It does so while the process
computes or waits for people, and stops with it: killed, suspended, or stuck in a call that never returns to Python.
Silence is counted in beats and polls of this process, not on a clock: a machine that slept has missed none.
"""

import os
import signal
import threading
from contextlib import suppress
from typing import Any

SECONDS = 3.0
"""Time between two beats."""
POLL = 1.0
"""Time between two looks at the others while this process waits for them; signals are handled then too."""
MISSED_BEATS = 15
"""Beats without a change after which a process counts as lost."""
STORE_POLLS = 45
"""Polls without an answer of the store after which the main process, which may hold it, counts as lost."""


class Heartbeat:
    """Beats of this process, and the silence of the others.

    Args:
        store: key-value store that all processes share.
        rank: number of this process.
        processes: number of processes.
    """

    def __init__(self, store: Any, rank: int, processes: int) -> None:
        self._store, self._rank = store, rank
        store.set(f"process/{rank}", str(os.getpid()))
        self._peers = {peer: int(store.get(f"process/{peer}")) for peer in range(processes) if peer != rank}
        self._missed = dict.fromkeys(self._peers, 0)
        self._cycles = self._seen = self._polls = 0
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def silent(self) -> int | None:
        """Return the number of a process that no longer answers, or None; call it at each poll."""
        cycles = self._cycles
        self._polls = 0 if cycles != self._seen else self._polls + 1
        self._seen = cycles
        if self._polls >= STORE_POLLS and self._rank:
            return 0
        return next((peer for peer, missed in self._missed.items() if missed >= MISSED_BEATS), None)

    def kill(self, peer: int) -> None:
        """Kill a silent process, so that pending operations with it fail and it does not wake up into an ended run."""
        with suppress(ProcessLookupError):
            os.kill(self._peers[peer], signal.SIGKILL)

    def end(self) -> None:
        """Stop beating."""
        self._ended.set()

    def _beat(self) -> None:
        counts = dict.fromkeys(self._peers, 0)
        with suppress(RuntimeError):  # the store has ended with the process that held it
            while not self._ended.wait(SECONDS):
                self._store.add(f"beat/{self._rank}", 1)
                for peer, before in counts.items():
                    counts[peer] = int(self._store.add(f"beat/{peer}", 0))
                    self._missed[peer] = 0 if counts[peer] != before else self._missed[peer] + 1
                self._cycles += 1
