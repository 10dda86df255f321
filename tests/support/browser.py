"""A real Chromium, driven by Playwright, and the page's server in a separate process."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
STARTING_SECONDS = 60.0
_open: list[Any] = []


@contextmanager
def browser() -> Iterator[Any]:
    """Debian's Chromium; skips the test where it or Playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium here; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        _open.append(opened)
        try:
            yield opened
        finally:
            _open.remove(opened)
            opened.close()


@contextmanager
def closing_pages() -> Iterator[None]:
    """Close the pages that were opened inside: an open one keeps polling its server."""
    before = {context for opened in _open for context in opened.contexts}
    yield
    for opened in _open:
        for context in set(opened.contexts) - before:
            context.close()


@contextmanager
def page_server(
    runs: Path,
    *options: str,
    password: str | None = None,
    folder: Path = ROOT,
    port: int | None = None,
    first: str = "",
    forked: bool = True,
) -> Iterator[tuple[str, Forked | subprocess.Popen]]:
    """The address of a dashboard for the runs in a folder, and its process; ended afterwards.

    `first` is Python that the process runs before anything else. A forked process shows the memory of all libraries.
    """
    port = port or free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("LOWRANK_RLHF_PASSWORD", None)
    if password:
        environment["LOWRANK_RLHF_PASSWORD"] = password
    start = ["-c", f"{first}\nfrom lowrank_rlhf import cli\ncli.main()"] if first else ["-m", "lowrank_rlhf"]
    command = [*start, "dashboard", "--no-browser", "--runs", str(runs), "--port", str(port), *options]
    log = runs.parent / f"server-{port}.log"
    if forked:
        process = Forked(command, log, environment, folder)
    else:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=output, stderr=output, env=environment, cwd=folder
            )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/"), STARTING_SECONDS, lambda: log.read_text())
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - of this computer
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def wait_for(condition: Any, seconds: float, explain: Any = lambda: "") -> None:
    """Wait until the condition is true; fail with the explanation after a number of seconds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, explain()
        time.sleep(0.1)


def shows(page: Any, selector: str, expected: str | Sequence[str]) -> None:
    """Wait until the elements have these texts, ignoring spaces; the page redraws part by part."""
    import playwright.sync_api

    playwright.sync_api.expect(page.locator(selector)).to_have_text(expected, timeout=20_000)


def go_to(page: Any, name: str) -> None:
    """Open the tab of that name, in either language."""
    page.locator(f"#tab-{name}-button").click()


def texts(page: Any, selector: str) -> Sequence[str]:
    return [re.sub(r"\s+", " ", text).strip() for text in page.locator(selector).all_inner_texts()]
