"""Validation and test prompts in a run, and runs of versions that did not divide the held-out prompts."""

import json
from pathlib import Path

import pytest
from marks import done
from tiny_run import make_config, make_session, write_prompts

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import StaleRun
from lowrank_rlhf.pipeline.pipeline import plan, run
from lowrank_rlhf.reports.locale import locale
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress

HELD_OUT = 5


@pytest.fixture
def config(tiny_folder, tmp_path) -> Config:
    return make_config(
        tiny_folder(), write_prompts(tmp_path / "prompts.jsonl"), ppo__steps=2, data__validation=None, sft__epochs=1
    )


def go(config: Config, runs: Path, *redo: str) -> RunDir:
    return run(config, runs, progress=Progress.silent(), redo=redo)


def with_validation(config: Config, count: int | None) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"validation": count})})


def states(config: Config, run_dir: RunDir) -> dict[str, str]:
    return {status.stage.name: status.state for status in plan(config, run_dir)}


def forget_division(run_dir: RunDir) -> None:
    """Leave the run as a version without `data.validation` would: on every mark, as on disk."""
    for path in (run_dir.path / "done").iterdir():
        mark = json.loads(path.read_text())
        mark["fingerprint"]["settings"].pop("data.validation", None)
        mark["summary"].pop("selected_on_test", None)
        path.write_text(json.dumps(mark))


def evaluated(run_dir: RunDir) -> list[str]:
    return [json.loads(line)["prompt_id"] for line in run_dir.artifact("eval.jsonl").read_text().splitlines()]


def note(language: str) -> str:
    return locale(language)("caveat.selected_on_test")


def test_a_finished_policy_of_an_older_version_is_kept_with_a_note(config, tmp_path) -> None:
    run_dir = go(config, tmp_path)
    splits = make_session(config, tmp_path).prompts
    assert (len(splits.validation), len(splits.test)) == (2, 3)
    assert evaluated(run_dir) == [prompt.id for prompt in splits.test]
    assert done(run_dir, "evaluate")["summary"]["selected_on_test"] is False
    page = run_dir.artifact("report.html").read_text()
    assert not any(note(language).split(".")[0] in page for language in ("en", "zh"))
    policy = run_dir.hashes(("adapters/policy",))

    forget_division(run_dir)
    assert set(states(config, run_dir).values()) == {"done"}
    assert set(states(with_validation(config, 0), run_dir).values()) == {"done"}, "an older version's own division"
    go(config, tmp_path, "evaluate")
    assert run_dir.hashes(("adapters/policy",)) == policy
    assert evaluated(run_dir) == [prompt.id for prompt in splits.held_out]
    assert done(run_dir, "evaluate")["summary"]["selected_on_test"] is True
    page = run_dir.artifact("report.html").read_text()
    english, chinese = page.split('<article id="en"')[1], page.split('<article id="zh"')[1].split("</article>")[0]
    assert "The policy was selected on this report" in english
    assert note("zh") in chinese
    assert "The policy was selected on this report" in run_dir.artifact("report.md").read_text()
    assert "The policy was selected on this report" in done(run_dir, "evaluate")["summary"]["message"].replace(
        "\n", " "
    )

    go(config, tmp_path, "ppo", "evaluate")
    assert evaluated(run_dir) == [prompt.id for prompt in splits.test]
    assert done(run_dir, "evaluate")["summary"]["selected_on_test"] is False


def test_a_new_division_concerns_ppo_and_evaluate_alone(config, tmp_path) -> None:
    run_dir = go(config, tmp_path)
    for count in (1, 0):
        changed = states(with_validation(config, count), run_dir)
        assert {name for name, state in changed.items() if state == "stale"} == {"ppo", "evaluate"}
    forget_division(run_dir)
    with pytest.raises(StaleRun, match=r"data\.validation: \(not set\) -> 1"):
        go(with_validation(config, 1), tmp_path)


def test_without_a_division_the_report_says_so(config, tmp_path) -> None:
    run_dir = go(with_validation(config, 0), tmp_path)
    assert len(evaluated(run_dir)) == HELD_OUT
    assert done(run_dir, "evaluate")["summary"]["selected_on_test"] is True
    assert "The policy was selected on this report" in run_dir.artifact("report.md").read_text()
