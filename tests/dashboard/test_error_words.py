"""Errors on the page: in the reader's language, with remedies for people who have no terminal."""

import ast
import itertools
import json
import string
import sys
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest
from browser import ROOT
from dashboard_runs import finish, make_run

from lowrank_rlhf import cli
from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.guided.form_html import preview_html
from lowrank_rlhf.dashboard.guided.prompt_files import preview
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs.runs_html import details
from lowrank_rlhf.dashboard.text import LANGUAGES, html, table
from lowrank_rlhf.dashboard.wording import fault_texts, worded
from lowrank_rlhf.errors import ERROR_FILE, Fault, StageFailed, Stopped, error_record, recorded_parts
from lowrank_rlhf.reports.locale import locale
from lowrank_rlhf.run.run_lock import process_name

OWN = {language: set(fault_texts(language)) - set(locale(language).texts) for language in LANGUAGES}
COMMANDS = ("python -m", "--", "`", "same command", "SIGTERM")
WEAK = StageFailed(
    Fault(
        "weak_reward_judge",
        "ppo: {why}, so {algorithm} would only learn its mistakes. {more}, or set ppo.accept_weak_reward: true",
        why=Fault("weakness.length", "no better than {rule}", rule=Fault("rule.longer", "longer")),
        algorithm="PPO",
        more="Raise sample.prompts",
    )
)


class Use(NamedTuple):
    """One call of `Fault` in the code."""

    keys: set[str]
    """Texts in the expression of its key."""
    text: str
    """Its English text, as code."""
    names: set[str]
    """Names of its values, or all keys of the module's dictionaries."""


@cache
def uses() -> list[Use]:
    return list(_uses())


def _uses() -> Iterator[Use]:
    for path in (ROOT / "lowrank_rlhf").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        in_dicts = {text for node in nodes if isinstance(node, ast.Dict) for key in node.keys for text in words(key)}
        assigned = {node.lineno: ast.unparse(node.value) for node in nodes if isinstance(node, ast.Assign)
                    and ast.unparse(node.targets[0]) == "text"}  # fmt: skip
        for call in nodes:
            name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
            if name in ("Fault", "row_error"):
                key, text = call.args[-2:]
                before = [line for line in assigned if line < call.lineno]
                named = isinstance(text, ast.Name) and before
                given = {word.arg for word in call.keywords if word.arg}
                given |= {"where"} if name == "row_error" else set()
                given |= in_dicts if any(word.arg is None for word in call.keywords) else set()
                yield Use(words(key), assigned[max(before)] if named else ast.unparse(text), given)


def words(node: ast.AST | None) -> set[str]:
    constants = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant)) if node else ()
    return {value for value in constants if isinstance(value, str)}


def test_each_fault_has_its_words() -> None:
    """Chinese for all of them; English where the page has another remedy than the terminal."""
    code = {key for use in uses() for key in use.keys}
    families = {key for key in code if key.endswith(("_", "."))}  # f"weak_reward_{source}"
    plain = {key for key in code if key not in families and key not in locale("zh").texts} - {"where", "key"}
    assert {key for key in plain if key not in OWN["zh"]} == set()
    assert {key for key in OWN["zh"] if key not in plain and not key.startswith(tuple(families))} == set()
    assert OWN["en"] <= OWN["zh"]
    for use, language in itertools.product(uses(), LANGUAGES):
        for key in use.keys & OWN[language] & plain:
            fields = {name for _, name, _, _ in string.Formatter().parse(fault_texts(language)[key]) if name}
            assert {name for name in fields if not name.startswith("label[")} <= use.names, (key, use.text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_names_buttons_and_places_not_commands(language) -> None:
    for key in OWN[language]:
        text = fault_texts(language)[key]
        assert not any(command in text for command in COMMANDS), key
        labels = [name for _, name, _, _ in string.Formatter().parse(text) if name and name.startswith("label[")]
        assert {label[6:-1] for label in labels} <= set(table(language)), key


def test_no_remedy_of_the_terminal_is_left_to_the_page() -> None:
    """A fault whose English text names a command has English words for the page."""
    for use in uses():
        if any(command in use.text for command in COMMANDS):
            assert use.keys & OWN["en"], use.text


def test_a_record_gives_the_same_words() -> None:
    kept = json.loads(json.dumps(error_record(WEAK)))
    assert str(WEAK) == "\n".join(recorded_parts(kept))
    for language in LANGUAGES:
        assert worded(recorded_parts(kept), language) == worded(WEAK.parts, language)
    assert "“总选较长的回答”" in worded(WEAK.parts, "zh")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"parts": "x"},
        {"parts": [3, [4, None]]},
        {"parts": [{"key": "bad_rows", "text": "{0.__class__}", "values": {"allowed": "x", "bad": [], "count": "x"}}]},
        {"parts": [{"key": "not_utf8", "text": "whole", "values": 1}, None, {"text": "{where}"}]},
    ],
)
def test_a_damaged_record_is_text(record) -> None:
    for language in LANGUAGES:
        assert "class '" not in worded(recorded_parts(record), language)


@pytest.mark.parametrize(
    ("name", "content", "chinese", "english"),
    [
        ("a.csv", b'prompt\n"open\n', "CSV 无效", "invalid CSV"),
        ("a.csv", b"a;b\n1;2\n", "只有一列", "only one column"),
        ("a.csv", b"prompt,x\nhi,1\n,2\n", "为空。请填写", "is empty. Fill it in"),
        ("a.csv", b"text,x\nhi,1\n", "无法识别格式", "unknown format"),
        ("a.csv", b"prompt\n\xb0\xae\n", "另存为 UTF-8", "Save the file as UTF-8"),
        ("a.json", b"[\xff]", "另存为 UTF-8", "Save the file as UTF-8"),
        ("a.json", b'[{"a": 1, "a": 2}]', "JSON 无效", "invalid JSON"),
        ("a.txt", b"\xff\n", "另存为 UTF-8", "Save the file as UTF-8"),
        ("a.jsonl", b"[1, 2", "JSON 无效", "invalid JSON"),
        ("a.jsonl", b"1\n", "应为这样的对象", "expected an object like"),
        ("a.jsonl", b'{"prompt": 3}\n', "应为文本，而不是数", "must be a string, not a number"),
        ("a.jsonl", b'{"messages": [{"role": "x", "content": "y"}]}\n', "应为其中之一", "must be one of"),
        ("a.parquet", b"PAR1", "无法作为 Parquet 读取", "cannot be read as Parquet"),
        ("a.jsonl", b"", "没有内容", "no rows"),
    ],
)
def test_the_preview_of_a_bad_file_is_in_the_reader_s_language(tmp_path, name, content, chinese, english) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert html(chinese) in preview_html(preview(file, {}), "zh")
    assert html(english) in preview_html(preview(file, {}), "en")
    assert html(english) not in preview_html(preview(file, {}), "zh")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_refused_run_says_what_can_be_done_on_this_page(tmp_path, language) -> None:
    """The terminal's advice stands in the log, which is folded."""
    run = make_run(tmp_path)
    finish(run, "sft", "sample", "rank", "reward")
    (run / "logs").mkdir()
    (run / "logs" / "x.log").write_text(f"{WEAK}\n")
    (run / "logs" / "job.json").write_text(json.dumps({"log": "x.log", "exit_code": 1, "since": "2026-02"}))
    (run / "logs" / "error.json").write_text(json.dumps(error_record(WEAK)))
    shown, _, log = details(RunsFolder(tmp_path).status("one"), language).partition("<details>")
    assert html(worded(WEAK.parts, language)) in shown
    assert html(table(language)["next.refused"]) in shown
    assert html(table(language)["begin.own"]) in shown
    assert "Raise sample.prompts" in log
    assert "Raise sample.prompts" not in shown


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_stop_is_no_error(tmp_path, language) -> None:
    """Its state is said; its message, with a command for the terminal, stands in the folded log."""
    run, said = make_run(tmp_path), "Stopped; step 50 is saved."
    (run / "logs").mkdir()
    (run / "logs" / "x.log").write_text(said)
    (run / "logs" / "job.json").write_text(json.dumps({"log": "x.log", "exit_code": 130, "since": "2026-02"}))
    (run / "logs" / "error.json").write_text(json.dumps(error_record(Stopped(said))))
    shown, _, log = details(RunsFolder(tmp_path).status("one"), language).partition("<details>")
    assert html(table(language)["state.stopped"]) in shown
    assert said in log
    assert said not in shown
    assert 'class="note bad"' not in shown + log
    assert "130" not in shown + log


def test_a_command_that_fails_leaves_its_error_for_the_page(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    monkeypatch.setattr(sys, "argv", ["lowrank_rlhf", "data", "inspect", str(tmp_path / "missing.csv")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    (part,) = recorded_parts(json.loads((tmp_path / "error.json").read_text(encoding="utf-8")))
    assert (ended.value.code, part.key) == (2, "not_found")


@pytest.mark.parametrize(
    ("record", "english", "chinese"),
    [
        ({"pid": 12}, "process 12", "进程 12"),
        ({}, "another process", "另一个进程"),
        ({"pid": 12, "host": "elsewhere"}, "process 12 on host elsewhere", "主机 elsewhere 上的进程 12"),
        ({"host": "elsewhere"}, "another process on host elsewhere", "主机 elsewhere 上的另一个进程"),
    ],
)
def test_a_process_has_a_name_in_the_reader_s_language(record, english, chinese) -> None:
    assert worded([process_name(record)], "en") == english
    assert worded([process_name(record)], "zh") == chinese


def test_a_new_command_forgets_the_error_of_the_last_one(tmp_path) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "logs" / "error.json").write_text(json.dumps(error_record(WEAK)))
    script = f"import os; raise SystemExit(os.environ[{ERROR_FILE!r}] != {str(run / 'logs' / 'error.json')!r})"
    jobs.start(run, [sys.executable, "-c", script])
    while (jobs.job(run) or {}).get("exit_code") is None:
        pass
    assert (jobs.error(run), jobs.job(run)["exit_code"]) == ((), 0)
