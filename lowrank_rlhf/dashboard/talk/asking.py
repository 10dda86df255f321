"""Questions of the tab Talk: asked, asked again, or instead of the last one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from lowrank_rlhf.dashboard.chat_worker import ChatUnavailable
from lowrank_rlhf.dashboard.page import DashboardPage
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.talk import kept
from lowrank_rlhf.dashboard.talk.chat_session import (
    Answers,
    ChatSession,
    add_message,
    blind_pair,
    complete,
    system_message,
)
from lowrank_rlhf.dashboard.talk.talk_html import cards
from lowrank_rlhf.dashboard.text import t
from lowrank_rlhf.dashboard.wording import error_text
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.speakers import MAIN, speakers

_SEEDS = 1_000_000
"""Between the seeds of two attempts at a question."""
_HIDE: dict[str, Any] = gr.update(visible=False)


class Question(NamedTuple):
    """A question with its settings."""

    text: str
    run: str | None
    language: str
    temperature: float | None
    """The run's own if None, like `top_p` and `max_new_tokens`: an emptied field."""
    blind: bool
    voices: list[str]
    system: str
    top_p: float | None
    max_new_tokens: int | None
    seed: int
    attempt: int = 0


def ask_again(page: DashboardPage, session: ChatSession, question: Question) -> Iterator[list[Any]]:
    """Ask the last question again with another seed and the settings of now."""
    if not session.turns:
        yield [note(t("talk.nothing", question.language), "bad"), *[gr.skip()] * 5]
        return
    question = question._replace(text=session.turns[-1][0], attempt=session.attempt + 1)
    for step in ask(page, session, question):
        yield [*step[:2], gr.skip(), *step[3:]]  # what is typed stays


def ask(page: DashboardPage, session: ChatSession, question: Question) -> Iterator[list[Any]]:
    """Yield the tab's outputs as the answers grow; an edited or repeated question replaces the last one.

    The third output is the text of the question once its first answer begins, for a script that clears the box.
    """
    language, before = question.language, session
    if session.turns and not question.text.strip():  # sent twice
        yield [gr.skip()] * 6
        return
    if obstacle := _obstacle(page, question):
        yield [note(obstacle, "bad"), *[gr.skip()] * 5]
        return
    yield [note(t("talk.loading", language)), gr.skip(), "", _HIDE, gr.skip(), gr.skip()]
    path = page.runs.path(str(question.run))
    try:
        voices = _voices(page, question)
        if question.blind and len(voices) < 2:
            yield [note(t("talk.single_model", language), "bad"), gr.skip(), gr.skip(), _HIDE, gr.skip(), gr.skip()]
            return
        voices = blind_pair(voices) if question.blind else voices
        session = session.without_last() if session.editing or question.attempt else session
        session = session.next(path.name, voices if question.blind else (), question.system)
        session.attempt = question.attempt
        requests = [_request(session, voice, question) for voice in voices]
        answers: Answers = {voice: {"text": ""} for voice in voices}
        session.turns.append((question.text, answers))
        clear: Any = ""  # once: later, status and box are those of the next question
        sent: Any = question.text
        for index, message in page.chat.ask(path, requests):
            add_message(answers[voices[index]], message)
            keep = gr.skip() if "piece" in message and sent != question.text else kept_text(page.runs, session)
            yield [clear, cards(session, language), sent, _HIDE, session, keep]
            clear = sent = gr.skip()
    except UserError as error:
        told = kept_text(page.runs, before)
        yield [note(_error_text(error, language), "bad"), cards(before, language), gr.skip(), _HIDE, before, told]
        return
    votable = question.blind and complete(answers)
    told = kept_text(page.runs, session)
    yield [gr.skip(), cards(session, language), gr.skip(), gr.update(visible=votable), session, told]


def _voices(page: DashboardPage, question: Question) -> tuple[str, ...]:
    """Return the chosen models of the run; loads them, anew where a chosen one was made since.

    Raises `ChatUnavailable` if a chosen one is not there.
    """
    path, chosen = page.runs.path(str(question.run)), question.voices or MAIN
    there = set(speakers(path))
    if absent := set(question.voices) - there:
        raise ChatUnavailable("no_model", f"{path}: no model {min(absent)}. Choose another one.")
    loaded = page.chat.open(path)["voices"]
    if not there & set(chosen) <= set(loaded):
        page.chat.close()
        loaded = page.chat.open(path)["voices"]
    return tuple(voice for voice in loaded if voice in chosen)


def _obstacle(page: DashboardPage, question: Question) -> str:
    """Return the reason why no question can be asked now; empty if one can."""
    if not question.run:
        return t("runs.choose", question.language)
    if busy := page.runs.training():
        page.chat.close()
        return t("talk.training", question.language, run=busy)
    return "" if question.text.strip() else t("talk.empty", question.language)


def _request(session: ChatSession, voice: str, question: Question) -> dict[str, Any]:
    asked = {"role": "user", "content": question.text}
    return {
        "as": voice,
        "messages": [*system_message(question.system), *session.messages(voice), asked],
        "temperature": question.temperature,
        "top_p": question.top_p,
        "max_new_tokens": question.max_new_tokens,
        "seed": question.seed + len(session.turns) + _SEEDS * question.attempt,
    }


def kept_text(runs: RunsFolder, session: ChatSession) -> Any:
    """Return the text that the browser keeps of the conversation, if it has begun."""
    return kept.kept(session, runs.path(session.run)) if session.run else gr.skip()


def _error_text(error: UserError, language: str) -> str:
    if isinstance(error, ChatUnavailable) and error.kind != "failed":
        return t(f"talk.{error.kind}", language)
    return error_text(error, language)
