"""Conversations with a run's models, blind votes, and the protocol of `chat --lines`."""

import json
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import ROOT
from dashboard_runs import make_run, page_of

from lowrank_rlhf.commands.terminal import chat_lines
from lowrank_rlhf.commands.terminal.chat_loop import Settings, fit
from lowrank_rlhf.dashboard.chat_worker import ChatUnavailable, ChatWorker
from lowrank_rlhf.dashboard.talk import asking
from lowrank_rlhf.dashboard.talk.chat_session import ChatSession, add_message, blind_pair
from lowrank_rlhf.dashboard.talk.talk_html import cards
from lowrank_rlhf.dashboard.talk.votes import VotedAnswer, save_vote
from lowrank_rlhf.dashboard.text import html, table
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.records import Message

QUESTION = asking.Question("why?", "one", "en", 0.7, False, [], "", None, None, 1)


class TestVotes:
    def test_a_vote_is_an_annotation(self, tmp_path) -> None:
        run = make_run(tmp_path)
        one, two = VotedAnswer("policy", "yes", True), VotedAnswer("sft", "no", False)
        for vote in ("first", "second", "tie"):
            save_vote(run, "why?", one, two, vote, 3.21)
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
        session = ChatSession("one", [("why?", {"sft": dict(said), "policy": dict(said)})], ("policy", "sft"))
        shown = cards(session, "en")
        for word in ("policy", "sft", "SFT", "Aligned", "2.5"):
            assert word not in shown
        open_, blind = ChatSession("one", [("why?", {"sft": dict(said)})]), ("policy", "sft")
        assert open_.next("one", (), "").turns == open_.turns
        for other in (
            open_.next("one", blind, ""),
            open_.next("two", (), ""),
            open_.next("one", (), "Be brief."),
            ChatSession("one", open_.turns, blind).next("one", (), ""),
        ):
            assert other.turns == []  # no answer that shows which model is which
        orders = {blind_pair(("base", "sft", "policy")) for _ in range(60)}
        assert orders == {("sft", "policy"), ("policy", "sft")}

    @pytest.mark.parametrize(
        ("error", "key"),
        [
            (None, "talk.single_model"),
            (ChatUnavailable("busy", "x"), "talk.busy"),
            (ChatUnavailable("exited", "y"), "talk.exited"),
        ],
    )
    def test_the_reason_for_no_answer_is_in_the_pages_language(self, tmp_path, error, key) -> None:
        """By the error's kind, whatever its message is."""

        class Models(ChatWorker):
            def open(self, _run: Path) -> dict:
                if error:
                    raise error
                return {"voices": ["sft"]}

        make_run(tmp_path)
        question = QUESTION._replace(language="zh", blind=True)
        last = list(asking.ask(page_of(tmp_path, Models()), ChatSession(), question))[-1]
        assert html(table("zh")[key]) in last[0]

    def test_a_question_typed_during_an_answer_stays(self, tmp_path) -> None:
        """The status is cleared once, with the first message, and then the page learns which question left the box."""

        class Models(ChatWorker):
            def open(self, _run: Path) -> dict:
                return {"voices": ["sft"]}

            def ask(self, _run: Path, _requests: list) -> Iterator[tuple[int, dict]]:
                yield 0, {"piece": "a"}
                yield 0, {"piece": "b"}
                whole = {"text": "ab", "tokens": 2, "finished": True, "stopped": False, "score": None}
                yield 0, {"answer": whole, "dropped": 0}

        make_run(tmp_path)
        question = QUESTION
        shown = list(asking.ask(page_of(tmp_path, Models()), ChatSession(), question))
        assert [step[2] for step in shown if isinstance(step[2], str)] == ["", "why?"]
        assert [number for number, step in enumerate(shown) if isinstance(step[0], str)] == [0, 1]
        assert "ab" in shown[-1][1]

    def test_an_error_of_the_process_is_shown_as_it_is(self, tmp_path) -> None:
        with pytest.raises(ChatUnavailable, match="nothing") as caught:
            ChatWorker().open(tmp_path / "nothing")
        assert caught.value.kind == "failed"


class Letters:
    """Says the alphabet, letter by letter; a token is a character of the conversation."""

    about_scores = "none"

    def encode(self, messages):
        return [ord(letter) for message in messages for letter in message.content]

    def answer(self, voice, _prompt, sampling, on_text):
        from lowrank_rlhf.evaluation.chat import ChatAnswer

        said = ""
        try:
            for letter in string.ascii_lowercase[: sampling.max_new_tokens]:
                said += letter
                on_text(letter)
                time.sleep(0.02)
        except KeyboardInterrupt:
            return ChatAnswer(voice, said, len(said), finished=False, stopped=True, score=None)
        return ChatAnswer(voice, said, len(said), finished=True, stopped=False, score=0.5)


class TestLines:
    SETTINGS = Settings(
        voices=("base", "sft"), speaks="sft", temperature=0.7, max_new_tokens=3, max_prompt_tokens=20, seed=1
    )

    def talk(self, monkeypatch, capsys, *lines: object) -> list[dict]:
        import io

        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        chat_lines.serve(Letters(), self.SETTINGS)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    def test_an_answer_in_pieces(self, monkeypatch, capsys) -> None:
        ask = {"messages": [{"role": "user", "content": "hi"}], "max_new_tokens": 2}
        said = self.talk(monkeypatch, capsys, ask, ask | {"as": "base", "max_new_tokens": 1})
        about = {"voices": ["base", "sft"], "about_scores": "none", "temperature": 0.7}
        about |= {"top_p": 1.0, "max_new_tokens": 3, "seed": 1}
        whole = {"finished": True, "stopped": False, "score": 0.5}
        assert said == [
            {"ready": True, **about},
            {"piece": "a"},
            {"piece": "b"},
            {"answer": {"as": "sft", "text": "ab", "tokens": 2, **whole}, "dropped": 0},
            {"piece": "a"},
            {"answer": {"as": "base", "text": "a", "tokens": 1, **whole}, "dropped": 0},
        ]

    def test_empty_fields_of_the_page_are_the_runs_settings(self, monkeypatch, capsys) -> None:
        """Temperature and top-p of the tab, as numbers or empty."""
        heard = []
        real = Letters.answer
        monkeypatch.setattr(Letters, "answer", lambda self, *args: heard.append(args[2]) or real(self, *args))
        monkeypatch.setattr(self, "SETTINGS", replace(self.SETTINGS, top_p=0.9), raising=False)
        fields = ((None, None), (1.2, 0.4), (0, None))
        questions = [QUESTION._replace(temperature=one, top_p=other) for one, other in fields]
        self.talk(monkeypatch, capsys, *(asking._request(ChatSession(), "sft", question) for question in questions))
        assert [(sampling.temperature, sampling.top_p) for sampling in heard] == [(0.7, 0.9), (1.2, 0.4), (0, 0.9)]

    @pytest.mark.parametrize(
        ("request_", "kind", "error"),
        [
            ("nonsense\n", "invalid_request", "Invalid JSON"),
            ({"messages": []}, "invalid_request", "messages: "),
            (
                {"messages": [{"role": "user", "content": "hi"}], "as": "policy"},
                "no_model",
                "has no policy; it has base, sft",
            ),
            ({"messages": [{"role": "user", "content": "x" * 21}]}, "too_long", "20 tokens fit with an answer of 3"),
            ({"messages": [{"role": "user", "content": "x"}], "max_new_tokens": 99}, "too_long", "0 tokens"),
            ({"messages": [{"role": "user", "content": "x"}], "top_p": 0}, "invalid_request", "top_p: "),
            ({"messages": [{"role": "user", "content": "x"}], "shell": 1}, "invalid_request", "shell: "),
        ],
    )
    def test_mistakes_are_answered(self, monkeypatch, capsys, request_, kind, error) -> None:
        _, reply = self.talk(monkeypatch, capsys, request_)
        assert reply["kind"] == kind
        assert error in reply["error"]

    def test_any_other_error_of_a_model_is_answered_too(self, monkeypatch, capsys) -> None:
        def fail(*_):
            raise UserError("broken")

        monkeypatch.setattr(Letters, "answer", fail)
        _, reply = self.talk(monkeypatch, capsys, {"messages": [{"role": "user", "content": "hi"}]})
        assert reply == {"error": "broken", "kind": "failed"}

    def test_the_page_words_an_error_by_its_kind(self) -> None:
        answer = {"text": ""}
        add_message(answer, {"error": "messages: too long", "kind": "too_long"})
        session = ChatSession("one", [("why?", {"sft": answer})])
        assert html(table("zh")["talk.too_long"]) in cards(session, "zh")
        add_message(answer, {"error": "shell: no such field", "kind": "invalid_request"})
        assert "shell: no such field" in cards(session, "zh")

    def test_a_stop_ends_the_answer_and_the_next_one_is_whole(self) -> None:
        code = (
            "import sys; sys.path[:0] = ['tests/dashboard', 'tests/support', '.']\n"
            "from test_talk import Letters, TestLines\n"
            "from lowrank_rlhf.commands.terminal import chat_lines\n"
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
        turns = [Message(role=role, content=text) for role, text in (("user", "aaaa"), ("assistant", "bbb"))]
        question = Message(role="user", content="cc")
        assert fit(Letters(), [*turns, question], 9)[0] == [*turns, question]
        assert fit(Letters(), [*turns, question], 8) == ([question], [99, 99])
        assert fit(Letters(), [*turns, question], 1) == ([question], None)
        assert fit(Letters(), [turns[0], question], 5) == ([question], None)  # the question is never what goes
        system = Message(role="system", content="s")
        assert fit(Letters(), [system, *turns, question], 9) == (
            [system, question],
            [115, 99, 99],
        )  # nor the system prompt
        assert fit(Letters(), [system, *turns, question], 2) == ([system, question], None)
