"""Tab Talk: a run's models next to each other, and blind votes between two of them."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import gradio as gr

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.dashboard.browser import text_drafts
from lowrank_rlhf.dashboard.page import EVENT, QUIET, DashboardPage
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.talk import kept
from lowrank_rlhf.dashboard.talk.asking import Question, ask, ask_again, kept_text
from lowrank_rlhf.dashboard.talk.chat_session import ChatSession, system_message
from lowrank_rlhf.dashboard.talk.talk_html import COPY, cards, voice_label
from lowrank_rlhf.dashboard.talk.votes import Vote, VotedAnswer, save_vote
from lowrank_rlhf.dashboard.text import t
from lowrank_rlhf.dashboard.wording import error_text
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.speakers import MAIN, speakers
from lowrank_rlhf.run.records import Message

_MAX_CHARACTERS = 8000
# A choice of models that nobody made is the default: a run may have more of them by now.
_UNCHOSEN = """(...given) => {
  if (!window.talkSettings?.voices) given[given.length - %d] = [];
  return given;
}"""
# What is typed while the models load is the next question.
_CLEAR = "(sent, typed) => sent && sent === typed ? '' : typed"
_OF_RUN = ("voices", "temperature", "top_p", "max_new_tokens", "seed")
_HIDE: dict[str, Any] = gr.update(visible=False)


class _QuestionFields(NamedTuple):
    """Fields of the tab that a question's settings are read from, in the order of `_question`."""

    temperature: gr.Number
    blind: gr.Checkbox
    voices: gr.CheckboxGroup
    system: gr.Textbox
    top_p: gr.Number
    max_new_tokens: gr.Number
    seed: gr.Number

    @property
    def of_run(self) -> dict[str, Any]:
        """Fields that begin with the run's models and its own settings, in the order of `_of_run`."""
        return {name: getattr(self, name) for name in _OF_RUN}


def build(page: DashboardPage) -> None:
    """Lay out the tab and connect its events."""
    texts = page.texts
    status = gr.HTML("", elem_id="talk-status")
    answers = gr.HTML("", elem_id="talk-cards", js_on_load=COPY)
    with gr.Row(visible=False, elem_classes="actions", elem_id="votes") as votes:
        first = texts.add(gr.Button(elem_id="vote-first"), value="talk.first")
        tie = texts.add(gr.Button(elem_id="vote-tie"), value="talk.tie")
        second = texts.add(gr.Button(elem_id="vote-second"), value="talk.second")
    question = texts.add(
        gr.Textbox(lines=1, max_lines=8, submit_btn=False, elem_id="question"),
        label="talk.question",
        placeholder="talk.placeholder",
    )
    with gr.Row(elem_classes="actions"):
        send = texts.add(gr.Button(variant="primary", elem_id="ask"), value="talk.ask")
        stop = texts.add(gr.Button(variant="stop", elem_id="stop-talk"), value="talk.stop")
        again = texts.add(gr.Button(elem_id="ask-again"), value="talk.again")
        edit = texts.add(gr.Button(elem_id="edit-question"), value="talk.edit")
        restart = texts.add(gr.Button(elem_id="restart-talk"), value="talk.restart")
    settings, save_talk, save_votes = _settings(page)
    session = gr.State(ChatSession())
    keep, sent = (gr.Textbox(elem_classes="folded") for _ in range(2))  # hidden by style: scripts read them
    outputs = [status, answers, question, votes, session, keep]
    asked_outputs = [status, answers, sent, votes, session, keep]

    def asked(text: str, session: ChatSession, *given: Any) -> Iterator[list[Any]]:
        yield from ask(page, session, _question(text, *given))

    def asked_again(session: ChatSession, *given: Any) -> Iterator[list[Any]]:
        yield from ask_again(page, session, _question("", *given))

    def voted(vote: Vote) -> Any:
        return lambda session, language: _vote(page.runs, session, language, vote)

    inputs = [session, page.run, page.language, *settings]
    unchosen = _UNCHOSEN % (len(settings) - settings._fields.index("voices"))
    text_drafts.keep({"lowrank-question": question, "lowrank-system": settings.system})
    sent.change(None, [sent, question], question, js=_CLEAR, **QUIET)
    asking: list[Any] = [
        gr.on(
            [send.click, question.submit], asked, [question, *inputs], asked_outputs, js=unchosen,
            trigger_mode="always_last", **EVENT,
        ),
        again.click(asked_again, inputs, asked_outputs, js=unchosen, **EVENT),
    ]  # fmt: skip
    stop.click(page.chat.stop, None, None, **QUIET)
    # What an answer sends until it is cancelled must not follow what replaces it.
    edit.click(None, None, None, cancels=asking, **QUIET).then(
        lambda *given: _edit(page.runs, *given), [question, session, page.language], outputs, **EVENT
    )
    restart.click(None, None, None, cancels=asking, **QUIET).then(
        lambda session: _restart(page.runs, session), session, outputs, **QUIET
    )

    _keep_conversations(page, keep, [status, answers, votes, session], settings.of_run, asking)
    for button, vote in ((first, "first"), (tie, "tie"), (second, "second")):
        button.click(voted(vote), [session, page.language], [status, answers, votes, session, keep], **EVENT)  # type: ignore[arg-type]
    for button, made in ((save_talk, _conversation), (save_votes, _votes)):
        _saves(button, lambda *values, made=made: made(page.runs, *values), inputs[:3], status)


def _keep_conversations(
    page: DashboardPage, keep: gr.Textbox, shown: list[Any], of_run: dict[str, Any], asking: list[Any]
) -> None:
    """Keep each run's conversation, the text of `keep`, in the browser; show it when loaded and with another run.

    The fields `of_run` follow what the run has, also when the tab is opened and after a question.

    Args:
        page: state of the tabs.
        keep: what is kept.
        shown: outputs of `_restore`.
        of_run: fields of `_QuestionFields.of_run`.
        asking: events that are cancelled with another run.
    """

    def restore(given: str, language: str) -> list[Any]:
        return [*_restore(page.runs, json.loads(given), language), *offer(given, language)]

    def offer(given: str, language: str) -> list[Any]:
        return _of_run(page.runs, json.loads(given), language)

    for name, field in of_run.items():
        field.input(None, field, None, js=kept.KEEP_SETTING % name, **QUIET)
    fields = list(of_run.values())
    inputs = [page.run, page.language]
    keep.change(None, keep, None, js=kept.KEEP, **QUIET)
    restoring = QUIET | {"js": kept.FETCH, "preprocess": False, "trigger_mode": "always_last"}
    gr.on(None, restore, inputs, [*shown, *fields], **restoring)  # when loaded and when one of the two changes
    left = page.run.change(None, None, None, cancels=asking, **QUIET)
    left.then(restore, inputs, [*shown, *fields], **restoring)
    for event in [page.tab.select, *(each.then for each in asking)]:
        event(offer, inputs, fields, **restoring)


def _saves(button: gr.Button, made: Callable[..., list[Any]], given: list[Any], status: gr.HTML) -> None:
    """Let a button save a file: `made` returns a message and the file."""
    file = gr.Textbox(elem_classes="folded")
    button.click(made, given, [status, file], **EVENT).then(None, file, None, js=kept.DOWNLOAD, **QUIET)


def _settings(page: DashboardPage) -> tuple[_QuestionFields, gr.Button, gr.Button]:
    """Lay out the settings of a question, all but two folded, and the buttons that save files."""
    texts = page.texts
    with gr.Row(elem_classes="actions", elem_id="talk-settings"):
        temperature = texts.add(
            gr.Number(value=1, minimum=0, maximum=100, step=0.05, elem_id="temperature"), label="talk.temperature"
        )
        blind = texts.add(gr.Checkbox(value=False, elem_id="blind"), label="talk.blind")
    with texts.add(gr.Accordion(open=False, elem_id="talk-more"), label="talk.more"):
        voices = texts.add(gr.CheckboxGroup([], elem_id="speakers"), label="talk.speakers")
        system = texts.add(
            gr.Textbox(lines=2, max_lines=8, max_length=_MAX_CHARACTERS, elem_id="system-prompt"), label="talk.system"
        )
        with gr.Row():
            top_p = texts.add(
                gr.Number(value=1, minimum=0.01, maximum=1, step=0.05, elem_id="top-p"), label="talk.top_p"
            )
            longest = texts.add(
                gr.Number(value=64, precision=0, minimum=1, elem_id="answer-length"), label="talk.max_new_tokens"
            )
            seed = texts.add(gr.Number(value=1, precision=0, minimum=0), label="talk.seed")
        with gr.Row(elem_classes="actions"):
            save_talk = texts.add(gr.Button(elem_id="save-talk"), value="talk.save")
            save_votes = texts.add(gr.Button(elem_id="save-votes"), value="talk.save_votes")
    return _QuestionFields(temperature, blind, voices, system, top_p, longest, seed), save_talk, save_votes


def _question(text: str, run: str | None, language: str, *settings: Any) -> Question:
    """Return a question with the values of the fields of `_QuestionFields`."""
    temperature, blind, voices, system, top_p, longest, seed = settings
    return Question(text, run, language, temperature, blind, voices, system, top_p, longest, int(seed or 0))


def _restart(runs: RunsFolder, session: ChatSession) -> list[Any]:
    """Start a new conversation, and forget the one that the browser keeps."""
    empty = ChatSession(run=session.run)
    return ["", "", "", _HIDE, empty, kept_text(runs, empty)]


def _restore(runs: RunsFolder, given: dict[str, Any], language: str) -> list[Any]:
    """Show the conversation that the browser keeps of a run.

    `given`: the values of `kept.FETCH`; a pair of answers that waits for its vote remains.
    """
    if given["voting"]:
        return [gr.skip()] * 4
    try:
        session = kept.restored(str(given["text"]), runs.path(str(given["run"] or "")))
    except UserError:
        session = ChatSession()
    return ["", cards(session, language), _HIDE, session]


def _of_run(runs: RunsFolder, given: dict[str, Any], language: str) -> list[Any]:
    """Offer a run's models, and put its own settings into the fields of `_OF_RUN` that nobody has changed.

    `given`: the values of `kept.FETCH`.
    """
    try:
        run = runs.path(str(given["run"] or ""))
    except UserError:
        return [gr.update(choices=[]), *[gr.skip()] * 4]
    names, changed = list(speakers(run)), given["settings"]
    chosen = [name for name in names if name in changed.get("voices", ())] or [name for name in names if name in MAIN]
    labels = [(voice_label(name, language), name) for name in names]
    try:
        config = load_config(run / "config.yaml")
        own = [config.chat_temperature, config.chat.top_p, config.sample.max_new_tokens, config.seed]
    except UserError:
        own = [gr.skip()] * 4
    unchanged = [gr.skip() if name in changed else value for name, value in zip(_OF_RUN[1:], own, strict=True)]
    return [gr.update(choices=labels, value=chosen), *unchanged]


def _edit(runs: RunsFolder, typed: str, session: ChatSession, language: str) -> list[Any]:
    """Put the last question into the box, to be asked instead; a second click undoes that."""
    if not session.turns:
        return [note(t("talk.nothing", language), "bad"), *[gr.skip()] * 5]
    if not session.editing and typed.strip():
        return [note(t("talk.clear_first", language), "bad"), *[gr.skip()] * 5]
    session = replace(session.ended(), editing=not session.editing)
    text, about = (session.turns[-1][0], t("talk.editing", language)) if session.editing else ("", "")
    return [note(about), cards(session, language), text, gr.skip(), session, kept_text(runs, session)]


def _vote(runs: RunsFolder, session: ChatSession, language: str, vote: Vote) -> list[Any]:
    """Save the vote and reveal the models."""
    if not session.hidden or not session.turns:
        return [gr.skip(), gr.skip(), _HIDE, session, gr.skip()]
    question, answers = session.turns[-1]
    first, second = (
        VotedAnswer(voice, answers[voice]["text"], bool(answers[voice]["finished"])) for voice in session.hidden
    )
    try:
        seconds = time.monotonic() - session.asked_at
        system = [Message.model_validate(message) for message in system_message(session.system)]
        save_vote(runs.path(session.run), question, first, second, vote, seconds, system)
    except UserError as error:
        return [note(error_text(error, language), "bad"), gr.skip(), gr.skip(), session, gr.skip()]
    names = [voice_label(voice, language) for voice in session.hidden]
    session = replace(session, hidden=())
    saved = note(t("talk.voted", language, first=names[0], second=names[1]), "good")
    return [saved, cards(session, language), _HIDE, session, kept_text(runs, session)]


def _conversation(_: RunsFolder, session: ChatSession, run: str | None, language: str) -> list[Any]:
    """Return a message, and the file of the conversation."""
    if session.hidden:
        return [note(t("talk.vote_first", language), "bad"), ""]
    file = kept.conversation_file(session) if session.run == run else ""
    return ["" if file else note(t("talk.nothing", language), "bad"), file]


def _votes(runs: RunsFolder, _: ChatSession, run: str | None, language: str) -> list[Any]:
    """Return a message, and the file of the run's votes."""
    try:
        file = kept.votes_file(runs.path(str(run or "")))
    except UserError as error:
        return [note(error_text(error, language), "bad"), ""]
    return ["" if file else note(t("talk.no_votes", language), "bad"), file]
