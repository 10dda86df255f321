"""Plain lines and bars, and stop requests."""

import io
import re
import signal
import threading

import pytest
from rich.console import Console

from lowrank_rlhf.data.formats import FORMATS
from lowrank_rlhf.data.loading import Loaded
from lowrank_rlhf.errors import ExitCode, Stopped
from lowrank_rlhf.run.progress import Progress, StopRequest, duration, figure, memory
from lowrank_rlhf.run.progress_file import StageProgress, read_progress, write_progress


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def plain(clock: Clock) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    return Progress(Console(file=stream, width=40, force_terminal=False), clock), stream


def lines(stream: io.StringIO) -> list[str]:
    """What was printed, without the memory, which is this machine's affair."""
    return [re.sub(r"  \d+(\.\d)? [GM]iB$", "", line) for line in stream.getvalue().splitlines()]


def test_plain_lines_are_the_first_the_last_and_one_in_five_seconds() -> None:
    clock = Clock()
    progress, stream = plain(clock)
    with progress, progress.track("sample", total=1024, unit="answers") as bar:
        for _ in range(64):
            clock.time += 1
            bar.advance(16, tokens_per_second=340.4)
    assert lines(stream)[0] == "sample      0/1024 answers    0%"
    assert lines(stream)[1] == "sample     80/1024 answers    7%  340 tokens/s  ETA 0:59"
    assert lines(stream)[-1] == "sample   1024/1024 answers  100%  340 tokens/s"
    assert len(lines(stream)) == 1 + 64 // 5 + 1


def test_the_memory_is_on_the_line() -> None:
    progress, stream = plain(Clock())
    with progress, progress.track("sample", 1, "answers"):
        pass
    assert re.search(r"  0%  \d+(\.\d)? [GM]iB$", stream.getvalue().strip())


def test_the_first_units_of_many_give_no_pace() -> None:
    """They include loading: the first of 256 texts took 9 s, each of the others 10 ms."""
    clock = Clock()
    progress, _ = plain(clock)
    with progress, progress.track("rank", total=256, unit="prompts") as bar:
        clock.time += 9
        bar.advance(1)
        assert bar.seconds_left() == (None, None)
        clock.time += 0.5
        bar.advance(50)
        assert bar.seconds_left() == (pytest.approx(205 * 0.01), None)


def test_the_pace_is_of_this_process_alone() -> None:
    clock = Clock()
    progress, stream = plain(clock)
    with progress, progress.track("ppo", total=100, unit="steps", done=90) as bar:
        clock.time += 10
        bar.advance(1, kl=0.1234)
    assert lines(stream) == ["ppo       90/100 steps   90%", "ppo       91/100 steps   91%  kl 0.123  ETA 1:30"]


def test_a_bar_tells_the_whole_runs_time_to_go() -> None:
    clock = Clock()
    progress, stream = plain(clock)
    with progress:
        progress.stage(1, 6, "sft", "fine-tune", later=lambda own: 2 * own)
        with progress.track("sft", total=100, unit="steps") as bar:
            clock.time += 10
            bar.advance(10)
        progress.stage(6, 6, "evaluate", "compare", later=lambda _: None)
        with progress.track("evaluate", total=2, unit="answers") as bar:
            clock.time += 10
            bar.advance(1)
    # A second a step: 90 s of this stage, and twice its 100 s after it.
    assert "sft       10/100 steps   10%  ETA 1:30 (run 4:50)" in lines(stream)
    assert "evaluate 1/2 answers   50%  ETA 0:10" in lines(stream)


def test_the_last_line_comes_after_an_error_too() -> None:
    progress, stream = plain(Clock())

    def work() -> None:
        with progress, progress.track("sft", 10, "steps") as bar:
            bar.advance(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert lines(stream)[-1].startswith("sft       3/10 steps   30%")


def test_nothing_to_do_is_no_division_by_zero() -> None:
    progress, stream = plain(Clock())
    with progress, progress.track("sft", 0, "steps"):
        pass
    assert lines(stream) == ["sft      0/0 steps    0%"]


def test_a_terminal_gets_a_bar_and_keeps_the_last_line() -> None:
    stream = io.StringIO()
    progress = Progress(Console(file=stream, force_terminal=True, width=120, _environ={}))
    with progress:
        with progress.track("outer", 2, "rounds") as outer, progress.track("sample [b]", 4, "answers") as bar:
            bar.advance(3, tokens_per_second=12.34)
            outer.advance()
        progress.say("end [red]")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "━" in text
    assert "sample [b] 3/4 answers   75%  12.3 tokens/s" in text
    assert "end [red]" in text


def test_stage_headings_count_and_tell_the_time() -> None:
    clock = Clock()
    progress, stream = plain(clock)
    with progress:
        clock.time += 62
        progress.stage(3, 6, "rank", "rank the answers, best to worst")
        progress.stage(4, 6, "reward", "train [it]", eta_seconds=3700)
        progress.stage(2, 6, "sample", "sample", eta_seconds=60, people_rank=True)
    assert stream.getvalue().splitlines() == [
        "[3/6] rank: rank the answers, best to worst  (1:02 so far)",
        "[4/6] reward: train [it]  (1:02 so far, about 1:01:40 to go)",
        "[2/6] sample: sample  (1:02 so far, about 1:00 to go, without the time to rank)",
    ]


def test_what_a_data_file_holds_steers_no_terminal() -> None:
    loaded = Loaded("x", FORMATS[0], "so", 1, [], [], ["\x1b[2J", "\u202e\x9b31m", "a\u200db"])
    progress, stream = plain(Clock())
    with progress:
        progress.say(loaded.notes[1])
    assert stream.getvalue() == "Ignored the keys \\x1b[2J, \\u202e\\x9b31m, a\u200db.\n"


def test_silence(capfd: pytest.CaptureFixture) -> None:
    with Progress.silent() as progress, progress.track("sft", 2, "steps") as bar:
        bar.advance()
        progress.say("x")
        progress.stage(1, 1, "sft", "x")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(20.6), "0:21"),
        (duration(59.7), "1:00"),
        (duration(3753), "1:02:33"),
        (memory(1.25 * 2**30), "1.2 GiB"),
        (memory(86 * 2**20), "86 MiB"),
        (figure("tokens_per_second", 1234.4), "1,234 tokens/s"),
        (figure("kl_coef", 5e-5), "kl coef 5e-05"),
        (figure("win_rate", 0.98765), "win rate 0.988"),
        (figure("score", -123.4), "score -123"),
    ],
)
def test_figures_as_text(shown: str, expected: str) -> None:
    assert shown == expected


class TestProgressFile:
    def test_it_has_the_outermost_task_at_most_once_a_second(self, tmp_path) -> None:
        clock = Clock()
        progress, _ = plain(clock)
        with progress, progress.recorded_in(tmp_path):
            progress.stage(1, 6, "ppo", "train", later=lambda own: 2 * own)
            with progress.track("ppo", total=100, unit="steps", done=10) as bar:
                assert read_progress(tmp_path).done == 10
                bar.advance(1)
                assert read_progress(tmp_path).done == 10  # too early
                clock.time += 2
                with progress.track("sample", total=8, unit="answers") as inner:
                    inner.advance(1)
                    assert read_progress(tmp_path).stage == "ppo"
                    clock.time += 8
                    inner.advance(7)
                bar.advance(1, kl=0.5)
                clock.time += 1
                bar.advance(0)
                state = read_progress(tmp_path)
                assert (state.stage, state.unit, state.done, state.total) == ("ppo", "steps", 12, 100)
                assert state.figures == {"kl": 0.5}
                assert state.seconds_left == pytest.approx(11 * 88)  # without the first step
                assert state.run_seconds_left == pytest.approx(11 * 88 + 2 * 11 * 100)
            progress.stage(2, 6, "evaluate", "compare")
            assert read_progress(tmp_path) is None

    def test_it_is_gone_when_the_run_ends_or_fails(self, tmp_path) -> None:
        progress, _ = plain(Clock())

        def work() -> None:
            with progress, progress.recorded_in(tmp_path), progress.track("sft", 10, "steps"):
                assert read_progress(tmp_path) is not None
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            work()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("text", ["", "not json", "[1]", '{"stage": 3}', '{"stage": "ppo", "done": -1}'])
    def test_a_damaged_file_counts_as_none(self, tmp_path, text) -> None:
        (tmp_path / "progress.json").write_text(text)
        assert read_progress(tmp_path) is None

    def test_a_figure_that_is_not_finite_hides_no_bar(self, tmp_path) -> None:
        figures = {"kl": float("nan")}
        state = StageProgress(stage="ppo", unit="steps", done=1, total=2, figures=figures, updated_at="now")
        write_progress(tmp_path, state)
        assert read_progress(tmp_path).figures == {"kl": None}

    def test_a_folder_that_cannot_be_written_stops_nothing(self, tmp_path) -> None:
        progress, stream = plain(Clock())
        with progress, progress.recorded_in(tmp_path / "gone"), progress.track("sft", 1, "steps") as bar:
            bar.advance()
        assert lines(stream)[-1] == "sft      1/1 steps  100%"


class TestStopRequest:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_first_signal_asks_and_the_second_insists(self, number: int, capfd: pytest.CaptureFixture) -> None:
        before = signal.getsignal(number)
        with StopRequest() as stop:
            stop.check("nothing happened yet")
            signal.raise_signal(number)
            assert stop.requested
            assert "Press Ctrl-C again to stop immediately" in capfd.readouterr().err
            with pytest.raises(
                Stopped, match=r"^Stopped; step 50 is saved\. To resume, rerun the same command"
            ) as caught:
                stop.check("step 50 is saved")
            assert caught.value.exit_code == ExitCode.STOPPED
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert signal.getsignal(number) is before

    def test_outside_the_main_thread_it_is_a_mere_flag(self) -> None:
        outcome: list[object] = []

        def work() -> None:
            with StopRequest() as stop:
                stop.requested = True
                try:
                    stop.check("x")
                except Stopped as error:
                    outcome.append(error)

        before = signal.getsignal(signal.SIGINT)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert len(outcome) == 1
        assert signal.getsignal(signal.SIGINT) is before
