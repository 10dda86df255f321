"""Ways to begin, and the sentences that tell what a run does, why, and what comes next."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import gradio as gr
import pytest
from annotators_page import a_run_with_answers
from dashboard_runs import event, finish, make_run

from lowrank_rlhf.config.loading import preset_path
from lowrank_rlhf.config.schema import STAGES
from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.run_state import State
from lowrank_rlhf.dashboard.run_status import RunStatus
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs import runs, start
from lowrank_rlhf.dashboard.tabs.runs_html import details
from lowrank_rlhf.dashboard.text import LANGUAGES, explained, html, t
from lowrank_rlhf.run.records import Ranking


def status(state: State, stage: str | None, **more: Any) -> RunStatus:
    return RunStatus("one", Path("no/such/run"), state, STAGES, stage, **more)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("state", get_args(State))
def test_every_moment_has_its_sentences(language, state) -> None:
    """What happens, why the stage exists, and the next thing to do."""
    for stage in (*STAGES, "round-2/ppo", None):
        if stage is None and state == "waiting":
            continue  # for rankings, so in a stage
        shown = details(status(state, None if state == "finished" else stage), language)
        assert explained(f"next.{state}", language) in shown
        assert ("{" in shown, "}" in shown) == (False, False)
        kind = (stage or "").rpartition("/")[2]
        if stage is None:
            continue  # before the first one
        if state == "running":
            assert explained(f"now.{kind}", language) in shown
        if state in ("running", "waiting", "stopped", "failed", "killed"):
            assert explained(f"why.{kind}", language) in shown
        if state in ("stopped", "failed", "killed"):
            assert t("runs.in_stage", language, stage=stage) in shown


def test_another_algorithm_has_its_name() -> None:
    for language in LANGUAGES:
        shown = details(status("running", "ppo", algorithm="dpo"), language)
        assert "DPO" in shown
        assert html(t("meaning.ppo", language)) not in shown


def test_a_term_shows_its_meaning_and_can_be_reached_by_keyboard() -> None:
    shown = explained("now.ppo", "en")
    for term in ("reward_model", "ppo"):
        meaning, word = html(t(f"meaning.{term}", "en")), t(f"term.{term}", "en")
        assert f'<abbr tabindex="0" title="{meaning}">{word}</abbr>' in shown


def test_a_name_is_no_markup_and_no_placeholder() -> None:
    assert "with &lt;b&gt;{kl} to" in explained("now.align", "en", algorithm="<b>{kl}")


def test_the_terms_are_those_of_the_glossary() -> None:
    """Their Chinese words too."""
    rows = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")
    for term in ("reward_model", "kl"):
        assert f"| {t(f'term.{term}', 'en')} | {t(f'term.{term}', 'zh')} |" in rows


def test_the_example_is_the_quickstart_unless_edited_settings_stay() -> None:
    accordion, path, preset, loaded, text, name = start._example("quickstart", "")
    assert (accordion["open"], path["visible"], preset, name) == (True, False, "quickstart", "")
    assert loaded == text == preset_path("quickstart").read_text(encoding="utf-8")
    assert start._example("quickstart", "edited")[1:] == [gr.skip(), gr.skip(), "", gr.skip(), gr.skip()]


def test_ranking_for_somebody_chooses_the_run_that_waits(tmp_path) -> None:
    folder = RunsFolder(tmp_path)
    finish(make_run(tmp_path, "done"), *STAGES)
    _, why = start._waiting(folder, "en")
    assert html(t("begin.nothing_to_rank", "en")) in why
    run = make_run(tmp_path, "people")
    finish(run, "sft", "sample")
    event(run, "started", "rank")
    event(run, "ended early", "rank", error="WaitingForPeople")
    assert start._waiting(folder, "en") == ("people", "")


def test_a_run_that_waits_shows_no_log_and_continues_only_with_enough_rankings(tmp_path, monkeypatch) -> None:
    store = a_run_with_answers(tmp_path, 4)  # three rankings are needed
    run, folder = tmp_path / "runs" / "people", RunsFolder(tmp_path / "runs")
    event(run, "started", "rank")
    event(run, "ended early", "rank", error="WaitingForPeople")
    waits = status("waiting", "rank", exit_code=5, log_end="label people")
    assert "label people" not in details(waits, "en")
    assert "label people" in details(replace(waits, state="failed"), "en")
    started: list[Path] = []
    monkeypatch.setattr(jobs, "start", lambda path, _: started.append(path))
    page: Any = SimpleNamespace(runs=folder, chat=SimpleNamespace(close=lambda: None))
    for prompt in range(3):
        assert f"Rank {3 - prompt} more prompts" in runs._act(page, "resume", "people", "en")
        tiers = ((f"p{prompt}-0",), (f"p{prompt}-1",))
        store.save(Ranking(prompt_id=f"p{prompt}", tiers=tiers, annotator="ann"))
    assert started == []
    runs._act(page, "resume", "people", "en")
    assert started == [run]


def test_the_block_is_open_while_there_are_no_runs(tmp_path) -> None:
    folder = RunsFolder(tmp_path)
    *_, block, _, state = runs._refresh(folder, None, "en", {})
    assert block["open"]
    make_run(tmp_path)
    *_, block, _, state = runs._refresh(folder, None, "en", state)
    assert not block["open"]
    *_, block, _, state = runs._refresh(folder, "one", "zh", state)
    assert "open" not in block  # somebody may have opened it
