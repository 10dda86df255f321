"""HTML of the models' conversations."""

from pathlib import Path
from typing import Any

from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.talk.chat_session import Answers, ChatSession
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.evaluation.speakers import speaker_name

_TRANSLATED = ("no_model", "too_long")
"""Kinds of error for which the page has its own texts."""
COPY = (Path(__file__).parents[1] / "static" / "copy.js").read_text(encoding="utf-8")
"""Script of the cards' copy buttons."""


def voice_label(voice: str, language: str) -> str:
    """Return a model's name for people."""
    kind, number, step = speaker_name(voice)
    if kind == "round":
        return t("talk.round", language, round=number)
    label = t("talk.step", language, step=step) if kind == "step" else t(f"talk.{kind}", language)
    return label if number == 1 else t("talk.in_round", language, label=label, round=number)


def cards(session: ChatSession, language: str) -> str:
    """Return a column for each model; in a blind vote without names and scores."""
    if not session.turns:
        return ""
    voices = session.hidden or session.voices
    return f'<div class="talk">{"".join(_card(session, voice, language) for voice in voices)}</div>'


def _card(session: ChatSession, voice: str, language: str) -> str:
    letter = "AB"[session.hidden.index(voice)] if session.hidden else ""
    title = t("talk.answer", language, letter=letter) if session.hidden else voice_label(voice, language)
    last = len(session.turns) - 1
    turns = "".join(
        _turn(question, answers, voice, session, session.editing and index == last, language)
        for index, (question, answers) in enumerate(session.turns)
        if voice in answers
    )
    return f'<section class="card" data-voice="{html(letter or voice)}"><h3>{html(title)}</h3>{turns}</section>'


def _turn(question: str, answers: Answers, voice: str, session: ChatSession, edited: bool, language: str) -> str:
    below = f'<div class="question" dir="auto">{html(question)}</div>' + _answer(
        answers[voice], bool(session.hidden), language
    )
    return f'<div class="edited">{below}</div>' if edited else below


def _answer(answer: dict[str, Any], blind: bool, language: str) -> str:
    if "error" in answer:
        kind = answer.get("kind")
        return note(t(f"talk.{kind}", language) if kind in _TRANSLATED else str(answer["error"]), "bad")
    text = html(answer["text"]) or "&nbsp;"
    below = f"<span>{html(' · '.join(_about(answer, blind, language))) or '…'}</span>"
    if "tokens" in answer and answer["text"]:
        copy, copied = (html(t(f"talk.{key}", language)) for key in ("copy", "copied"))
        below += f' <button type="button" class="copy" data-copied="{copied}">{copy}</button>'
    return f'<div class="answer" dir="auto">{text}</div><div class="soft">{below}</div>'


def _about(answer: dict[str, Any], blind: bool, language: str) -> list[str]:
    """Return reward, length and end of an answer; nothing before its end."""
    parts: list[str] = []
    if "tokens" not in answer:
        return parts
    if answer.get("score") is not None and not blind:
        parts.append(t("talk.reward", language, score=f"{answer['score']:+.2f}"))
        if answer.get("spread") is not None:
            parts.append(t("talk.spread", language, spread=f"{answer['spread']:.2f}"))
    if answer["tokens"]:
        parts.append(t("talk.tokens", language, count=answer["tokens"]))
    if answer.get("stopped"):
        parts.append(t("talk.stopped", language))
    elif not answer["finished"]:
        parts.append(t("talk.truncated", language))
    if answer.get("dropped"):
        parts.append(t("talk.dropped", language))
    return parts
