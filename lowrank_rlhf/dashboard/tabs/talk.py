"""The tab Talk: the run's models side by side, and blind votes between two of them."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from lowrank_rlhf.dashboard import run_status
from lowrank_rlhf.dashboard.chat_worker import TALKER
from lowrank_rlhf.dashboard.page import EVENT, QUIET, Page
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.tabs.votes import Said, Verdict, save_vote
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.errors import UserError

_LONGEST_QUESTION = 8000
_VOICES = ("base", "sft", "policy")
_KNOWN = ("alone", "busy", "gone")
"""Why nobody answers, where the page has words for it."""


@dataclass
class Talk:
    """One browser's conversations: what each model has been asked and said."""

    run: str = ""
    turns: list[tuple[str, dict[str, dict[str, Any]]]] = field(default_factory=list)
    """Questions, with the answers to each by voice."""
    hidden: tuple[str, ...] = ()
    """The voices behind A and B, while they are not to be known."""
    asked_at: float = 0.0


def build(page: Page) -> None:
    """Lay the tab out and say what each part does."""
    texts = page.texts
    status = gr.HTML("", elem_id="talk-status")
    cards = gr.HTML("", elem_id="talk-cards")
    with gr.Row(visible=False, elem_classes="actions", elem_id="votes") as votes:
        first = texts.add(gr.Button(elem_id="vote-first"), value="talk.first")
        tie = texts.add(gr.Button(elem_id="vote-tie"), value="talk.tie")
        second = texts.add(gr.Button(elem_id="vote-second"), value="talk.second")
    question = texts.add(
        gr.Textbox(lines=2, max_lines=8, max_length=_LONGEST_QUESTION, submit_btn=False, elem_id="question"),
        label="talk.question",
        placeholder="talk.placeholder",
    )
    with gr.Row(elem_classes="actions"):
        ask = texts.add(gr.Button(variant="primary", elem_id="ask"), value="talk.ask")
        stop = texts.add(gr.Button(variant="stop", elem_id="stop-talk"), value="talk.stop")
        anew = texts.add(gr.Button(elem_id="anew"), value="talk.anew")
        blind = texts.add(gr.Checkbox(value=False, elem_id="blind"), label="talk.blind")
    with texts.add(gr.Accordion(open=False), label="talk.settings"), gr.Row():
        temperature = texts.add(gr.Slider(0, 2, value=0.7, step=0.05), label="talk.temperature")
        longest = texts.add(gr.Slider(0, 512, value=0, step=8), label="talk.longest")
        seed = texts.add(gr.Number(value=1, precision=0, minimum=0), label="talk.seed")
    talk = gr.State(Talk())

    def asked(*given: Any) -> Iterator[list[Any]]:
        yield from _ask(page.runs, *given)

    def voted(verdict: Verdict) -> Any:
        return lambda talk, language: _vote(page.runs, talk, language, verdict)

    inputs = [question, talk, page.run, page.language, temperature, longest, seed, blind]
    outputs = [status, cards, question, votes, talk]
    ask.click(asked, inputs, outputs, **EVENT)
    question.submit(asked, inputs, outputs, **EVENT)
    stop.click(TALKER.stop, None, None, **QUIET)
    anew.click(_anew, None, outputs, **QUIET)
    for button, verdict in ((first, "first"), (tie, "tie"), (second, "second")):
        button.click(voted(verdict), [talk, page.language], [status, cards, votes, talk], **EVENT)  # type: ignore[arg-type]
    page.language.change(lambda talk, language: _cards(talk, language), [talk, page.language], cards, **QUIET)
    page.run.change(_anew, None, outputs, **QUIET)


def _anew() -> list[Any]:
    return ["", "", "", gr.update(visible=False), Talk()]


def _ask(
    folder: Path,
    question: str,
    talk: Talk,
    run: str | None,
    language: str,
    temperature: float,
    longest: int,
    seed: int,
    blind: bool,
) -> Iterator[list[Any]]:
    """The models' answers as they grow."""
    no_votes = gr.update(visible=False)
    problem = _problem(folder, run, question, language)
    if problem:
        yield [note(problem, "bad"), gr.skip(), gr.skip(), gr.skip(), gr.skip()]
        return
    path = run_status.run_path(folder, str(run))
    yield [note(t("talk.loading", language)), gr.skip(), gr.skip(), no_votes, gr.skip()]
    said: dict[str, dict[str, Any]] = {}
    try:
        voices = _voices(TALKER.open(path)["voices"], blind)
        talk = _begun(talk, str(run), voices if blind else ())
        requests = [
            {
                "as": voice,
                "messages": [*_messages(talk, voice), {"role": "user", "content": question}],
                "temperature": float(temperature),
                "max_new_tokens": int(longest) or None,
                "seed": int(seed or 0) + len(talk.turns),
            }
            for voice in voices
        ]
        said = {voice: {"text": ""} for voice in voices}
        talk.turns.append((question, said))
        for place, message in TALKER.ask(path, requests):
            _take_in(said[voices[place]], message)
            yield ["", _cards(talk, language), "", no_votes, talk]
    except UserError as error:
        talk.turns = [turn for turn in talk.turns if turn[1] is not said]  # what was not answered was not asked
        text = t(f"talk.{error}", language) if str(error) in _KNOWN else str(error)
        yield [note(text, "bad"), _cards(talk, language), gr.skip(), no_votes, talk]
        return
    complete = blind and len(said) == 2 and all("tokens" in answer for answer in said.values())
    yield ["", _cards(talk, language), "", gr.update(visible=complete), talk]


def _problem(folder: Path, run: str | None, question: str, language: str) -> str:
    """Why nothing can be asked now; empty where it can."""
    if not run:
        return t("runs.choose", language)
    busy = run_status.training(folder)
    if busy:
        TALKER.close()
        return t("talk.training", language, run=busy)
    return "" if question.strip() else t("talk.empty", language)


def _voices(there: Sequence[str], blind: bool) -> tuple[str, ...]:
    """All that can speak; of these for a blind vote the last two, in an order that nobody knows."""
    if not blind:
        return tuple(there)
    if len(there) < 2:
        raise UserError("alone")
    return tuple(random.SystemRandom().sample(list(there[-2:]), 2))


def _begun(talk: Talk, run: str, hidden: tuple[str, ...]) -> Talk:
    """The conversation to go on with: a new one for another run, and for each blind question."""
    if hidden or talk.hidden or talk.run != run:
        talk = Talk(run=run, hidden=hidden)
    talk.asked_at = time.monotonic()
    return talk


def _messages(talk: Talk, voice: str) -> list[dict[str, str]]:
    """What this model was asked and said before."""
    messages = []
    for question, answers in talk.turns:
        if text := answers.get(voice, {}).get("text"):
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return messages


def _take_in(said: dict[str, Any], message: dict[str, Any]) -> None:
    if "piece" in message:
        said["text"] += message["piece"]
    elif "error" in message:
        said["error"] = message["error"]
    else:
        said.update(message["answer"], dropped=message["dropped"])


def _cards(talk: Talk, language: str) -> str:
    """A column for each model with its conversation."""
    if not talk.turns:
        return ""
    voices = talk.hidden or tuple(voice for voice in _VOICES if any(voice in said for _, said in talk.turns))
    return f'<div class="talk">{"".join(_card(talk, voice, language) for voice in voices)}</div>'


def _card(talk: Talk, voice: str, language: str) -> str:
    letter = "AB"[talk.hidden.index(voice)] if talk.hidden else ""
    title = t("talk.answer", language, letter=letter) if talk.hidden else t(f"talk.{voice}", language)
    turns = "".join(
        f'<div class="question" dir="auto">{html(question)}</div>{_answer(said[voice], bool(talk.hidden), language)}'
        for question, said in talk.turns
        if voice in said
    )
    name = letter or voice
    return f'<section class="card" data-voice="{name}"><h3>{html(title)}</h3>{turns}</section>'


def _answer(said: dict[str, Any], blind: bool, language: str) -> str:
    if "error" in said:
        return note(str(said["error"]), "bad")
    parts = []
    if "tokens" in said:
        if said.get("score") is not None and not blind:
            parts.append(t("talk.reward", language, score=f"{said['score']:+.2f}"))
        parts.append(t("talk.tokens", language, count=said["tokens"]))
        if said.get("stopped"):
            parts.append(t("talk.stopped", language))
        elif not said["finished"]:
            parts.append(t("talk.cut", language))
        if said.get("dropped"):
            parts.append(t("talk.dropped", language))
    text = html(said["text"]) or "&nbsp;"
    return f'<div class="answer" dir="auto">{text}</div><div class="soft">{html(" · ".join(parts)) or "…"}</div>'


def _vote(folder: Path, talk: Talk, language: str, verdict: Verdict) -> list[Any]:
    """Keep the vote and show who said what."""
    if not talk.hidden or not talk.turns:
        return [gr.skip(), gr.skip(), gr.update(visible=False), talk]
    question, said = talk.turns[-1]
    answers = [Said(voice, said[voice]["text"], bool(said[voice]["finished"])) for voice in talk.hidden]
    try:
        seconds = time.monotonic() - talk.asked_at
        save_vote(run_status.run_path(folder, talk.run), question, answers[0], answers[1], verdict, seconds)
    except UserError as error:
        return [note(str(error), "bad"), gr.skip(), gr.skip(), talk]
    first, second = (t(f"talk.{voice}", language) for voice in talk.hidden)
    talk = Talk(run=talk.run, turns=talk.turns)
    told = note(t("talk.voted", language, first=first, second=second), "good")
    return [told, _cards(talk, language), gr.update(visible=False), talk]
