"""Visitors who close the browser at any moment of an answer: the page answers everybody else, and them again."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pandas as pd
import pytest
from browser import wait_for
from dashboard_runs import make_run
from page_client import PageClient, served_here

from lowrank_rlhf.dashboard import app, chat_worker
from lowrank_rlhf.dashboard.chat_worker import ChatUnavailable, ChatWorker
from lowrank_rlhf.dashboard.page import delayed_update, updates_of
from lowrank_rlhf.dashboard.runs_folder import RunsFolder

LETTERS = """
import json, queue, sys, threading, time
requests, stop = queue.Queue(), threading.Event()
def say(**message):
    print(json.dumps(message), flush=True)
def listen():
    for line in sys.stdin:
        stop.set() if json.loads(line).get("stop") else requests.put(json.loads(line))
    requests.put(None)
threading.Thread(target=listen, daemon=True).start()
say(ready=True, voices=["base", "sft"])
for request in iter(requests.get, None):
    stop.clear()
    text = ""
    for letter in "abcdefghijklmnopqrst"[: request["max_new_tokens"]]:
        text += letter
        say(piece=letter)
        if stop.wait(0.02):
            break
    whole = {"text": text, "tokens": len(text), "finished": True, "score": None, "stopped": stop.is_set()}
    say(answer=whole, dropped=0)
"""
"""Says the alphabet as `chat --lines` does, without its imports."""
ASK = {"messages": [{"role": "user", "content": "hi"}], "max_new_tokens": 3}
TWO = [ASK | {"as": "base"}, ASK | {"as": "sft"}]
PER_ANSWER = 4  # three pieces and the answer


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatWorker]:
    """A worker whose process says the alphabet."""
    monkeypatch.setattr(chat_worker, "chat_command", lambda _run: [sys.executable, "-I", "-S", "-c", LETTERS])
    worker = ChatWorker()
    yield worker
    worker.close()


def answers_again(worker: ChatWorker, run: Path) -> bool:
    try:
        return [message["answer"]["text"] for _, message in worker.ask(run, TWO) if "answer" in message] == ["abc"] * 2
    except ChatUnavailable:
        return False


@pytest.mark.parametrize("read", range(1, 2 * PER_ANSWER + 1))
def test_leaving_an_answer_at_any_message_waits_for_nothing(worker: ChatWorker, tmp_path: Path, read: int) -> None:
    """The stream is closed on the server's event loop."""
    messages = worker.ask(tmp_path, TWO)
    for _ in range(read):
        next(messages)
    closing = threading.Thread(target=messages.close, daemon=True)
    closing.start()
    closing.join(5)
    assert not closing.is_alive(), f"closing waits after message {read}"
    wait_for(lambda: answers_again(worker, tmp_path), 10)


def test_the_rest_of_a_left_answer_is_not_generated(worker: ChatWorker, tmp_path: Path) -> None:
    messages = worker.ask(tmp_path, [ASK | {"max_new_tokens": 20}] * 100)
    next(messages)
    messages.close()
    wait_for(lambda: answers_again(worker, tmp_path), 10)  # 100 answers take 40 s


def test_nobody_waits_for_another_visitors_models(worker: ChatWorker, tmp_path: Path) -> None:
    """40 who waited would take every thread of the server."""
    messages = worker.ask(tmp_path, TWO)
    next(messages)
    for asking in (lambda: worker.open(tmp_path), lambda: next(worker.ask(tmp_path, TWO))):
        with pytest.raises(ChatUnavailable) as caught:
            asking()
        assert caught.value.kind == "busy"
    assert len(list(messages)) == 2 * PER_ANSWER - 1


def test_a_stop_during_an_answer_skips_the_rest(worker: ChatWorker, tmp_path: Path) -> None:
    messages = worker.ask(tmp_path, [ASK | {"max_new_tokens": 20}, ASK])
    next(messages)
    worker.stop()
    *_, (index, last) = messages
    assert (index, last["answer"]["stopped"]) == (0, True)


def test_a_stop_while_the_models_change_is_not_forgotten(worker: ChatWorker, tmp_path: Path) -> None:
    """Another visitor's, or one's own by closing the browser, while the process of the run before ends."""

    class Ending:
        stdin = stdout = None

        def poll(self) -> None: ...

        def terminate(self) -> None: ...

        def wait(self, _seconds: float) -> None:
            worker.stop()

    worker._process = Ending()
    assert list(worker.ask(tmp_path, TWO)) == []
    assert answers_again(worker, tmp_path)


@pytest.mark.parametrize("ready", ["", "say(ready=True, voices=[]); "])
def test_any_error_is_a_message_to_the_visitor(worker: ChatWorker, tmp_path: Path, monkeypatch, ready: str) -> None:
    """Here a line that is no JSON, while loading or in an answer. The next question is answered."""
    talks = chat_worker.chat_command
    code = f"{LETTERS[: LETTERS.index('for request')]}{ready}print('Loading...', flush=True); open(0).read()"
    monkeypatch.setattr(chat_worker, "chat_command", lambda _run: [sys.executable, "-I", "-S", "-c", code])
    with pytest.raises(ChatUnavailable, match="JSONDecodeError: Expecting value") as caught:
        list(worker.ask(tmp_path, TWO))
    assert caught.value.kind == "failed"
    monkeypatch.setattr(chat_worker, "chat_command", talks)
    assert answers_again(worker, tmp_path)


def test_closing_the_worker_ends_the_answer(worker: ChatWorker, tmp_path: Path) -> None:
    messages = worker.ask(tmp_path, [ASK | {"max_new_tokens": 20}])
    next(messages)
    worker.close()
    with pytest.raises(ChatUnavailable):
        list(messages)


def test_a_browser_that_closes_at_any_message_leaves_a_page_that_answers(worker: ChatWorker, tmp_path: Path) -> None:
    """By the requests of a browser, and through Gradio's own queue."""
    make_run(tmp_path)
    question = ["hi", None, "one", "en", None, False, [], "", None, 3, 1]
    blocks = app.build(RunsFolder(tmp_path), worker)
    with served_here(blocks) as url:
        count = len(list(PageClient(url, blocks).stream("asked", question)))
        assert count >= 2 * PER_ANSWER
        for read in range(1, count + 1):
            stream = PageClient(url, blocks).stream("asked", question)
            for _ in range(read):
                next(stream)
            stream.close()
            other = PageClient(url, blocks)
            for path in ("/", "/config", "/gradio_api/startup-events", "/runs/one/report.html"):
                assert other.answers(path), f"{path} after leaving at message {read} of {count}"
            refreshed = list(other.stream("refresh", ["one", "en", None, "", "", "newest"]))
            assert refreshed[-1]["success"]
            wait_for(lambda: worker._asking.acquire(blocking=False) and worker._asking.release() is None, 10)
        last = list(PageClient(url, blocks).stream("asked", question))[-1]
        assert "abc" in str(last)


def test_a_session_keeps_no_component_of_an_earlier_tick(worker: ChatWorker, tmp_path: Path) -> None:
    """With a new run each time, which changes the list and the choices, and without a change."""
    blocks = app.build(RunsFolder(tmp_path), worker)
    kept = []
    with served_here(blocks) as url:
        visitor = PageClient(url, blocks)
        for number in range(6):
            if number % 2:
                make_run(tmp_path, f"run{number}")
            assert list(visitor.stream("refresh", ["one", "en", None, "", "", "newest"]))[-1]["success"]
            (session,) = blocks.state_holder.session_data.values()
            kept.append(len(session.blocks_config.blocks))
    assert kept == kept[:1] * 6


def test_a_state_without_an_update_changes_nothing() -> None:
    with gr.Blocks() as blocks:
        updates_of(gr.Radio(["a"]))
    (applied,) = [one.fn for one in blocks.fns.values()]
    assert applied(None) == gr.skip()
    assert applied(delayed_update(value="a")) == gr.update(value="a")


def test_gradio_makes_no_table_of_past_events(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = list[object]()
    monkeypatch.setattr(pd, "DataFrame", lambda records: tables.append(records))
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.Textbox().change(str, [number := gr.Number()], number)
    with served_here(blocks) as url:
        for _ in range(3):
            assert list(PageClient(url, blocks).stream("str", [1]))[-1]["success"]
    assert tables == []
