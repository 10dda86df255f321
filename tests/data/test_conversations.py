"""Conversations of several turns, from the data to the pages: judges and readers see all of them."""

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

import pytest
from tiny_run import make_config

from lowrank_rlhf import cli
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.preferences.judges.loading import load_judge
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Message, Prompt, Sample

JUDGE = """
SEEN = []
def watched(prompt, answers):
    SEEN.append(prompt)
    return [len(answer) for answer in answers]
"""


def talk(number: int) -> tuple[list[dict[str, str]], str]:
    """Turns up to one to answer, and how a person should see them; every third is a single message."""
    first, reply, last = f"question {number}", "short answer", f"and the point is {number}"
    if number % 3 == 0:
        return [{"role": "user", "content": last}], last
    turns = [("user", first), ("assistant", reply), ("user", last)]
    seen = f"user: {first}\n\nassistant: {reply}\n\nuser: {last}"
    return [{"role": role, "content": content} for role, content in turns], seen


def write_talks(path: Path, numbers: range, with_answers: bool) -> Path:
    rows = []
    for number in numbers:
        answer = [{"role": "assistant", "content": "kind and short"}] if with_answers and number % 2 else []
        rows.append({"messages": [*talk(number)[0], *answer]})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def run_folder(tiny_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run on conversations 0 to 17; the judge keeps what it saw in `talk_judge.SEEN`."""
    (tmp_path / "talk_judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "talk_judge", raising=False)
    data = write_talks(tmp_path / "talks.jsonl", range(18), with_answers=True)
    config = make_config(
        tiny_folder(), data, "none", model__max_length=120, rank__judge="talk_judge:watched", data__validation=1
    )
    return pipeline.run(config, tmp_path / "runs", progress=Progress.silent()).path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_judge_report_and_evaluate_see_every_turn(run_folder, tmp_path, monkeypatch, capsys) -> None:
    expected = {talk(number)[1] for number in range(18)}
    seen = sys.modules["talk_judge"].SEEN
    assert set(seen) < expected
    ranked = {row["prompt_id"] for row in read_rows(run_folder / "samples.jsonl")}
    shown = [row["prompt"] for row in read_rows(run_folder / "eval.jsonl")]
    assert set(seen[: len(ranked)]).isdisjoint(shown)  # ranked first, and held-out ones after
    assert set(shown) < expected
    assert sum(text.startswith("user: ") for text in shown) >= 2
    page, twin = ((run_folder / name).read_text() for name in ("report.html", "report.md"))
    assert all(escape(text) in page for text in shown)
    assert all(text.replace("\n\n", "<br>") in twin for text in shown)

    others = write_talks(tmp_path / "others.jsonl", range(18, 24), with_answers=False)
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "evaluate", str(run_folder), "--prompts", str(others), "--json"])
    seen.clear()
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    match = json.loads(capsys.readouterr().out)["match"]
    wanted = {talk(number)[1] for number in range(18, 24)}
    assert {row["prompt"] for row in match["answers"]} == set(seen) == wanted


def prompt(*turns: tuple[str, str]) -> Prompt:
    return Prompt(id="p", messages=tuple(Message(role=role, content=content) for role, content in turns))


def test_the_text_of_a_conversation() -> None:
    assert prompt(("user", "Hi\nthere")).conversation == "Hi\nthere"
    assert prompt(("system", "Be kind."), ("user", "Hi")).conversation == "system: Be kind.\n\nuser: Hi"


def test_the_simulated_annotator_takes_the_topic_from_all_turns() -> None:
    before = ("user", "Tell me a fact about honey bees."), ("assistant", "Every colony has one queen.")
    asked = prompt(("system", "You are a gardener."), *before, ("user", "And why is that?"))

    def score(text: str, talk: Prompt = asked) -> float:
        return load_judge("simulated-annotator").score(talk, [Sample(id="s", prompt_id="p", text=text)])[0]

    assert score("Bees follow what she is there for.") == pytest.approx(0.15)  # of the first turn: on the topic
    assert score("Colony life needs her to lay all eggs.") == pytest.approx(0.15)  # of the assistant's
    assert score("A gardener would say it is so.") == pytest.approx(-0.15)  # of the system's: none of the talk
    assert score("An assistant is not a user of it.") == pytest.approx(-0.15)  # names of roles are no topic
    assert score("As I said, every colony has one queen.") == pytest.approx(-0.15)  # parrots what was said
    alone = prompt(("user", "And why is that?"))
    assert score("Bees follow what she is there for.", alone) == pytest.approx(0.0)  # no content word at all
