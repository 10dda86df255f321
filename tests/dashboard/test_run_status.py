"""Status of runs, read from their folders."""

import json
import os
import platform
import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from dashboard_runs import RESULTS, event, finish, holding, make_run
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lowrank_rlhf.config.loading import dump_config, load_config
from lowrank_rlhf.config.schema import RankConfig
from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.served.routes import routes
from lowrank_rlhf.dashboard.tabs import result, watch
from lowrank_rlhf.dashboard.tabs import runs as runs_tab
from lowrank_rlhf.dashboard.tabs.runs_html import damage_note, details, run_list
from lowrank_rlhf.dashboard.text import LANGUAGES, html, t
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import append_line, write_json_atomic
from lowrank_rlhf.stages import STAGES


class TestNames:
    @pytest.mark.parametrize(
        "name", ["..", ".", "", "a/b", "../x", "a\\b", ".hidden", "a\0b", "x" * 65, "ä", "a b", "-x"]
    )
    def test_names_that_lead_elsewhere_are_refused(self, tmp_path, name) -> None:
        with pytest.raises(UserError, match="invalid run name"):
            RunsFolder(tmp_path).path(name)

    def test_a_link_is_no_run(self, tmp_path) -> None:
        make_run(tmp_path / "elsewhere")
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "one").symlink_to(tmp_path / "elsewhere" / "one")
        assert RunsFolder(tmp_path / "runs").names() == []
        with pytest.raises(UserError):
            RunsFolder(tmp_path / "runs").status("one")

    def test_only_folders_of_runs_count(self, tmp_path) -> None:
        make_run(tmp_path)
        (tmp_path / "notes").mkdir()
        (tmp_path / "file.txt").write_text("x")
        assert RunsFolder(tmp_path).names() == ["one"]
        assert RunsFolder(tmp_path / "nowhere").names() == []


def test_all_runs_are_shown(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runs_tab, "_READING_SECONDS", 60.0)
    for number in range(100):
        make_run(tmp_path, f"run{number}")
    listing, _, choice, *_ = runs_tab._refresh(RunsFolder(tmp_path), None, "en", {})
    assert listing.count("data-run=") == len(choice["choices"]) == 100
    assert choice["value"] == runs_tab._refresh(RunsFolder(tmp_path), None, "en", {})[2]["value"]
    assert (
        "value" not in runs_tab._refresh(RunsFolder(tmp_path), "run7", "en", {})[2]
    )  # another may be chosen meanwhile


class TestStatus:
    @pytest.mark.parametrize(
        ("kind", "error", "expected"),
        [
            ("ended early", "Stopped", "stopped"),
            ("ended early", "KeyboardInterrupt", "stopped"),
            ("ended early", "WaitingForPeople", "waiting"),
            ("ended early", "StageFailed", "failed"),
            ("started", None, "killed"),
            ("warning", None, "killed"),
            ("finished", None, "stopped"),
        ],
    )
    def test_from_the_last_event(self, tmp_path, kind, error, expected) -> None:
        run = make_run(tmp_path)
        assert RunsFolder(tmp_path).status("one").state == "new"
        event(run, "started")
        event(run, kind, error=error)
        assert RunsFolder(tmp_path).status("one").state == expected

    @pytest.mark.parametrize(("since", "expected"), [("2025-12-31", "stopped"), ("2026-01-02", "failed")])
    def test_the_newer_one_of_exit_code_and_last_event_counts(self, tmp_path, since, expected) -> None:
        """The events are of 1 January: a later command that failed before any stage began left an exit code only."""
        run = make_run(tmp_path)
        event(run, "started")
        event(run, "ended early", error="Stopped")
        (run / "logs").mkdir()
        (run / "logs" / "job.json").write_text(json.dumps({"since": f"{since}T00:00:00+00:00", "exit_code": 1}))
        assert RunsFolder(tmp_path).status("one").state == expected

    def test_all_done(self, tmp_path) -> None:
        run = make_run(tmp_path)
        finish(run, "sft", "sample")
        event(run, "finished", "sample")
        found = RunsFolder(tmp_path).status("one")
        assert (found.state, found.stage, list(found.done)) == ("stopped", "rank", ["sft", "sample"])
        finish(run, *(stage.name for stage in STAGES))
        found = RunsFolder(tmp_path).status("one")
        assert (found.state, found.stage) == ("finished", None)
        assert "win rate 70 % [41, 90]" in run_list([found], "one", "en")
        assert "胜率 70 % [41, 90]" in run_list([found], "one", "zh")

    @pytest.mark.parametrize(("language", "texts"), [
        ("en", ("training accuracy 75 %", "held-out accuracy 61 % [48, 73]")),
        ("zh", ("训练准确率 75 %", "留出准确率 61 % [48, 73]")),
    ])  # fmt: skip
    def test_an_accuracy_says_on_which_pairs(self, tmp_path, language, texts) -> None:
        run = make_run(tmp_path)
        append_line(run / "metrics.jsonl", {"stage": "reward", "step": 1, "accuracy": 0.75})
        for shown in texts:
            found = RunsFolder(tmp_path).status("one")
            for page in (run_list([found], "one", language), watch._state(found, language)):
                assert f">{shown}<" in page
                assert (html(t("figure.interval", language)) in page) is ("[" in shown)
            finish(run, "reward")

    @pytest.mark.parametrize("name", ["lowrank_rlhf", "lowrank-rlhf"])  # python -m, and the installed command
    def test_a_live_process_holds_it_and_a_dead_ones_lock_does_not_count(self, tmp_path, name) -> None:
        run = make_run(tmp_path)
        with holding(run, name) as process:
            event(run, "started", "sft")
            found = RunsFolder(tmp_path).status("one")
            assert (found.state, found.pid, found.busy) == ("running", process.pid, True)
            assert RunsFolder(tmp_path).training() == "one"
        assert RunsFolder(tmp_path).status("one").state == "killed"
        assert RunsFolder(tmp_path).training() is None

    @pytest.mark.parametrize("part", ["host", "boot", "pid_namespace", "inode"])
    def test_a_process_is_signalled_only_if_its_whole_identity_matches(self, tmp_path, part) -> None:
        """A copied folder, another host on the same disk, another container: `pid` is another process's there."""
        run = make_run(tmp_path)
        with holding(run, **{part: "another"}) as process:
            found = RunsFolder(tmp_path).status("one")
            assert (found.state, found.pid, found.memory_bytes()) == ("running", None, None)
            with pytest.raises(
                UserError, match=rf"process {process.pid}( on host .+)? cannot be stopped from this page"
            ):
                jobs.stop(run)
            with pytest.raises(UserError, match="is already working on this run"):
                jobs.start(run, [sys.executable, "-c", "pass"])
            assert process.poll() is None

    def test_two_containers_with_the_same_process_number(self, tmp_path, monkeypatch) -> None:
        """A run is pid 1 in its container, and the page is pid 1 in another one: it would stop itself."""
        signals: list[int] = []
        monkeypatch.setattr(psutil.Process, "cmdline", lambda _: ["python", "-m", "lowrank_rlhf", "dashboard"])
        monkeypatch.setattr(psutil.Process, "send_signal", lambda process, _: signals.append(process.pid))
        run, page = make_run(tmp_path), os.getpid()
        with holding(run, pid=page):  # the same namespace: the process itself
            assert jobs.stop(run)
            assert signals == [page]
        with holding(run, pid=page, pid_namespace=1):
            record = json.loads((run / "run.lock.json").read_text())
            for file in ("run.lock.json", "logs/job.json"):
                write_json_atomic(run / file, record)
            assert RunsFolder(tmp_path).status("one").pid is None
            with pytest.raises(UserError, match=rf"process {page} on host .+ cannot be stopped from this page"):
                jobs.stop(run)
        assert not jobs.stop(run)  # the run has ended: its records alone
        assert signals == [page]

    def test_a_process_elsewhere_is_named_with_its_host(self, tmp_path) -> None:
        run = make_run(tmp_path)
        for part, host in (("host", "another"), ("pid_namespace", platform.node())):
            with (
                holding(run, **{part: "another"}) as process,
                pytest.raises(UserError, match=rf"process {process.pid} on host {re.escape(host)} cannot be stopped"),
            ):
                jobs.stop(run)

    def test_a_lock_of_an_older_version_without_identity_is_not_signalled(self, tmp_path) -> None:
        run = make_run(tmp_path)
        with holding(run) as process:
            since = "2101-01-01T00:00:00+00:00"
            write_json_atomic(run / "run.lock.json", {"schema": 1, "pid": process.pid, "since": since})
            with pytest.raises(UserError, match=rf"process {process.pid} cannot be stopped"):
                jobs.stop(run)
            assert process.poll() is None

    def test_stop_in_a_copied_folder_leaves_the_original_run_alone(self, tmp_path) -> None:
        run = make_run(tmp_path)
        with holding(run) as process:
            write_json_atomic(run / "logs" / "job.json", json.loads((run / "run.lock.json").read_text()))
            shutil.copytree(run, tmp_path / "copy")
            assert RunsFolder(tmp_path).status("copy").state == "new"
            assert not jobs.stop(tmp_path / "copy")
            assert process.poll() is None
            assert jobs.stop(run)
            process.wait(10)

    def test_a_number_that_another_process_has_now_is_not_the_run(self, tmp_path) -> None:
        """A lock's record older than the process, and a record that a killed process left."""
        run = make_run(tmp_path)
        with holding(run, since="2001-01-01T00:00:00+00:00") as process:
            assert jobs.holder(run).process is None
            with pytest.raises(UserError, match="cannot be stopped"):
                jobs.stop(run)
            assert process.poll() is None
        write_json_atomic(run / "run.lock.json", {"pid": 1, "since": "2101-01-01T00:00:00+00:00"})
        assert jobs.holder(run) is None
        assert not jobs.stop(run)

    @pytest.mark.parametrize(
        "written", ["[1]", "{}", '{"pid": "x", "since": 3}', '{"pid": -1, "since": "now"}', "\x00"]
    )
    def test_nonsense_in_the_lock_is_nobody(self, tmp_path, written) -> None:
        run = make_run(tmp_path)
        (run / "run.lock.json").write_text(written)
        assert jobs.holder(run) is None

    def test_a_damaged_output_or_mark_is_shown_by_name(self, tmp_path) -> None:
        run = make_run(tmp_path)
        (RunDir(run).work("sample") / "samples.jsonl").write_text("{}\n")
        mark = {"fingerprint": {"settings": {}, "inputs": {}}, "seconds": 1.0, "summary": RESULTS["sample"]}
        RunDir(run).finish("sample", ["samples.jsonl"], mark)
        finish(run, "sft")
        assert damage_note(RunsFolder(tmp_path).status("one"), "en") == ""
        (run / "samples.jsonl").write_text("[]\n")
        (run / "done" / "sft.json").write_text('{"summary": {')
        for language, lead in (("en", "changed or damaged"), ("zh", "被改动或损坏")):
            shown = damage_note(RunsFolder(tmp_path).status("one"), language)
            assert lead in shown
            assert "samples.jsonl does not match its recorded sha256" in shown
            assert "done/sft.json: not a JSON object" in shown

    def test_a_damaged_report_is_neither_served_nor_shown(self, tmp_path) -> None:
        run = make_run(tmp_path)
        (RunDir(run).work("evaluate") / "report.html").write_text("<p>win rate 70 %</p>")
        mark = {"fingerprint": {"settings": {}, "inputs": {}}, "seconds": 1.0, "summary": RESULTS["evaluate"]}
        RunDir(run).finish("evaluate", ["report.html"], mark)
        page = TestClient(Starlette(routes=routes(RunsFolder(tmp_path))))
        assert page.get("/runs/one/report.html").text.startswith("<p>win rate 70 %</p>")
        assert "iframe" in result._report(run, "en")
        (run / "report.html").write_text("<p>win rate 71 %</p>")
        assert page.get("/runs/one/report.html").status_code == 404
        assert "report.html does not match its recorded sha256" in result._report(run, "en")

    def test_progress_comes_from_the_progress_file(self, tmp_path) -> None:
        """Of the stage and the process at work; a progress bar in the log counts for nothing."""
        run = make_run(tmp_path)
        event(run, "started", "sft")
        (run / "logs").mkdir()
        (run / "logs" / "x.log").write_text("sft       3/14 steps   21%  loss 2.5  ETA 2:01  2.1 GiB\n")
        write_json_atomic(run / "logs" / "job.json", {"log": "x.log"})
        with holding(run):
            assert RunsFolder(tmp_path).status("one").progress is None
            write_progress(run, stage="sft")
            found = RunsFolder(tmp_path).status("one")
            assert (found.progress.done, found.progress.total, found.seconds_left) == (3, 14, 121)
            assert "sft 3/14 · about 2:01 left" in run_list([found], "one", "en")
            assert re.search(r"340 tokens/s  [\d.]+ [GM]iB</p>", watch._state(found, "en"))
            write_progress(run, stage="sft", run_seconds_left=300)
            found = RunsFolder(tmp_path).status("one")
            assert found.seconds_left == 300
            assert run_list([found], "one", "en").count("about 5:00 left<") == 1
            config = load_config(run / "config.yaml")
            people = config.model_copy(update={"rank": RankConfig(source="human")})
            (run / "config.yaml").write_text(dump_config(people))
            found = RunsFolder(tmp_path).status("one")
            assert "about 5:00 left, without the time to rank<" in run_list([found], "one", "en")
            assert "约还需 5:00（不含人工排序的时间）" in run_list([found], "one", "zh")
            finish(run, "rank")
            assert "about 5:00 left<" in run_list([RunsFolder(tmp_path).status("one")], "one", "en")
            write_progress(run, stage="ppo")
            assert RunsFolder(tmp_path).status("one").progress is None
            write_progress(run, stage="sft", updated_at="2001-01-01T00:00:00+00:00")  # an earlier process's
            assert RunsFolder(tmp_path).status("one").progress is None
            (run / "progress.json").write_text('{"stage": 3')
            assert RunsFolder(tmp_path).status("one").progress is None
        write_progress(run, stage="sft")
        assert RunsFolder(tmp_path).status("one").progress is None


def write_progress(run: Path, **fields: object) -> None:
    record = {"unit": "steps", "done": 3, "total": 14, "seconds_left": 121.0, "updated_at": "2101-01-01T00:00:00+00:00"}
    write_json_atomic(run / "progress.json", record | {"figures": {"tokens_per_second": 340.4}} | fields)


@pytest.mark.parametrize("newer", ["event", "config.yaml"])
@pytest.mark.parametrize("noted", [True, False])
def test_the_exit_code_of_an_older_command_is_not_shown(tmp_path, newer, noted) -> None:
    """A run from a terminal ended after the page's last command; without a page at its end only its log has a time."""
    run, log = make_run(tmp_path), tmp_path / "one" / "logs" / "x.log"
    log.parent.mkdir()
    log.write_text("Stage ppo does not match\n")
    ended = datetime(2026, 1, 1, 0, 0, 30, tzinfo=UTC)
    job = {"log": "x.log", "exit_code": 3, "since": "2026-01-01T00:00:00+00:00"}
    write_json_atomic(run / "logs" / "job.json", job | ({"ended": ended.isoformat()} if noted else {}))
    os.utime(log, (ended.timestamp(), ended.timestamp()))
    os.utime(run / "config.yaml", (ended.timestamp() - 20, ended.timestamp() - 20))
    event(run, "started", time="2026-01-01T00:00:31+00:00")  # its own, and of the same moment
    status = RunsFolder(tmp_path).status("one")
    assert (status.exit_code, status.log_end) == (3, "Stage ppo does not match")
    if newer == "event":
        event(run, "ended early", error="StageFailed", time="2026-01-01T00:01:00+00:00")
    else:
        os.utime(run / "config.yaml")
    status = RunsFolder(tmp_path).status("one")
    assert (status.exit_code, status.log_end) == (None, "")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_refused_command_on_a_finished_run_shows_its_exit_code_and_words(tmp_path, language) -> None:
    run = make_run(tmp_path)
    finish(run, "sft", "sample", "rank", "reward", "ppo", "evaluate")
    (run / "logs").mkdir()
    (run / "logs" / "x.log").write_text("Stage ppo does not match\n")
    for code, shown in ((3, True), (0, False)):
        (run / "logs" / "job.json").write_text(json.dumps({"log": "x.log", "exit_code": code, "since": "2026-02"}))
        status = RunsFolder(tmp_path).status("one")
        about = details(status, language)
        assert status.state == "finished"
        assert ("Stage ppo does not match" in about) is shown
        assert (html(t("runs.exit_code", language, code=code)) in about) is shown
