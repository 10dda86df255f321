"""The annotators' page in a separate process, and people who use it in a real Chromium."""

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import dump_config, load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.records import Message, Prompt, Sample

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
NO_STORAGE = """Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('blocked'); }});"""
"""Script of a browser that blocks storage."""
PASSWORD = "correct horse battery"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "LOWRANK_RLHF_PASSWORD": PASSWORD}


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium; the test is skipped where it, Playwright or Gradio is missing."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium here; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


def a_run_with_answers(folder: Path, prompts: int, texts: tuple[str, ...] = (), **rank: Any) -> AnnotationStore:
    """A run in `folder/runs/people` that waits for people: four answers a prompt, nothing shared or repeated."""
    run = RunDir(folder / "runs" / "people")
    settings = {"source": "human", "minimum_rankings": 3, "shared": 0.0, "repeated": 0.0} | rank
    any_reward = {"accept_weak_reward": True}  # so few rankings are enough
    run.open(dump_config(Config(name="people", model={"source": "x"}, rank=settings, ppo=any_reward)))
    store = AnnotationStore(run.path / "annotations.sqlite")
    asked, answers = [], []
    for i in range(prompts):
        asked.append(Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Tell me {i}"),)))
        for k in range(4):
            text = texts[k] if texts else f"answer {k} to {i}"
            answers.append(Sample(id=f"p{i}-{k}", prompt_id=f"p{i}", text=text))
    store.add_items(asked, answers)
    return store


def with_guidelines(folder: Path, text: str | None) -> Path:
    """The run of `a_run_with_answers` with another text."""
    run = folder / "runs" / "people"
    config = load_config(run / "config.yaml")
    rank = config.rank.model_copy(update={"guidelines": text})
    (run / "config.yaml").write_text(dump_config(config.model_copy(update={"rank": rank})), encoding="utf-8")
    return run


class Server:
    """`label people --web` for the run in a folder, or other Python that takes a port and prints an address."""

    def __init__(
        self, folder: Path, port: int = 0, command: list[str] | None = None, options: Sequence[str] = ()
    ) -> None:
        if command:
            command = [*command, str(free_port())]
        else:
            command = [*f"-m lowrank_rlhf label people --web --port {port}".split(), *options]
        self.log = folder / "server.log"
        self.process = Forked(command, self.log, ENVIRONMENT, folder)
        self.url = self._address()

    def _address(self) -> str:
        until = time.monotonic() + 90
        while not (found := re.search(r"http://[\d.]+:\d+(?=\n)", self.log.read_text())):
            assert time.monotonic() < until, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        return found[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Person:
    """A person with a separate browser window."""

    def __init__(self, browser: Any, url: str, name: str | None, **context: Any) -> None:
        options = {"viewport": {"width": 1100, "height": 800}, "locale": "en-GB"} | context
        self.page = browser.new_context(**options).new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        self.url, self.name = url, name
        self.log_in()

    def log_in(self) -> None:
        self.page.goto(self.url)
        if self.name is not None:
            self.page.locator("input[type=password]").fill(PASSWORD)
            self.page.locator("input").first.fill(self.name)
            self.page.keyboard.press("Enter")
        self.page.locator(".rk-line span").first.wait_for()
        self.wait()

    def wait(self) -> None:
        """Wait until the page has drawn the server's last answer."""
        self.page.wait_for_function("document.querySelector('.rk').ariaBusy === 'false'")

    def press(self, *keys: str) -> None:
        """Press single keys, each after the page shows the effect of the previous one."""
        for key in keys:
            self.page.keyboard.press(key)
            self.wait()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def prompt(self) -> str:
        return self.text(".rk-prompt .rk-text")

    def order(self) -> str:
        """The order shown on the page, such as `2=1>3`."""
        tiers = self.page.locator(".rk-tier").all()
        return ">".join("=".join(tier.locator(".rk-chip").all_inner_texts()) for tier in tiers)


@contextmanager
def served(folder: Path) -> Iterator[tuple[Server, Any]]:
    """The page for the run in a folder, and a browser."""
    with chromium() as browser:
        server = Server(folder)
        try:
            yield server, browser
        finally:
            server.kill()
