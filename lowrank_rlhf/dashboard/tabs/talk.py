"""Tab Talk: a run's models next to each other, and blind votes between two of them."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from lowrank_rlhf.dashboard.browser.storage import with_storage
from lowrank_rlhf.dashboard.chat_worker import ChatUnavailable
from lowrank_rlhf.dashboard.page import EVENT, QUIET, DashboardPage
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.talk.chat_session import Answers, ChatSession, add_message, blind_pair, complete
from lowrank_rlhf.dashboard.talk.talk_html import cards
from lowrank_rlhf.dashboard.talk.votes import Vote, VotedAnswer, save_vote
from lowrank_rlhf.dashboard.text import t
from lowrank_rlhf.errors import UserError

_MAX_CHARACTERS = 8000
# A question that is not sent yet is kept in the browser over a reload.
_KEEP = with_storage("""(text) => {
  if (window.questionRestored) stored((storage) => storage.setItem('lowrank-question', text));
}""")
_RESTORE = with_storage("""() => {
  window.questionRestored = true;
  return stored((storage) => storage.getItem('lowrank-question')) || '';
}""")
_HIDE: dict[str, Any] = gr.update(visible=False)


class _Question(NamedTuple):
    """A question with its settings."""

    text: str
    run: str | None
    language: str
    temperature: float | None
    """As in the run if None, like the next two."""
    top_p: float | None
    max_new_tokens: int | None
    seed: int
    blind: bool


def build(page: DashboardPage) -> None:
    """Lay out the tab and connect its events."""
    texts = page.texts
    status = gr.HTML("", elem_id="talk-status")
    answers = gr.HTML("", elem_id="talk-cards")
    with gr.Row(visible=False, elem_classes="actions", elem_id="votes") as votes:
        first = texts.add(gr.Button(elem_id="vote-first"), value="talk.first")
        tie = texts.add(gr.Button(elem_id="vote-tie"), value="talk.tie")
        second = texts.add(gr.Button(elem_id="vote-second"), value="talk.second")
    question = texts.add(
        gr.Textbox(lines=1, max_lines=8, max_length=_MAX_CHARACTERS, submit_btn=False, elem_id="question"),
        label="talk.question",
        placeholder="talk.placeholder",
    )
    with gr.Row(elem_classes="actions"):
        ask = texts.add(gr.Button(variant="primary", elem_id="ask"), value="talk.ask")
        stop = texts.add(gr.Button(variant="stop", elem_id="stop-talk"), value="talk.stop")
        restart = texts.add(gr.Button(elem_id="restart-talk"), value="talk.restart")
        blind = texts.add(gr.Checkbox(value=False, elem_id="blind"), label="talk.blind")
    settings = _sampling_settings(page)
    session = gr.State(ChatSession())
    outputs = [status, answers, question, votes, session]

    def asked(text: str, session: ChatSession, *settings: Any) -> Iterator[list[Any]]:
        yield from _ask(page, session, _question(text, *settings))

    def voted(vote: Vote) -> Any:
        return lambda session, language: _vote(page.runs, session, language, vote)

    inputs = [question, session, page.run, page.language, *settings, blind]
    gr.on(None, None, None, question, js=_RESTORE, **QUIET)
    question.change(None, question, None, js=_KEEP, **QUIET)
    ask.click(asked, inputs, outputs, **EVENT)
    question.submit(asked, inputs, outputs, **EVENT)
    stop.click(page.chat.stop, None, None, **QUIET)
    restart.click(_restart, None, outputs, **QUIET)
    page.run.change(_other_run, None, outputs, **QUIET)
    page.language.change(cards, [session, page.language], answers, **QUIET)
    for button, vote in ((first, "first"), (tie, "tie"), (second, "second")):
        button.click(voted(vote), [session, page.language], [status, answers, votes, session], **EVENT)  # type: ignore[arg-type]


def _sampling_settings(page: DashboardPage) -> list[Any]:
    texts = page.texts
    with texts.add(gr.Accordion(open=False), label="talk.settings"), gr.Row():
        return [
            texts.add(gr.Number(value=None, minimum=0, maximum=100, step=0.05), label="talk.temperature"),
            texts.add(gr.Number(value=None, minimum=0.01, maximum=1, step=0.05), label="talk.top_p"),
            texts.add(gr.Slider(0, 512, value=0, step=8), label="talk.max_new_tokens"),
            texts.add(gr.Number(value=1, precision=0, minimum=0), label="talk.seed"),
        ]


def _question(
    text: str,
    run: str | None,
    language: str,
    temperature: float | None,
    top_p: float | None,
    longest: int,
    seed: int,
    blind: bool,
) -> _Question:
    return _Question(text, run, language, temperature, top_p, int(longest) or None, int(seed or 0), blind)


def _restart() -> list[Any]:
    return ["", "", "", _HIDE, ChatSession()]


def _other_run() -> list[Any]:
    """Start a new conversation with what is typed."""
    return ["", "", gr.skip(), _HIDE, ChatSession()]


def _ask(page: DashboardPage, session: ChatSession, question: _Question) -> Iterator[list[Any]]:
    """Yield the models' answers as they grow."""
    language = question.language
    if obstacle := _obstacle(page, question):
        yield [note(obstacle, "bad"), gr.skip(), gr.skip(), gr.skip(), gr.skip()]
        return
    yield [note(t("talk.loading", language)), gr.skip(), gr.skip(), _HIDE, gr.skip()]
    path, answers = page.runs.path(str(question.run)), Answers()
    try:
        voices = tuple(page.chat.open(path)["voices"])
        if question.blind and len(voices) < 2:
            yield [note(t("talk.single_model", language), "bad"), gr.skip(), gr.skip(), _HIDE, gr.skip()]
            return
        voices = blind_pair(voices) if question.blind else voices
        session = session.next(path.name, voices if question.blind else ())
        requests = [_request(session, voice, question) for voice in voices]
        answers = {voice: {"text": ""} for voice in voices}
        session.turns.append((question.text, answers))
        clear: Any = ""  # once: later, the box and the status are those of the next question
        for index, message in page.chat.ask(path, requests):
            add_message(answers[voices[index]], message)
            yield [clear, cards(session, language), clear, _HIDE, session]
            clear = gr.skip()
    except UserError as error:
        session.turns = [turn for turn in session.turns if turn[1] is not answers]  # drop the unanswered question
        yield [note(_error_text(error, language), "bad"), cards(session, language), gr.skip(), _HIDE, session]
        return
    votable = question.blind and complete(answers)
    yield [gr.skip(), cards(session, language), gr.skip(), gr.update(visible=votable), session]


def _obstacle(page: DashboardPage, question: _Question) -> str:
    """Return the reason why no question can be asked now; empty if one can."""
    if not question.run:
        return t("runs.choose", question.language)
    if busy := page.runs.training():
        page.chat.close()
        return t("talk.training", question.language, run=busy)
    return "" if question.text.strip() else t("talk.empty", question.language)


def _request(session: ChatSession, voice: str, question: _Question) -> dict[str, Any]:
    return {
        "as": voice,
        "messages": [*session.messages(voice), {"role": "user", "content": question.text}],
        "temperature": question.temperature,
        "top_p": question.top_p,
        "max_new_tokens": question.max_new_tokens,
        "seed": question.seed + len(session.turns),
    }


def _error_text(error: UserError, language: str) -> str:
    if isinstance(error, ChatUnavailable) and error.kind != "failed":
        return t(f"talk.{error.kind}", language)
    return str(error)


def _vote(runs: RunsFolder, session: ChatSession, language: str, vote: Vote) -> list[Any]:
    """Save the vote and reveal the models."""
    if not session.hidden or not session.turns:
        return [gr.skip(), gr.skip(), _HIDE, session]
    question, answers = session.turns[-1]
    first, second = (
        VotedAnswer(voice, answers[voice]["text"], bool(answers[voice]["finished"])) for voice in session.hidden
    )
    try:
        seconds = time.monotonic() - session.asked_at
        save_vote(runs.path(session.run), question, first, second, vote, seconds)
    except UserError as error:
        return [note(str(error), "bad"), gr.skip(), gr.skip(), session]
    names = [t(f"talk.{voice}", language) for voice in session.hidden]
    session = ChatSession(run=session.run, turns=session.turns)
    saved = note(t("talk.voted", language, first=names[0], second=names[1]), "good")
    return [saved, cards(session, language), _HIDE, session]
