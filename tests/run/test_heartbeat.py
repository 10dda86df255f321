"""Heartbeats with a store in this process."""

import threading
from datetime import timedelta
from typing import Any

import pytest

from lowrank_rlhf.run import heartbeat
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.heartbeat import Heartbeat, ProcessLost


class Store:
    """Shared store of three processes; once `lost`, as after its machine vanished, no call returns."""

    def __init__(self) -> None:
        peer = '{"pid": 1, "machine": 0, "host": "first"}'
        self.values: dict[str, Any] = {f"process/{rank}": peer for rank in range(3)}
        self.lost = False

    def set_timeout(self, _: timedelta) -> None:
        """It limits `get` alone."""

    def set(self, key: str, value: str) -> None:
        self.respond()
        self.values[key] = value

    def get(self, key: str) -> Any:
        self.respond()
        return self.values[key]

    def add(self, _: str, number: int) -> int:
        self.respond()
        return number

    def check(self, keys: list[str]) -> bool:
        self.respond()
        return all(key in self.values for key in keys)

    def respond(self) -> None:
        if self.lost:
            threading.Event().wait(60)


class Work:
    """Operation that failed, as another process has ended."""

    waited = False

    def wait(self, _: timedelta | None = None) -> None:
        self.waited = True
        if _ is not None:
            raise RuntimeError("connection closed")

    def is_completed(self) -> bool:
        return True


@pytest.mark.parametrize(("rank", "named"), [(2, "process 0 of this run, on first, has ended"), (0, "another process")])
def test_a_store_that_never_answers_does_not_keep_a_process(monkeypatch, rank, named) -> None:
    monkeypatch.setattr(heartbeat, "STORE_SECONDS", 0.05)
    store = Store()
    beats = Heartbeat(store, rank, 3)
    store.lost = True
    with pytest.raises(ProcessLost, match=named):
        beats.wait(Work())
    beats.leave_error(ValueError("x"))
    beats.end()


def test_a_group_without_beats_waits_for_its_operations() -> None:
    work = Work()
    ProcessGroup(0, 2)._wait(work)
    assert work.waited
