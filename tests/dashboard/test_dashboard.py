"""What the page knows of runs, and how it starts and stops them; no browser, no server."""

import json
import os
import re
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import ROOT, wait_for

from lowrank_rlhf.commands.terminal import chat_lines
from lowrank_rlhf.commands.terminal.chat_loop import Settings, fit
from lowrank_rlhf.config.loading import load_config, parse_config, preset_path
from lowrank_rlhf.dashboard import drawing, exports, jobs, run_status
from lowrank_rlhf.dashboard.curves import figures
from lowrank_rlhf.dashboard.tabs import result, runs, talk, watch
from lowrank_rlhf.dashboard.tabs.runs_html import run_list
from lowrank_rlhf.dashboard.tabs.samples import samples
from lowrank_rlhf.dashboard.tabs.votes import Said, save_vote
from lowrank_rlhf.dashboard.tail import RowTail, last_lines
from lowrank_rlhf.dashboard.text import LANGUAGES, html, t, table
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.reports.alarms import named_alarms
from lowrank_rlhf.run.files import append_line, write_json_atomic
from lowrank_rlhf.stages import STAGES

NASTY = "<script>document.title='taken'</script> **bold** ${1+1} {{value}} \u202eabc"
SLEEPER = "import time, sys; print('lowrank_rlhf'); sys.stdout.flush(); time.sleep(60)"


def make_run(folder: Path, name: str = "one") -> Path:
    """A run's folder with the quickstart's settings and nothing done."""
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(preset_path("quickstart").read_text(encoding="utf-8"), encoding="utf-8")
    return run


def finish(run: Path, *stages: str) -> None:
    for stage in stages:
        mark = {
            "fingerprint": {"settings": {}, "inputs": {}},
            "summary": {"win_rate": 0.7},
            "seconds": 10.0,
            "peak_memory_bytes": 2**30,
            "finished_at": "x",
        }
        write_json_atomic(run / "done" / f"{stage}.json", mark)


def event(run: Path, kind: str, stage: str = "sft", **more: object) -> None:
    append_line(run / "events.jsonl", {"time": "2026-01-01T00:00:00+00:00", "kind": kind, "stage": stage, **more})


class TestLanguages:
    def test_every_text_is_there_in_every_language(self) -> None:
        first, *others = map(table, LANGUAGES)
        for other in others:
            assert list(first) == list(other)
        for key, text in first.items():
            fields = {field for _, field, _, _ in string.Formatter().parse(text) if field}
            for other in others:
                assert {field for _, field, _, _ in string.Formatter().parse(other[key]) if field} == fields, key
                assert other[key].strip()

    def test_chinese_is_chinese(self) -> None:
        """Not the English text left standing."""
        english, chinese = table("en"), table("zh")
        same = {key for key in english if english[key] == chinese[key]}
        assert same == {"talk.sft"}

    def test_every_key_that_the_code_uses_is_there_and_every_text_is_used(self) -> None:
        files = (ROOT / "lowrank_rlhf" / "dashboard").glob("*.py")
        own = (path for path in files if not path.name.startswith("rank"))  # the ranking page has texts of its own
        code = "".join(path.read_text(encoding="utf-8") for path in own)
        known = set(table("en"))
        literal = set(re.findall(r'"([a-z]+\.[a-z_.]+)"', code)) - {"samples.jsonl", "page.css"}
        literal = {key for key in literal if key.split(".")[0] in _groups(known)}
        assert literal - known == set()
        patterns = [
            re.sub(r"\{[^}]*\}", "[a-z_]+", text) for text in re.findall(r"""f["']([a-z]+\.\{[^"']*)["']""", code)
        ]
        unused = {key for key in known - literal if not any(re.fullmatch(pattern, key) for pattern in patterns)}
        assert unused == set()

    def test_every_alarm_has_its_words(self) -> None:
        from lowrank_rlhf.reports import alarms

        names = {check.__name__ for check in (*alarms._CHECKS, *alarms._TOO_FAR)}
        names |= {"weak_reward", "broken_claims", "longer_answers", "same_openers", "repeated_words"}
        assert {key.removeprefix("alarm.") for key in table("zh") if key.startswith("alarm.")} == names

    def test_an_unknown_language_or_key_is_an_error(self) -> None:
        for key, language in (("runs.none", "fr"), ("runs.nothing", "en")):
            with pytest.raises(KeyError):
                t(key, language)


def _groups(keys: set[str]) -> set[str]:
    return {key.split(".")[0] for key in keys}


class TestNames:
    @pytest.mark.parametrize(
        "name", ["..", ".", "", "a/b", "../x", "a\\b", ".hidden", "a\0b", "x" * 65, "ä", "a b", "-x"]
    )
    def test_names_that_lead_elsewhere_are_refused(self, tmp_path, name) -> None:
        with pytest.raises(UserError, match="is not a run's name"):
            run_status.run_path(tmp_path, name)

    def test_a_link_is_no_run(self, tmp_path) -> None:
        make_run(tmp_path / "elsewhere")
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "one").symlink_to(tmp_path / "elsewhere" / "one")
        assert run_status.names(tmp_path / "runs") == []
        with pytest.raises(UserError):
            run_status.look(tmp_path / "runs", "one")

    def test_only_folders_of_runs_count(self, tmp_path) -> None:
        make_run(tmp_path)
        (tmp_path / "notes").mkdir()
        (tmp_path / "file.txt").write_text("x")
        assert run_status.names(tmp_path) == ["one"]
        assert run_status.names(tmp_path / "nowhere") == []


class TestStanding:
    @pytest.mark.parametrize(
        ("kind", "error", "expected"),
        [
            ("ended early", "Stopped", "stopped"),
            ("ended early", "KeyboardInterrupt", "stopped"),
            ("ended early", "WaitingForPeople", "waiting"),
            ("ended early", "StageFailed", "failed"),
            ("started", None, "killed"),
            ("finished", None, "stopped"),
        ],
    )
    def test_from_the_last_event(self, tmp_path, kind, error, expected) -> None:
        run = make_run(tmp_path)
        assert run_status.look(tmp_path, "one").kind == "new"
        event(run, "started")
        event(run, kind, error=error)
        assert run_status.look(tmp_path, "one").kind == expected

    def test_all_done(self, tmp_path) -> None:
        run = make_run(tmp_path)
        finish(run, "sft", "sample")
        event(run, "finished", "sample")
        found = run_status.look(tmp_path, "one")
        assert (found.kind, found.stage, list(found.done)) == ("stopped", "rank", ["sft", "sample"])
        finish(run, *(stage.name for stage in STAGES))
        found = run_status.look(tmp_path, "one")
        assert (found.kind, found.stage) == ("finished", None)
        assert "win rate 70 %" in run_list([found], "one", "en")
        assert "胜率 70 %" in run_list([found], "one", "zh")

    @pytest.mark.parametrize("name", ["lowrank_rlhf", "lowrank-rlhf"])  # python -m, and the installed command
    def test_a_live_process_holds_it_and_a_dead_ones_lock_does_not_count(self, tmp_path, name) -> None:
        run = make_run(tmp_path)
        command = [sys.executable, "-c", SLEEPER.replace("lowrank_rlhf", name)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline()
            since = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 1))
            write_json_atomic(run / "run.lock.json", {"pid": process.pid, "since": since})
            event(run, "started", "sft")
            found = run_status.look(tmp_path, "one")
            assert (found.kind, found.pid, found.busy) == ("running", process.pid, True)
            assert run_status.training(tmp_path) == "one"
            process.kill()
        assert run_status.look(tmp_path, "one").kind == "killed"
        assert run_status.training(tmp_path) is None

    def test_a_number_that_another_process_has_now_is_not_the_run(self, tmp_path) -> None:
        """A lock older than the process, and a process that is something else."""
        run = make_run(tmp_path)
        for since in ("2001-01-01T00:00:00+00:00", "2101-01-01T00:00:00+00:00"):
            write_json_atomic(run / "run.lock.json", {"pid": 1, "since": since})
            assert jobs.holder(run) is None
        with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE) as process:
            assert process.stdout.readline()
            write_json_atomic(run / "run.lock.json", {"pid": process.pid, "since": "2001-01-01T00:00:00+00:00"})
            assert jobs.holder(run) is None
            assert not jobs.stop(run)
            assert process.poll() is None
            process.kill()

    @pytest.mark.parametrize(
        "written", ["[1]", "{}", '{"pid": "x", "since": 3}', '{"pid": -1, "since": "now"}', "\x00"]
    )
    def test_nonsense_in_the_lock_is_nobody(self, tmp_path, written) -> None:
        run = make_run(tmp_path)
        (run / "run.lock.json").write_text(written)
        assert jobs.holder(run) is None

    def test_time_to_go_of_the_stage_is_its_own_word(self) -> None:
        def left(details: str) -> float | None:
            return run_status.Bar("ppo", 3, 14, "steps", details).seconds_left

        assert left("score 1  ETA 2:01  2.1 GiB") == 121
        assert left("ETA 1:02:03") == 3723
        assert left("score 1  2.1 GiB") is None

    def test_a_terminals_run_at_work_tells_its_pace(self, tmp_path) -> None:
        """The last that the stage at work noted; what another stage noted says nothing about it."""
        run = make_run(tmp_path)
        event(run, "started")
        for stage, step, pace in (("sft", 1, 100.0), ("sft", 2, 340.4), ("reward", 1, 900.0)):
            append_line(run / "metrics.jsonl", {"stage": stage, "step": step, "tokens_per_second": pace})
        append_line(run / "metrics.jsonl", {"stage": "sft", "step": 3, "loss": 1.0})
        with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE) as process:
            assert process.stdout.readline()
            since = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 1))
            write_json_atomic(run / "run.lock.json", {"pid": process.pid, "since": since})
            shown = watch._state(run_status.look(tmp_path, "one"), "en")
            process.kill()
        assert re.search(r"340 tokens/s  [\d.]+ [GM]iB</p>", shown)
        assert "tokens/s" not in watch._state(run_status.look(tmp_path, "one"), "en")


class TestJobs:
    def test_a_job_is_found_stopped_and_its_end_noted(self, tmp_path) -> None:
        run = make_run(tmp_path)
        jobs.start(run, [sys.executable, "-c", SLEEPER])
        wait_for(lambda: jobs.working(run), 10)
        assert run_status.look(tmp_path, "one").kind == "starting"
        with pytest.raises(UserError, match="works on this run already"):
            jobs.start(run, [sys.executable, "-c", "pass  # lowrank_rlhf"])
        assert jobs.stop(run)
        wait_for(lambda: (jobs.job(run) or {}).get("exit_code") is not None, 10)
        assert jobs.job(run)["exit_code"] == -15
        assert not jobs.stop(run)
        assert run_status.look(tmp_path, "one").kind == "killed"

    @pytest.mark.parametrize(("code", "kind"), [(5, "waiting"), (130, "stopped"), (3, "failed"), (1, "failed")])
    def test_how_it_ended_where_no_stage_began(self, tmp_path, code, kind) -> None:
        run = make_run(tmp_path)
        jobs.start(run, [sys.executable, "-c", f"print('why lowrank_rlhf ended'); raise SystemExit({code})"])
        wait_for(lambda: (jobs.job(run) or {}).get("exit_code") is not None, 10)
        found = run_status.look(tmp_path, "one")
        assert (found.kind, found.message) == (kind, "why lowrank_rlhf ended")

    def test_it_outlives_the_page_and_never_sees_its_password(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv(jobs.PASSWORD_VARIABLE, "not for the job")
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
        tail = RowTail(path)
        tail.look()
        assert (tail.rows, tail.version) == ([], 0)
        append_line(path, {"step": 1})
        tail.look()
        first = tail.rows[0]
        with path.open("ab") as file:
            file.write(b'{"step": 2}\n{"st')
        tail.look()
        assert tail.rows == [{"step": 1}, {"step": 2}]
        assert tail.rows[0] is first  # not read again
        version = tail.version
        tail.look()
        assert tail.version == version
        with path.open("ab") as file:
            file.write(b'ep": 3}\n')
        tail.look()
        assert [row["step"] for row in tail.rows] == [1, 2, 3]

    def test_a_file_that_was_replaced_is_read_anew(self, tmp_path) -> None:
        path, new = tmp_path / "metrics.jsonl", tmp_path / "new"
        append_line(path, {"step": 1})
        tail = RowTail(path)
        tail.look()
        new.write_text('{"step": 7}\n{"step": 8}\nnonsense\n[1]\n')
        os.replace(new, path)
        tail.look()
        assert [row["step"] for row in tail.rows] == [7, 8]
        path.unlink()
        tail.look()
        assert tail.rows == []

    def test_the_end_of_a_long_log(self, tmp_path) -> None:
        path = tmp_path / "log"
        path.write_text("x" * 100_000 + "\n" + "".join(f"line {n}\n" for n in range(50)))
        assert last_lines(path, 2) == ["line 48", "line 49"]
        assert last_lines(tmp_path / "none", 2) == []


class TestDrawing:
    def test_ticks(self) -> None:
        assert drawing.ticks(0, 1) == pytest.approx([0, 0.5, 1])
        assert drawing.ticks(0.13, 0.31) == pytest.approx([0.15, 0.2, 0.25, 0.3])
        assert drawing.ticks(-3, 17) == pytest.approx([0, 5, 10, 15])

    def test_points_stand_where_they_should(self) -> None:
        """By hand: x from 46 to 348, y with 6 % of room from 174 down to 12."""
        svg = drawing.chart([drawing.Line("a", [(0, 0), (10, 100)])], "step", "title")
        points = re.search(r'points="([^"]*)"', svg)[1]
        low, high = 174 - 162 * 6 / 112, 174 - 162 * 106 / 112
        assert points == f"46.0,{low:.1f} 348.0,{high:.1f}"

    def test_gaps_and_single_points(self) -> None:
        nan = float("nan")
        assert drawing.chart([drawing.Line("a", [(0, nan)])], "step", "title") == ""
        assert drawing.chart([], "step", "title") == ""
        assert "<circle" in drawing.chart([drawing.Line("a", [(3, 5.0)])], "step", "title")

    def test_long_series_are_thinned_and_keep_their_end(self) -> None:
        svg = drawing.chart([drawing.Line("a", [(n, n) for n in range(5001)])], "step", "title")
        points = re.search(r'points="([^"]*)"', svg)[1].split()
        assert len(points) <= 402
        assert points[-1].startswith("348.0,")

    def test_numbers(self) -> None:
        values = [0.25, 1.5, 0, 12345, 0.00012, -3]
        assert list(map(drawing.number, values)) == ["0.25", "1.5", "0", "12.3k", "1.2e-4", "-3"]

    def test_all_curves_of_a_run(self) -> None:
        rows = [{"stage": "ppo", "step": n, "objective/scores": n, "objective/kl": n} for n in range(3)]
        rows += [{"stage": "ppo", "step": n, "eval/kl": n, "eval/score": n, "eval/judge": -n} for n in (0, 2)]
        for language, title in (("en", "Proxy and gold over distance"), ("zh", "代理分与金标准分随距离变化")):
            drawn = figures(rows, language)
            assert drawn.count("<figure>") == 3
            assert title in drawn
            assert t("curve.gold", language) in drawn

    def test_gold_of_a_second_judge_is_called_so(self) -> None:
        rows = [{"stage": "ppo", "step": n, "eval/kl": n, "eval/score": n, "eval/second_judge": -n} for n in (0, 2)]
        for language, name in (("en", "second judge (gold)"), ("zh", "第二评判（金标准）")):
            assert name in figures(rows, language)


def test_what_others_wrote_is_shown_as_text(tmp_path) -> None:
    run = make_run(tmp_path)
    (run / "samples.jsonl").write_text(json.dumps({"id": "a", "prompt_id": "<b>", "text": NASTY}) + "\n")
    table = samples(run, [], [], "en")
    compared = samples(run, [], [{"prompt": NASTY, "sft": NASTY, "policy": NASTY, "score_sft": 1.0}], "en")
    watched = samples(run, [{"step": 0, "prompt_id": "a", "prompt": NASTY, "answer": NASTY, "score": 1.0}], [], "en")
    for shown in (html(NASTY), table, compared, watched):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown
        assert "\u202e" not in shown
        assert "**bold**" in shown


def test_answers_by_step_show_sft_and_the_last_evaluations(tmp_path) -> None:
    rows = [
        {"step": step, "prompt_id": name, "prompt": f"ask {name}", "answer": f"{name}{step}", "score": step / 10}
        for step in range(0, 14, 2)
        for name in "ab"
    ]
    shown = samples(make_run(tmp_path), rows, [], "en")
    assert re.findall("<th>(.*?)</th>", shown) == ["Prompt", "SFT (before)", "Step 6", "Step 8", "Step 10", "Step 12"]
    first = re.findall(r'<div dir="auto">(.*?)</div>', shown.partition("<tbody>")[2].partition("</tr><tr>")[0])
    assert first == ["ask a", "a0", "a6", "a8", "a10", "a12"]
    assert "reward 1.2" in shown


class TestNewRun:
    def test_the_chosen_runs_settings_come_into_the_form(self, tmp_path) -> None:
        run = make_run(tmp_path)
        text, name, told, start = runs._own_settings(tmp_path, run.name, "en")
        assert (text, name, told, start["interactive"]) == ((run / "config.yaml").read_text(), run.name, "", False)
        for chosen, expected in ((None, "runs.choose"), ("nothing", "runs.no_config")):
            skipped, _, told, start = runs._own_settings(tmp_path, chosen, "en")
            assert html(t(expected, "en")) in told
            assert not isinstance(skipped, str)  # what was typed stays
            assert start["interactive"] is False
        assert "is not a run&#x27;s name" in runs._own_settings(tmp_path, "../x", "en")[2]

    def test_mistakes_have_their_line_as_in_the_cli(self) -> None:
        text = "name: x\nmodel:\n  source: y\nppo:\n  stepz: 3\n"
        shown, locked = runs._check(text, "", "en")
        assert "editor:5:3: ppo.stepz: unknown key. Did you mean &quot;steps&quot;?" in shown
        assert locked["interactive"] is False
        with pytest.raises(UserError) as refused:
            parse_config(text, "editor")
        assert html(str(refused.value)) in shown

    def test_the_name_is_an_override(self) -> None:
        text = preset_path("quickstart").read_text(encoding="utf-8")
        assert "are valid" in runs._check(text, "mine", "en")[0]
        assert "override &quot;name=../mine&quot;: name: must be" in runs._check(text, "../mine", "en")[0]

    def test_an_unchanged_preset_is_run_by_its_name(self, tmp_path) -> None:
        text = preset_path("quickstart").read_text(encoding="utf-8")
        assert runs._config_name(text.rstrip(), "quickstart", tmp_path) == "quickstart"
        for changed, preset in ((text + "seed: 2\n", "quickstart"), (text, None), (text, "human_preferences")):
            assert runs._config_name(changed, preset, tmp_path) == f"{tmp_path}/logs/start.yaml"

    def test_text_and_file_are_read_alike(self) -> None:
        path = preset_path("quickstart")
        assert parse_config(path.read_text(encoding="utf-8"), "editor", ["seed=7"]) == load_config(path, ["seed=7"])

    def test_nothing_starts_without_its_plan(self, tmp_path) -> None:
        text = preset_path("quickstart").read_text(encoding="utf-8")
        for agreed in (None, ["other", ""], [text, "other"]):
            _, said, *_ = runs._start_new(tmp_path, text, "", "quickstart", "en", agreed)
            assert "check them again" in said
        assert list(tmp_path.iterdir()) == []

    def test_redo_and_resume_by_their_commands(self, tmp_path, monkeypatch) -> None:
        run, started = make_run(tmp_path), []
        monkeypatch.setattr(jobs, "start", lambda path, command: started.append((path, command[3:])))
        runs._act(tmp_path, "resume", "one", "en", None)
        runs._act(tmp_path, "redo", "one", "en", "ppo")
        runs._act(tmp_path, "redo", "one", "en", None)
        config = str(run / "config.yaml")
        assert started == [
            (run, ["run", config, "--runs", str(tmp_path)]),
            (run, ["run", config, "--redo", "ppo", "--runs", str(tmp_path)]),
        ]
        assert "not a run" in runs._act(tmp_path, "resume", "../one", "en", None)


class TestVotes:
    def test_a_vote_is_an_annotation(self, tmp_path) -> None:
        run = make_run(tmp_path)
        one, two = Said("policy", "yes", True), Said("sft", "no", False)
        for verdict in ("first", "second", "tie"):
            save_vote(run, "why?", one, two, verdict, 3.21)
        store = AnnotationStore(run / "talk" / "annotations.sqlite")
        ranked = store.rankings()
        voices = [[[sample.rsplit("-", 1)[1] for sample in tier] for tier in ranking.tiers] for ranking in ranked]
        assert voices == [[["policy"], ["sft"]], [["sft"], ["policy"]], [["policy", "sft"]]]
        assert {ranking.annotator for ranking in ranked} == {"dashboard"}
        assert ranked[0].seconds == 3.2
        assert not (run / "annotations.sqlite").exists()
        texts = {answer.text: answer.finished for answer in store.contents().answers}
        assert texts == {"yes": True, "no": False}

    def test_blind_is_blind(self) -> None:
        said = {"text": "x", "tokens": 1, "finished": True, "score": 2.5, "stopped": False}
        said_talk = talk.Talk("one", [("why?", {"sft": dict(said), "policy": dict(said)})], ("policy", "sft"))
        shown = talk._cards(said_talk, "en")
        for word in ("policy", "sft", "SFT", "Policy", "2.5"):
            assert word not in shown
        orders = {talk._voices(("base", "sft", "policy"), True) for _ in range(60)}
        assert orders == {("sft", "policy"), ("policy", "sft")}

    @pytest.mark.parametrize(
        ("error", "key"), [(None, "talk.alone"), (UserError("busy"), "talk.busy"), (UserError("gone"), "talk.gone")]
    )
    def test_why_nobody_answers_is_said_in_the_page_s_language(self, tmp_path, monkeypatch, error, key) -> None:
        def models(_run: Path) -> dict:
            if error:
                raise error
            return {"voices": ["sft"]}

        make_run(tmp_path)
        monkeypatch.setattr(talk.TALKER, "open", models)
        last = list(talk._ask(tmp_path, "why?", talk.Talk(), "one", "zh", 0.7, 0, 1, True))[-1]
        assert html(table("zh")[key]) in last[0]


class Letters:
    """Says the alphabet, letter by letter; a token is a character of the conversation."""

    about_scores = "none"

    def encode(self, messages):
        return [ord(letter) for message in messages for letter in message.content]

    def answer(self, voice, _prompt, sampling, on_text):
        from lowrank_rlhf.evaluation.chat import Answer

        said = ""
        try:
            for letter in string.ascii_lowercase[: sampling.max_new_tokens]:
                said += letter
                on_text(letter)
                time.sleep(0.02)
        except KeyboardInterrupt:
            return Answer(voice, said, len(said), finished=False, stopped=True, score=None)
        return Answer(voice, said, len(said), finished=True, stopped=False, score=0.5)


class TestLines:
    SETTINGS = Settings(voices=("base", "sft"), speaks="sft", temperature=0.7, max_new_tokens=3, room=20, seed=1)

    def talk(self, monkeypatch, capsys, *lines: object) -> list[dict]:
        import io

        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        chat_lines.serve(Letters(), self.SETTINGS)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    def test_an_answer_in_pieces(self, monkeypatch, capsys) -> None:
        ask = {"messages": [{"role": "user", "content": "hi"}], "max_new_tokens": 2}
        said = self.talk(monkeypatch, capsys, ask, ask | {"as": "base", "max_new_tokens": 1})
        about = {"voices": ["base", "sft"], "about_scores": "none", "temperature": 0.7, "max_new_tokens": 3, "seed": 1}
        whole = {"finished": True, "stopped": False, "score": 0.5}
        assert said == [
            {"ready": True, **about},
            {"piece": "a"},
            {"piece": "b"},
            {"answer": {"as": "sft", "text": "ab", "tokens": 2, **whole}, "dropped": 0},
            {"piece": "a"},
            {"answer": {"as": "base", "text": "a", "tokens": 1, **whole}, "dropped": 0},
        ]

    @pytest.mark.parametrize(
        ("request_", "error"),
        [
            ("nonsense\n", "Invalid JSON"),
            ({"messages": []}, "messages: "),
            ({"messages": [{"role": "user", "content": "hi"}], "as": "policy"}, "has no policy yet"),
            ({"messages": [{"role": "user", "content": "x" * 21}]}, "too long; 20 tokens fit beside an answer of 3"),
            ({"messages": [{"role": "user", "content": "x"}], "max_new_tokens": 99}, "too long; 0 tokens"),
            ({"messages": [{"role": "user", "content": "x"}], "shell": 1}, "shell: "),
        ],
    )
    def test_mistakes_are_answered(self, monkeypatch, capsys, request_, error) -> None:
        said = self.talk(monkeypatch, capsys, request_)
        assert error in said[1]["error"]

    def test_a_stop_ends_the_answer_and_the_next_one_is_whole(self) -> None:
        code = (
            "import sys; sys.path[:0] = ['tests', '.']\n"
            "from test_dashboard import Letters, TestLines\n"
            "from lowrank_rlhf.commands import chat_lines\n"
            "chat_lines.serve(Letters(), TestLines.SETTINGS)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            ask = {"messages": [{"role": "user", "content": "hi"}], "max_new_tokens": 20}
            assert json.loads(process.stdout.readline())["ready"]
            process.stdin.write(json.dumps(ask) + "\n")
            process.stdin.flush()
            first = [json.loads(process.stdout.readline()) for _ in range(2)]
            process.stdin.write('{"stop": true}\n')
            process.stdin.flush()
            answer = self.rest(process)
            process.stdin.write(json.dumps(ask | {"max_new_tokens": 4}) + "\n")
            process.stdin.flush()
            second = self.rest(process)
            process.stdin.close()
            assert process.wait(20) == 0
        assert first == [{"piece": "a"}, {"piece": "b"}]
        assert answer["stopped"] is True
        assert answer["tokens"] < 20
        assert second == {"as": "sft", "text": "abcd", "tokens": 4, "finished": True, "stopped": False, "score": 0.5}

    def rest(self, process: subprocess.Popen) -> dict:
        while "answer" not in (message := json.loads(process.stdout.readline())):
            pass
        return message["answer"]

    def test_the_oldest_turns_go(self) -> None:
        from lowrank_rlhf.run.records import Message

        turns = [Message(role=role, content=text) for role, text in (("user", "aaaa"), ("assistant", "bbb"))]
        question = Message(role="user", content="cc")
        assert fit(Letters(), [*turns, question], 9)[0] == [*turns, question]
        assert fit(Letters(), [*turns, question], 8) == ([question], [99, 99])
        assert fit(Letters(), [*turns, question], 1) == ([question], None)
        assert fit(Letters(), [turns[0], question], 5) == ([question], None)  # the question is never what goes


class TestExports:
    def test_only_three_things_can_be_taken_home(self, tmp_path) -> None:
        for what in ("", "..", "../..", "policy"):
            with pytest.raises(UserError):
                exports.folder(tmp_path, what)

    def test_one_at_a_time_in_the_page_s_language(self, tmp_path, monkeypatch) -> None:
        make_run(tmp_path)
        monkeypatch.setattr(jobs, "working", lambda _: True)
        monkeypatch.setattr(run_status, "training", lambda _: None)
        said = result._export(tmp_path, "one", "zh", "merged")
        assert t("result.working", "zh", what=t("result.merged", "zh")) in said

    def test_too_large_is_refused(self, tmp_path, monkeypatch) -> None:
        run = make_run(tmp_path)
        (run / "exports" / "merged").mkdir(parents=True)
        (run / "exports" / "merged" / "x").write_bytes(b"x" * 11)
        assert b"".join(exports.zipped(run, "merged"))[:2] == b"PK"
        monkeypatch.setattr(exports, "MOST_BYTES", 10)
        with pytest.raises(UserError, match="too large"):
            next(exports.zipped(run, "merged"))


def test_alarms_are_named() -> None:
    rows = [{"stage": "ppo", "step": 0, "policy/first_ratio_error": 0.5}]
    assert [name for name, _ in named_alarms(rows, {})] == ["first_ratio"]


def test_the_page_imports_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from lowrank_rlhf.dashboard import app; app.build(Path('runs'));"
        "print([name for name in ('torch', 'transformers', 'peft', 'trl', 'datasets', 'matplotlib', 'bitsandbytes')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_look_at_many_runs_is_quick(tmp_path) -> None:
    """The page's own work at each tick, with 30 runs; the best of five, for other processes may be busy."""
    for number in range(30):
        run = make_run(tmp_path, f"run{number}")
        event(run, "started")
        finish(run, "sft")
        for step in range(100):
            append_line(run / "metrics.jsonl", {"stage": "ppo", "step": step, "objective/scores": step})
    runs._refresh(tmp_path, "run1", "en", {})
    took = []
    for _ in range(5):
        start = time.perf_counter()
        runs._refresh(tmp_path, "run1", "en", {})
        took.append(time.perf_counter() - start)
    assert min(took) < 0.1
