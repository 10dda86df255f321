"""What the page knows of runs, and how it starts and stops them; no browser, no server."""

import json
import re
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from browser import ROOT
from dashboard_runs import NASTY, event, finish, make_run

from lowrank_rlhf.config.loading import preset_path
from lowrank_rlhf.dashboard import app, run_status
from lowrank_rlhf.dashboard.browser import address
from lowrank_rlhf.dashboard.chat_worker import ChatWorker
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs import new_run, runs, runs_html, watch
from lowrank_rlhf.dashboard.tabs import samples as samples_tab
from lowrank_rlhf.dashboard.tabs.samples import AnswerFilter, samples
from lowrank_rlhf.dashboard.talk import talk_html
from lowrank_rlhf.dashboard.talk.chat_session import ChatSession
from lowrank_rlhf.dashboard.text import LANGUAGES, html, t, table
from lowrank_rlhf.reports.alarms import ANSWERS, RULES, Alarm, find_alarms
from lowrank_rlhf.reports.charts import CURVES, in_round
from lowrank_rlhf.reports.locale import locale
from lowrank_rlhf.run.files import append_line
from lowrank_rlhf.run.results import Results


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
        assert same == {"talk.sft", "term.sft", "term.ppo"}

    def test_every_key_that_the_code_uses_is_there_and_every_text_is_used(self) -> None:
        files = (ROOT / "lowrank_rlhf" / "dashboard").rglob("*.py")
        own = (path for path in files if path.parent.name != "ranking" and path.name != "rank.py")  # other texts
        code = "".join(path.read_text(encoding="utf-8") for path in own)
        known = set(table("en"))
        literal = set(re.findall(r'"([a-z]+\.[a-z_.]+)"', code)) - {
            "samples.jsonl",
            "page.css",
            "plan.yaml",
            "tokens.js",
        }
        literal = {key for key in literal if key.split(".")[0] in _groups(known)}
        assert literal - known == set()
        patterns = [
            re.sub(r"\{[^}]*\}", "[a-z_]+", text) for text in re.findall(r"""f["']([a-z]+\.\{[^"']*)["']""", code)
        ]
        unused = {key for key in known - literal if not any(re.fullmatch(pattern, key) for pattern in patterns)}
        assert unused == set()

    def test_an_unknown_language_or_key_is_an_error(self) -> None:
        for key, language in (("runs.none", "fr"), ("runs.nothing", "en")):
            with pytest.raises(KeyError):
                t(key, language)


def _groups(keys: set[str]) -> set[str]:
    return {key.split(".")[0] for key in keys}


def test_what_others_wrote_is_shown_as_text(tmp_path) -> None:
    run = make_run(tmp_path)
    (run / "samples.jsonl").write_text(json.dumps({"id": "a", "prompt_id": "<b>", "text": NASTY}) + "\n")
    table = samples(run, [], [], "en")
    assert html(t("samples.sampled", "en")) in table
    assert html(t("samples.sampled_last", "en")) in samples(run, [], [], "en", 2)
    compared = samples(run, [], [{"prompt": NASTY, "sft": NASTY, "policy": NASTY, "score_sft": 1.0}], "en")
    row = {"step": 0, "prompt_id": "a", "prompt": NASTY, "answer": NASTY, "score": 1.0}
    nasty_step = row | {"step": f'"{NASTY}'}
    watched = samples(run, [nasty_step, row], [], "en")
    assert samples_tab.evaluated_step([nasty_step, row], 0) == 0
    assert "<script" not in samples_tab._cell("", "", "", nasty_step["step"])
    for shown in (html(NASTY), table, compared, watched):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown
        assert "\u202e" not in shown
        assert "**bold**" in shown


def test_a_log_an_alarm_and_a_question_are_shown_as_text(tmp_path) -> None:
    """A log repeats what a judge or a data file holds, an alarm the name of a judge."""
    run = make_run(tmp_path)
    (run / "logs").mkdir()
    (run / "logs" / "a.log").write_text(NASTY)
    (run / "logs" / "job.json").write_text(json.dumps({"log": "a.log", "pid": 1, "exit_code": 1}))
    status = RunsFolder(tmp_path).status("one")
    assert status.log_end
    alarm = Alarm("second_judge", {"judge": NASTY, "share": "32 %", "low": "24", "high": "40 %"})
    said = ChatSession(run="one", turns=[(NASTY, {"sft": {"text": NASTY}})])
    for shown in (runs_html.details(status, "en"), watch._alarms([alarm], 1, [], "en"), talk_html.cards(said, "en")):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown
        assert "\u202e" not in shown


@pytest.mark.parametrize("language", LANGUAGES)
def test_greedy_answers_come_first(tmp_path, language) -> None:
    row = {"prompt": "ask", "sft": "one", "policy": "two", "score_sft": 1.0, "score_policy": 2.0, "judge_sft": 0.5}
    greedy = {"greedy_sft": "three", "greedy_policy": "four", "score_greedy_sft": 3.0, "judge_greedy_policy": 0.7}
    run = make_run(tmp_path)
    shown = samples(run, [], [row | greedy], language)
    parts = re.findall(r"<div[^>]*>(.*?)</div>", shown.partition("<tbody>")[2])
    names = {"en": ("reward model's score", "judge's score"), "zh": ("奖励模型得分", "评判得分")}
    reward, judge = map(html, names[language])
    names = t("samples.greedy", language), t("samples.sampled_answer", language)
    before = [names[0], "three", f"{reward} 3.00", names[1], "one", f"{reward} 1.00 · {judge} 0.50"]
    after = [names[0], "four", f"{reward} – · {judge} 0.70", names[1], "two", f"{reward} 2.00"]
    assert parts == ["ask", *before, *after]
    plain = samples(run, [], [row], language)
    assert re.findall(r"<div[^>]*>(.*?)</div>", plain.partition("<tbody>")[2])[:2] == ["ask", "one"]
    assert not any(name in plain for name in names)


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
    assert "reward model&#x27;s score 1.2" in shown
    assert "score by ppo.rewards 1.2" in samples(make_run(tmp_path, "own"), rows, [], "en", own_rewards=True)


@pytest.fixture
def answered(tmp_path) -> Path:
    """Run with eight evaluations of three prompts; the orders of its last answers differ by figure."""
    run = make_run(tmp_path)
    last = {"a": (0.5, 3.0, "x" * 9), "b": (2.5, 1.0, "x" * 30 + " Fish"), "c": (1.5, 2.0, "x")}
    for step in range(0, 16, 2):
        for name, (score, kl, text) in last.items():
            known = {"step": step, "prompt_id": name, "prompt": f"ask {name}", "finished": True}
            early = {"answer": f"{name}{step}", "score": -ord(name), "kl": 0.0}
            late = {"answer": text, "score": score, "kl": kl}
            append_line(run / "watched.jsonl", known | (late if step == 14 else early))
        pair = {"sft": "old", "policy": f"Fish{step}", "score_policy": float(step), "kl": 9.0 - step}
        append_line(run / "eval.jsonl", {"prompt_id": f"t{step}", "prompt": f"test {step}", **pair})
    return run


def found(run: Path, wanted: AnswerFilter, before: dict[str, Any] | None = None) -> tuple[list[list[str]], Any]:
    """Prompts of the two tables, before and after and by step, and all parts of the tab."""
    page = SimpleNamespace(runs=RunsFolder(run.parent))
    parts = watch._refresh(page, "one", "en", before or {"steps": (("one", 1), [])}, wanted)
    tables = parts[4].split('<table class="samples">')[1:]
    return [re.findall(r"<tr>.*?<div[^>]*>(.*?)</div>", table.partition("<tbody>")[2]) for table in tables], parts


@pytest.mark.parametrize(
    ("order", "by_step", "compared"),
    [("evaluated", "abc", 0), ("best", "bca", 14), ("worst", "acb", 0), ("kl", "acb", 0), ("length", "bac", 10)],
)
def test_answers_are_ordered_by_score_kl_and_length(answered: Path, order: str, by_step: str, compared: int) -> None:
    tables, parts = found(answered, AnswerFilter(order=order))
    assert tables[-1] == [f"ask {name}" for name in by_step]
    assert tables[0][0] == f"test {compared}"
    assert "score 2.50 · KL 1.00 nats · 35 characters" in parts[4]


def test_answers_are_searched_and_every_step_is_reached(answered: Path) -> None:
    assert found(answered, AnswerFilter(search="fish ASK"))[0] == [["ask b"]]
    (compared, *_), parts = found(answered, AnswerFilter(search="fish1 test"))
    assert compared == ["test 10", "test 12"]
    assert html(t("samples.found", "en", shown=3, found=3, all=8)) in parts[4]
    tables, parts = found(answered, AnswerFilter(search="<none>"))
    assert tables == []
    assert html(t("samples.none", "en")) in parts[4]
    assert parts[6]["visible"]
    tables, parts = found(answered, AnswerFilter("", "best", 4))
    assert "Step 4" in parts[4]
    assert "Step 6" not in parts[4]
    assert tables[-1] == ["ask a", "ask b", "ask c"]  # by the scores at step 4
    assert parts[7]["value"] == 4
    assert [step for _, step in parts[7]["choices"]] == list(range(0, 16, 2))
    again = found(answered, AnswerFilter("", "best", 4), {"steps": (("other", 1), [])})[1]
    assert (again[7]["value"], "Step 4" in again[4]) == (0, False)  # another run begins without


def test_alarms_are_shown_in_the_readers_language() -> None:
    found = find_alarms([{"stage": "ppo", "step": 0, "policy/first_ratio_error": 0.5}], Results())
    for language in LANGUAGES:
        shown = watch._alarms(found, 1, [], language)
        assert html(locale(language)("alarm.first_ratio.title")) in shown
        assert shown.count("<li>") == 1


def test_an_alarm_leads_to_its_curve_and_to_the_answers_at_its_step(tmp_path) -> None:
    """The limit is passed at step 3: the answers are those of the next evaluation, however long ago it was."""
    rows = [{"stage": "ppo", "step": step, "objective/kl": 40.0} for step in range(3, 60)]
    run = make_run(tmp_path)
    for row in rows:
        append_line(run / "metrics.jsonl", row)
    for step in range(0, 60, 4):
        append_line(run / "watched.jsonl", {"step": step, "prompt_id": "a", "prompt": "ask", "answer": f"a{step}"})
    page = SimpleNamespace(runs=RunsFolder(tmp_path))
    _, alarms, curves, earlier, answers, *_, seen = watch._refresh(page, "one", "en", {})
    assert '<a href="#chart-kl">' in alarms
    assert '<figure id="chart-kl">' in curves
    assert '<a href="#answers-4">Answers at step 4</a>' in alarms
    assert answers.count('<td id="answers-4"') == 1
    assert re.findall("<th>(.*?)</th>", answers)[1:4] == ["SFT (before)", "Step 4", "Step 44"]
    assert f'<figure id="chart-{in_round("kl", 2)}">' in watch._curves(rows, 2, "en")
    assert all(part == gr.skip() for part in watch._refresh(page, "one", "en", seen)[:-1])
    assert earlier == ""


def test_alarms_of_a_run_without_metrics_are_shown(tmp_path, monkeypatch) -> None:
    """Such as a failed self-check of a run whose metrics.jsonl is gone."""
    make_run(tmp_path)
    page, found = SimpleNamespace(runs=RunsFolder(tmp_path)), list[Alarm]()
    monkeypatch.setattr(run_status, "find_alarms", lambda *_: found)
    assert watch._refresh(page, "one", "en", {})[1] == ""
    found.append(Alarm("weak_reward", {"weakness": "Worse than chance"}))
    assert "Worse than chance" in watch._refresh(page, "one", "en", {})[1]


def test_the_list_of_runs_marks_alarms_of_each_run_as_they_come(tmp_path) -> None:
    run, folder = make_run(tmp_path), RunsFolder(tmp_path)
    shown = []
    for step, nats in enumerate((1.0, 40.0, 41.0)):
        append_line(run / "metrics.jsonl", {"stage": "ppo", "step": step, "objective/kl": nats})
        shown.append(runs._refresh(folder, "one", "zh", {})[0])
    assert ["alarmed" in listed for listed in shown] == [False, True, True]
    assert "警报：1" in shown[2]
    assert f'title="{html(locale("zh")("alarm.far_from_sft.title"))}"' in shown[2]


@pytest.mark.parametrize(
    "row",
    [
        {"objective/kl": 1.0},
        {"step": None, "objective/kl": 1.0},
        {"step": 2, "objective/kl": "x"},
        {"step": 2, "eval/score": [1.0]},
        {"step": 2, "eval/score": 1.0, "eval/judge_scores": 5},
        {"step": 2, "eval/score": 1.0, "eval/judge_scores": [1.0, "x"]},
    ],
)
def test_damaged_rows_of_one_run_do_not_hide_any_run(tmp_path, row) -> None:
    damaged, folder = make_run(tmp_path, "damaged"), RunsFolder(tmp_path)
    make_run(tmp_path, "sound")
    for each in (
        {"step": 0, "objective/kl": 40.0},
        {"step": 1, "eval/score": 0.0, "eval/judge_scores": [2.0, 1.0]},
        row,
    ):
        append_line(damaged / "metrics.jsonl", {"stage": "ppo", **each})
    listed = runs._refresh(folder, "damaged", "en", {})[0]
    assert sorted(re.findall('data-run="(.*?)"', listed)) == ["damaged", "sound"]
    assert locale("en")("alarm.far_from_sft.title") in listed
    assert '<figure id="chart-kl">' in watch._refresh(SimpleNamespace(runs=folder), "damaged", "en", {})[2]


def test_every_alarm_s_curve_exists() -> None:
    assert {rule.seen_in for rule in RULES} <= {"", ANSWERS, "frontier", *(curve.id for curve in CURVES)}


def test_only_the_list_of_runs_and_the_shown_tab_are_kept_up_to_date(tmp_path) -> None:
    """Each timer of a visited tab would tick on until the page is closed."""
    blocks = app.build(RunsFolder(tmp_path), ChatWorker())
    config = blocks.get_config_file()
    timers = {part["id"]: part["props"]["active"] for part in config["components"] if part["type"] == "timer"}
    ticking = {part for entry in config["dependencies"] for part, name in entry["targets"] if name == "tick"}
    assert sorted(timers[part] for part in ticking) == [False, False, False, True]
    selected = [fn for fn in blocks.fns.values() if {part for part, _ in fn.targets} & set(tabs_of(config)) and fn.fn]
    switches = [fn for fn in selected if {part._id for part in fn.outputs} < timers.keys()]
    assert len(switches) == len(tabs_of(config)) == 6
    for fn in switches:
        assert [timer["active"] for timer in fn.fn()].count(True) == 1


def test_an_event_without_progress_names_one_component_for_it(tmp_path) -> None:
    """Gradio's script copies every output that may show some event's progress, at each tick of a timer."""
    config = app.build(RunsFolder(tmp_path), ChatWorker()).get_config_file()
    hidden = [event["show_progress_on"] for event in config["dependencies"] if event["show_progress"] == "hidden"]
    assert len(hidden) > 50
    assert [len(each) for each in hidden] == [1] * len(hidden)
    assert len({each[0] for each in hidden}) == 1


def test_every_group_of_choices_has_a_name(tmp_path) -> None:
    """Gradio calls one without a label Radio."""
    config = app.build(RunsFolder(tmp_path), ChatWorker()).get_config_file()
    groups = [part["props"] for part in config["components"] if part["type"] in ("radio", "checkboxgroup")]
    assert len(groups) >= 4
    assert [group["elem_id"] for group in groups if not group.get("label")] == []


def test_no_tick_makes_a_component_anew_that_events_read(tmp_path) -> None:
    """Gradio 6.31 keeps each of them until the visitor leaves: the page grew by 20 MiB a minute beside a training."""
    config = app.build(RunsFolder(tmp_path), ChatWorker()).get_config_file()
    states = {part["id"] for part in config["components"] if part["type"] == "state"}
    read = {part for entry in config["dependencies"] for part in entry["inputs"]} - states
    ticks = [entry for entry in config["dependencies"] if "tick" in {name for _, name in entry["targets"]}]
    assert len(ticks) == 5
    assert [read & set(entry["outputs"]) for entry in ticks] == [set()] * 5


def test_no_button_of_a_run_works_before_the_run_is_known_and_each_message_is_beside_its_buttons(tmp_path) -> None:
    config = app.build(RunsFolder(tmp_path), ChatWorker()).get_config_file()
    parts = {part["props"].get("elem_id"): part for part in config["components"]}
    names = {part["id"]: name for name, part in parts.items()}

    def order(node: dict) -> Iterator[str]:
        for child in node.get("children", []):
            yield from [names.get(child["id"]), *order(child)]

    inside = [name for name in order(config["layout"]) if name]
    assert [parts[name]["props"]["interactive"] for name in ("stop", "resume", "redo")] == [False] * 3
    clicks = {names.get(part): entry["js"] for entry in config["dependencies"] for part, _ in entry["targets"]}
    assert clicks["stop"] == clicks["resume"] == address.OF_RUN_SHOWN
    assert inside[inside.index("stop") :][:5] == ["stop", "resume", "undo-redo", "to-rank", "run-outcome"]
    assert inside[inside.index("redo-no") + 1] == "redo-outcome"
    assert inside[inside.index("remove-run") + 1] == "delete-outcome"


def tabs_of(config: dict) -> list[int]:
    return [part["id"] for part in config["components"] if part["type"] == "tabitem"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "key", ["next.waiting", "next.stopped", "next.failed", "next.killed", "next.new", "runs.rank_more"]
)
def test_what_to_press_next_is_called_as_its_button(key, language) -> None:
    assert re.search(rf"(press |“){t('runs.resume', language)}\b", table(language)[key])


@pytest.mark.parametrize("language", LANGUAGES)
def test_settings_that_are_valid_name_the_buttons_that_come_next(language) -> None:
    verdict, _ = new_run._check(preset_path("quickstart").read_text(encoding="utf-8"), "", language)
    assert re.findall("“(.*?)”", verdict) == [t("new.plan", language), t("new.start", language)]


def test_the_page_imports_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from lowrank_rlhf.dashboard import app, chat_worker, runs_folder;"
        "app.build(runs_folder.RunsFolder(Path('runs')), chat_worker.ChatWorker());"
        "print([name for name in ('torch', 'transformers', 'peft', 'trl', 'datasets', 'matplotlib', 'bitsandbytes')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_look_at_many_runs_is_quick(tmp_path) -> None:
    """The page's own work at each tick, with 30 runs: processor time, since other processes may be busy."""
    for number in range(30):
        run = make_run(tmp_path, f"run{number}")
        event(run, "started")
        finish(run, "sft")
        for step in range(100):
            append_line(run / "metrics.jsonl", {"stage": "ppo", "step": step, "objective/scores": step})
    folder = RunsFolder(tmp_path)
    runs._refresh(folder, "run1", "en", {})
    took = []
    for _ in range(5):
        start = time.process_time()
        runs._refresh(folder, "run1", "en", {})
        took.append(time.process_time() - start)
    assert min(took) < 0.3  # 0.02 s on an idle core


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_before_ppo_and_at_the_end_are_folded_after_the_first_two(tmp_path, language) -> None:
    """24 prompts with four answers each made the tab Watch 15,000 pixels long."""
    for prompt in map(str, range(30)):
        append_line(tmp_path / "prompts.jsonl", {"id": prompt, "messages": [{"role": "user", "content": prompt}]})
        append_line(tmp_path / "samples.jsonl", {"id": prompt, "prompt_id": prompt, "text": "Answer"})
    compared = [{"id": str(n), "prompt": str(n), "sft": "a", "policy": "b"} for n in range(30)]
    for evaluated in ([], compared):
        shown, _, folded = samples(tmp_path, [], evaluated, language).partition("<details>")
        assert (shown.count("<tr>") - 1, folded.count("<tr>") - 1) == (2, 22)
        assert html(t("samples.more", language, count=22)) in folded
