"""`label` as a person uses it: single keys in a real terminal."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from people import a_run, tiers_as_shown

from lowrank_rlhf import cli

pty = pytest.importorskip("pty", reason="needs a terminal of POSIX")
termios = pytest.importorskip("termios", reason="needs a terminal of POSIX")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "TERM": "xterm", "COLUMNS": "80"}
PROGRAM = [sys.executable, "-m", "lowrank_rlhf", "label", "people"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Terminal:
    """`label people` in a terminal of its own, and the person in front of it."""

    def __init__(self, *arguments: str) -> None:
        self.screen, slave = pty.openpty()
        self.settings = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=ENVIRONMENT,
            start_new_session=True,
            # Where the tests run in the background a shell has Ctrl-C ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.seen = ""
        self._read_to = 0
        self._bytes = b""

    def wait_for(self, text: str) -> None:
        """Until the text is on the screen, after what was waited for before."""
        end = time.monotonic() + 60
        while text not in self.seen[self._read_to :]:
            assert time.monotonic() < end, f"no {text!r} in {self.seen[self._read_to :]!r}"
            if select.select([self.screen], [], [], 0.2)[0]:
                self._bytes += os.read(self.screen, 4096)
                self.seen = self._bytes.decode(errors="ignore")
        self._read_to = self.seen.index(text, self._read_to) + len(text)

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def do(self, *steps: tuple[str, str]) -> None:
        """Each time wait for a text, then type keys."""
        for text, keys in steps:
            self.wait_for(text)
            time.sleep(0.05)  # a person is slower than the change from printing to reading keys
            self.type(keys)

    def end(self) -> int:
        """The exit code, after all that was printed; the terminal must be as it was."""
        code = self.process.wait(timeout=60)
        while select.select([self.screen], [], [], 0.2)[0]:
            self._bytes += os.read(self.screen, 4096)
        self.seen = self._bytes.decode(errors="ignore")
        assert termios.tcgetattr(self.slave) == self.settings
        return code


@pytest.fixture
def terminal() -> Iterator[type[Terminal]]:
    """Makes terminals, and ends what still runs in them."""
    made: list[Terminal] = []

    class Kept(Terminal):
        def __init__(self, *arguments: str) -> None:
            super().__init__(*arguments)
            made.append(self)

    yield Kept
    for one in made:
        one.process.kill()
        one.process.wait()
        os.close(one.screen)
        os.close(one.slave)


def test_an_evening_of_ranking(terminal) -> None:
    store = a_run(minimum=2)
    person = terminal()
    person.do(
        ("your name [", "安娜\n"),
        ("1 of 3   安娜", ""),
        ("left: 1, 2, 3", "\r"),
        ("not placed yet: 1, 2, 3", "2"),
        ("2 > _   left: 1, 3", "="),
        ("2 = _", "2"),
        ("2 is placed already; u undoes the last key", "7"),
        ("no answer 7 here", "\x1b[A"),
        ("that key has no effect here", "３"),  # full-width, as a Chinese keyboard has it
        ("2 = 3 > _   left: 1", "\x7f"),
        ("2 = _", "1f1"),
        ("2 = 1 > _   left: 3   flags: unsure", "h"),
        ("Backspace does the same", "3"),
        ("Enter saves", "\r"),
        ("saved: 2 = 1 > 3   flags: unsure", ""),
        ("left: 1, 2, 3", "s"),
        ("skipped", ""),
        ("Tell me 2", ""),
        ("left: 1, 2, 3", "u"),
        ("skip undone", ""),
        ("Tell me 1", ""),
        ("left: 1, 2, 3", "u"),
        ("last saved ranking undone", ""),
        ("2 = 1 > 3   flags: unsure", "u"),
        ("2 = 1 > _   left: 3   flags: unsure", "uf1"),
        ("2 = _   left: 1, 3", "3 1"),
        ("that key has no effect here", "1\r"),
        ("saved: 2 = 3 > 1", ""),
        ("left: 1, 2, 3", "321\r2\r"),  # typed ahead in one go
        ("saved: 3 > 2 > 1", ""),
        ("2 prompts are ranked: the run can resume.", ""),
        ("saved: 2 > _   left: 1, 3; the rest is below", ""),
        ("q quits", "u"),
        ("last saved ranking undone", ""),
        ("Enter saves; the rest is below", "\r"),
        ("saved: 2 > _", ""),
        ("q quits", "q"),
    )
    assert person.end() == 0
    assert tiers_as_shown(store) == [[["2", "3"], ["1"]], [["3"], ["2"], ["1"]], [["2"], ["1", "3"]]]
    assert [ranking.partial for ranking in store.rankings()] == [False, False, True]
    assert {ranking.annotator for ranking in store.rankings()} == {"安娜"}
    assert [ranking.flags for ranking in store.rankings()] == [(), (), ()]
    assert store.rankings()[0].seconds > 0
    assert "python -m lowrank_rlhf run runs/people/config.yaml" in person.seen


@pytest.mark.parametrize(
    ("stop", "code", "last"),
    [("\x03", 130, "Stopped. Saved rankings are kept"), ("\x04", 5, "1 of 2 prompts ranked, 1 more needed")],
)
def test_ctrl_c_and_ctrl_d_leave_everything_saved(terminal, stop: str, code: int, last: str) -> None:
    store = a_run()
    person = terminal("--annotator", "ann")
    person.do(("left: 1, 2, 3", "213\r"), ("saved", ""), ("left: 1, 2, 3", f"2{stop}"))
    assert person.end() == code
    assert last in person.seen
    assert "Traceback" not in person.seen
    assert tiers_as_shown(store) == [[["2"], ["1"], ["3"]]]
    again = terminal("--annotator", "ann")
    again.do(("2 of 3   ann", ""), ("left: 1, 2, 3", "q"))
    assert again.end() == 5


def test_a_stop_from_outside_puts_the_terminal_right(terminal) -> None:
    a_run()
    person = terminal("--annotator", "ann")
    person.do(("left: 1, 2, 3", "2"), ("2 > _", ""))
    assert termios.tcgetattr(person.slave) != person.settings  # single keys, no echo
    person.process.send_signal(signal.SIGTERM)
    assert person.end() == 130


def test_ctrl_c_where_the_name_is_asked(terminal) -> None:
    a_run()
    person = terminal()
    person.do(("your name [", ""))
    person.process.send_signal(signal.SIGINT)
    assert person.end() == 130


def test_enter_takes_the_login_name(terminal) -> None:
    a_run()
    person = terminal()
    person.do(("your name [", "\n"), ("ranking as ", ""), ("left: 1, 2, 3", "q"))
    assert person.end() == 5


def test_a_kill_loses_nothing_that_was_saved(terminal) -> None:
    store = a_run()
    person = terminal("--annotator", "ann")
    person.do(("left: 1, 2, 3", "213\r"), ("Tell me 1", ""))
    person.process.kill()
    assert person.process.wait() == -signal.SIGKILL
    assert tiers_as_shown(store) == [[["2"], ["1"], ["3"]]]
