"""HTML of the models' conversations."""

from typing import Any

from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.talk.chat_session import ChatSession
from lowrank_rlhf.dashboard.text import html, t

VOICES = ("base", "sft", "policy")
_TRANSLATED = ("no_model", "too_long")
"""Kinds of error for which the page has its own texts."""


def cards(session: ChatSession, language: str) -> str:
    """Return a column for each model; in a blind vote without names and scores."""
    if not session.turns:
        return ""
    voices = session.hidden or tuple(voice for voice in VOICES if any(voice in answers for _, answers in session.turns))
    return f'<div class="talk">{"".join(_card(session, voice, language) for voice in voices)}</div>'


def _card(session: ChatSession, voice: str, language: str) -> str:
    letter = "AB"[session.hidden.index(voice)] if session.hidden else ""
    title = t("talk.answer", language, letter=letter) if session.hidden else t(f"talk.{voice}", language)
    turns = "".join(
        f'<div class="question" dir="auto">{html(question)}</div>'
        f"{_answer(answers[voice], bool(session.hidden), language)}"
        for question, answers in session.turns
        if voice in answers
    )
    return f'<section class="card" data-voice="{letter or voice}"><h3>{html(title)}</h3>{turns}</section>'


def _answer(answer: dict[str, Any], blind: bool, language: str) -> str:
    if "error" in answer:
        kind = answer.get("kind")
        return note(t(f"talk.{kind}", language) if kind in _TRANSLATED else str(answer["error"]), "bad")
    parts = []
    if "tokens" in answer:
        if answer.get("score") is not None and not blind:
            parts.append(t("talk.reward", language, score=f"{answer['score']:+.2f}"))
            if answer.get("spread") is not None:
                parts.append(t("talk.spread", language, spread=f"{answer['spread']:.2f}"))
        parts.append(t("talk.tokens", language, count=answer["tokens"]))
        if answer.get("stopped"):
            parts.append(t("talk.stopped", language))
        elif not answer["finished"]:
            parts.append(t("talk.truncated", language))
        if answer.get("dropped"):
            parts.append(t("talk.dropped", language))
    text = html(answer["text"]) or "&nbsp;"
    return f'<div class="answer" dir="auto">{text}</div><div class="soft">{html(" · ".join(parts)) or "…"}</div>'
