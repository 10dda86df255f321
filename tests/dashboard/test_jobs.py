"""Commands in the background, their logs, and exports."""

import os
import sys
from pathlib import Path

import pytest
from browser import wait_for
from dashboard_runs import SLEEPER, make_run, page_of

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.access.password import PASSWORD_VARIABLE
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.served import exports
from lowrank_rlhf.dashboard.tabs import result
from lowrank_rlhf.dashboard.tail import JsonlTail, last_lines
from lowrank_rlhf.dashboard.text import t
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import append_line, write_json_atomic


class TestJobs:
    def test_a_job_is_found_stopped_and_its_end_noted(self, tmp_path) -> None:
        run = make_run(tmp_path)
        jobs.start(run, [sys.executable, "-c", SLEEPER])
        wait_for(lambda: jobs.working(run), 10)
        assert RunsFolder(tmp_path).status("one").state == "starting"
        with pytest.raises(UserError, match="already working on this run"):
            jobs.start(run, [sys.executable, "-c", "pass  # lowrank_rlhf"])
        assert jobs.stop(run)
        wait_for(lambda: (jobs.job(run) or {}).get("exit_code") is not None, 10)
        assert jobs.job(run)["exit_code"] == -15
        assert not jobs.stop(run)
        assert RunsFolder(tmp_path).status("one").state == "killed"

    @pytest.mark.parametrize(
        ("code", "kind"), [(0, "stopped"), (5, "waiting"), (130, "stopped"), (3, "failed"), (1, "failed")]
    )
    def test_how_it_ended_where_no_stage_began(self, tmp_path, code, kind) -> None:
        run = make_run(tmp_path)
        jobs.start(run, [sys.executable, "-c", f"print('why lowrank_rlhf ended'); raise SystemExit({code})"])
        wait_for(lambda: (jobs.job(run) or {}).get("exit_code") is not None, 10)
        found = RunsFolder(tmp_path).status("one")
        assert (found.state, found.log_end) == (kind, "why lowrank_rlhf ended")

    def test_it_outlives_the_page_and_never_sees_its_password(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv(PASSWORD_VARIABLE, "not for the job")
        run = make_run(tmp_path)
        code = "import os; print(os.environ.get('LOWRANK_RLHF_PASSWORD'), os.getsid(0) == os.getpid())"
        jobs.start(run, [sys.executable, "-c", code])
        wait_for(lambda: (jobs.job(run) or {}).get("exit_code") == 0, 10)
        assert last_lines(jobs.log_path(run), 5) == ["None True"]

    def test_logs_do_not_pile_up(self, tmp_path) -> None:
        run = make_run(tmp_path)
        for _ in range(12):
            jobs.start(run, [sys.executable, "-S", "-c", "pass"])
            wait_for(lambda: (jobs.job(run) or {}).get("exit_code") == 0, 10)
        assert len(list((run / "logs").glob("*.log"))) == 10

    def test_a_log_named_by_the_folder_cannot_be_elsewhere(self, tmp_path) -> None:
        run = make_run(tmp_path)
        write_json_atomic(run / "logs" / "job.json", {"log": "../../../etc/passwd"})
        assert jobs.log_path(run) == run / "logs" / "passwd"

    def test_the_command_is_the_one_that_a_person_would_type(self) -> None:
        command = jobs.run_command("my file.yaml", Path("runs"), "name=x")
        assert jobs.as_typed(command) == "python -m lowrank_rlhf run 'my file.yaml' name=x --runs runs"


class TestTail:
    def test_only_what_is_new_is_read(self, tmp_path) -> None:
        path = tmp_path / "metrics.jsonl"
        tail = JsonlTail(path)
        tail.update()
        assert (tail.rows, tail.version) == ([], 0)
        append_line(path, {"step": 1})
        tail.update()
        first = tail.rows[0]
        with path.open("ab") as file:
            file.write(b'{"step": 2}\n{"st')
        tail.update()
        assert tail.rows == [{"step": 1}, {"step": 2}]
        assert tail.rows[0] is first  # not read again
        version = tail.version
        tail.update()
        assert tail.version == version
        with path.open("ab") as file:
            file.write(b'ep": 3}\n')
        tail.update()
        assert [row["step"] for row in tail.rows] == [1, 2, 3]

    def test_a_file_that_was_replaced_is_read_anew(self, tmp_path) -> None:
        path, new = tmp_path / "metrics.jsonl", tmp_path / "new"
        append_line(path, {"step": 1})
        tail = JsonlTail(path)
        tail.update()
        new.write_text('{"step": 7}\n{"step": 8}\nnonsense\n[1]\n')
        os.replace(new, path)
        tail.update()
        assert [row["step"] for row in tail.rows] == [7, 8]
        path.unlink()
        tail.update()
        assert tail.rows == []

    def test_the_end_of_a_long_log(self, tmp_path) -> None:
        path = tmp_path / "log"
        path.write_text("x" * 100_000 + "\n" + "".join(f"line {n}\n" for n in range(50)))
        assert last_lines(path, 2) == ["line 48", "line 49"]
        assert last_lines(tmp_path / "none", 2) == []


class TestExports:
    def test_only_three_things_can_be_taken_home(self, tmp_path) -> None:
        for kind in ("", "..", "../..", "policy"):
            with pytest.raises(UserError):
                exports.folder(tmp_path, kind)

    def test_one_at_a_time_in_the_page_s_language(self, tmp_path, monkeypatch) -> None:
        make_run(tmp_path)
        monkeypatch.setattr(jobs, "working", lambda _: True)
        monkeypatch.setattr(RunsFolder, "training", lambda _: None)
        outcome = result._export(page_of(tmp_path), "one", "zh", "merged")
        assert t("result.working", "zh", kind=t("result.merged", "zh")) in outcome

    def test_too_large_is_refused(self, tmp_path, monkeypatch) -> None:
        run = make_run(tmp_path)
        (run / "exports" / "merged").mkdir(parents=True)
        (run / "exports" / "merged" / "x").write_bytes(b"x" * 11)
        assert b"".join(exports.zipped(run, "merged"))[:2] == b"PK"
        monkeypatch.setattr(exports, "MAX_BYTES", 10)
        with pytest.raises(UserError, match="too large"):
            next(exports.zipped(run, "merged"))

    def test_the_state_comes_from_the_exit_code(self, tmp_path) -> None:
        """Not from what the command printed: a failed export may print nothing."""
        run = make_run(tmp_path)
        assert exports.state(run, "merged") == "none"
        write_json_atomic(run / "exports" / ".merged" / "logs" / "job.json", {"exit_code": 1})
        assert (exports.state(run, "merged"), exports.log_end(run, "merged")) == ("failed", "")
        (run / "exports" / "merged").mkdir()
        assert exports.state(run, "merged") == "ready"
