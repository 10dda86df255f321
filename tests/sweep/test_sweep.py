"""Sweeps: the grid and its names, what runs share, what a stop or a failure leaves, and the table."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from platforms import posix
from tiny_run import make_config, write_prompts

from lowrank_rlhf import cli, stages
from lowrank_rlhf.config.loading import dump_config, load_config
from lowrank_rlhf.data.run_data import keep_commits, read_commits
from lowrank_rlhf.errors import StageFailed, Stopped, UserError, WaitingForPeople
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.planner import machine
from lowrank_rlhf.reports.charts import distance_and_gold
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.results import RewardResult, StageResult
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.session import Session
from lowrank_rlhf.sweep import launch as launching
from lowrank_rlhf.sweep import runner, share
from lowrank_rlhf.sweep.grid import Combination, Sweep, make_sweep, split_values
from lowrank_rlhf.sweep.launch import Launched, Outcome, command_of, share_of
from lowrank_rlhf.sweep.plot import mean_points, write_plot
from lowrank_rlhf.sweep.runner import exit_code, run_sweep
from lowrank_rlhf.sweep.schedule import Start

GPU, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
BASE = "name: a\nmodel: {source: x}\n"


@dataclass(frozen=True)
class FakeStage(stages.Stage):
    made: Callable[[Session], StageResult] = field(kw_only=True, compare=False)

    @property
    def run(self) -> Callable[[Session], StageResult]:
        return self.made


def nothing(_: str, __: Session) -> None:
    """Nothing special happens in this stage."""


class Factory:
    """Three stages in a chain, and the record of what ran in which run."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, str]] = []
        self.before: Callable[[str, Session], None] = nothing
        self.stages = (
            self.stage("sft", ("seed", "sft"), ()),
            self.stage("reward", ("seed", "reward"), ("sft.txt",)),
            self.stage("ppo", ("seed", "ppo"), ("sft.txt", "reward.txt")),
        )

    def stage(self, name: str, settings: tuple[str, ...], reads: tuple[str, ...]) -> FakeStage:
        def run(session: Session) -> StageResult:
            self.ran.append((session.config.name, name))
            self.before(name, session)
            session.metrics.append(name, 1, loss=session.config.seed)
            text = f"{name} {session.config.seed} {session.config.reward.epochs} {session.config.ppo.kl_coef}"
            (session.work(name) / f"{name}.txt").write_text(text)
            return RewardResult(accuracy=0.75, accuracy_interval=(0.5, 1.0))

        return FakeStage(name, "pretend", settings, reads, (f"{name}.txt",), made=run)


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Factory:
    factory = Factory()
    monkeypatch.setattr(stages, "STAGES", factory.stages)
    monkeypatch.setattr(pipeline, "write_report", lambda *_: None)  # these stages have no figures to report
    monkeypatch.setattr(runner, "_SECONDS_BETWEEN_LOOKS", 0)
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE + "stages: [sft, reward, ppo]\n")
    return factory


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    outcome: Outcome

    def poll(self) -> Outcome:
        return self.outcome

    def stop(self) -> None:
        """Nothing is at work."""

    def end(self) -> None:
        """Nothing is at work."""


def here(combination: Combination, _: int = 0) -> Ended:
    """The run in this process, with the exit code that its own process would have."""
    try:
        with Progress.silent() as progress:
            pipeline.run(combination.config, Path("runs"), progress=progress)
    except UserError as error:
        return Ended(Outcome(int(error.exit_code), str(error)))
    return Ended(Outcome(0, ""))


def run(sweep: Sweep, start: Start = here, stop: StopRequest | None = None, places: int = 1) -> tuple[dict, str]:
    said: list[str] = []
    record = run_sweep(sweep, Path("runs"), start, said.append, stop or StopRequest(), places)
    return record, "\n".join(said)


class TestGrid:
    @pytest.fixture(autouse=True)
    def _base(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("base.yaml").write_text(BASE)

    def test_every_combination_the_last_setting_fastest(self) -> None:
        sweep = make_sweep("base.yaml", ["ppo.kl_coef=0.02,1e-1", "ppo.steps=7", "seed=1,2"])
        assert sweep.name == "a-sweep"
        found = [(c.config.ppo.kl_coef, c.config.seed, c.config.ppo.steps) for c in sweep.combinations]
        assert found == [(0.02, 1, 7), (0.02, 2, 7), (0.1, 1, 7), (0.1, 2, 7)]
        assert [c.config.name for c in sweep.combinations] == [
            "a-kl_coef-0.02-seed-1",
            "a-kl_coef-0.02-seed-2",
            "a-kl_coef-1e-1-seed-1",
            "a-kl_coef-1e-1-seed-2",
        ]
        assert sweep.combinations[2].settings == {"ppo.kl_coef": "1e-1", "seed": "1"}

    def test_the_command_of_a_run_makes_the_same_config(self) -> None:
        for combination in make_sweep("base.yaml", ["seed=1,2", "name=mine", "sft.epochs=3"]).combinations:
            assert load_config(Path("base.yaml"), combination.overrides) == combination.config
        assert combination.config.name == "mine-seed-2"

    def test_names_are_valid_short_and_distinct(self) -> None:
        sweep = make_sweep(
            "base.yaml", ["lora.target_modules=[q_proj, v_proj],[q_proj. v_proj],all-linear", f"name={'n' * 60}"]
        )
        names = [combination.config.name for combination in sweep.combinations]
        assert len(set(names)) == 3
        for name in names:
            assert load_config(Path("base.yaml"), [f"name={name}"]).name == name
        plain = make_sweep("base.yaml", ["ppo.epochs=1,2", "sft.epochs=1,2"]).combinations[1].config.name
        assert plain == "a-ppo.epochs-1-sft.epochs-2"  # `epochs-1-epochs-2` would not say which is which
        same = make_sweep("base.yaml", ["model.source=m:f,m-f"])
        assert len({combination.config.name for combination in same.combinations}) == 2

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("1", ["1"]),
            ("1, 2", ["1", "2"]),
            ("[a, b],all", ["[a, b]", "all"]),
            ("{a: [1, 2]}, 'x, y'", ["{a: [1, 2]}", "'x, y'"]),
            ("it's.jsonl,b", ["it's.jsonl", "b"]),
            ("", [""]),
        ],
    )
    def test_commas_separate_only_at_the_top(self, text: str, parts: list[str]) -> None:
        assert split_values(text) == parts

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["seed=1"], "nothing to sweep: give at least one setting several values, such as ppo.kl_coef=0.02,0.1"),
            (["seed"], '"seed": must be key=value or key=value,value, such as ppo.kl_coef=0.02,0.1'),
            (["seed=1,,2"], '"seed=1,,2": empty value next to a comma'),
            (["seed=1,2,1"], '"seed=1,2,1": 1 is given twice'),
            (["seed=1,2", "seed=3"], '"seed=3": seed is given twice; write all its values after one ='),
            (["seed=[1, 2"], '"seed=[1, 2": ] is missing; commas inside [a, b] and quotes do not separate values'),
            (["name=a,b"], "name: must have one value; each run's name is made from it and the run's settings"),
            (["seed=1,x", "ppo.kl_coef=0.1,-1"], 'override "seed=x": seed: must be a whole number, not "x"\n'
             'override "ppo.kl_coef=-1": ppo.kl_coef: must be at least 0, not -1'),
            (["ppo.kl_coeff=1,2"], 'override "ppo.kl_coeff=1": ppo.kl_coeff: unknown key. Did you mean "kl_coef"?\n'
             'override "ppo.kl_coeff=2": ppo.kl_coeff: unknown key. Did you mean "kl_coef"?'),
        ],
    )  # fmt: skip
    def test_mistakes_are_named_before_anything_runs(self, arguments: list[str], message: str) -> None:
        with pytest.raises(UserError) as caught:
            make_sweep("base.yaml", arguments)
        assert sorted(str(caught.value).splitlines()) == sorted(message.splitlines())


class TestSharing:
    def test_a_stage_is_made_once_for_all_that_need_the_same(self, factory: Factory) -> None:
        sweep = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2", "seed=1,2"])
        record, said = run(sweep)
        made = [stage for _, stage in factory.ran]
        assert (made.count("sft"), made.count("reward"), made.count("ppo")) == (2, 2, 4)
        assert [entry["state"] for entry in record["runs"]] == ["done"] * 4
        donor = "a-kl_coef-0.1-seed-2"
        assert f"  sft: same as in {donor}; copied and verified by hashes" in said
        assert record["runs"][3]["taken_from"] == {"sft": donor, "reward": donor}
        run_dir = RunDir(Path("runs/a-kl_coef-0.2-seed-2"))
        assert run_dir.artifact("ppo.txt").read_text() == "ppo 2 1 0.2"
        assert [row["stage"] for row in StepLog(run_dir.path / "metrics.jsonl").read()] == ["sft", "reward", "ppo"]
        assert [s.state for s in pipeline.plan(sweep.combinations[3].config, run_dir)] == ["done"] * 3

    def test_one_run_alone_copies_what_others_have_made_and_writes_no_table(self, factory: Factory) -> None:
        sweep = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2"])
        for only in (0, 1):
            record = run_sweep(sweep, Path("runs"), here, lambda _: None, StopRequest(), only=only)
            assert [entry["run"] for entry in record["runs"]] == [sweep.combinations[only].config.name]
        assert [stage for _, stage in factory.ran] == ["sft", "reward", "ppo", "ppo"]
        assert not Path("runs", sweep.name).exists()

    def test_one_run_alone_is_planned_alone(self, factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
        """Other nodes write to the other runs at the same time."""
        sweep = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2"])
        planned: list[str] = []
        monkeypatch.setattr(runner, "complete", lambda entry, _: not planned.append(entry.config.name))
        run_sweep(sweep, Path("runs"), here, lambda _: None, StopRequest(), only=1)
        assert planned == [sweep.combinations[1].config.name]
        assert factory.ran == []

    @pytest.mark.usefixtures("factory")
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--only", "3"], "--only 3: the sweep has runs 1 to 2; `--dry-run` lists them"),
            (["--only", "1", "--dry-run"], "--only 1 executes one run: leave out --dry-run"),
            (["--only", "1", "--parallel", "2"], "--only 1 executes one run: leave out --parallel"),
        ],
    )
    def test_one_run_that_cannot_be_chosen(
        self, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "sweep", "base.yaml", "seed=1,2", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code, capsys.readouterr().err) == (2, f"{message}\n")

    def test_the_dry_run_tells_what_then_happens(self, factory: Factory) -> None:
        sweep = make_sweep("base.yaml", ["reward.epochs=1,2", "ppo.kl_coef=0.1,0.2"])
        told = share.shared_stages([combination.config for combination in sweep.combinations])
        record, _ = run(sweep)
        assert [entry.get("taken_from", {}) for entry in record["runs"]] == told
        assert told[2] == {"sft": "a-epochs-1-kl_coef-0.1"}
        assert told[3] == {"sft": "a-epochs-1-kl_coef-0.1", "reward": "a-epochs-2-kl_coef-0.1"}
        assert len(factory.ran) == 12 - sum(map(len, told))

    def test_a_copy_is_independent_of_its_original(self, factory: Factory) -> None:
        sweep = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2"])
        run(sweep)
        RunDir(Path("runs/a-kl_coef-0.1")).artifact("sft.txt").write_text("by hand")
        states = [s.state for s in pipeline.plan(sweep.combinations[1].config, RunDir(Path("runs/a-kl_coef-0.2")))]
        assert states == ["done"] * 3
        assert len(factory.ran) == 4

    def test_a_copy_goes_with_the_commits_of_the_data_it_was_made_from(self, factory: Factory) -> None:
        """Else the data set's owner could push in between, and what follows would read other rows."""
        sweep = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2"])
        first = RunDir(Path("runs") / sweep.combinations[0].config.name)
        factory.before = lambda *_: keep_commits(first, {"hub:a/b": "a" * 40})
        run(sweep)
        second = RunDir(Path("runs") / sweep.combinations[1].config.name)
        assert second.mark("sft").taken_from == first.path.name
        assert read_commits(second) == {"hub:a/b": "a" * 40}

    @pytest.mark.usefixtures("factory")
    def test_what_was_changed_by_hand_in_the_donor_is_not_built_on(self) -> None:
        sweep = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2"])
        first, second = sweep.combinations
        here(first)
        RunDir(Path("runs/a-kl_coef-0.1")).artifact("sft.txt").write_text("by hand")
        taken = share.take_over(second.config, Path("runs"), [first.config.name])
        assert taken == {}
        assert here(second).poll().code == 0
        assert RunDir(Path("runs/a-kl_coef-0.2")).artifact("sft.txt").read_text() == "sft 1 1 0.2"

    def test_a_copy_that_differs_is_refused(self, factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
        first, second = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2"]).combinations
        here(first)
        monkeypatch.setattr(share.shutil, "copy2", lambda _, target: Path(target).write_text("garbled"))
        with pytest.raises(StageFailed, match="differs"):
            share.take_over(second.config, Path("runs"), [first.config.name])
        assert RunDir(Path("runs/a-kl_coef-0.2")).mark("sft") is None
        assert len(factory.ran) == 3


class TestGoingOn:
    def test_the_same_command_again_runs_nothing(self, factory: Factory) -> None:
        sweep = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2"])
        before, _ = run(sweep)
        factory.ran.clear()
        after, said = run(sweep)
        assert factory.ran == []
        assert said.count("already done, skipped") == 2
        assert after == before

    def test_after_a_stop_it_goes_on_where_it_was(self, factory: Factory) -> None:
        sweep = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2,0.3"])
        requested = StopRequest()

        def stop(name: str, session: Session) -> None:
            if (name, session.config.ppo.kl_coef) == ("ppo", 0.2):
                requested.requested = True
                raise Stopped("saved")

        factory.before = stop
        with pytest.raises(Stopped):
            run(sweep, stop=requested)
        saved = json.loads(Path("runs/a-sweep/sweep.json").read_text())
        assert [entry["state"] for entry in saved["runs"]] == ["done", "stopped", "to do"]
        factory.ran.clear()
        factory.before = nothing
        record, _ = run(sweep)
        assert factory.ran == [("a-kl_coef-0.2", "ppo"), ("a-kl_coef-0.3", "ppo")]
        assert exit_code(record) == 0

    def test_a_run_that_fails_is_noted_and_the_others_go_on(self, factory: Factory) -> None:
        sweep = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2,0.3"])

        def fail(name: str, session: Session) -> None:
            if (name, session.config.ppo.kl_coef) == ("ppo", 0.2):
                raise StageFailed("ppo: it is off | by far")

        factory.before = fail
        record, said = run(sweep)
        assert [entry["state"] for entry in record["runs"]] == ["done", "failed", "done"]
        assert record["runs"][1]["message"] == "ppo: it is off | by far"
        assert record["runs"][1]["reward_accuracy"] == 0.75  # what it did find
        assert "exit code 1; recorded" in said
        assert exit_code(record) == 1
        page = Path("runs/a-sweep/sweep.md").read_text()
        assert "- a-kl_coef-0.2: ppo: it is off | by far" in page
        assert "| a-kl_coef-0.2 | 0.2 | 75 % [50, 100] |" in page

    def test_people_who_have_to_rank_are_no_failure(self, factory: Factory) -> None:
        def wait(name: str, session: Session) -> None:
            if name == "reward":
                raise WaitingForPeople(f"rank some in {session.config.name}")

        factory.before = wait
        record, _ = run(make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2"]))
        assert {entry["state"] for entry in record["runs"]} == {"waiting for people"}
        assert exit_code(record) == 5

    def test_a_run_of_that_name_is_not_taken_for_a_sweep(self, factory: Factory) -> None:
        Path("runs/a-sweep").mkdir(parents=True)
        Path("runs/a-sweep/config.yaml").write_text("")
        with pytest.raises(UserError, match="another name"):
            run(make_sweep("base.yaml", ["seed=1,2"]))
        assert factory.ran == []


class TestLaunch:
    def test_a_command_is_a_list_and_starts_no_shell(self) -> None:
        command = command_of("my config.yaml", ["name=$(touch x)", "seed=1"], Path("a b"))
        assert command[1:] == [
            "-m",
            "lowrank_rlhf",
            "run",
            "my config.yaml",
            "name=$(touch x)",
            "seed=1",
            "--runs",
            "a b",
        ]

    def test_exit_code_and_last_words(self, capfd: pytest.CaptureFixture, tmp_path: Path) -> None:
        code = "import sys; print('figures'); print('why', file=sys.stderr); sys.exit(3)"
        assert outcome(Launched([sys.executable, "-c", code], {}, quiet=True)) == Outcome(3, "why")
        out, err = capfd.readouterr()
        assert out == ""  # stdout belongs to --json
        assert "figures" in err
        assert "why" in err
        outcome(Launched([sys.executable, "-c", "print('figures')"], {}))
        assert capfd.readouterr().out == "figures\n"
        log = tmp_path / "a.log"
        assert outcome(Launched([sys.executable, "-c", code], {}, log)) == Outcome(3, "why")
        assert sorted(log.read_text().splitlines()) == ["figures", "why"]
        assert capfd.readouterr() == ("", "")

    def test_a_process_that_holds_stderr_open_does_not_block(self) -> None:
        child = f"import subprocess; subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(20)'])"
        begun = time.monotonic()
        assert outcome(Launched([sys.executable, "-c", child], {})).code == 0
        assert time.monotonic() - begun < 15

    @posix
    def test_a_run_that_ignores_signals_is_killed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(launching, "_SECONDS_BETWEEN_SIGNALS", (0.1, 0.1))
        ready = tmp_path / "ready"
        code = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'w'); "
        launched = Launched([sys.executable, "-c", code + "time.sleep(60)", str(ready)], {})
        while not ready.exists():
            time.sleep(0.01)
        launched.end()
        assert launched.poll() == Outcome(-signal.SIGKILL, "")

    def test_the_environment_is_passed_on(self, capfd: pytest.CaptureFixture) -> None:
        outcome(Launched([sys.executable, "-c", "import os; print(os.environ['LATER'])"], {"LATER": "yes"}))
        assert capfd.readouterr().out == "yes\n"

    @pytest.mark.parametrize(
        ("places", "found", "of_cores", "threads", "shares"),
        [
            (1, ["0", "1"], 8, None, [{}]),
            (3, ["0", "7"], 8, None, [{GPU: "0"}, {GPU: "7"}, {GPU: "0"}]),
            (3, [], 8, None, [{THREADS: "2"}] * 3),
            (3, [], 2, None, [{THREADS: "1"}] * 3),
            (2, [], 8, "3", [{}, {}]),
        ],
    )
    def test_each_place_has_a_gpu_or_its_share_of_the_cores(
        self, places: int, found: list[str], of_cores: int, threads: str | None, shares: list, monkeypatch
    ) -> None:
        monkeypatch.setattr(launching, "gpus", lambda: found)
        monkeypatch.setattr(launching, "cores", lambda: of_cores)
        monkeypatch.delenv(THREADS, raising=False)
        if threads:
            monkeypatch.setenv(THREADS, threads)
        assert [share_of(place, places, on_gpu=True) for place in range(places)] == shares
        assert share_of(0, 2, on_gpu=False).get(GPU) is None

    def test_gpus_are_those_that_the_user_left_visible(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "_gpu_memory", lambda: [(1, 2), (1, 2)])
        monkeypatch.delenv(GPU, raising=False)
        assert machine.gpus() == ["0", "1"]
        monkeypatch.setenv(GPU, "3, GPU-1a")
        assert machine.gpus() == ["3", "GPU-1a"]
        for hidden in ("", "-1"):
            monkeypatch.setenv(GPU, hidden)
            assert machine.gpus() == []
        monkeypatch.setenv(GPU, "0")
        monkeypatch.setattr(machine, "_gpu_memory", list)  # a PyTorch without CUDA
        assert machine.gpus() == []


def outcome(launched: Launched) -> Outcome:
    while not (found := launched.poll()):
        time.sleep(0.01)
    return found


class Slow:
    """A run that makes its stages one at each look."""

    def __init__(self, combination: Combination, seen: list[str]) -> None:
        self.name, self.config, self.seen, self.stops = combination.config.name, combination.config, seen, 0
        self.left, self.saving = [stage.name for stage in stages.STAGES], False

    def poll(self) -> Outcome | None:
        self.seen.append(self.name)
        if self.stops:  # saving takes it another look
            self.saving = not self.saving
            return None if self.saving else Outcome(130, "")
        if not self.left:
            return Outcome(0, "")
        with Progress.silent() as progress:
            pipeline.run(self.config, Path("runs"), until=self.left.pop(0), progress=progress)
        return None

    def stop(self) -> None:
        self.stops += 1

    def end(self) -> None:
        self.left = []


class TestParallel:
    def test_runs_work_side_by_side_and_shared_stages_are_made_once(self, factory: Factory) -> None:
        sweep, seen, places = make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2", "seed=1,2"]), [], []

        def start(combination: Combination, place: int) -> Slow:
            places.append((combination.config.name, place))
            return Slow(combination, seen)

        record, _ = run(sweep, start, places=3)
        assert exit_code(record) == 0
        made = [stage for _, stage in factory.ran]
        assert (made.count("sft"), made.count("reward"), made.count("ppo")) == (2, 2, 4)
        first = "a-kl_coef-0.1-seed-1"
        assert set(seen[: seen.index(first, 1)]) == {first, "a-kl_coef-0.1-seed-2"}  # the two work in turn
        # The third run starts when the stage that it shares with the first is done, not when the first has ended.
        assert seen.index("a-kl_coef-0.2-seed-1") < len(seen) - 1 - seen[::-1].index(first)
        assert dict(places[:3]) == {first: 0, "a-kl_coef-0.1-seed-2": 1, "a-kl_coef-0.2-seed-1": 2}
        assert record["runs"][2]["taken_from"] == {"sft": first, "reward": first}

    def test_after_a_failure_one_of_the_others_makes_the_shared_stage(self, factory: Factory) -> None:
        def start(combination: Combination, _: int) -> Ended | Slow:
            return Ended(Outcome(1, "no")) if combination.config.ppo.kl_coef == 0.1 else Slow(combination, [])

        record, _ = run(make_sweep("base.yaml", ["ppo.kl_coef=0.1,0.2,0.3"]), start, places=3)
        assert [entry["state"] for entry in record["runs"]] == ["failed", "done", "done"]
        assert [stage for _, stage in factory.ran].count("sft") == 1

    def test_a_stop_reaches_every_run_once(self, factory: Factory) -> None:
        started: list[Slow] = []
        requested = StopRequest()

        def start(combination: Combination, _: int) -> Slow:
            started.append(Slow(combination, []))
            requested.requested = len(started) == 2
            return started[-1]

        with pytest.raises(Stopped, match="the same command resumes"):
            run(make_sweep("base.yaml", ["seed=1,2,3"]), start, requested, places=2)
        assert [job.stops for job in started] == [1, 1]
        saved = json.loads(Path("runs/a-sweep/sweep.json").read_text())
        assert [entry["state"] for entry in saved["runs"]] == ["stopped", "stopped", "to do"]
        assert factory.ran == [("a-seed-1", "sft"), ("a-seed-2", "sft")]

    def test_no_process_is_left_after_an_error(self, factory: Factory) -> None:
        started: list[Launched] = []

        def start(_: Combination, __: int) -> Launched:
            if started:
                raise KeyboardInterrupt
            started.append(Launched([sys.executable, "-c", "import time; time.sleep(60)"], {}))
            return started[0]

        with pytest.raises(KeyboardInterrupt):
            run(make_sweep("base.yaml", ["seed=1,2"]), start, places=2)
        assert started[0].poll() == Outcome(-signal.SIGTERM, "")
        assert factory.ran == []


class TestPlot:
    def evaluations(self, folder: Path, rows: list[tuple[int, float | None, float | None]]) -> Path:
        log = StepLog(folder / "metrics.jsonl")
        folder.mkdir(parents=True)
        for step, kl, judge in rows:
            log.append("ppo", step, **{"eval/kl": kl, "eval/judge": judge})
        log.append("ppo", 9, **{"objective/kl": 1.0})
        return folder

    def test_points_are_distance_and_gold(self, tmp_path: Path) -> None:
        folder = self.evaluations(tmp_path / "a", [(0, -0.01, 0.3), (2, 4.0, 0.5), (4, None, 0.6), (6, 9.0, None)])
        assert distance_and_gold(list(RunDir(folder).metrics.read())) == {0: (0.0, 0.3), 2: (2.0, 0.5)}
        metrics = folder / "metrics.jsonl"  # where people ranked there is only the second one
        metrics.write_text(metrics.read_text().replace("eval/judge", "eval/second_judge"))
        assert distance_and_gold(list(RunDir(folder).metrics.read())) == {0: (0.0, 0.3), 2: (2.0, 0.5)}

    def test_seeds_are_averaged_where_all_have_a_point(self) -> None:
        assert mean_points([{0: (0.0, 0.2), 2: (2.0, 0.4), 4: (3.0, 0.5)}, {0: (0.0, 0.4), 2: (4.0, 0.8)}]) == {
            0: (0.0, pytest.approx(0.3)),
            2: (3.0, pytest.approx(0.6)),
        }
        assert mean_points([]) == {}

    def test_a_picture_of_the_runs_that_have_any(self, tmp_path: Path) -> None:
        entries = [{"run": name, "settings": {"ppo.kl_coef": "0.1", "seed": name}} for name in "abc"]
        for name in "ab":
            self.evaluations(tmp_path / name, [(0, 0.0, 0.3), (2, 4.0, 0.5)])
        (tmp_path / "c").mkdir()
        assert write_plot(entries, tmp_path, tmp_path / "s" / "sweep.svg")
        assert (tmp_path / "s" / "sweep.svg").read_text().startswith("<svg ")
        assert not write_plot(entries[2:], tmp_path, tmp_path / "none.svg")
        assert not (tmp_path / "none.svg").exists()


SBATCH = """#!/bin/bash
# Run the first task of the array here and now.
options=()
while [[ $1 == --* ]]; do [ "$1" = --parsable ] || options+=("$1"); shift; done
echo "${options[@]}" >> submitted.txt
for option in "${options[@]}"; do
    case $option in
        --array=*) export SLURM_ARRAY_TASK_ID=${option#--array=} ;;
        --export=ALL,*) export "${option#--export=ALL,}" ;;
    esac
done
bash "$@" > /dev/null
wc -l < submitted.txt
"""
PYTHON = """#!/bin/bash
# Lists the planned runs, and notes all other commands of the package.
case "$*" in
    -c*) exec "$REAL_PYTHON" "$@" ;;
    *--dry-run*) cat plan.json ;;
    *) echo "$@" >> commands.txt ;;
esac
"""


class TestCommand:
    @pytest.fixture
    def tiny(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[1]))
        config = make_config(tiny_folder("llama"), write_prompts(tmp_path / "prompts.jsonl"), "none", data__held_out=8)
        Path("tiny.yaml").write_text(dump_config(config))
        return tmp_path

    def test_two_real_runs_side_by_side_from_the_plan_to_the_table(self, tiny: Path, command: Callable) -> None:
        settings = ("sweep", "tiny.yaml", "ppo.kl_coef=0.05,0.2", "ppo.steps=2")
        code, listed, _ = command(*settings, "--dry-run")
        assert code == 0
        assert "  shares sft, sample, rank, reward with tiny-kl_coef-0.05" in listed
        assert not (tiny / "runs").exists()
        code, printed, err = command(*settings, "--parallel", "2", "--json")
        assert code == 0, err
        record = json.loads(printed)
        assert [entry["run"] for entry in record["runs"]] == ["tiny-kl_coef-0.05", "tiny-kl_coef-0.2"]
        assert set(record["runs"][1]["taken_from"]) == {"sft", "sample", "rank", "reward"}
        for entry in record["runs"]:
            assert 0 <= entry["win_rate"] <= 1
            assert entry["win_rate_interval"][0] <= entry["win_rate"] <= entry["win_rate_interval"][1]
            assert {"reward_accuracy", "mean_shift", "kl_per_answer", "eos_rate", "distinct_2"} <= set(entry)
            log = Path("runs/tiny-sweep") / f"{entry['run']}.log"
            assert f"output: {log}" in err
            assert "ppo" in log.read_text()
        assert json.loads((tiny / "runs/tiny-sweep/sweep.json").read_text()) == record
        assert (tiny / "runs/tiny-sweep/sweep.svg").stat().st_size > 1000
        code, again, _ = command(*settings)
        assert code == 0
        assert again.count("already done, skipped") == 2
        assert "dist-2" in again

    @posix
    def test_a_slurm_job_starts_after_those_that_it_copies_from(self, tmp_path: Path) -> None:
        """Run 4 copies from run 3, which copies from run 1. The script starts in an allocation, with a SLURM_JOB_ID."""
        for name, text in {"sbatch": SBATCH, "python": PYTHON}.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        shares = [{}, {"sft": "a"}, {"sft": "a"}, {"sft": "a", "reward": "c"}, {}]
        runs = [{"run": name, "shares": found} for name, found in zip("abcde", shares, strict=True)]
        (tmp_path / "plan.json").write_text(json.dumps({"runs": runs}))
        given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python"), "SLURM_JOB_ID": "7"}
        script = Path(__file__).parents[2] / "examples/clusters/slurm_sweep.sh"
        submitted = subprocess.run(
            ["bash", script, "x.yaml", "seed=1,2"], cwd=tmp_path,
            capture_output=True, text=True, check=False, env={**given, "REAL_PYTHON": sys.executable},
        )  # fmt: skip
        told = "Runs 1,5: job 1\nRuns 2,3: job 2\nRuns 4: job 3\nTable and plot: job 4\n"
        assert submitted.stdout == told, submitted.stderr
        assert (tmp_path / "submitted.txt").read_text().splitlines() == [
            "--export=ALL,SWEEP_JOB=run --array=1,5",
            "--export=ALL,SWEEP_JOB=run --array=2,3 --dependency=afterany:1",
            "--export=ALL,SWEEP_JOB=run --array=4 --dependency=afterany:2",
            "--export=ALL,SWEEP_JOB=table --dependency=afterany:3",
        ]
        command = "-m lowrank_rlhf sweep x.yaml seed=1,2"
        of_runs = [f"{command} --only {tasks}" for tasks in ("1,5", "2,3", "4")]
        assert (tmp_path / "commands.txt").read_text().splitlines() == [*of_runs, command]

    @posix
    def test_ctrl_c_stops_cleanly(self, tiny: Path) -> None:
        settings = ["tiny.yaml", "seed=1,2", "stages=[sft]", "sft.epochs=2000"]
        with subprocess.Popen(
            [sys.executable, "-m", "lowrank_rlhf", "sweep", *settings],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as running:  # fmt: skip
            deadline = time.monotonic() + 200
            begun = tiny / "runs/tiny-seed-1/metrics.jsonl"
            while not begun.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=200)
        assert running.returncode == 130
        assert "is saved" in err
        assert "the same command resumes" in err
        assert "Traceback" not in err
        assert not (tiny / "runs/tiny-seed-2").exists()
        saved = json.loads((tiny / "runs/tiny-sweep/sweep.json").read_text())
        assert [entry["state"] for entry in saved["runs"]] == ["stopped", "to do"]
        config = load_config(Path("runs/tiny-seed-1/config.yaml"))
        standings = pipeline.plan(config, RunDir(Path("runs/tiny-seed-1")))
        assert [(s.state, s.why) for s in standings] == [("half done", ())]

    def test_bad_input_starts_nothing(self, tiny: Path, command: Callable) -> None:
        message = 'override "seed=x": seed: must be a whole number, not "x"\n'
        assert command("sweep", "tiny.yaml", "seed=1,x") == (2, "", message)
        assert not (tiny / "runs").exists()
