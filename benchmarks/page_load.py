"""Time the page's timers for many visitors beside a training run: latency and the page's memory.

    python benchmarks/page_load.py [--clients 20] [--seconds 600]

Each client sends every two seconds what the timers of an open page send, and waits for the answers. The clients stay on
the tabs with timers, Watch, Result and Compare, in turn; the list of runs is updated on all of them.
Ends with an error if the 99th percentile is above 300 ms or memory grows by more than 5 % after the first quarter.
"""

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from browser import page_server
from tiny import make_tiny_model
from tiny_run import make_config, write_prompts

from lowrank_rlhf.config.loading import dump_config

MOST_SECONDS, MOST_GROWTH = 0.3, 0.05
PERIOD = 2.0
"""Seconds between two ticks of the page's timers."""


class Visitor:
    """An open page, reduced to what its timers send."""

    def __init__(self, host: str, run: str, number: int) -> None:
        self._host, self.seconds, self.errors = host, list[float](), list[str]()
        self._connect()
        self._connection.request("GET", "/config")
        config = json.loads(self._connection.getresponse().read())
        values = {part["id"]: part["props"].get("value") for part in config["components"]}
        values |= {part["id"]: run for part in config["components"] if part["props"].get("elem_id") == "run"}
        states = {part["id"] for part in config["components"] if part["type"] == "state"}
        ticks = [
            (target, entry) for entry in config["dependencies"] for target, name in entry["targets"] if name == "tick"
        ]
        active = {part["id"] for part in config["components"] if part["type"] == "timer" and part["props"]["active"]}
        hidden = sorted({timer for timer, _ in ticks} - active)
        active.add(hidden[number % len(hidden)])
        self._events = [
            (entry["id"], [None if part in states else values[part] for part in entry["inputs"]])
            for timer, entry in ticks
            if timer in active
        ]

    def _connect(self) -> None:
        """Connect as a new session, to which no late answers come."""
        self._connection, self._stream, self._open = (
            http.client.HTTPConnection(self._host, timeout=60) for _ in range(3)
        )
        self._session = uuid.uuid4().hex
        self._open.request("GET", f"/gradio_api/heartbeat/{self._session}")  # as long as the page is open

    def tick(self) -> None:
        """Send the events of all timers, and keep the seconds until each one's answer."""
        sent = dict[str, float]()
        try:
            self._send(sent)
            self._receive(sent)
        finally:
            self.errors += [f"event {event}: no answer" for event in sent]

    def _send(self, sent: dict[str, float]) -> None:
        for event, data in self._events:
            body = {"data": data, "fn_index": event, "session_hash": self._session, "trigger_id": None}
            began = time.monotonic()
            self._connection.request(
                "POST", "/gradio_api/queue/join", json.dumps(body), {"Content-Type": "application/json"}
            )
            sent[json.loads(self._connection.getresponse().read())["event_id"]] = began

    def _receive(self, sent: dict[str, float]) -> None:
        self._stream.request("GET", f"/gradio_api/queue/data?session_hash={self._session}")
        answer = self._stream.getresponse()
        while line := answer.readline():
            message = json.loads(line[6:]) if line.startswith(b"data: ") else {}
            if message.get("msg") == "close_stream":
                break
            if message.get("msg") == "process_completed":
                self.seconds.append(time.monotonic() - sent.pop(message["event_id"]))
                if not message["success"]:
                    self.errors.append(str(message["output"]))
        self._stream.close()

    def stay(self, until: float) -> None:
        """Tick until a time; a late answer delays the next tick, as in a browser."""
        while (began := time.monotonic()) < until:
            try:
                self.tick()
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                self.errors.append(repr(error))
                self._connection.close()
                self._stream.close()
                self._open.close()
                self._connect()
            time.sleep(max(0.0, began + PERIOD - time.monotonic()))


def check_training(process: subprocess.Popen[bytes]) -> None:
    """Exit with an error if the training has ended: the page would have been timed beside none."""
    if (code := process.poll()) is not None:
        sys.exit(f"training ended early, with exit code {code}")


@contextmanager
def training(folder: Path) -> Iterator[str]:
    """Train a tiny model in the folder `runs` until the end of the block; the run's name. It must not end before.

    A step takes seconds, as those of real runs do: at twenty steps a second each tick would find thousands of new rows.
    """
    model, prompts = make_tiny_model(folder / "model"), write_prompts(folder / "prompts.jsonl")
    config = make_config(model, prompts, ppo__steps=10**6, ppo__batch_size=40, ppo__epochs=10)
    (folder / "tiny.yaml").write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "lowrank_rlhf", "run", str(folder / "tiny.yaml"), "--runs", str(folder / "runs")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        rows = folder / "runs" / config.name / "rollouts.jsonl"
        while not rows.exists() and process.poll() is None:
            time.sleep(0.5)
        try:
            check_training(process)
            yield config.name
            check_training(process)
        finally:
            process.kill()


def measure(clients: int, seconds: float) -> dict[str, Any]:
    """Return latencies in milliseconds, memory in MiB, and the errors."""
    with (
        tempfile.TemporaryDirectory() as name,
        training(Path(name)) as run,
        page_server(Path(name) / "runs", forked=False) as (url, server),
    ):
        page, resident = psutil.Process(server.pid), list[float]()
        visitors = [Visitor(url.removeprefix("http://"), run, number) for number in range(clients)]
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=visitor.stay, args=(until,), daemon=True) for visitor in visitors]
        for at, thread in enumerate(threads):
            thread.start()
            time.sleep(PERIOD / clients if at < clients - 1 else 0.0)  # visitors do not come at the same instant
        while time.monotonic() < until:
            resident.append(page.memory_info().rss / 2**20)
            time.sleep(1.0)
        for thread in threads:
            thread.join(60.0)
    quarter = len(resident) // 4
    found = sorted(second for visitor in visitors for second in visitor.seconds)
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": len(found),
        **{f"p{share}_ms": 1000 * _percentile(found, share / 100) for share in (50, 90, 99)},
        "after_a_quarter_mib": max(resident[: quarter + 1]),
        "at_the_end_mib": max(resident[-quarter - 1 :]),
        "errors": sum(len(visitor.errors) for visitor in visitors),
        "first_error": next((error for visitor in visitors for error in visitor.errors), None),
    }


def _percentile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Print the figures; exit with an error if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    found = measure(options.clients, options.seconds)
    print(json.dumps({name: round(value, 1) if isinstance(value, float) else value for name, value in found.items()}))
    growth = found["at_the_end_mib"] / found["after_a_quarter_mib"] - 1
    if found["errors"] or found["p99_ms"] > 1000 * MOST_SECONDS or growth > MOST_GROWTH:
        sys.exit(f"limits: no error, {1000 * MOST_SECONDS:.0f} ms at p99, {MOST_GROWTH:.0%} more memory ({growth:.1%})")


if __name__ == "__main__":
    main()
