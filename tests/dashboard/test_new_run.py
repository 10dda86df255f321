"""Form for a new run, and the actions on a run."""

import json
import re
import subprocess

import gradio as gr
import pytest
from browser import wait_for
from dashboard_runs import finish, make_run, page_of

from lowrank_rlhf.config.loading import load_config, parse_config, preset_path
from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs import new_run, redo, runs
from lowrank_rlhf.dashboard.tabs.plan_html import plan_html
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.directory import RunDir


class TestNewRun:
    def test_the_chosen_runs_settings_come_into_the_form(self, tmp_path) -> None:
        run = make_run(tmp_path)
        loaded, text, name, outcome, planned, start = new_run._copy_settings(RunsFolder(tmp_path), run.name, "en")
        assert loaded == text
        assert (text, name) == ((run / "config.yaml").read_text(), run.name)
        assert (outcome, planned, start["interactive"]) == ("", "", False)
        for chosen, expected in ((None, "runs.choose"), ("nothing", "runs.no_config")):
            loaded, skipped, _, outcome, planned, start = new_run._copy_settings(RunsFolder(tmp_path), chosen, "en")
            assert loaded == planned == ""
            assert html(t(expected, "en")) in outcome
            assert not isinstance(skipped, str)  # what was typed stays
            assert start["interactive"] is False
        assert "invalid run name" in new_run._copy_settings(RunsFolder(tmp_path), "../x", "en")[3]

    def test_edited_settings_stay_if_the_person_says_so(self) -> None:
        skip = gr.skip()
        assert new_run._preset("quickstart", "edited") == ["", skip, skip, skip, skip]
        text = preset_path("quickstart").read_text(encoding="utf-8")
        assert new_run._preset("quickstart", "")[:2] == [text, text]

    def test_mistakes_have_their_line_as_in_the_cli(self) -> None:
        text = "name: x\nmodel:\n  source: y\nppo:\n  stepz: 3\n"
        shown, locked = new_run._check(text, "", "en")
        assert "editor:5:3: ppo.stepz: unknown key. Did you mean &quot;steps&quot;?" in shown
        assert locked["interactive"] is False
        with pytest.raises(UserError) as refused:
            parse_config(text, "editor")
        assert html(str(refused.value)) in shown

    def test_the_name_is_an_override(self) -> None:
        text = preset_path("quickstart").read_text(encoding="utf-8")
        assert "are valid" in new_run._check(text, "mine", "en")[0]
        assert "override &quot;name=../mine&quot;: name: must be" in new_run._check(text, "../mine", "en")[0]

    def test_an_unchanged_preset_is_run_by_its_name(self, tmp_path) -> None:
        text = preset_path("quickstart").read_text(encoding="utf-8")
        assert new_run._config_source(text.rstrip(), "quickstart", tmp_path) == "quickstart"
        for changed, preset in ((text + "seed: 2\n", "quickstart"), (text, None), (text, "human_preferences")):
            assert new_run._config_source(changed, preset, tmp_path) == f"{tmp_path}/logs/start.yaml"

    def test_text_and_file_are_read_alike(self) -> None:
        path = preset_path("quickstart")
        assert parse_config(path.read_text(encoding="utf-8"), "editor", ["seed=7"]) == load_config(path, ["seed=7"])

    def test_nothing_starts_without_its_plan(self, tmp_path) -> None:
        text = preset_path("quickstart").read_text(encoding="utf-8")
        for agreed in (None, ["other", ""], [text, "other"]):
            _, outcome, *_ = new_run._start(page_of(tmp_path), text, "", "quickstart", "en", agreed)
            assert t("new.plan_first", "en") in outcome
        assert list(tmp_path.iterdir()) == []

    def test_redo_and_resume_by_their_commands(self, tmp_path, monkeypatch) -> None:
        run, started = make_run(tmp_path), []
        monkeypatch.setattr(jobs, "start", lambda path, command: started.append((path, command[3:])))
        runs._act(page_of(tmp_path), "resume", "one", "en", None)
        runs._act(page_of(tmp_path), "redo", "one", "en", "ppo")
        runs._act(page_of(tmp_path), "redo", "one", "en", None)
        config = str(run / "config.yaml")
        assert started == [
            (run, ["run", config, "--runs", str(tmp_path)]),
            (run, ["run", config, "--redo", "ppo", "--runs", str(tmp_path)]),
        ]
        assert "invalid run name" in runs._act(page_of(tmp_path), "resume", "../one", "en", None)

    def test_a_redo_asks_first_and_names_what_goes(self, tmp_path) -> None:
        run = make_run(tmp_path)
        finish(run, "sft", "sample", "rank", "reward", "ppo")
        (run / "adapters" / "policy").mkdir(parents=True)
        visible, goes, asked, _ = redo._ask(page_of(tmp_path), "one", "en", "reward")
        assert (visible["visible"], asked) == (True, ["one", "reward"])
        assert "reward (0:10 of work)" in goes
        assert re.search(r"ppo \([^)]*\): adapters/policy\n?<", goes)
        assert "sample" not in goes
        assert (run / "done" / "ppo.json").exists()
        visible, _, asked, why = redo._ask(page_of(tmp_path), "one", "en", None)
        assert (visible["visible"], asked, t("runs.redo_which", "en") in why) == (False, None, True)

    def test_a_redo_is_undone_by_the_button_with_the_command(self, tmp_path, monkeypatch) -> None:
        run = make_run(tmp_path)
        config = (run / "config.yaml").read_text(encoding="utf-8")
        (run / "config.yaml").write_text(config.replace("name: quickstart", "name: one"), encoding="utf-8")
        finish(run, "sft")
        assert not runs._buttons(RunsFolder(tmp_path).status("one"))["can_undo"]
        RunDir(run).earlier.set_aside({"sft": ["adapters/sft"]})
        assert runs._buttons(RunsFolder(tmp_path).status("one"))["can_undo"]
        started = []
        monkeypatch.setattr(jobs, "start", lambda path, command: started.append((path, command)))
        assert "--undo-redo" in runs._act(page_of(tmp_path), "undo", "one", "zh")
        monkeypatch.undo()
        [(path, command)] = started
        jobs.start(path, command)
        wait_for(lambda: RunsFolder(tmp_path).status("one").done == ["sft"], 60, lambda: jobs.log_path(run).read_text())
        wait_for(lambda: not runs._buttons(RunsFolder(tmp_path).status("one"))["can_undo"], 10)

    def test_the_plan_is_read_from_json(self, tmp_path, monkeypatch) -> None:
        """What `plan` prints for people may be worded in any way."""
        text = preset_path("quickstart").read_text(encoding="utf-8")
        done = subprocess.CompletedProcess(
            [], 0, json.dumps(PLAN | {"config": {"name": "x", "model": {"source": "y"}}}), ""
        )
        monkeypatch.setattr(new_run, "_run_plan", lambda *_: (done, ()))
        shown, start, agreed = new_run._plan(RunsFolder(tmp_path), text, "", None, "en")
        assert re.findall("<td>(.*?)</td>", shown) == ["sft", "to do", "2:00", "1.0 GiB"]
        assert t("plan.memory_fits", "en", needed="1.0 GiB", free="2.0 GiB", total="4.0 GiB") in shown
        assert t("plan.disk_fits", "en", needed="1 MiB", free="8.0 GiB") in shown
        assert t("plan.duration", "en", about="2:00", low="1:00", high="4:00") in shown
        assert t("plan.model_missing", "en") in shown
        assert "not shown" not in shown
        assert (start["interactive"], agreed) == (True, [text, ""])
        done.returncode = 4
        shown, start, agreed = new_run._plan(RunsFolder(tmp_path), text, "", None, "zh")
        assert html(t("new.refused", "zh")) in shown
        assert (start["interactive"], agreed) == (False, None)
        done.stdout, done.stderr = "", "rank.dataset: file not found: x"
        assert "file not found: x" in new_run._plan(RunsFolder(tmp_path), text, "", None, "en")[0]

    def test_a_stale_plan_is_not_started_but_renamed_or_redone(self, tmp_path, monkeypatch) -> None:
        text = preset_path("quickstart").read_text(encoding="utf-8")
        stages = [PLAN["stages"][0] | {"stage": name, "state": state} for name, state in STALE.items()]
        plan = PLAN | {"stages": stages, "config": {"name": "x", "model": {"source": "y"}}}
        done = subprocess.CompletedProcess([], 0, json.dumps(plan), "")
        monkeypatch.setattr(new_run, "_run_plan", lambda *_: (done, ()))
        shown, start, agreed = new_run._plan(RunsFolder(tmp_path), text, "one", None, "en")
        assert (start["interactive"], agreed) == (False, [text, "one", ["ppo", "evaluate"]])
        assert html(t("new.stale", "en", run="one", stages="ppo, evaluate")) in shown
        started = []
        monkeypatch.setattr(jobs, "start", lambda _, command: started.append(command[4:]))
        page = page_of(tmp_path)
        new_run._start(page, text, "one", None, "en", agreed)
        assert started == []
        new_run._start(page, text, "one", None, "en", agreed[:2], new_run._redo(agreed))
        (command,) = started
        assert " ".join(command[1:]).startswith("name=one --redo ppo --redo evaluate --runs")
        for name in ("one", "one-2"):
            (tmp_path / name).mkdir(exist_ok=True)
        assert RunsFolder(tmp_path).free_name("one") == "one-3"
        assert RunsFolder(tmp_path).free_name("two") == "two"


STALE = {"sft": "done", "ppo": "stale", "evaluate": "stale"}
SPAN = {"seconds": 120.0, "low": 60.0, "high": 240.0, "source": "x"}
PLAN = {
    "run": "runs/x",
    "model_is_here": True,
    "stages": [{"stage": "sft", "state": "to do", "why": [], "time": SPAN, "memory": {"needed_bytes": 2**30}}],
    "memory": {"needed_bytes": 2**30, "fits": True, "free_bytes": 2**31, "total_bytes": 2**32, "verdict": "fits"},
    "disk": {"needed_bytes": 2**20, "free_bytes": 2**33, "writable": True, "fits": True},
    "time": SPAN,
    "helps": [],
    "notes": [{"id": "model_missing", "level": "info", "text": "not shown", "data": {}}],
}


@pytest.mark.parametrize(
    ("note", "data"),
    [
        ("few_validation_prompts", {"asked": 4321, "available": 77}),
        ("activations_estimated", {"architecture": "olmo2"}),
    ],
)
def test_the_page_words_a_note_of_the_plan(note, data) -> None:
    plan = PLAN | {"notes": [{"id": note, "data": data}], "config": {"name": "x", "model": {"source": "y"}}}
    for language in ("en", "zh"):
        shown = plan_html(plan, language)
        assert all(str(value) in shown for value in data.values())
