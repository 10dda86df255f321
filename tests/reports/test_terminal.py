"""The terminal's summary of a run: columns, control characters, warnings."""

import json
import re
import unicodedata
from pathlib import Path

from synthetic_run import eval_rows, ppo_rows, results, with_greedy

from lowrank_rlhf.reports.terminal import summary_message
from lowrank_rlhf.run.directory import RunDir


def test_the_terminal_hears_the_alarms_of_the_metrics(tmp_path: Path) -> None:
    rows = ppo_rows()
    rows[-1]["objective/kl"] = 30.5
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = summary_message(RunDir(tmp_path), results(), [], "report.html")
    assert "WARNING: The KL per answer in training was above 30 nats" in message.replace("\n", " ")


def test_summary_message_fits_the_terminal_and_is_plain(tmp_path: Path) -> None:
    rows = eval_rows()
    rows[0] |= {"policy": "\x1b[31mred\x07 " + "unbreakable" * 30, "prompt": "Why? " * 60}
    message = summary_message(RunDir(tmp_path), results(), rows, "/runs/my-run/report.html")
    lines = message.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in message
    assert "\x07" not in message
    assert "unbreakable" * 30 in "".join(line[51:] for line in lines)
    assert not any(line.lstrip().startswith("%") for line in lines)
    assert lines[0].startswith("On 64 new prompts the simulated annotator preferred")
    assert lines[-1] == "  /runs/my-run/report.html"
    assert message.count("BEFORE (SFT)") == 4
    assert any(re.match(r"distinct-2 +0\.71 +0\.66 +distinct word pairs / word pairs$", line) for line in lines)
    beside = next(line for line in lines if "Put it somewhere" in line and "Of course" in line)
    assert beside.index("Of course!") == 51


def cells(text: str) -> int:
    """Columns of a terminal, by Unicode's own table (UAX 11)."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def test_summary_message_in_chinese_keeps_its_columns(tmp_path: Path) -> None:
    rows = eval_rows()
    mine, theirs = "今天的天气很好，我们可以去公园散步。" * 5, "当然可以！很高兴帮助你，GPT-2 也行。" * 5
    rows[0] |= {"prompt": "请介绍一下你自己，" * 12, "sft": mine, "policy": theirs}
    lines = summary_message(RunDir(tmp_path), results(), rows, "x").splitlines()
    assert max(map(cells, lines)) <= 100
    start = next(number for number, line in enumerate(lines) if line.startswith("今天"))
    left, right = "", ""
    for line in lines[start : start + 4]:
        assert line[0] not in "，。"
        cut = next((size for size in range(len(line)) if cells(line[:size]) == 51), len(line))  # 49 and two spaces
        assert len(line) == cut or (line[:cut].endswith("  ") and line[cut] not in "，。！ ")
        left, right = left + line[:cut].rstrip(), right + line[cut:]
    assert left == mine
    assert right.replace(" ", "") == theirs.replace(" ", "")
    assert sum(line.count("GPT-2") for line in lines) == theirs.count("GPT-2")  # no word is cut
    asked = next(number for number, line in enumerate(lines) if line.startswith("Prompt: 请"))
    assert "".join(lines[asked : asked + 3]) == f"Prompt: {'请介绍一下你自己，' * 12}"


def test_greedy_answers_come_first(tmp_path: Path) -> None:
    rows = [with_greedy(row) for row in eval_rows(1)] + eval_rows(2)[1:]
    lines = summary_message(RunDir(tmp_path), results(), rows, "x").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("BEFORE (SFT)"))
    shown = [(line[:49].rstrip(), line[51:]) for line in lines[start + 1 : start + 6]]
    assert shown[:4] == [
        ("greedy:", "greedy:"),
        ("Most likely before.", "Most likely after."),
        ("[judge 0.45]", "[reward 1.77]"),
        ("sampled:", "sampled:"),
    ]
    assert [text.split()[0] for text in shown[4]] == ["Put", "Of"]
    assert sum(line.startswith("greedy:") for line in lines) == 1
