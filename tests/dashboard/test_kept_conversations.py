"""Conversations of the tab Talk: asked again, edited, kept in the browser, and saved as files."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from dashboard_runs import event, make_run, page_of

from lowrank_rlhf.dashboard.chat_worker import ChatUnavailable, ChatWorker
from lowrank_rlhf.dashboard.tabs import talk
from lowrank_rlhf.dashboard.talk import asking, kept
from lowrank_rlhf.dashboard.talk.chat_session import ChatSession
from lowrank_rlhf.dashboard.talk.talk_html import cards, voice_label
from lowrank_rlhf.dashboard.talk.votes import VotedAnswer, save_vote
from lowrank_rlhf.dashboard.text import LANGUAGES, html, table
from lowrank_rlhf.data.loading import load
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.reports.locale import locale
from lowrank_rlhf.run.records import Message

QUESTION = asking.Question("why?", "one", "en", 0.7, False, [], "", None, None, 1)
SAID = {"text": "x", "tokens": 1, "finished": True, "score": 2.5, "stopped": False}


class Asked(ChatWorker):
    """Answers each request with its last message and its seed, and keeps the requests."""

    VOICES = ("base", "sft", "policy", "step-4")

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[dict] = []

    def open(self, _run: Path) -> dict:
        return {"voices": list(self.VOICES)}

    def ask(self, _run: Path, requests: list[dict]) -> Iterator[tuple[int, dict]]:
        self.requests += requests
        for index, request in enumerate(requests):
            yield index, {"piece": "so"}
            yield (
                index,
                {"answer": SAID | {"text": f"{request['messages'][-1]['content']} {request['seed']}"}, "dropped": 0},
            )


@pytest.fixture
def conversation(tmp_path):
    """`ask(session, text="", ask=asking.ask, **settings)`: the last step of an answer; `ask.models` are asked."""
    run = make_run(tmp_path)
    for folder in ("adapters/sft", "adapters/policy", "work/ppo/step-000004/policy"):
        (run / folder).mkdir(parents=True)
    models = Asked()

    def ask(session: ChatSession, text: str = "", how=asking.ask, **settings) -> list:
        question = QUESTION._replace(text=text, **settings)
        return list(how(page_of(tmp_path, models), session, question))[-1]

    ask.models, ask.run = models, tmp_path / "one"
    return ask


def session_of(step: list) -> ChatSession:
    return step[4]


class TestConversation:
    def test_a_system_prompt_is_the_first_message_of_every_request(self, conversation) -> None:
        session = session_of(conversation(ChatSession(), "a", system="Be brief."))
        conversation(session, "b", system="Be brief.")
        conversation(session, "b", system="  ")
        roles = [[message["role"] for message in request["messages"]] for request in conversation.models.requests[::3]]
        assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["user"]]

    def test_only_the_chosen_models_answer(self, conversation) -> None:
        conversation(ChatSession(), "a", voices=["step-4", "policy"])
        conversation(ChatSession(), "a")
        assert [request["as"] for request in conversation.models.requests] == [
            "policy",
            "step-4",
            "base",
            "sft",
            "policy",
        ]

    @pytest.mark.parametrize(("chosen", "loaded"), [(["base", "sft"], ["base"]), ([], ["base", "sft"])])
    def test_a_model_made_since_loads_them_again(self, conversation, monkeypatch, chosen, loaded) -> None:
        after = chosen or ["base", "sft", "policy"]
        monkeypatch.setattr(Asked, "VOICES", loaded)
        monkeypatch.setattr(Asked, "close", lambda _self: monkeypatch.setattr(Asked, "VOICES", after))
        assert list(session_of(conversation(ChatSession(), "a", voices=chosen)).turns[-1][1]) == after

    @pytest.mark.parametrize("chosen", [["step-4"], ["base", "step-4"]])
    @pytest.mark.parametrize("loaded", [("base", "sft", "policy"), Asked.VOICES])
    def test_a_model_that_is_gone_is_refused_and_nothing_reloaded(
        self, conversation, monkeypatch, chosen, loaded
    ) -> None:
        closed: list[Asked] = []
        monkeypatch.setattr(Asked, "close", closed.append)
        monkeypatch.setattr(Asked, "VOICES", loaded)
        session = session_of(conversation(ChatSession(), "a"))
        shutil.rmtree(conversation.run / "work")
        step = conversation(session, "b", voices=chosen, language="zh")
        assert html(table("zh")["talk.no_model"]) in step[0]
        assert session_of(step).turns == session.turns
        assert closed == []

    @pytest.mark.parametrize("how", ["asking", "voting", "saving"])
    def test_an_error_is_in_the_page_s_language(self, conversation, monkeypatch, how) -> None:
        """Also after another visitor has deleted the run."""
        session = session_of(conversation(ChatSession(), "a", blind=True))
        runs = page_of(conversation.run.parent).runs
        if how == "asking":
            fault = Fault("cannot_write", "{folder}: cannot be written: {reason}", folder="f", reason="full")
            monkeypatch.setattr(Asked, "open", lambda *_: (_ for _ in ()).throw(UserError(fault)))
            shown = conversation(ChatSession(), "a", language="zh")[0]
        elif how == "voting":
            shutil.rmtree(conversation.run)
            shown = talk._vote(runs, session, "zh", "first")[0]
            assert not conversation.run.exists()
        else:
            shown = talk._votes(runs, session, "../one", "zh")[0]
        assert ("运行名称无效" if how == "saving" else "无法写入") in shown

    def test_asking_again_replaces_the_answers_and_draws_others(self, conversation) -> None:
        session = session_of(conversation(ChatSession(), "a"))
        session = session_of(conversation(session, "b"))
        for _ in range(2):
            session = session_of(conversation(session, how=asking.ask_again))
        assert [asked for asked, _ in session.turns] == ["a", "b"]
        seeds = [request["seed"] for request in conversation.models.requests[::3]]
        assert len(set(seeds)) == 4
        assert [len(request["messages"]) for request in conversation.models.requests[::3]] == [1, 3, 3, 3]
        assert session.attempt == 2
        assert session_of(conversation(session, "c")).attempt == 0

    def test_asking_again_leaves_what_is_typed(self, conversation) -> None:
        session = session_of(conversation(ChatSession(), "a"))
        page = page_of(conversation.run.parent, conversation.models)
        assert not [step for step in asking.ask_again(page, session, QUESTION) if isinstance(step[2], str)]

    def test_an_edited_question_replaces_the_last_one(self, conversation) -> None:
        session = session_of(conversation(ChatSession(), "a"))
        session = session_of(conversation(session, "b"))
        runs = page_of(conversation.run.parent).runs
        note, shown, text, _, session, _ = talk._edit(runs, "", session, "en")
        assert (text, session.editing) == ("b", True)
        assert shown.count("edited") == 3
        assert html(table("en")["talk.editing"]) in note
        _, shown, text, _, back, _ = talk._edit(runs, "b, changed", session, "en")
        assert (text, back.editing, shown.count("edited")) == ("", False, 0)
        after = session_of(conversation(session, "c"))
        assert [asked for asked, _ in after.turns] == ["a", "c"]
        assert not after.editing

    def test_an_edit_overwrites_nothing_that_is_typed(self, conversation) -> None:
        session = session_of(conversation(ChatSession(), "a"))
        step = talk._edit(page_of(conversation.run.parent).runs, "typed", session, "zh")
        assert html(table("zh")["talk.clear_first"]) in step[0]
        assert not isinstance(step[2], str)

    @pytest.mark.parametrize("how", [asking.ask_again, asking.ask])
    def test_a_failure_leaves_the_conversation_as_it_was(self, conversation, monkeypatch, how) -> None:
        session = session_of(conversation(ChatSession(), "a"))

        def fail(*_):
            raise ChatUnavailable("busy", "x")
            yield

        monkeypatch.setattr(Asked, "ask", fail)
        for blind in (False, True):
            assert session_of(conversation(session, "b", how=how, blind=blind)).turns == session.turns

    @pytest.mark.parametrize("how", ["asking again", "editing", "saving"])
    def test_there_must_be_a_question(self, conversation, how) -> None:
        runs = page_of(conversation.run.parent).runs
        if how == "asking again":
            step = conversation(ChatSession(), how=asking.ask_again)
        elif how == "editing":
            step = talk._edit(runs, "", ChatSession(), "en")
        else:
            step = talk._conversation(runs, ChatSession(), "one", "en")
        assert html(table("en")["talk.nothing"]) in step[0]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("policy", "Aligned"),
        ("policy-last", "Aligned, last step"),
        ("round-2", "Aligned, round 2"),
        ("step-40", "Aligned, step 40"),
        ("round-3/step-40", "Aligned, step 40, round 3"),
    ],
)
def test_a_model_has_a_name_for_people(name: str, label: str) -> None:
    assert voice_label(name, "en") == label


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_aligned_model_has_the_name_of_the_report(language: str) -> None:
    assert locale(language)("column.policy").casefold().startswith(voice_label("policy", language).casefold())


class TestFieldsOfTheRun:
    """Models that answer, temperature, top-p, answer length and seed."""

    def fields(self, run: Path, **changed) -> list:
        given = {"run": run.name, "settings": changed}
        found = talk._of_run(page_of(run.parent).runs, given, "en")
        names = [name for _, name in found[0]["choices"]]
        return [names, found[0]["value"], *(value if isinstance(value, int | float) else None for value in found[1:])]

    def test_they_follow_the_run_until_a_person_changes_them(self, tmp_path) -> None:
        run = tmp_path / "one"
        run.mkdir()
        assert self.fields(run) == [["base"], ["base"], *[None] * 4]  # as a run begins
        settings = make_run(tmp_path, "other") / "config.yaml"
        settings.rename(run / "config.yaml")
        for name in ("sft", "policy", "policy-last"):
            (run / "adapters" / name).mkdir(parents=True)
        names, chosen, *own = self.fields(run)
        assert (names, chosen) == (["base", "sft", "policy", "policy-last"], ["base", "sft", "policy"])
        assert None not in own
        changed = self.fields(run, voices=["policy-last", "step-4"], top_p=0.5)
        assert changed == [names, ["policy-last"], own[0], None, *own[2:]]
        assert self.fields(run, voices=["step-4"])[1] == chosen


class TestKept:
    """The text that the browser keeps of a conversation."""

    @pytest.fixture
    def run(self, tmp_path) -> Path:
        run = make_run(tmp_path)
        event(run, "start")
        return run

    SESSION = ChatSession(
        "one", [("why?", {"sft": SAID, "policy": {"text": "", "error": "no", "kind": "failed"}})], system="s"
    )

    def test_it_comes_back(self, run) -> None:
        session = replace(self.SESSION, attempt=2, editing=True)
        back = kept.restored(kept.kept(session, run), run)
        assert cards(back, "en") == cards(session, "en")
        assert (back.run, back.system, back.attempt, back.editing) == ("one", "s", 2, True)
        assert back.messages("sft") == session.messages("sft")

    def test_an_answer_that_a_reload_interrupted_counts_as_stopped(self, run) -> None:
        back = kept.restored(kept.kept(ChatSession("one", [("why?", {"sft": {"text": ""}})]), run), run)
        assert back.turns[0][1]["sft"] == {**SAID, "text": "", "tokens": 0, "finished": False, "stopped": True} | {
            "score": None, "spread": None, "dropped": 0
        }  # fmt: skip
        assert back.ended().turns == back.turns

    def test_a_reload_ends_a_blind_vote(self, run) -> None:
        """Nobody knows whether the browser's copy has its vote already, or whether its answers were changed."""
        session = ChatSession("one", [("why?", {"sft": SAID, "policy": SAID})], ("policy", "sft"))
        text = kept.kept(session, run)
        for hidden in (["policy", "sft"], ["policy", "sft", "base"]):
            given = {"run": "one", "text": json.dumps(json.loads(text) | {"hidden": hidden}), "voting": False}
            _, shown, votes, back = talk._restore(page_of(run.parent).runs, given, "en")
            assert (back.hidden, votes["visible"], shown.count("2.5")) == ((), False, 2)
            assert talk._vote(page_of(run.parent).runs, back, "en", "first")[0] == gr.skip()
        assert "hidden" not in json.loads(text)

    def test_no_other_run_shows_it(self, run, tmp_path) -> None:
        """Neither one of another name, nor a later one, or one of another folder, of the same name."""
        text = kept.kept(self.SESSION, run)
        other, elsewhere = make_run(tmp_path, "two"), make_run(tmp_path / "elsewhere", "one")
        shutil.copy(run / "events.jsonl", other)
        shutil.copy(run / "events.jsonl", elsewhere)
        for folder in (other, elsewhere):
            assert kept.restored(text, folder).turns == []
        (run / "events.jsonl").write_text("")
        event(run, "start", again=True)
        assert kept.restored(text, run) == ChatSession("one")

    @pytest.mark.parametrize(
        "change",
        [
            lambda _text: "",
            lambda text: text[:-1],
            lambda text: text + " " * 300_000,
            lambda text: text.replace('"x"', "3"),
            lambda text: text.replace('"sft"', '"nobody"'),
            lambda text: text.replace("2.5", '"<b>"'),
            lambda text: text.replace('"tokens": 1', f'"tokens": {10**30}'),
            lambda text: text.replace('"attempt": 0', f'"attempt": {10**30}'),
            lambda text: text.replace('"attempt": 0', '"attempt": -1'),
        ],
    )
    def test_any_other_text_is_an_empty_conversation(self, run, change) -> None:
        text = kept.kept(self.SESSION, run)
        assert change(text) != text
        assert kept.restored(change(text), run).turns == []

    def test_its_size_is_bounded(self, run) -> None:
        turns = [(str(number), {"sft": SAID | {"text": "y" * 1000}}) for number in range(500)]
        text = kept.kept(ChatSession("one", turns), run)
        assert 190_000 < len(text) <= 200_000
        assert kept.restored(text, run).turns[-1][0] == "499"

    def test_the_conversation_as_a_file_is_read_as_demonstrations(self, tmp_path) -> None:
        session = ChatSession(
            "one", [("a", {"sft": SAID, "base": SAID}), ("b", {"sft": SAID | {"text": "y"}})], system="s"
        )
        file = json.loads(kept.conversation_file(session))
        assert file["name"] == "one-talk.jsonl"
        (tmp_path / file["name"]).write_text(file["text"])
        data = [each.example for each in load(tmp_path / file["name"], "data.format").located]
        assert [[turn.content for turn in example.prompt] for example in data] == [["s", "a", "x", "b"], ["s", "a"]]
        assert [example.imitated for example in data] == ["y", "x"]

    def test_the_votes_as_a_file_are_read_as_comparisons(self, run, tmp_path) -> None:
        assert kept.votes_file(run) == ""
        one, two = VotedAnswer("policy", "yes", True), VotedAnswer("round-2/step-4", "no", False)
        for vote in ("first", "tie", "second"):
            save_vote(run, "why?", one, two, vote, 1.0, [Message(role="system", content="s")])
        file = json.loads(kept.votes_file(run))
        (tmp_path / file["name"]).write_text(file["text"])
        data = [each.example for each in load(tmp_path / file["name"], "data.format").located]
        assert [example.pairs for example in data] == [[("yes", "no")], [("no", "yes")]]
        assert [[turn.content for turn in example.prompt] for example in data] == [["s", "why?"]] * 2

    def test_no_file_before_the_vote(self, conversation) -> None:
        session = session_of(conversation(ChatSession(), "a", blind=True))
        step = talk._conversation(page_of(conversation.run.parent).runs, session, "one", "zh")
        assert step[1] == ""
        assert html(table("zh")["talk.vote_first"]) in step[0]
