"""`model.memory: auto`: which numbers it takes by the forecast, that a run keeps them, and who refuses it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from marks import done
from quickstart_plan import COUNTS, CPU, SMOLLM, quickstart
from tiny_run import make_config, write_prompts

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import dump_config, load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.preflight import problems
from lowrank_rlhf.planner import fit, forecast
from lowrank_rlhf.planner.assumed_data import PlannedAmounts
from lowrank_rlhf.planner.forecast import changed, peak
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.sweep.grid import make_sweep


def chosen(config: Config) -> tuple[int, bool]:
    assert config.model.memory == "as_set"
    return config.model.micro_batch_tokens, config.model.gradient_checkpointing


def free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    for module in (fit, forecast):
        monkeypatch.setattr(module, "find_machine", lambda _: replace(CPU, free=round(size)))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "find_shape", lambda _: SMOLLM)
    monkeypatch.setattr(fit, "planned_amounts", lambda *_: PlannedAmounts(COUNTS, by_tokenizer=True))


def test_the_order_of_choices() -> None:
    auto = quickstart("model.memory=auto", "model.micro_batch_tokens=600")
    assert [chosen(config) for config in fit.choices(auto)] == [
        *((600, False), (300, False)),
        *((600, True), (300, True), (150, True), (75, True)),
    ]
    small = quickstart("model.memory=auto", "model.micro_batch_tokens=40", "model.gradient_checkpointing=true")
    assert [chosen(config) for config in fit.choices(small)] == [(40, True)]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("numbers", [(768, False), (384, False), (384, True)])
def test_the_first_whose_forecast_is_within_four_fifths_of_what_is_free(monkeypatch, tmp_path, numbers) -> None:
    auto = quickstart("model.memory=auto", "model.micro_batch_tokens=768", "sample.batch_size=8")
    written = {"model.micro_batch_tokens": numbers[0], "model.gradient_checkpointing": numbers[1]}
    need = peak(changed(auto, written), SMOLLM, COUNTS, CPU, auto.stages)
    free(monkeypatch, need / 0.8 + 1)
    taken, choice = fit.fit_to_memory(auto, RunDir(tmp_path / "new"), RunData(auto))
    assert chosen(taken) == numbers
    assert (choice.micro_batch_tokens, choice.gradient_checkpointing) == numbers
    assert choice.needed == need
    free(monkeypatch, need / 0.8 - 1)
    assert chosen(fit.fit_to_memory(auto, RunDir(tmp_path / "new"), RunData(auto))[0]) != numbers


@pytest.mark.usefixtures("known")
def test_where_nothing_fits_it_is_what_needs_least(monkeypatch, tmp_path) -> None:
    free(monkeypatch, 1e6)
    auto = quickstart("model.memory=auto")
    taken, choice = fit.fit_to_memory(auto, RunDir(tmp_path / "new"), RunData(auto))
    assert chosen(taken) == (256, False)  # with checkpointing and 64 tokens sampling would need as much
    assert choice.free == 1e6
    assert choice.needed > choice.free


def test_without_auto_nothing_changes(tmp_path) -> None:
    config = quickstart()
    assert fit.fit_to_memory(config, RunDir(tmp_path), RunData(config)) == (config, None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder) -> Path:
    monkeypatch.chdir(tmp_path)
    config = make_config(tiny_folder("llama"), write_prompts(tmp_path / "prompts.jsonl"), model__memory="auto")
    Path("tiny.yaml").write_text(dump_config(config))
    return tmp_path


@pytest.mark.usefixtures("here")
def test_a_run_keeps_its_numbers_whatever_is_free_later(monkeypatch, capsys) -> None:
    auto, said = load_config(Path("tiny.yaml")), []
    free(monkeypatch, 1)
    progress = Progress.silent()
    monkeypatch.setattr(progress, "say", said.append)
    run_dir = pipeline.run(auto, Path("runs"), until="sft", progress=progress)
    kept = load_config(run_dir.artifact("config.yaml"))
    assert chosen(kept) == chosen(list(fit.choices(auto))[-1])
    assert done(run_dir, "sft")["fingerprint"]["settings"]["model.gradient_checkpointing"] is True

    free(monkeypatch, 1e12)
    pipeline.run(auto, Path("runs"), until="sft", progress=progress)
    assert chosen(load_config(run_dir.artifact("config.yaml"))) == chosen(kept)
    assert "  done before, skipped" in said
    assert fit.fit_to_memory(auto, run_dir, RunData(auto))[1] == fit.MemoryChoice(*chosen(kept))

    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "plan", "tiny.yaml", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    plan = json.loads(capsys.readouterr().out)
    assert plan["stages"][0]["state"] == "done"
    assert plan["config"]["model"]["gradient_checkpointing"] is True
    assert plan["memory_choice"]["gradient_checkpointing"] is True
    assert "memory_selected" in [note["id"] for note in plan["notes"]]


@pytest.mark.usefixtures("here")
def test_plan_says_what_auto_takes(monkeypatch, capsys) -> None:
    free(monkeypatch, 1e12)
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "plan", "tiny.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("model.memory: auto selected micro_batch_tokens ")


@pytest.mark.usefixtures("here")
def test_a_model_of_unknown_shape_needs_numbers(monkeypatch) -> None:
    monkeypatch.setattr(fit, "find_shape", lambda _: None)
    with pytest.raises(UserError, match=r"auto cannot estimate the memory of .*"):
        pipeline.run(load_config(Path("tiny.yaml")), Path("runs"), progress=Progress.silent())
    assert not Path("runs/tiny/config.yaml").exists()


@pytest.mark.usefixtures("here")
def test_a_sweep_and_several_processes_refuse_it(monkeypatch) -> None:
    with pytest.raises(UserError, match=r"model\.memory: auto may choose different numbers"):
        make_sweep("tiny.yaml", ["seed=1,2"])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = problems(load_config(Path("tiny.yaml")))
    assert (
        ("model", "memory"),
        "auto supports one process only. Set model.memory=as_set and use the numbers that `plan` prints",
    ) in found
