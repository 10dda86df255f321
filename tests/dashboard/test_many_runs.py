"""The list of many runs: search, filter, order; deleting with a way back."""

import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gradio as gr
import pytest
from dashboard_runs import event, finish, holding, make_run, page_of

from lowrank_rlhf.dashboard import app, deleted_runs, jobs, run_status
from lowrank_rlhf.dashboard.browser import address
from lowrank_rlhf.dashboard.chat_worker import ChatWorker
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.served import exports
from lowrank_rlhf.dashboard.tabs import compare, deleting, run_filter, start
from lowrank_rlhf.dashboard.tabs import runs as runs_tab
from lowrank_rlhf.dashboard.tabs.run_filter import ALL, RunFilter
from lowrank_rlhf.dashboard.text import LANGUAGES, html, t
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import append_line, write_json_atomic
from lowrank_rlhf.run.run_lock import is_locked
from lowrank_rlhf.stages import STAGES


def some_runs(folder) -> RunsFolder:
    """Three runs, the last named changed last: finished with a win rate, failed, new."""
    finish(make_run(folder, "b-done"), *(stage.name for stage in STAGES))
    event(make_run(folder, "A-failed"), "ended early", error="StageFailed")
    make_run(folder, "c-new")
    for age, name in enumerate(("c-new", "A-failed", "b-done")):
        for file in (folder / name, *(folder / name).glob("events.jsonl")):
            os.utime(file, (1e9 - age, 1e9 - age))
    return RunsFolder(folder)


class TestFilter:
    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (ALL, ["c-new", "A-failed", "b-done"]),
            (RunFilter(search="a- fail"), ["A-failed"]),
            (RunFilter(search="x"), []),
            (RunFilter(state="finished"), ["b-done"]),
            (RunFilter(order="name"), ["A-failed", "b-done", "c-new"]),
            (RunFilter(order="win_rate"), ["b-done", "c-new", "A-failed"]),
        ],
    )
    def test_search_state_and_order(self, tmp_path, wanted, expected) -> None:
        runs = some_runs(tmp_path)
        assert run_filter.matching(runs.names(), runs.statuses(runs.names(), 60), wanted) == expected
        assert run_filter.matching(runs.names(), {}, wanted._replace(state="", order="newest")) == [
            name for name in runs.names() if name in expected or wanted.state or not wanted.search
        ]

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_the_list_says_what_it_leaves_out(self, tmp_path, monkeypatch, language) -> None:
        monkeypatch.setattr(runs_tab, "_LISTED", 2)
        runs = some_runs(tmp_path)
        listing = runs_tab._refresh(runs, None, language, {})[0]
        assert listing.count("data-run=") == 2
        assert html(t("runs.some", language, shown=2, found=3)) in listing
        none = runs_tab._refresh(runs, None, language, {}, RunFilter(search="x"))[0]
        assert html(t("runs.none_found", language)) in none
        assert html(t("runs.none", language)) not in none

    def test_the_filter_is_there_when_there_are_many_runs(self, tmp_path, monkeypatch) -> None:
        runs = some_runs(tmp_path)
        assert runs_tab._refresh(runs, None, "en", {})[-2]["visible"] is False
        monkeypatch.setattr(run_filter, "FEW", 2)
        assert runs_tab._refresh(runs, None, "en", {})[-2]["visible"] is True


class TestReading:
    def test_a_list_is_shown_before_all_runs_are_read(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(runs_tab, "_READING_SECONDS", 0.0)
        runs, before, listed = some_runs(tmp_path), {}, []
        for _ in range(3):
            *updates, before = runs_tab._refresh(runs, "c-new", "en", before, RunFilter(search="b-"))
            listed.append(updates[0])
        assert "b-done" in listed[0]  # what is searched for is read first
        assert html(t("runs.unread", "en", count=2)) in listed[0]
        assert "still being read" not in listed[1]

    def test_alarms_are_looked_for_once_and_only_for_the_runs_shown(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(runs_tab, "_LISTED", 2)
        runs, looked = some_runs(tmp_path), []
        monkeypatch.setattr(run_status, "find_alarms", lambda rows, *_: looked.append(len(rows)) or [])
        for seconds, looks in ((0.0, []), (60.0, [0, 0]), (60.0, [0, 0])):
            monkeypatch.setattr(runs_tab, "_ALARM_SECONDS", seconds)
            assert runs_tab._refresh(runs, "c-new", "en", {})[0].count("data-run=") == 2
            assert looked == looks
        append_line(tmp_path / "c-new" / "metrics.jsonl", {"stage": "ppo", "step": 1})
        runs_tab._refresh(runs, "c-new", "en", {})
        assert looked == [0, 0, 1]

    def test_an_idle_run_is_read_again_only_after_a_change(self, tmp_path, monkeypatch) -> None:
        runs, read = some_runs(tmp_path), []
        own = run_status.StatusReader._read

        def counted(self, path):
            read.append(path.name)
            return own(self, path)

        monkeypatch.setattr(run_status.StatusReader, "_read", counted)
        for _ in range(2):
            assert [run.state for run in runs.statuses(runs.names(), 60).values()] == ["new", "failed", "finished"]
        assert read == ["c-new", "A-failed", "b-done"]
        (tmp_path / "c-new" / "logs").mkdir()
        changes = {
            "A-failed": lambda run: event(run, "started"),
            "b-done": lambda run: (run / "done" / "ppo.json").unlink(),
            "c-new": lambda run: write_json_atomic(run / "logs" / "job.json", {"exit_code": 1, "since": "2027"}),
        }
        for name, change in changes.items():
            change(tmp_path / name)
        states = {name: status.state for name, status in runs.statuses(runs.names(), 60).items()}
        assert states == {"A-failed": "killed", "b-done": "new", "c-new": "failed"}
        with holding(tmp_path / "c-new"):
            assert [runs.status("c-new").state for _ in range(2)] == ["running"] * 2
        assert runs.status("c-new").state == "failed"


class TestArchive:
    @pytest.mark.parametrize("language", LANGUAGES)
    def test_an_archived_run_leaves_the_list_and_comes_back(self, tmp_path, language) -> None:
        page = page_of(tmp_path)
        for name in ("one", "two"):
            make_run(tmp_path, name)

        def refreshed(chosen: str, wanted: RunFilter = ALL) -> tuple[list[str], list[str], tuple[bool, bool], bool]:
            listing, _, choice, *_, archive, unarchive, _, row, _ = runs_tab._refresh(
                page.runs, chosen, language, {}, wanted
            )
            listed, buttons = re.findall('data-run="(.*?)"', listing), (archive["visible"], unarchive["visible"])
            return sorted(listed), sorted(choice["choices"]), buttons, row["visible"]

        put_away, bring_back = (True, False), (False, True)
        assert refreshed("one") == (["one", "two"], ["one", "two"], put_away, False)
        for _ in range(2):  # a click that comes late does not bring it back
            assert html(t("outcome.archive", language, run="one")) in deleting._archive(page, "one", language, True)
        assert refreshed("one") == (["two"], ["one", "two"], bring_back, True)  # the chosen one stays chosen
        assert refreshed("two") == (["two"], ["two"], put_away, True)
        assert refreshed("two", RunFilter(state="archived"))[0] == ["one"]
        assert page.runs.listed() == ["two"]
        for _ in range(2):
            assert html(t("outcome.restore", language, run="one")) in deleting._archive(page, "one", language, False)
        assert refreshed("two") == (["one", "two"], ["one", "two"], put_away, False)

    def test_an_archived_run_is_offered_nowhere_unless_it_is_chosen(self, tmp_path, monkeypatch) -> None:
        page = page_of(tmp_path)
        for name in ("gone", "here"):
            event(make_run(tmp_path, name), "ended early", error="WaitingForPeople")
        page.runs.archive("gone", True)
        monkeypatch.setattr(runs_tab, "_READING_SECONDS", 0.0)  # not even before its status is read
        for chosen, choices in (("here", ["here"]), ("gone", ["gone", "here"]), (None, ["here"])):
            assert sorted(runs_tab._refresh(page.runs, chosen, "en", {})[2]["choices"]) == choices
            assert sorted(compare._refresh(page.runs, [chosen or "x"], "en", {})[0]["choices"]) == choices
            assert sorted(address.chosen(page.runs, chosen)["choices"]) == choices
        assert start._waiting(page.runs, "en")[0] == "here"
        page.runs.archive("here", True)
        assert start._waiting(page.runs, "en")[0] == gr.skip()
        with holding(tmp_path / "here"):
            assert address.chosen(page.runs, None)["value"] is None
            assert address.chosen(page.runs, "here")["value"] == "here"
        assert runs_tab._refresh(page.runs, None, "en", {})[2]["value"] is None

    @pytest.mark.parametrize("name", ["..", "missing"])
    def test_no_other_folder_is_archived(self, tmp_path, name) -> None:
        with pytest.raises(UserError):
            RunsFolder(tmp_path / "runs").archive(name, True)
        assert list(tmp_path.rglob("archived")) == []

    def test_no_automatic_event_refuses_a_run_that_is_gone(self, tmp_path) -> None:
        """Gradio would answer each timer with an error message."""
        blocks = app.build(RunsFolder(tmp_path), ChatWorker())
        (run,) = (block for block in blocks.blocks.values() if block.elem_id == "run")
        automatic = [
            event
            for event in blocks.fns.values()
            if run in event.inputs and event.fn and {name for _, name in event.targets} & {"tick", "change", "load"}
        ]
        assert len(automatic) >= 5
        assert [event.name for event in automatic if event.preprocess] == []


class TestDeleting:
    def test_a_deleted_run_comes_back_with_all_its_files(self, tmp_path) -> None:
        page = page_of(tmp_path)
        run = make_run(tmp_path)
        (run / "samples.jsonl").write_text("{}\n")
        _, question, asked, _ = deleting._ask("delete", "one", "en")
        assert run.is_dir()  # one click deletes nothing
        assert "Delete run one?" in question
        shown, choices = deleting._carry_out(page, *asked, "en")
        assert (page.runs.names(), run.exists()) == ([], False)
        assert html(t("outcome.delete", "en", run="one")) in shown
        shown, rest = deleting._carry_out(page, "restore", choices["value"], "en")
        assert html(t("outcome.restore", "en", run="one")) in shown
        assert (run / "samples.jsonl").read_text() == "{}\n"
        assert (page.runs.names(), rest["choices"]) == (["one"], [])

    @pytest.mark.parametrize(("language", "says"), [("en", "another run has"), ("zh", "另一个运行也叫")])
    def test_no_run_is_restored_beside_another_of_its_name(self, tmp_path, language, says) -> None:
        """Its settings name the other run: Resume and Redo would work on that."""
        page = page_of(tmp_path)
        make_run(tmp_path)
        _, choices = deleting._carry_out(page, "delete", "one", language)
        make_run(tmp_path)
        shown, rest = deleting._carry_out(page, "restore", choices["value"], language)
        assert says in shown
        assert (page.runs.names(), rest["value"]) == (["one"], choices["value"])

    def test_a_run_is_locked_while_it_is_moved(self, tmp_path, monkeypatch) -> None:
        """By its own lock against a terminal, by the page's against its other visitors."""
        run, seen = make_run(tmp_path), []
        monkeypatch.setattr(deleted_runs, "_move", lambda *_: seen.append((is_locked(run), taken())))
        monkeypatch.setattr(jobs, "_start", lambda *_: seen.append(taken()))
        deleted_runs.delete(RunsFolder(tmp_path), "one")
        jobs.start(run, [])
        assert seen == [(True, True), True]

    def test_a_late_click_does_not_bring_a_deleted_run_back(self, tmp_path) -> None:
        run, page = make_run(tmp_path), page_of(tmp_path)
        deleted_runs.delete(page.runs, "one")
        for click in (
            lambda: jobs.start(run, []),
            lambda: exports.start(run, "adapters"),
            lambda: runs_tab.resume_after_ranking(page, "one"),
            lambda: deleted_runs.delete(page.runs, "one"),
        ):
            with pytest.raises(UserError, match="one: run not found"):
                click()
        assert not run.exists()

    @pytest.mark.parametrize(("talks_with", "closed"), [("one", True), ("two", False), ("held", False)])
    def test_only_the_chat_with_the_deleted_run_ends(self, tmp_path, talks_with, closed) -> None:
        make_run(tmp_path), make_run(tmp_path, "two")
        calls: list[str] = []
        page = page_of(tmp_path, SimpleNamespace(run=tmp_path / talks_with, close=lambda: calls.append("close")))
        if talks_with != "held":
            deleting._carry_out(page, "delete", "one", "en")
        else:
            with holding(make_run(tmp_path, "held")):
                deleting._carry_out(page, "delete", "held", "en")
        assert calls == ["close"] * closed

    def test_only_a_deleted_run_is_removed_for_good_and_after_a_question(self, tmp_path) -> None:
        page = page_of(tmp_path)
        make_run(tmp_path)
        _, choices = deleting._carry_out(page, "delete", "one", "zh")
        _, question, asked, _ = deleting._ask("remove", choices["value"], "zh")
        assert "彻底删除运行 one" in question
        assert deleted_runs.deleted(page.runs) == [choices["value"]]
        deleting._carry_out(page, *asked, "zh")
        assert deleted_runs.deleted(page.runs) == []
        assert list((tmp_path / "_deleted").iterdir()) == []

    def test_a_run_at_work_is_not_deleted(self, tmp_path) -> None:
        run = make_run(tmp_path)
        with holding(run):
            shown, _ = deleting._carry_out(page_of(tmp_path), "delete", "one", "zh")
        assert "已经在处理这个运行" in shown
        assert run.is_dir()

    @pytest.mark.parametrize(
        "name",
        ["..", "../one", "one", ".", "one.20261130T100000000000/..", "x.2026", "link.20261130T100000000000"],
    )
    def test_no_name_leads_out_of_the_folder_of_deleted_runs(self, tmp_path, name) -> None:
        make_run(tmp_path)
        (tmp_path / "_deleted").mkdir()
        (tmp_path / "_deleted" / "link.20261130T100000000000").symlink_to(tmp_path / "one")
        for act in (deleted_runs.restore, deleted_runs.remove):
            with pytest.raises(UserError):
                act(RunsFolder(tmp_path), name)
        assert (tmp_path / "one").is_dir()

    def test_a_link_in_place_of_the_folder_is_refused(self, tmp_path) -> None:
        run, other = make_run(tmp_path / "runs"), tmp_path / "other"
        other.mkdir()
        (tmp_path / "runs" / "_deleted").symlink_to(other)
        with pytest.raises(UserError, match="a link"):
            deleted_runs.delete(RunsFolder(tmp_path / "runs"), "one")
        assert (run.is_dir(), list(other.iterdir())) == (True, [])

    @pytest.mark.parametrize(("language", "says"), [("en", "cannot be written: "), ("zh", "无法写入：")])
    def test_a_file_in_place_of_the_folder_is_a_sentence(self, tmp_path, language, says) -> None:
        run, page = make_run(tmp_path), page_of(tmp_path)
        (tmp_path / "_deleted").write_text("")
        shown, choices = deleting._carry_out(page, "delete", "one", language)
        assert says in shown
        assert (run.is_dir(), choices["choices"]) == (True, [])

    def test_a_run_that_cannot_be_removed_is_out_of_the_list(self, tmp_path, monkeypatch) -> None:
        """What is left of it cannot be restored as half a run."""
        page = page_of(tmp_path)
        make_run(tmp_path)
        _, choices = deleting._carry_out(page, "delete", "one", "en")

        def fail(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(shutil, "rmtree", fail)
        shown, rest = deleting._carry_out(page, "remove", choices["value"], "en")
        assert "cannot be written: Permission denied" in shown
        assert rest["choices"] == []

    @pytest.mark.parametrize("name", ["x.99999999T999999999999", "x.00010101T000000000000", "x.99991231T235959999999"])
    def test_a_folder_of_no_possible_time_does_not_break_the_list(self, tmp_path, monkeypatch, name) -> None:
        page = page_of(tmp_path)
        make_run(tmp_path)
        _, choices = deleting._carry_out(page, "delete", "one", "en")
        (tmp_path / "_deleted" / name).mkdir()
        (tmp_path / "_deleted" / "link.20261130T100000000000").symlink_to(tmp_path)
        (tmp_path / "_deleted" / "file.20261130T100000000000").write_text("")
        for zone in ("Etc/GMT+12", "Etc/GMT-14"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert choices["value"] in [value for _, value in deleting._choices(page)["choices"]]
            assert not [value for _, value in deleting._choices(page)["choices"] if value.startswith(("link", "file"))]
        monkeypatch.undo()
        time.tzset()


def taken() -> bool:
    """True if another thread could not start or delete now."""

    def free() -> bool:
        got = jobs.changing.acquire(blocking=False)
        if got:
            jobs.changing.release()
        return got

    with ThreadPoolExecutor() as pool:
        return not pool.submit(free).result()
