"""Figures go to the tracker that is named, as they are in metrics.jsonl, and none of its failures costs a run."""

import sys
import types
import warnings
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from tiny_run import make_config, write_prompts

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config, ModelConfig
from lowrank_rlhf.errors import Stopped, UserError
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run import tracking
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.run.tracking import tracked


def config(tracker: str) -> Config:
    return Config(name="a", model=ModelConfig(source="a/b"), tracking=tracker)


def raises_not_found(name: str) -> str:
    raise PackageNotFoundError(name)


class FakeTracker(types.ModuleType):
    """Stands in for wandb and trackio: the calls that they share."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # transformers looks whether it is there
        self.begun: dict[str, Any] = {}
        self.rows: list[dict[str, float]] = []
        self.finished = 0
        self.fails: Exception | None = None

    def init(self, **given: Any) -> None:
        if self.fails:
            raise self.fails
        self.begun = given

    def log(self, row: dict[str, float]) -> None:
        if self.fails:
            raise self.fails
        self.rows.append(row)

    def finish(self) -> None:
        self.finished += 1
        if self.fails:
            raise self.fails


@pytest.fixture(params=["wandb", "trackio", "swanlab"])
def tracker(request, monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    fake = FakeTracker(request.param)
    monkeypatch.setitem(sys.modules, request.param, fake)
    monkeypatch.setattr(tracking, "version", lambda _: "1.0")
    return fake


def test_nothing_is_imported_or_sent_unless_a_tracker_is_named(tracker: FakeTracker, tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl")
    with tracked(config("none"), log, tmp_path):
        log.append("sft", 1, loss=2.0)
    assert (tracker.begun, tracker.rows, tracker.finished) == ({}, [], 0)


def test_numbers_go_with_their_stage_and_step_and_the_session_ends(tracker: FakeTracker, tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl")
    with suppress(KeyboardInterrupt), tracked(config(tracker.__name__), log, tmp_path):
        log.append("sft", 1, loss=2.0, note="text", nothing=None, bad=float("nan"), sure=True)
        log.append("ppo", 1, **{"objective/kl": 3})
        raise KeyboardInterrupt
    assert tracker.rows == [{"sft/step": 1, "sft/loss": 2.0}, {"ppo/step": 1, "ppo/objective/kl": 3.0}]
    name = "experiment_name" if tracker.__name__ == "swanlab" else "name"
    assert (tracker.begun["project"], tracker.begun[name]) == ("lowrank_rlhf", "a")
    assert tracker.begun["config"]["ppo"]["kl_coef"] == 0.05
    assert tracker.finished == 1
    log.append("ppo", 2, kl=1.0)
    assert len(tracker.rows) == 2


def test_one_that_does_not_begin_is_an_error_and_one_that_fails_later_a_warning(tracker, tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl")
    tracker.fails = RuntimeError("no login")
    with (
        pytest.raises(UserError, match=r"tracking: \w+ failed to start \(no login\)"),
        tracked(config(tracker.__name__), log, tmp_path),
    ):
        pass
    tracker.fails = None
    with tracked(config(tracker.__name__), log, tmp_path):
        tracker.fails = RuntimeError("server gone")
        with pytest.warns(UserWarning, match="was disabled: server gone"):
            log.append("sft", 1, loss=2.0)
        with warnings.catch_warnings(action="error"):
            log.append("sft", 2, loss=1.0)
        tracker.fails = None
    assert [row["loss"] for row in log.read()] == [2.0, 1.0]


def test_one_that_fails_at_its_end_costs_neither_the_run_nor_its_exit_code(tracker, tmp_path: Path) -> None:
    log = StepLog(tmp_path / "metrics.jsonl")

    def stopped() -> None:
        with tracked(config(tracker.__name__), log, tmp_path):
            tracker.fails = RuntimeError("no network")
            raise Stopped("as asked")

    with (
        pytest.warns(UserWarning, match="to close, and may lack the last figures: no network"),
        pytest.raises(Stopped),
    ):
        stopped()
    assert tracker.finished == 1


def test_tensorboard_writes_into_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str):
            written.append(folder)

        def add_scalar(self, *row: Any) -> None:
            written.append(row)

        def close(self) -> None:
            written.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr(tracking, "version", lambda _: "1.0")
    log = StepLog(tmp_path / "metrics.jsonl")
    with tracked(config("tensorboard"), log, tmp_path):
        log.append("reward", 7, loss=0.5)
    assert written == [str(tmp_path / "tensorboard"), ("reward/loss", 0.5, 7), "closed"]


def test_one_that_is_not_installed_is_told_by_validate_and_run(tmp_path, tiny_folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "version", raises_not_found)
    Path("a.yaml").write_text(dump_config(make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"))))
    for called in ("validate", "run"):
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", called, "a.yaml", "tracking=wandb"])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        assert (
            "tracking: wandb is not installed. Run `pip install wandb`, or set tracking=none" in capsys.readouterr().err
        )
    assert not Path("runs").exists()


def test_a_run_sends_every_figure_of_its_log(tracker: FakeTracker, tmp_path: Path, tiny_folder) -> None:
    made = make_config(tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"))
    made = made.model_copy(update={"tracking": tracker.__name__})
    with Progress.silent() as progress:
        run_dir = pipeline.run(made, tmp_path / "runs", until="sft", progress=progress)
    rows = list(run_dir.metrics.read())
    assert len(rows) > 1
    assert tracker.rows == [
        {"sft/step": row["step"]} | {f"sft/{key}": value for key, value in row.items() if key not in ("stage", "step")}
        for row in rows
    ]
    assert tracker.finished == 1
